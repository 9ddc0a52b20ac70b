"""Where standard output cannot be written: what only prints ends in silence, what works goes on."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from factory.config.redact import Redacting
from factory.outlet import Outlet, Unread, loss, outlets
from factory.run.screen import Screen

FULL = Path("/dev/full")


@pytest.fixture
def unread() -> int:
    """A pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def factory(words: str, then: str) -> subprocess.CompletedProcess[str]:
    """A command line of the shell: `factory WORDS THEN`."""
    command = f"{sys.executable} -m factory {words} {then}"
    return subprocess.run(["bash", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def test_it_tells_of_its_loss_once_and_takes_the_rest(unread: int) -> None:
    told: list[OSError] = []
    with os.fdopen(unread, "w", encoding="utf-8") as stream:
        out = Outlet(stream, told.append)
        out.write("one\n")
        assert loss(Redacting(out)) is None  # it is still buffered
        for _ in range(2):
            out.write("two\n")
            out.flush()
        print("past it", file=stream, flush=True)
    assert [type(error) for error in told] == [BrokenPipeError] and loss(Redacting(out)) is told[0]


def test_a_stream_without_a_descriptor_is_lost_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Broken())
    with outlets(goes_on=True):
        print("nobody")
        assert loss(sys.stdout) is not None
        with outlets(goes_on=False):  # a job within a sweep: what it is in decides
            print("nobody")
    with pytest.raises(Unread), outlets(goes_on=False):
        print("nobody")


def test_what_works_goes_on_and_says_so(unread: int, capfd: pytest.CaptureFixture[str]) -> None:
    with os.fdopen(unread, "w", encoding="utf-8") as stream, pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        with outlets(goes_on=True):
            print("one", flush=True)
            print("two", flush=True)
    assert capfd.readouterr().err.count("Standard output cannot be written (Broken pipe)") == 1


@pytest.mark.parametrize("words", ["explain seed", "models"])  # one fits in the buffer, the other is flushed
def test_what_only_prints_ends_in_silence(words: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = factory(words, "| true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (1, "")


def test_a_refusal_without_a_reader_keeps_its_exit_code() -> None:
    assert factory("explain nothing", "2>&1 | true; exit ${PIPESTATUS[0]}").returncode == 2


@pytest.mark.skipif(not FULL.exists(), reason="this system has no full device")
def test_a_full_disk_is_told() -> None:
    done = factory("explain seed", f"> {FULL}")
    assert done.returncode == 1
    assert done.stderr == "Standard output cannot be written (No space left on device).\n"


@pytest.mark.parametrize(("words", "code"), [("models", 0), ("explain seed", 0), ("explain nothing", 2)])
def test_closed_streams_are_as_none_that_anybody_reads(words: str, code: int) -> None:
    for closed in (">&-", ">&- 2>&- <&-"):
        done = factory(words, closed)
        assert done.returncode == code and "Error" not in done.stderr


def test_a_number_that_was_closed_is_no_files() -> None:
    """What a library writes to it would go into that file."""
    code = "import os; from factory.outlet import open_closed; open_closed(); print(os.readlink('/proc/self/fd/1'))"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c \"{code}; os.write(2, os.readlink('/proc/self/fd/1').encode())\" >&-"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == os.devnull


def test_a_letter_that_a_terminal_lacks_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    with outlets(goes_on=True):
        Screen().print("loading the naïve … 字")
    assert written.getvalue() == b"loading the na\xefve \\u2026 \\u5b57\n"
