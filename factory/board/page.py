"""The page: a header, and a tab a module. What all tabs share is `Page`; what one typed is in its session."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gradio as gr

from factory.board.children import Children
from factory.board.planned import Planner
from factory.board.runs import Runs
from factory.board.said import LANGUAGES, words
from factory.board.tabs import chat, compare, configure, evaluate, export, preview, train
from factory.board.votes import Votes
from factory.config.line import Overrides, command

_TABS = {
    "configure": configure.build,
    "preview": preview.build,
    "runs": train.build,
    "compare": compare.build,
    "evaluate": evaluate.build,
    "chat": chat.build,
    "export": export.build,
}
# a browser keeps what it was told last: a reload neither speaks English again nor shines
_DARK = "() => { localStorage.setItem('factory-dark', document.body.classList.toggle('dark')); }"
_SPOKEN = "(code) => { localStorage.setItem('factory-language', code); document.documentElement.lang = code; }"
_AS_BEFORE = """() => {
  const dark = localStorage.getItem('factory-dark');
  if (dark !== null) document.body.classList.toggle('dark', dark === 'true');
  return localStorage.getItem('factory-language') ?? 'en';
}"""


@dataclass(slots=True)
class Page:
    """`overrides` is the form's state; `formed` counts how often it was changed from elsewhere than its own fields.

    `told` are components whose words follow the language: which property is which text.
    """

    planner: Planner
    runs: Runs
    children: Children
    votes: Votes
    saved: Path  # where files to download lie
    blocks: Any = None
    language: Any = None
    overrides: Any = None
    formed: Any = None
    selected: Any = None  # which tab is open
    tab: Any = None  # the one that is being built
    current: Any = None  # the run that was started last
    told: list[tuple[Any, dict[str, str]]] = field(default_factory=list)

    def say(self, kind: Callable[..., Any], texts: dict[str, str], *given: Any, **options: Any) -> Any:
        """A component whose label, value or title are texts by these names, in whatever language is chosen."""
        made = kind(*given, **{name: self.text(text) for name, text in texts.items()}, **options)
        self.told.append((made, texts))
        return made

    def render(self, inputs: list[Any], triggers: list[Any]) -> Any:
        """A part that is drawn anew; one at a time: Gradio walks a session's listeners while another draws its own."""
        once = {"concurrency_limit": 1, "concurrency_id": "render"}
        return gr.render(inputs, triggers=triggers, show_progress="hidden", **once)

    def command(self, overrides: Overrides) -> str:
        """What a terminal is given for the same."""
        return command(overrides, self.planner.config_dirs)

    def text(self, name: str) -> str:
        """Of a component that is just being made."""
        return words("en")(name)


def page(planner: Planner, runs: Runs, children: Children, votes: Votes) -> Any:
    """The whole of it, to be launched."""
    made = Page(planner, runs, children, votes, saved=Path(mkdtemp(prefix="factory-")))
    with gr.Blocks(title="Factory", analytics_enabled=False, fill_width=True) as blocks:
        made.blocks = blocks
        made.overrides, made.formed, made.current = gr.State(()), gr.State(0), gr.State(None)
        _header(made)
        with gr.Tabs(selected="configure") as made.selected:
            for name, build in _TABS.items():
                made.tab = made.say(gr.Tab, {"label": f"tab.{name}"}, id=name, elem_id=f"tab-{name}")
                with made.tab:
                    build(made)
        _speak(made)
    return blocks


def _header(made: Page) -> None:
    with gr.Row(elem_classes="f-header"):
        gr.Markdown("# Factory", elem_id="title")
        made.language = made.say(
            gr.Radio,
            {"label": "language"},
            [(name, code) for code, name in LANGUAGES.items()],
            value="en",
            elem_id="language",
            scale=0,
            min_width=330,
        )
        theme = made.say(gr.Button, {"value": "theme"}, scale=0, min_width=150, size="md", elem_id="theme")
    theme.click(None, js=_DARK)
    made.language.change(None, made.language, js=_SPOKEN)
    made.blocks.load(None, None, made.language, js=_AS_BEFORE)


def _speak(made: Page) -> None:
    """A change of the language reaches every text that stands outside of what is drawn anew."""

    def speak(language: str) -> list[Any]:
        say = words(language)
        spoken: list[dict[str, Any]] = [
            {name: say(text) for name, text in properties.items()} for _, properties in made.told
        ]
        return [gr.update(**properties) for properties in spoken]

    made.language.change(speak, made.language, [component for component, _ in made.told], show_progress="hidden")
