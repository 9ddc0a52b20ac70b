"""What asks a command to stop, and that a hangup asks once, or, under nohup, never."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.stopping import answer, answered, asking


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_each_asks() -> None:
    asked: list[int] = []
    answer(lambda number, _: asked.append(number))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)
    assert asked == [signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def test_a_hangup_asks_once() -> None:
    asked: list[int] = []
    with answered(lambda number, _: asked.append(number)):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGHUP)  # the shell is later than the kernel
    assert asked == [signal.SIGHUP] and signal.SIGHUP not in asking()


def test_what_was_there_before_is_there_after() -> None:
    before = {number: signal.getsignal(number) for number in asking()}
    with answered(lambda *_: None):
        assert all(signal.getsignal(number) is not handler for number, handler in before.items())
    assert before == {number: signal.getsignal(number) for number in asking()}


def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with answered(lambda *_: None):
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    answer(lambda *_: None)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_what_comes_while_a_class_is_made_comes_when_it_is_made() -> None:
    """Raised among the parts of a class, Python 3.11 would make it a mistake of that class."""

    class Asked(BaseException):
        pass

    class Part:
        def __set_name__(self, owner: type, name: str) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def ask(*_: object) -> None:
        raise Asked

    answer(ask)
    with pytest.raises(Asked):
        type("Made", (), {"part": Part()})
        time.sleep(5)


def test_a_signal_in_the_middle_of_the_last_line_ends_as_it_would_have_ended() -> None:
    """A file that is being written cannot be flushed."""
    busy = "class Busy:\n    def flush(self):\n        raise RuntimeError('reentrant call')\n"
    code = f"import os, sys\nfrom factory import __main__ as program\n{busy}sys.stdout = Busy()\nprogram._settled(3)\n"
    command = [sys.executable, "-c", f"{code}os.kill(os.getpid(), {signal.SIGTERM:d})\n"]
    assert subprocess.run(command, check=False).returncode == 3


def test_an_interrupted_import_ends_as_interrupted(tmp_path: Path) -> None:
    """Python kills itself at the end of a module where a Ctrl-C passed through `exec` of a text, as imports have it."""
    broken = "program._run = lambda: exec('raise KeyboardInterrupt')"
    code = f"import sys\nfrom factory import __main__ as program\n{broken}\nsys.exit(program.main())\n"
    (tmp_path / "interrupted.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    command, environment = [sys.executable, "-m", "interrupted"], os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (130, "Interrupted.")
