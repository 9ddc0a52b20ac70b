"""What the page runs for an answer ends with it, even where it was killed."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from factory.board import children
from factory.tied import ENDS

WAITS = "import time; from factory.tied import tie; tie(); print('there', flush=True); time.sleep(60)"
# as `factory serve`, which answers once it has read its model
SERVES = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[2]))
        self.end_headers()
time.sleep(1)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


@pytest.mark.parametrize(("asked", "ends"), [("1", True), ("", False)])
def test_a_command_ends_with_its_input_where_that_is_asked(asked: str, ends: bool) -> None:
    environment = {**os.environ, ENDS: asked}
    command = [sys.executable, "-c", WAITS]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == b"there\n"
        process.stdin.write(b"what is written ends nothing\n")
        process.stdin.flush()
        time.sleep(0.3)
        assert process.poll() is None
        process.stdin.close()
        if ends:
            assert process.wait(30) == -signal.SIGTERM
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
    finally:
        process.kill()
        process.wait()


def test_whoever_asks_for_a_server_waits_until_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[list[str]]()

    def spawned(words: list[str], printed: Path) -> subprocess.Popen[bytes]:
        started.append(words)
        return subprocess.Popen([sys.executable, "-c", SERVES, words[-1].partition("=")[2], "200"])

    monkeypatch.setattr(children, "spawned", spawned)
    made = children.Children(tmp_path)

    def answers(_: int) -> int:
        return httpx.get(f"{made.served(('run=one',)).address}/health").status_code

    try:
        with ThreadPoolExecutor(2) as both:
            assert list(both.map(answers, range(2))) == [200, 200]
        assert len(started) == 1
    finally:
        made.close()


def test_a_server_is_waited_for_as_long_as_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model is read, or fetched, for longer than anybody would guess."""
    hours = count(step=3600)
    clock = SimpleNamespace(monotonic=lambda: next(hours), sleep=time.sleep, time_ns=time.time_ns)

    def spawned(words: list[str], printed: Path) -> subprocess.Popen[bytes]:
        printed.touch()
        return subprocess.Popen([sys.executable, "-c", SERVES, words[-1].partition("=")[2], "200"])

    monkeypatch.setattr(children, "spawned", spawned)
    monkeypatch.setattr(children, "time", clock)
    made = children.Children(tmp_path)
    try:
        assert httpx.get(f"{made.served(('run=one',)).address}/health").status_code == 200
    finally:
        made.close()


@pytest.mark.parametrize(
    ("printed", "end", "says"),
    [
        ("Loading", "kill", "Loading\nthe process was killed"),
        ("", "kill", "the process was killed"),
        ("", "exit", "`factory serve` ended with code 3"),
        ("[out-of-memory] it does not fit", "exit", "[out-of-memory] it does not fit"),
    ],
)
def test_it_is_said_how_a_server_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, end: str, says: str
) -> None:
    def spawned(_: list[str], place: Path) -> subprocess.Popen[bytes]:
        place.write_text(printed)
        return subprocess.Popen(["/bin/sh", "-c", "kill -9 $$" if end == "kill" else "exit 3"])

    monkeypatch.setattr(children, "spawned", spawned)
    with pytest.raises(RuntimeError) as raised:
        children.Children(tmp_path).served(("run=one",))
    assert str(raised.value).startswith(says)


def test_a_server_whose_engine_has_ended_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spawned(words: list[str], printed: Path) -> subprocess.Popen[bytes]:
        printed.write_text("the engine ended")
        return subprocess.Popen([sys.executable, "-c", SERVES, words[-1].partition("=")[2], "503"])

    monkeypatch.setattr(children, "spawned", spawned)
    made, begun = children.Children(tmp_path), time.monotonic()
    with pytest.raises(RuntimeError, match="the engine ended"):
        made.served(("run=one",))
    assert time.monotonic() - begun < 30
    assert made._servers["run=one",].process.wait(30) == -signal.SIGTERM


def test_who_waits_for_a_server_that_another_has_stopped_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spawned(words: list[str], printed: Path) -> subprocess.Popen[bytes]:
        printed.touch()
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    monkeypatch.setattr(children, "spawned", spawned)
    made = children.Children(tmp_path)
    with ThreadPoolExecutor(1) as waiting:
        answer = waiting.submit(made.served, ("run=one",))
        while not made._servers:
            time.sleep(0.01)
        made.close()
        with pytest.raises(RuntimeError, match="another window"):
            answer.result(60)
