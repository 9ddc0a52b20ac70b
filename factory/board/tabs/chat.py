"""Chat: with any run, and another beside it, over `factory serve`: the same questions, sampling and streams."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from factory.board import fields, talking
from factory.board.planned import texts
from factory.board.said import Words, words
from factory.board.shown import as_printed
from factory.board.tabs import listed
from factory.board.talking import Talk, Turn
from factory.config.compose import Composed
from factory.config.groups import options
from factory.config.line import Overrides, flags, spelt
from factory.config.refusal import UserError
from factory.inference.calls import open_call
from factory.plan.untrained import NOT_ONE_PROCESS

if TYPE_CHECKING:
    from factory.board.page import Page

_NOTHING, _BASE = "", "base"
_VOTES = ("left", "tie", "right")
_TAKEN = ("model", "precision", "hardware", "data.reasoning", "data.tools")
_STRETCHED = "model.rope_scaling"  # for what a run's rows need: what it started from reaches as far as it did
Sides = tuple[tuple[str, ...] | None, tuple[str, ...] | None]  # the words of `factory serve` of each
Talks = tuple[Talk, Talk]
_NOBODY: Sides = (None, None)
_SILENCE: Talks = ([], [])


@dataclass(frozen=True, slots=True)
class _Parts:
    """What more than one piece of the tab needs.

    `loaded` holds Sides, `said` Talks, `voted` how many questions were voted on.
    """

    state: Any
    verdict: Any
    boxes: tuple[Any, Any]
    blind: Any
    loaded: Any
    said: Any
    voted: Any


def build(page: "Page") -> None:
    left, right, load = _choices(page)
    state = gr.Markdown(elem_id="chat-state")
    with gr.Row():
        boxes = (_box(page, "left"), _box(page, "right"))
    say, images, clear = _question(page)
    settings = _sampling(page)
    tools = _tools(page)
    with gr.Row():
        blind = page.say(gr.Checkbox, {"label": "vote_blind"}, False, elem_id="vote-blind")
        votes = [page.say(gr.Button, {"value": f"vote_{vote}"}, size="sm", elem_id=f"vote-{vote}") for vote in _VOTES]
    verdict = gr.Markdown(elem_id="verdict")
    parts = _Parts(state, verdict, boxes, blind, gr.State(_NOBODY), gr.State(_SILENCE), gr.State(0))
    given = [say, images, parts.loaded, parts.said, tools, *settings, page.language]
    shown = [say, images, parts.said, *boxes, state]
    asking = say.submit(partial(_asked, page), given, shown, show_progress="hidden")
    _loading(page, parts, (left, right, load), images, tools, asking)
    _voting(page, parts, votes)
    forgotten, talk = [clear.click, *(box.clear for box in boxes)], [parts.said, *boxes, state]
    gr.on(forgotten, lambda: (_SILENCE, [], [], ""), None, talk, cancels=[asking])
    gr.on([load.click, *forgotten], lambda: 0, None, parts.voted, show_progress="hidden")


# --- what is drawn


def _choices(page: "Page") -> tuple[Any, Any, Any]:
    with gr.Row(elem_classes="f-line"):
        sides = [
            page.say(gr.Dropdown, {"label": f"chat_{side}"}, [], elem_id=f"chat-{side}", min_width=260)
            for side in ("left", "right")
        ]
        load = page.say(gr.Button, {"value": "chat_load"}, elem_id="chat-load", scale=0, min_width=120)

    def models(language: str, one: str | None, other: str | None) -> tuple[Any, Any]:
        say = words(language)
        runs = listed.named(page, say, listed.trained)
        left = [(say("chat_base"), _BASE), *runs]
        right = [(say("chat_nothing"), _NOTHING), *left]
        return listed.kept(left, one, runs[0][1] if runs else _BASE), listed.kept(right, other, _NOTHING)

    again = [page.tab.select, page.language.change]
    gr.on(again, models, [page.language, *sides], sides, show_progress="hidden")
    return sides[0], sides[1], load


def _box(page: "Page", side: str) -> Any:
    return page.say(
        gr.Chatbot,
        {"label": f"side_{side}"},
        elem_id=f"talk-{side}",
        height=380,
        buttons=["copy", "copy_all"],
        visible=side == "left",
    )


def _question(page: "Page") -> tuple[Any, Any, Any]:
    """What is typed, with images where all that are loaded see."""
    images = page.say(
        gr.File,
        {"label": "chat_images"},
        file_count="multiple",
        file_types=["image"],
        elem_id="chat-images",
        height=120,
        visible=False,
    )
    with gr.Row(elem_classes="f-line"):
        box = {"elem_id": "chat-say", "scale": 5, "submit_btn": True, "max_lines": 12}
        say = page.say(gr.Textbox, {"label": "chat_say"}, **box)
        clear = page.say(gr.Button, {"value": "chat_clear"}, scale=0, min_width=110, elem_id="chat-clear")
    return say, images, clear


def _sampling(page: "Page") -> list[Any]:
    """The system message, then what `_SETTINGS` names."""

    def made(kind: Any, name: str, *given: Any, **options: Any) -> Any:
        return page.say(kind, {"label": f"chat_{name}"}, *given, elem_id=f"chat-{name}", **options)

    system = made(gr.Textbox, "system")
    with gr.Row():
        return [
            system,
            made(gr.Slider, "temperature", 0, 2, value=0, step=0.05),
            made(gr.Slider, "top_p", 0.05, 1, value=0.95, step=0.05),
            made(gr.Slider, "tokens", 1, 2048, value=128, step=1),
            made(gr.Textbox, "seed", min_width=120),
        ]


_SETTINGS = ("temperature", "top_p", "max_tokens", "seed")


def _tools(page: "Page") -> Any:
    """Where all that are loaded have a way to call them."""
    texts = {"label": "chat_tools", "info": "chat_tools_info"}
    return page.say(gr.Textbox, texts, lines=3, max_lines=12, elem_id="chat-tools", visible=False)


# --- what is done


def _loading(page: "Page", parts: _Parts, choices: tuple[Any, Any, Any], images: Any, tools: Any, asking: Any) -> None:
    """What is `asking` of the models before them ends."""
    left, right, load = choices

    def loading(one: str, other: str, overrides: Overrides, blind: bool, language: str) -> Iterator[tuple[Any, ...]]:
        say = words(language)
        sides, wrong = _NOBODY, ""
        try:
            sides = _drawn_lots((_words(page, one, other, overrides), _words(page, other, one, overrides)), blind)
        except UserError as error:
            wrong = as_printed(error)
        there = [side for side in sides if side is not None]
        right_box = gr.update(value=[], visible=sides[1] is not None)

        def nobody(state: str) -> tuple[Any, ...]:
            return _NOBODY, _SILENCE, state, "", [], right_box, gr.update(), gr.update()

        if not there:
            yield nobody(wrong or say("chat_choose"))  # of a click before the choices are drawn
            return
        page.children.keep(set(there))
        yield nobody(say("chat_loading"))
        try:
            can = [talking.can(page.children.served(side)) for side in there]
        except RuntimeError as error:
            yield nobody(as_printed(error))
            return
        sees = gr.update(visible=all(each.images for each in can), value=None)
        # unseen, a list of tools would be sent all the same, and refused
        calls = gr.update(visible=True) if all(each.tools for each in can) else gr.update(visible=False, value="")
        yield sides, _SILENCE, say("chat_ready"), "", [], right_box, sees, calls

    given = [left, right, page.overrides, parts.blind, page.language]
    outputs = [parts.loaded, parts.said, parts.state, parts.verdict, *parts.boxes, images, tools]
    load.click(loading, given, outputs, cancels=[asking])


def _drawn_lots(sides: Sides, blind: bool) -> Sides:
    return (sides[1], sides[0]) if blind and None not in sides and random.random() < 0.5 else sides  # noqa: S311  which side is left


def _words(page: "Page", chosen: str | None, beside: str | None, overrides: Overrides) -> tuple[str, ...] | None:
    """What `factory serve` is given. The base is that of the run beside it; where there is none, the form's model.

    Raises UserError.
    """
    if not chosen:
        return None
    if chosen != _BASE:
        return (f"run={spelt(chosen)}",) if page.runs.known(chosen) else None
    if page.runs.known(beside):
        return _of_base(page, page.planner.untrained(f"run={spelt(str(beside))}"), _TAKEN)
    found = _of_base(page, page.planner.composed(overrides), ("model",))
    if outside := page.planner.outside(found):
        raise UserError(*outside)
    return found


def _of_base(page: "Page", made: Composed, groups: tuple[str, ...]) -> tuple[str, ...]:
    """The model option, and what of these groups and of how weights are held is otherwise than by default.

    Raises UserError.
    """
    if made.problems:  # composed without what is wrong: it would be another model
        raise UserError(*made.problems)
    option = made.options.get("model")
    chosen = (f"model={fields.as_typed(option)}",) if option in options("model", made.config_dirs) else ()
    bare = page.planner.untrained(*chosen, config_dirs=made.config_dirs).tree
    pairs = ((path, fields.at(made.tree, path), fields.at(bare, path)) for path in (*groups, "method.quantization"))
    own = (folder for folder in made.config_dirs if folder not in page.planner.config_dirs)
    return (*flags(own), *chosen, *(text for pair in pairs for text in _differing(*pair)))


def _differing(path: str, value: Any, other: Any) -> Iterator[str]:
    if isinstance(value, dict) and isinstance(other, dict):
        for name in other | value:
            yield from _differing(f"{path}.{name}", value.get(name), other.get(name))
    elif value != other and path not in (_STRETCHED, *NOT_ONE_PROCESS):
        word = f"{path}={spelt(fields.as_typed(value))}"
        stays = not isinstance(value, str) or len(texts(word)) > 1
        yield word if stays else f"{path}='{value}'"  # a revision of digits would be a number


def _voting(page: "Page", parts: _Parts, buttons: list[Any]) -> None:
    def voted(vote: str, sides: Sides, talks: Talks, before: int, language: str) -> tuple[str, int]:
        say = words(language)
        if None in sides or not all(talks):
            return say("vote_first"), before
        questions = [turn for turn in talks[0] if turn["role"] == "user"]
        if len(questions) == before:
            return say("vote_again"), before
        names = [" ".join(side or ()) or _BASE for side in sides]
        page.votes.add(vote, names, questions)
        counted = page.votes.counted(names).items()
        told = [
            say("vote_was", left=f"`{names[0]}`", right=f"`{names[1]}`"),
            *(f"`{name}`: {won:g} / {count}" for name, (won, count) in counted),
        ]
        return "  \n".join(told), len(questions)

    given = [parts.loaded, parts.said, parts.voted, page.language]
    for vote, button in zip(_VOTES, buttons, strict=True):
        button.click(partial(voted, vote), given, [parts.verdict, parts.voted])


def _asked(
    page: "Page", text: str, files: list[str] | None, sides: Sides, talks: Talks, tools: str, system: str, *more: Any
) -> Iterator[tuple[Any, ...]]:
    """The question goes to both sides; where one has called a tool, its result to those that wait for one."""
    *numbers, language = more
    say = words(language)

    def shown(talks: Talks, state: str, *typed: Any) -> tuple[Any, ...]:
        """`typed`: the box's text and images, left alone while the answer grows: one may be typing what comes next."""
        return *(typed or (gr.update(), gr.update())), talks, *(_drawn(talk, say) for talk in talks), state

    if sides[0] is None:
        yield shown(talks, say("chat_first"))
        return
    try:
        offered = talking.tools_of(tools)
    except talking.Wrong as error:
        yield shown(talks, say("chat_tools_wrong", error=error))
        return
    settings = {name: value for name, value in zip(_SETTINGS, numbers, strict=True) if value not in (None, "")}
    settings |= {"tools": offered} if offered else {}
    waiting = [open_call(talk) is not None for talk in talks]
    if not (text.strip() or files or any(waiting)):
        yield shown(talks, say("chat_say"))
        return
    spoken = [side is not None and (waits or not any(waiting)) for side, waits in zip(sides, waiting, strict=True)]
    told = [talking.told(talk, text, files or []) if to else talk for talk, to in zip(talks, spoken, strict=True)]
    asked = (told[0], told[1])
    yield shown(asked, "", "", gr.update() if any(waiting) else None)  # a call's result takes no images
    try:
        live = {
            place: talking.answers(page.children.served(side), told[place], system, settings)
            for place, side in enumerate(sides)
            if side is not None and spoken[place] and open_call(told[place]) is None
        }
    except RuntimeError as error:  # it has ended meanwhile, and does not start again
        yield shown(talks, as_printed(error), text, files)
        return
    for talks in _together(asked, live):
        yield shown(talks, _awaited(talks, say))


def _together(talks: Talks, live: dict[int, Iterator[Turn]]) -> Iterator[Talks]:
    """Both answers as they grow: each server writes on while the other is read."""
    told, grown = talks, list(talks)
    while live:
        for place, stream in list(live.items()):
            turn = next(stream, None)
            if turn is None:
                del live[place]
            else:
                grown[place] = [*told[place], turn]
        yield grown[0], grown[1]
    yield grown[0], grown[1]


def _awaited(talks: Talks, say: Words) -> str:
    """Which call waits for its result."""
    call = next(filter(None, map(open_call, talks)), None)
    return "" if call is None else say("chat_result", call=_call(call))


def _drawn(talk: Talk, say: Words) -> list[dict[str, Any]]:
    """As Gradio's Chatbot shows it."""
    found = list[dict[str, Any]]()
    for turn in talk:
        role = "assistant" if turn["role"] == "assistant" else "user"
        found += [{"role": role, "content": {"path": path}} for path in turn.get("paths", ())]
        text = say("chat_gives", call=turn["name"], text=turn["content"]) if turn["role"] == "tool" else turn["content"]
        found += [{"role": role, "content": text}] if text else []
        found += [{"role": role, "content": f"`{_call(call)}`"} for call in turn.get("tool_calls", ())]
        found += [{"role": role, "content": say("chat_cut")}] if turn.get("cut") else []  # apart: a text may be code
    return found


def _call(call: dict[str, Any]) -> str:
    """As `look_up(key="one")`."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}").items()
    except ValueError:
        return f"{function['name']}({function['arguments']})"
    said = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments)
    return f"{function['name']}({', '.join(said)})"
