"""The terminal: lines in, answers out, piped or typed, of one model and of two."""

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from serving import TINY, room_of, says
from test_saved import SHORT

from factory.chat import show
from factory.chat.talk import Talk
from factory.data.tools import FORMATS

GREEDY = ("tracking=none", "generation.temperature=0", "generation.max_tokens=6")


class Input(io.StringIO):
    """What is typed. An exception among the lines is raised where it would be read."""

    def __init__(self, text: str, *, terminal: bool):
        super().__init__(text)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def talk(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Callable[..., Any]:
    def talk(text: str, *words: str, terminal: bool = False) -> Any:
        monkeypatch.setattr(sys, "stdin", Input(text, terminal=terminal))
        of = () if any(word.startswith("run=") for word in words) else (f"model.path={tiny_model}", "hardware=cpu")
        return command("chat", *of, "precision=fp32", *GREEDY, *words)

    return talk


def test_what_libraries_do_without_is_not_told() -> None:
    logging.getLogger("bitsandbytes.backends").setLevel(logging.NOTSET)
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    assert logger.isEnabledFor(logging.WARNING)
    show.unheard()
    assert not logger.isEnabledFor(logging.WARNING) and logger.isEnabledFor(logging.ERROR)


def test_a_pipe_gets_the_answer_and_nothing_else(talk: Callable[..., Any]) -> None:
    said = talk("Hi\n")
    assert said.code == 0 and said.out.strip() and "Reading" not in said.out and "context" not in said.out
    assert talk("Hi\n").out == said.out
    long = talk("Hi " * 300)
    assert long.code == 1 and "leave no room" in long.err


@pytest.mark.parametrize(
    ("text", "rule", "wrong"),
    [
        ("", "chat-nothing-piped", "it is empty"),
        ("  \n", "chat-nothing-piped", "it is empty"),
        ("Hi\n/set temperature=0\n/exit\n", "chat-command-piped", "its line 2 is the command /set"),
        ("/save\ttalk.jsonl", "chat-command-piped", "its line 1 is the command /save"),
        ("Hi\r\n/quit\r\n", "chat-command-piped", "its line 2 is the command /quit"),
    ],
)
def test_a_pipe_that_is_no_message_is_refused_before_a_model_is_read(
    text: str, rule: str, wrong: str, talk: Callable[..., Any]
) -> None:
    said = talk(text)
    assert (said.code, said.rules, said.out) == (2, [rule], "")
    assert wrong in said.err and "Reading" not in said.err


def test_a_piped_message_may_have_lines_that_are_like_commands(talk: Callable[..., Any]) -> None:
    said = talk(" /set x\n/usr/bin/env\n/helpful\nuse /exit\n")
    assert said.code == 0 and said.out.strip()


def test_commands_of_a_terminal(talk: Callable[..., Any], here: Path) -> None:
    lines = [
        "/help",
        "Hi",
        "/regenerate",
        "/system Be brief.",
        "/set max_tokens=2",
        "/nonsense",
        '"""one',
        'two"""',
        "three \\",
        "four",
        "/save talk.jsonl",
        "/clear",
        "/exit",
        "never read",
    ]
    said = talk("\n".join(lines), terminal=True)
    assert said.code == 0
    for wanted in ("/regenerate  ", "The system message is set.", "max_tokens=2", "there is no /nonsense", "Saved to"):
        assert wanted in said.out
    saved = (here / "talk.jsonl").read_text()
    assert '"content": "one\\ntwo"' in saved and '"content": "three \\nfour"' in saved and "never read" not in saved


def test_ctrl_c_ends_an_answer_and_not_the_conversation(
    talk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = show._pieces
    asked = 0

    def interrupted(*given: Any) -> Any:
        nonlocal asked
        asked += 1
        pieces = real(*given)
        try:
            yield next(pieces)
            if asked == 1:
                raise KeyboardInterrupt
            yield from pieces
        finally:
            pieces.close()

    monkeypatch.setattr(show, "_pieces", interrupted)
    said = talk("Hi\nAgain\n", terminal=True)
    assert said.code == 0 and asked == 2
    assert said.out.count("[…]") == 2  # cut by Ctrl-C, and by its length


def test_a_talk_outlives_its_engine(talk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    real: Any = show._command

    def command(talk: Talk, speakers: list[show.Speaker], line: str) -> bool:
        if line == "/set max_tokens=3":
            speakers[0].room.engine.stop(0)
        return real(talk, speakers, line)

    monkeypatch.setattr(show, "_command", command)
    said = talk("Hi\n/set max_tokens=3\nAgain\n/save talk.jsonl\n", terminal=True)
    assert said.code == 0 and "its engine has ended" in said.out
    saved = (here / "talk.jsonl").read_text()
    assert "Hi" in saved and "Again" not in saved


def test_two_models_side_by_side(talk: Callable[..., Any], execute: Callable[..., Any]) -> None:
    """The base and what was trained of it, on one copy of the weights."""
    execute("method=lora", "stage.max_steps=3", "stage.learning_rate=1e-1", *SHORT[2:])
    said = talk("Hi\n", "run=run", "compare=[base,run]")
    _, base, run = said.out.replace("run:", "base:").split("base:")
    assert said.code == 0 and base.strip() != run.strip()
    assert said.err.count("Reading") == 1
    assert talk("Hi\n", "run=run").out.strip() == run.strip()
    typed = talk("Hi\n", "run=run", "compare=[run,base]", terminal=True)
    assert typed.code == 0 and typed.out.index("run") < typed.out.index("base")


def test_a_call_after_a_text_is_read_where_its_mark_is_a_special_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Mistral's is, which is not shown: the list alone is a call only where an answer begins with it."""
    model = tiny.save(tmp_path / "long", max_position_embeddings=512)
    room, settings = room_of("chat", f"model.path={model}", "data.tools=mistral", *TINY)
    room.prompts.tokenizer.add_tokens(["[TOOL_CALLS]"], special_tokens=True)
    call: Any = {"name": "look_up", "arguments": {"word": "ebb"}}
    says(room, f"Let me see.{FORMATS['mistral'].calls([call])}", monkeypatch)
    talk = Talk(settings.generation, None, tools=({"name": "look_up"},))
    talk.ask("What is an ebb?")
    said = show._written(talk, [show.Speaker("model", room, "model")], 0)
    room.engine.stop(0)
    assert (said.text, said.calls, said.cut) == ("Let me see.", (call,), False)
    assert "[TOOL_CALLS]" not in capsys.readouterr().out


def test_nothing_of_an_answer_moves_the_cursor() -> None:
    assert show._visible("a\x1b[2Jb\x07\tc\nd\x9be") == "a[2Jb\tc\nde"
