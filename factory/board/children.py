"""Verbs that the page runs for an answer: their words, their page, or a server to talk to. They end with the server."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from factory.config.line import flags
from factory.run.launch import KILLED
from factory.tied import ENDS

_ENDING = 10.0  # seconds that a server has to end
_LOOK = 0.5  # seconds between two looks at what was printed
_TAIL = 4_000  # characters
_REPLACED = "It was stopped: in another window of the page another model was loaded."


@dataclass(frozen=True, slots=True)
class Ended:
    """A verb's exit code and what it printed."""

    code: int
    text: str


@dataclass(slots=True)
class Server:
    process: subprocess.Popen[bytes]
    address: str
    printed: Path


class Children:
    """`folder` is where their output lies."""

    def __init__(self, folder: Path, config_dirs: tuple[str, ...] = ()):
        self._folder, self._flags = folder, flags(config_dirs)
        self._servers: dict[tuple[str, ...], Server] = {}
        self._starting = threading.Lock()

    def aside(self, name: str) -> Path:
        """A place for a file of the page's own."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{time.time_ns()}-{name}"

    def page(self, words: list[str], key: str) -> tuple[str | None, str]:
        """The page that a verb writes where this key of it says, None where it wrote none; and what it printed."""
        place = self.aside("page.html")
        try:
            *_, ended = self.lines([*words, f"{key}={place}"])
            return place.read_text("utf-8") if place.is_file() else None, ended.text
        finally:
            place.unlink(missing_ok=True)

    def lines(self, words: list[str]) -> Iterator[Ended]:
        """What it printed so far (code -1), as it comes; at last with its code."""
        printed = self.aside("out")
        process = spawned(words, printed)
        try:
            while _goes_on(process):
                yield Ended(-1, end_of(printed))
            yield Ended(process.returncode, end_of(printed))
        finally:  # who looked has gone
            if process.poll() is None:
                process.terminate()
            printed.unlink(missing_ok=True)

    def served(self, words: tuple[str, ...]) -> Server:
        """`factory serve` of these words, started where it is not there. Raises RuntimeError with what it said."""
        with self._starting:
            made = self._servers.get(words)
            if made is None or made.process.poll() is not None:
                made = self._servers[words] = self._serve(words)
        while made.process.poll() is None:  # however long it loads: whoever loads another model ends it
            with suppress(httpx.HTTPError):
                status = httpx.get(f"{made.address}/health", timeout=5).status_code
                if status == httpx.codes.OK:
                    return made
                if status == httpx.codes.SERVICE_UNAVAILABLE:  # its engine has ended, and does not begin again
                    break
            time.sleep(0.3)
        made.process.terminate()
        with suppress(subprocess.TimeoutExpired):  # whoever asks again gets another
            made.process.wait(_ENDING)
        raise RuntimeError(_last_words(made) if self._servers.get(words) is made else _REPLACED)

    def _serve(self, words: tuple[str, ...]) -> Server:
        port = free_port("127.0.0.1")
        printed = self.aside("served")
        process = spawned(["serve", *self._flags, *words, f"serve.port={port}"], printed)
        return Server(process, f"http://127.0.0.1:{port}", printed)

    def keep(self, wanted: set[tuple[str, ...]]) -> None:
        """Stops the servers of other words: a model that nobody talks to holds no memory."""
        for words, server in list(self._servers.items()):
            if words not in wanted:
                del self._servers[words]  # first: who waits for it asks why it has ended
                server.process.terminate()
                server.printed.unlink(missing_ok=True)

    def close(self) -> None:
        self.keep(set())


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def spawned(words: list[str], printed: Path, *, outlive: bool = False) -> subprocess.Popen[bytes]:
    """This program. Where it does not `outlive` this process, the end of its input ends it: nobody writes there."""
    with printed.open("wb") as out:
        return subprocess.Popen(  # noqa: S603  no shell
            [sys.executable, "-m", "factory", *words],
            stdin=subprocess.DEVNULL if outlive else subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=outlive,
            env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **({} if outlive else {ENDS: "1"})},
        )


def _last_words(server: Server) -> str:
    """What it printed, and how it ended where that does not say it."""
    text, code = end_of(server.printed), server.process.returncode
    if code == -signal.SIGKILL:
        return f"{text}\n{KILLED}".strip()
    return text if text.strip() else f"`factory serve` ended with code {code}, and printed nothing."


def _goes_on(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_LOOK)
    except subprocess.TimeoutExpired:
        return True
    return False


def end_of(printed: Path, most: int = _TAIL) -> str:
    """The last characters of a file, behind a mark where it is not all there is."""
    text = printed.read_text("utf-8", "replace")
    return text if len(text) <= most else f"… {text[-most:]}"
