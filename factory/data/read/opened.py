"""A file as a stream of bytes, decompressed on the way where its name says so."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from factory.data.read import wrong

BOM = b"\xef\xbb\xbf"
BUFFER = 2**16  # bytes
# what decompressors raise; an OSError has no errno where it is theirs
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)


def _zstandard(raw: IO[bytes]) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(raw, "zstd")


DECOMPRESSORS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstandard,
}


def compression(path: Path) -> str | None:
    suffix = path.suffix.lower()
    return suffix if suffix in DECOMPRESSORS else None


def suffix(path: Path) -> str:
    """What kind of file it is, below its compression: `.jsonl` of rows.JSONL.gz."""
    return (path.with_suffix("") if compression(path) else path).suffix.lower()


@dataclass(slots=True)
class Skip:
    """How many rows are still to be passed over: one count for all files of a folder."""

    left: int

    def some(self, most: int) -> int:
        """Passes over up to so many; how many it were."""
        passed = min(self.left, most)
        self.left -= passed
        return passed


@dataclass(slots=True)
class Mended:
    """How many rows so far have line ends of Windows in their cells that are read as \\n."""

    rows: int = 0


@dataclass(frozen=True, slots=True)
class Stream:
    """`raw` is the file on the disk, `plain` what is in it. `mended`: what is not read as it stands."""

    path: Path
    raw: IO[bytes]
    plain: "io.BufferedReader[Any]"
    mended: Mended = field(default_factory=Mended)

    def taken(self) -> int:
        """How many bytes of the file on the disk were read, for what was given of it (a buffer more at most)."""
        return self.raw.tell() if compression(self.path) else self.plain.tell()

    def start(self) -> bytes:
        """The first bytes, still to be read."""
        try:
            return self.plain.peek(BUFFER)
        except DAMAGE as error:
            raise wrong.damaged(self.path, error, "at its start") from None

    def chunk(self, size: int, line: int) -> bytes:
        """The next `size` bytes, fewer at the end. `line` is where they start, for the words of an error."""
        try:
            return self.plain.read(size)
        except DAMAGE as error:
            raise wrong.damaged(self.path, error, f"after line {line}") from None

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Numbered from 1, with their ends, without a byte-order mark."""
        number = 0
        try:
            for number, raw in enumerate(self.plain, start=1):
                yield number, raw.removeprefix(BOM) if number == 1 else raw
        except DAMAGE as error:
            raise wrong.damaged(self.path, error, f"after line {number}" if number else "at its start") from None

    def texts(self) -> Iterator[tuple[int, str]]:
        """Lines of plain text."""
        for number, raw in self.lines():
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                raise wrong.not_utf8_at(self.path, number, error.start + 1, raw[error.start]) from None
            if "\0" in text:
                raise wrong.broken(self.path, f"line {number} has a NUL character, as no text file has")
            yield number, text


@contextmanager
def opened(path: Path, mended: Mended | None = None) -> Iterator[Stream]:
    packed = compression(path)
    with path.open("rb", buffering=0) as raw:
        unpacked: Any = DECOMPRESSORS[packed](raw) if packed else raw
        with closing(unpacked), closing(io.BufferedReader(unpacked, BUFFER)) as plain:
            yield Stream(path, raw, plain, mended or Mended())


@contextmanager
def text(path: Path, mended: Mended | None = None) -> Iterator[Stream]:
    """A file of text; raises UserError where its first bytes are those of something else.

    `mended` counts its rows that are not read as they stand.
    """
    with opened(path, mended) as stream:
        if error := wrong.foreign(path, stream.start()):
            raise error
        yield stream
