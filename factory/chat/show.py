"""The terminal of a conversation: lines are read, answers are written as they come, two of them side by side."""

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from io import TextIOWrapper
from typing import Any

from factory.chat.talk import HELP, Talk, Wrong
from factory.config.refusal import refuse
from factory.config.settings import Settings
from factory.data.encoding import encoding_of
from factory.data.read.wrong import byte_words
from factory.data.record import BadRow, ToolCall
from factory.inference import asked, calls
from factory.inference.room import Piece, Room, opened, to_stderr
from factory.inference.text import written
from factory.inference.types import Done, Stopping
from factory.plan.plan import Plan
from factory.serve.show import engine_is_there, unheard
from factory.stopping import answered, asking

_BLOCK = '"""'
_ENDS = ("/exit", "/quit")
_HOW_IT_ENDS = "(/exit or Ctrl-D ends the conversation)"
# what moves a cursor or rings a bell is no part of an answer
_SILENT = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass(frozen=True, slots=True)
class Asked:
    side: asked.Side
    plan: Plan


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model under the name that it is shown with. `name` is the one that its room knows it by."""

    title: str
    room: Room
    name: str


@dataclass(slots=True)
class Said:
    """An answer, or as much of it as there is. `done`: the model has come to its end."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    cut: bool = False
    done: bool = False
    tokens: list[int] = field(default_factory=list)

    def stop(self) -> None:
        """Where the model has not come to its end, nothing more is taken."""
        self.cut = self.cut or not self.done


class _Ended(BaseException):
    """By a signal that asks the whole command to end, and not an answer, as Ctrl-C does."""


def show(sides: list[Asked], settings: Settings) -> int:
    """Holds the conversation. Raises UserError before it begins."""
    engine_is_there(settings.engine)
    unheard()
    if isinstance(sys.stdin, TextIOWrapper):  # bytes that are no text become letters that there are not: `_no_text`
        sys.stdin.reconfigure(errors="surrogateescape")
    piped = None if sys.stdin.isatty() else _message(sys.stdin.read())  # a model takes long to read
    speakers = speakers_of(sides, settings)
    talk = Talk(settings.generation, settings.chat.system, len(speakers))
    try:
        with answered(_end, [each for each in asking() if each != signal.SIGINT]):
            return _terminal(talk, speakers) if piped is None else _piped(talk, speakers, piped)
    except _Ended:
        raise KeyboardInterrupt from None  # told as what ends any other command is
    finally:
        for speaker in speakers:
            speaker.room.engine.stop(0)


def _end(*_: Any) -> None:
    raise _Ended


def speakers_of(sides: list[Asked], settings: Settings) -> list[Speaker]:
    """In the order of the sides. Models that differ in an adapter alone share their base."""
    found, rooms = dict[int, Speaker](), dict[str, Room]()
    adapted_first = sorted(enumerate(sides), key=lambda numbered: numbered[1].plan.steps.load.adapter is None)
    for number, each in adapted_first:
        of_base = _base(each.plan)
        title = each.side.title
        if each.plan.steps.load.adapter is None and of_base in rooms:
            room = rooms[of_base]
            name = next((name for name, adapter in room.names.items() if adapter is None), None)
            if name is not None:
                found[number] = Speaker(title, room, name)
                continue
        to_stderr(f"Reading {title} …")
        room = opened(each.plan, settings.engine, {}, title, to_stderr)
        rooms.setdefault(of_base, room)
        found[number] = Speaker(title, room, title)
    return [found[number] for number in range(len(sides))]


def _base(plan: Plan) -> str:
    """The same of models that have the same weights below their adapters, in the same numbers."""
    steps, settings = plan.steps, plan.settings
    load = replace(steps.load, adapter=None, adapter_fingerprint=None)
    held = (load, steps.patch, settings.method.quantization, settings.model.new_tokens)
    return repr((*held, encoding_of(plan), steps.train.autocast))


def _message(text: str) -> str:
    """All of a piped input, which may be a file, is one. Raises UserError."""
    if not text.strip():
        raise refuse(
            "chat-nothing-piped",
            "(standard input)",
            "it is empty",
            because="what is piped is the message that is answered",
            fix=(
                'pipe a question, as in: echo "Name three rivers." | factory chat; or begin `factory chat` in a '
                "terminal"
            ),
        )
    if where := _no_text(text):
        raise refuse(
            "chat-encoding",
            "(standard input)",
            where,
            because="what is piped is the message, and nobody knows which letters these bytes are",
            fix="convert it, as in: iconv -f latin1 -t utf-8 question.txt | factory chat",
        )
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("/") and (name := line.split()[0]) in (*_COMMANDS, *_ENDS):
            raise refuse(
                "chat-command-piped",
                "(standard input)",
                f"its line {number} is the command {name}",
                because="what is piped is one message, and the model would be asked with the command as a part of it",
                fix=(
                    "give keys instead (generation.temperature=0, chat.system=TEXT) and send the output to a file, "
                    "or type the commands in a terminal; a line of the message itself may begin with a space and a /"
                ),
            )
    return text.strip()


def _no_text(text: str) -> str | None:
    """Where it has bytes that are no text in the input's encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before, byte = text[: error.start], ord(text[error.start]) & 0xFF
        column = len(before.rpartition("\n")[2].encode(sys.stdin.encoding)) + 1
        return byte_words(before.count("\n") + 1, column, byte, sys.stdin.encoding.upper())
    return None


def _piped(talk: Talk, speakers: list[Speaker], text: str) -> int:
    """The answer, and nothing else, goes to the output."""
    talk.ask(text)
    for number, speaker in enumerate(speakers):
        if len(speakers) > 1:
            print(f"{'' if number == 0 else chr(10)}{speaker.title}:")
        said = Said()
        try:
            _write(talk, speakers, number, said)
        except KeyboardInterrupt:
            said.stop()
        except Wrong as error:
            to_stderr(str(error))
            return 1
        said = _called(talk, speakers[number], said)
        print("")
        if told := _after(said):
            to_stderr(told.strip())
        talk.answered(number, said.text, said.calls)
    return 0


def _terminal(talk: Talk, speakers: list[Speaker]) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  lines can be edited, and are remembered
    named = " and ".join(speaker.title for speaker in speakers)
    told = f"{named}: context {speakers[0].room.context:,} tokens. /help lists the commands."
    while True:
        try:
            if told:
                print(told)  # in here, where one more Ctrl-C ends no more than the others do
            told = ""
            if not _turn(talk, speakers):
                return 0
        except Wrong as error:
            told = str(error)
        except KeyboardInterrupt:
            told = f"\n{_stopped(talk)}"


def _turn(talk: Talk, speakers: list[Speaker]) -> bool:
    """What the user says, and what is said to that. False where the conversation ends. Raises Wrong."""
    try:
        line = _whole(input)
    except EOFError:
        print()
        return False
    if where := _no_text(line):
        raise Wrong(f"{where}: nothing was asked; have the terminal send {sys.stdin.encoding.upper()}")
    if not line.strip():
        return True
    if not line.startswith("/"):
        talk.ask(line)
    elif not _command(talk, speakers, line):
        return False
    _answer(talk, speakers)
    return True


def _stopped(talk: Talk) -> str:
    """What Ctrl-C did, which throws a line that is typed away. A question that nothing answers is taken back."""
    if not any(talk.waits(side) for side in range(talk.count)):
        return _HOW_IT_ENDS
    talk.undo(question=True)
    return f"Stopped before it was answered: the message is taken back. {_HOW_IT_ENDS}"


def _whole(read: Callable[[str], str]) -> str:
    """One line, or several: between lines of three quotes, or where one ends with a backslash."""
    line = read("> ")
    if line.strip().startswith(_BLOCK):
        found = [line.strip().removeprefix(_BLOCK)]
        while not found[-1].rstrip().endswith(_BLOCK):
            found.append(read(". "))
        found[-1] = found[-1].rstrip().removesuffix(_BLOCK)
        return "\n".join(found).strip("\n")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + read(". ")
    return line


def _command(talk: Talk, speakers: list[Speaker], line: str) -> bool:
    """False where the conversation ends. Raises Wrong."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name in _ENDS:
        return False
    if name not in _COMMANDS:
        raise Wrong(f"there is no {name}; /help lists the commands (a message may begin with a space and a /)")
    if told := _COMMANDS[name](talk, speakers, rest):
        print(told)
    return True


def _system(talk: Talk, _: list[Speaker], rest: str) -> str:
    talk.system = rest or None
    return "There is no system message." if talk.system is None else "The system message is set."


def _cleared(talk: Talk, _: list[Speaker], rest: str) -> str:
    talk.clear()
    return "The conversation begins anew."


def _again(talk: Talk, _: list[Speaker], rest: str) -> str:
    talk.undo(question=False)
    return ""


def _undone(talk: Talk, _: list[Speaker], rest: str) -> str:
    talk.undo(question=True)
    return "The last message is taken back."


def _given(talk: Talk, _: list[Speaker], rest: str) -> str:
    talk.result(rest)
    return ""


_COMMANDS: dict[str, Callable[[Talk, list[Speaker], str], str]] = {
    "/help": lambda talk, speakers, rest: HELP,
    "/system": _system,
    "/set": lambda talk, speakers, rest: talk.set(rest),
    "/tools": lambda talk, speakers, rest: f"{talk.read_tools(rest)} tools.",
    "/result": _given,
    "/regenerate": _again,
    "/undo": _undone,
    "/clear": _cleared,
    "/save": lambda talk, speakers, rest: f"Saved to {talk.save(rest, [each.title for each in speakers])}.",
}


def _answer(talk: Talk, speakers: list[Speaker]) -> None:
    """Of each model that is asked something. What Ctrl-C leaves of an answer counts as said."""
    waiting = [number for number in range(len(speakers)) if talk.waits(number)]
    if not waiting:
        return
    found = [Said() for _ in waiting]
    try:
        if len(waiting) == 1:
            _write(talk, speakers, waiting[0], found[0])
        else:
            _write_side_by_side(talk, speakers, found)
    except Wrong:
        talk.undo(question=True)  # nothing answers it, and nothing more could be said after it
        raise
    except KeyboardInterrupt:
        if not any(said.text or said.done for said in found):
            raise
        for said in found:
            said.stop()
    found = [_called(talk, speakers[number], said) for number, said in zip(waiting, found, strict=True)]
    for number, said in zip(waiting, found, strict=True):
        talk.answered(number, said.text, said.calls)
    if len(waiting) == 1:
        print(_after(found[0]))


def _pieces(talk: Talk, speakers: list[Speaker], number: int) -> Iterator[Piece | Done]:
    """Raises Wrong where there can be no answer."""
    speaker = speakers[number]
    try:
        yield from speaker.room.answer(talk.conversation(number), talk.sampling(), speaker.name, talk.generation.stop)
    except BadRow as error:
        raise Wrong(
            f"{speaker.title} cannot be asked: {error}; the message is taken back, /clear begins anew"
        ) from None
    except Stopping:  # at the question after the one that an error ended
        raise Wrong(f"{speaker.title} answers no more: its engine has ended; /save keeps what was said") from None


def _write(talk: Talk, speakers: list[Speaker], number: int, said: Said) -> None:
    """An answer as it comes, on the output, and into `said`. Raises Wrong."""
    pieces = _pieces(talk, speakers, number)
    try:
        for piece in pieces:
            _take(said, piece)
            if isinstance(piece, Piece):
                sys.stdout.write(_visible(piece.text))
                sys.stdout.flush()
    finally:
        pieces.close()  # type: ignore[attr-defined]


def _write_side_by_side(talk: Talk, speakers: list[Speaker], said: list[Said]) -> None:
    """Answers in columns, all as they come, and into `said`: each is read by a thread of its own. Raises Wrong."""
    from rich.live import Live

    from factory.run.screen import console

    failed, taking, stopped = list[Wrong](), threading.Lock(), threading.Event()

    def read(number: int) -> None:
        pieces = _pieces(talk, speakers, number)
        try:
            for piece in pieces:
                with taking:
                    if stopped.is_set():
                        return
                    _take(said[number], piece)
        except Wrong as error:
            failed.append(error)
        finally:
            pieces.close()  # type: ignore[attr-defined]

    threads = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(len(speakers))]
    with Live(_columns(speakers, said), console=console(), refresh_per_second=8) as live:
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                threads[0].join(0.1)
                threads[-1].join(0.02)
                live.update(_columns(speakers, said))
        except KeyboardInterrupt:
            with taking:
                stopped.set()  # a model may read its prompt for long yet: its thread ends by itself, at the next piece
            for each in said:
                each.stop()
            if not failed:
                raise
        finally:
            live.update(_columns(speakers, [_called(talk, *each) for each in zip(speakers, said, strict=True)]))
    if failed:
        raise failed[0]


def _columns(speakers: list[Speaker], said: list[Said]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, show_lines=False)
    for speaker in speakers:
        table.add_column(speaker.title, ratio=1)
    table.add_row(*(Text(_visible(each.text) + _after(each)) for each in said))
    return table


def _take(said: Said, piece: Piece | Done) -> None:
    if isinstance(piece, Piece):
        said.text += piece.text
        if piece.token is not None:
            said.tokens.append(piece.token.id)
    elif piece.reason == "error":
        raise Wrong(f"the model failed: {piece.error}")
    else:
        said.done, said.cut = True, piece.reason == "length"


def _called(talk: Talk, speaker: Speaker, said: Said) -> Said:
    """With the calls of tools told apart, whose mark may be a special token: nothing of it is in the text."""
    if not talk.tools:
        return said
    prompts = speaker.room.prompts
    raw = written(prompts.tokenizer, said.tokens, (*talk.generation.stop, *prompts.stop_texts), special=True)
    read = calls.read(raw, said.text, prompts.tool_format, talk.tools)
    return replace(said, text=read.text.strip(), calls=read.calls) if read.calls else said


def _after(said: Said) -> str:
    """What is told beside the text."""
    told = "".join(
        f"\n[calls {call['name']}({json.dumps(call['arguments'], ensure_ascii=False)}); /result TEXT answers it]"
        for call in said.calls
    )
    return _visible(told) + (" […]" if said.cut else "")


def _visible(text: str) -> str:
    return text.translate(_SILENT)
