"""One key of a form: how it is set, by its type."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from factory.board.fields import Field
from factory.board.said import Words
from factory.config import line
from factory.config.line import Overrides

# of all that writes the settings: each reads what the one before has left, or a field that is left as its neighbour's
# button is pressed would write back what it had read
ONE_BY_ONE: dict[str, Any] = {"concurrency_id": "settings", "concurrency_limit": 1}
_SET = "\u25cf"  # a mark beside what is not at its default
Typed = Callable[[Any], str]  # a component's value as it is typed on the command line


@dataclass(frozen=True, slots=True)
class Follows:
    """What is shown of new settings, in the same answer as these: asked for afterwards it would come a way later."""

    of: Callable[[Overrides], tuple[Any, ...]]
    outputs: tuple[Any, ...]


_NOTHING = Follows(lambda _: (), ())


def draw(
    each: Field, say: Words, overrides: Any, *, is_set: bool, formed: int | str | None, follows: Follows = _NOTHING
) -> None:
    """Its component; what is typed into it goes into the state `overrides`.

    Drawn again with the same `formed` it keeps what a person is just typing.
    """
    name, meaning = each.path.partition(".")[2], say.doc(each.path, each.doc)
    made, typed = _MADE[each.kind](
        each,
        label=f"{name}  {_SET}" if is_set else name,
        info=f"{meaning} ({each.type(say.phrase)})" if each.kind == "text" else meaning,
        key=f"{each.path}-{formed}",
        elem_id=f"key-{each.path}",
        interactive=True,
        preserved_by_key="value",
    )
    drawn = typed(made.value)

    def edited(before: Overrides, value: Any) -> Any:
        text = typed(value)
        default = text in ("", "''") or (text == drawn and not is_set)  # left as it was: nothing is set
        after = line.changed(before, each.path, None if default else text)
        return (after, *follows.of(after)) if follows.outputs else after  # Gradio takes one output as it is

    listened = [made.input, made.blur, made.submit] if each.kind == "text" else [made.input]
    outputs = [overrides, *follows.outputs]
    gr.on(
        listened, edited, [overrides, made], outputs, show_progress="hidden", trigger_mode="always_last", **ONE_BY_ONE
    )


def _flag(each: Field, **common: Any) -> tuple[Any, Typed]:
    return gr.Checkbox(value=each.value == "true", **common), lambda value: "true" if value else "false"


def _choice(each: Field, **common: Any) -> tuple[Any, Typed]:
    return gr.Dropdown(list(each.choices), value=each.value, **common), str


def _several(each: Field, **common: Any) -> tuple[Any, Typed]:
    chosen = [item for item in each.value.strip("[]").split(",") if item]
    return gr.Dropdown(list(each.choices), value=chosen, multiselect=True, **common), line.listed


def _text(each: Field, **common: Any) -> tuple[Any, Typed]:
    return gr.Textbox(value=each.value, lines=1, max_lines=4, **common), line.spelt


_MADE = {"flag": _flag, "choice": _choice, "several": _several, "text": _text}
