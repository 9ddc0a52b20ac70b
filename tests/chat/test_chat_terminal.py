"""The terminal: lines in, answers out, piped or typed, of one model and of two."""

import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from serving import TINY, room_of, says
from test_saved import SHORT
from test_talk import GENERATION

from factory.chat import show
from factory.chat.talk import Talk, Wrong
from factory.data.tools import FORMATS
from factory.inference import asked
from factory.inference.room import Piece

GREEDY = ("tracking=none", "generation.temperature=0", "generation.max_tokens=6")


class Input(io.TextIOWrapper):
    """What is typed. A line that names a signal is sent as that where it would be read."""

    def __init__(self, text: str | bytes, *, terminal: bool):
        super().__init__(io.BytesIO(text.encode() if isinstance(text, str) else text), encoding="utf-8")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def readline(self, *size: Any) -> str:
        line = super().readline(*size)
        if line.strip() in signal.Signals.__members__:
            signal.raise_signal(signal.Signals[line.strip()])
        return line


@pytest.fixture
def interrupting() -> Iterator[None]:
    """Signals raise KeyboardInterrupt, as the program has it until a verb says otherwise."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def talk(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Callable[..., Any]:
    def talk(text: str | bytes, *words: str, terminal: bool = False) -> Any:
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
        ("Hi\nGrüße\n".encode("latin-1"), "chat-encoding", "line 2, byte 3 (0xFC) is not UTF-8"),
    ],
)
def test_a_pipe_that_is_no_message_is_refused_before_a_model_is_read(
    text: str | bytes, rule: str, wrong: str, talk: Callable[..., Any]
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("typed", ["{signal}\nnever read\n", "Hi\n/never\n"])
@pytest.mark.usefixtures("interrupting")
def test_what_asks_a_command_to_end_ends_the_conversation(
    number: signal.Signals, typed: str, talk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the prompt, and in the middle of an answer."""

    def struck(*_: Any) -> Iterator[Piece]:
        yield Piece("Ho", None)
        signal.raise_signal(number)

    monkeypatch.setattr(show, "_pieces", struck)
    said = talk(typed.format(signal=number.name), terminal=True)
    assert (said.code, said.err.splitlines()[-1]) == (130, "Interrupted.") and "never" not in said.out
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


@pytest.mark.usefixtures("interrupting")
def test_ctrl_c_at_the_prompt_says_how_a_conversation_ends(talk: Callable[..., Any]) -> None:
    said = talk("SIGINT\nHi\n", terminal=True)
    assert said.code == 0 and "/exit or Ctrl-D ends" in said.out and "[…]" in said.out


def test_a_second_ctrl_c_and_one_in_a_command_lose_nothing(
    talk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    calls: dict[str, int] = {}

    def at_first(where: Any, name: str) -> None:
        real = getattr(where, name)

        def interrupted(*given: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            if calls[name] == 1:
                raise KeyboardInterrupt
            return real(*given)

        monkeypatch.setattr(where, name, interrupted)

    at_first(show, "_called")  # once an answer has been stopped
    at_first(Talk, "save")
    said = talk("Hi\nAgain\n/save talk.jsonl\n/save talk.jsonl\n", terminal=True)
    assert said.code == 0 and said.out.count("the message is taken back") == 1
    saved = (here / "talk.jsonl").read_text()
    assert saved.count('"user"') == 1 and "Again" in saved


def test_what_is_stopped_before_it_is_answered_is_taken_back(
    talk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    """An empty answer would be trained on."""
    real: Any = show._pieces

    def interrupted(talk: Talk, *given: Any) -> Any:
        if "Again" not in str(talk.sides):
            raise KeyboardInterrupt
        yield from real(talk, *given)

    monkeypatch.setattr(show, "_pieces", interrupted)
    said = talk("Hi\nAgain\n/save talk.jsonl\n", terminal=True)
    assert said.code == 0 and "the message is taken back" in said.out
    assert "Hi" not in (here / "talk.jsonl").read_text()


@pytest.mark.usefixtures("interrupting")
def test_ctrl_c_waits_for_no_model_that_reads_its_prompt_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends by itself later."""
    reading, go, closed = threading.Event(), threading.Event(), threading.Event()

    def pieces(talk: Talk, speakers: Any, number: int) -> Iterator[Piece]:
        if number == 0:
            yield Piece("Ho", None)
            reading.wait(20)
            os.kill(os.getpid(), signal.SIGINT)
            return
        reading.set()
        go.wait(20)
        try:
            yield Piece("too late", None)
        finally:
            closed.set()

    monkeypatch.setattr(show, "_pieces", pieces)
    talk, begun = Talk(GENERATION, None, 2), time.monotonic()
    talk.ask("Hi")
    nobody: Any = None
    show._answer(talk, [show.Speaker(title, nobody, title) for title in ("one", "other")])
    assert time.monotonic() - begun < 10
    go.set()
    assert closed.wait(10)
    assert [side[-1]["content"] for side in talk.sides] == ["Ho", ""]


@pytest.mark.usefixtures("interrupting")
def test_ctrl_c_hides_no_error_of_the_other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def pieces(talk: Talk, speakers: Any, number: int) -> Iterator[Piece]:
        yield Piece("Ho", None)
        if number == 0:
            raise Wrong("the model failed")
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)

    monkeypatch.setattr(show, "_pieces", pieces)
    talk, nobody = Talk(GENERATION, None, 2), SimpleNamespace()
    talk.ask("Hi")
    with pytest.raises(Wrong, match="the model failed"):
        show._answer(talk, [show.Speaker(title, nobody, title) for title in ("one", "other")])  # type: ignore[arg-type]
    assert talk.sides == [[], []]


def test_what_is_typed_in_another_encoding_is_not_asked(talk: Callable[..., Any], here: Path) -> None:
    said = talk("Grüße\n".encode("latin-1") + b"Hi\n/save talk.jsonl\n", terminal=True)
    assert said.code == 0 and "line 1, byte 3 (0xFC) is not UTF-8: nothing was asked" in said.out
    saved = (here / "talk.jsonl").read_text()
    assert saved.count('"user"') == 1 and "Hi" in saved


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


def test_models_answer_in_the_order_in_which_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with an adapter are read first, whatever the two are called."""

    def side(run: str, adapter: str | None) -> Any:
        load = SimpleNamespace(adapter=adapter, run=run)
        return show.Asked(asked.Side("0", run), SimpleNamespace(steps=SimpleNamespace(load=load)))  # type: ignore[arg-type]

    monkeypatch.setattr(show, "_base", lambda plan: plan.steps.load.run)
    monkeypatch.setattr(show, "opened", lambda plan, *_: plan.steps.load.run)
    nothing: Any = SimpleNamespace(engine=None)
    for sides in ([side("a", None), side("b", "b")], [side("b", "b"), side("a", None)]):
        rooms: list[Any] = [speaker.room for speaker in show.speakers_of(sides, nothing)]
        assert rooms == [each.side.run for each in sides]


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
    said, speaker = show.Said(), show.Speaker("model", room, "model")
    show._write(talk, [speaker], 0, said)
    said = show._called(talk, speaker, said)
    room.engine.stop(0)
    assert (said.text, said.calls, said.cut) == ("Let me see.", (call,), False)
    assert "[TOOL_CALLS]" not in capsys.readouterr().out


def test_nothing_of_an_answer_moves_the_cursor() -> None:
    assert show._visible("a\x1b[2Jb\x07\tc\nd\x9be") == "a[2Jb\tc\nde"
