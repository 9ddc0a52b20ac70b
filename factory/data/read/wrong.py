"""What is wrong with a file, and where: the errors that all readers share."""

import codecs
import json
import re
import shlex
from pathlib import Path
from typing import Any

from factory.config.refusal import UserError, refuse

NOT_UTF8 = "not UTF-8"
DEEPEST = 100  # lists and objects within each other: beyond it, writing a row back fails in one process or another


# what files of other kinds have at their start, and what to do with them under this name
_MAGIC: dict[bytes, tuple[str, str]] = {
    b"\x1f\x8b": ("gzip", "name it {name}.gz"),
    b"BZh91AY&SY": ("bzip2", "name it {name}.bz2"),
    b"\xfd7zXZ\0": ("xz", "name it {name}.xz"),
    b"\x28\xb5\x2f\xfd": ("zstandard", "name it {name}.zst"),
    b"PAR1\x15": ("parquet", "name it {stem}.parquet"),
    b"ARROW1\0\0": ("arrow", "name it {stem}.arrow"),
    b"PK\3\4": ("a zip archive", "unpack it (a spreadsheet: save it as csv)"),
    **dict.fromkeys((b"ustar\x0000", b"ustar  \0"), ("a tar archive", "unpack it")),
}
_TURN = {"role", "from"}  # of a conversation's messages
_TAR_AT = 257  # bytes before a tar archive says what it is
_PACKED = (".gz", ".bz2", ".xz", ".zst")
# by their first bytes, the longer ones first: a mark of UTF-32 begins as one of UTF-16
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_UNMARKED = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")  # UTF-32 is none of UTF-16's text: it has NULs in it
_CONTROL = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})
_CONTROL_TEXT = re.compile(f"[{re.escape(_CONTROL.decode())}]")
_NO_TEXT = 0.05  # control characters: random bytes have a tenth of them, no text has any
# typed where the command was, so by the file's path; what it makes is put there, as the file's folder may be another's
_FROM_LATIN = "convert it, as in: iconv -f latin1 -t utf-8 {path} > {made}"
_FROM_OTHER = "convert it, as in: iconv -f {encoding} -t utf-8 {{path}} > {{made}}"
_OTHER_FILE = "name a file of text: nothing can be converted here"


class Broken(dict[str, Any]):
    """In a row's place, a line that is none: it is dropped, and counted by its reason.

    It holds the line's bytes, so that a draw ranks it as it ranks rows.
    """

    __slots__ = ("path", "reason", "wrong")

    def __init__(self, path: Path, line: bytes, reason: str, wrong: str):
        super().__init__(line=line)
        self.path, self.reason, self.wrong = path, reason, wrong

    def error(self) -> UserError:
        """What to say where such a line is not passed over."""
        return (not_utf8 if self.reason == NOT_UTF8 else broken)(self.path, self.wrong)


def broken(path: Path, wrong: str) -> UserError:
    return refuse(
        "data-broken",
        f"path={path}",
        wrong,
        because="half a file would be trained as if it were the whole",
        fix=(
            "correct or remove that row (a json file is an array of objects, a jsonl file one object a line, "
            "a table has one header)"
        ),
    )


def rows_below(value: Any) -> str | None:
    """The key of an object whose value is a list of objects, and no conversation."""
    found = value.items() if isinstance(value, dict) else ()
    return next((key for key, rows in found if _are_rows(rows)), None)


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_row, value))


def is_row(value: Any) -> bool:
    """Whether it may be one: an object that is no message of a conversation."""
    return isinstance(value, dict) and not _TURN & value.keys()


def wrapped(path: Path, key: str) -> UserError:
    file, below = (json.dumps(text, ensure_ascii=False) for text in (str(path), key))  # as Python reads them too
    script = f"import json; [print(json.dumps(row)) for row in json.load(open({file}))[{below}]]"
    packed = path.suffix.lower() in _PACKED
    fix = f"python -c {shlex.quote(script)} > rows.jsonl"
    wrong = f"it is one object, whose key {below} has the list of rows"
    return refuse(
        "data-wrapped",
        f"path={path}",
        wrong,
        because=("a json file is an array of rows, or one row a line; what is below a key would be a part of one row"),
        fix=f"write them out, and name that file: {f'decompress it, and {fix}' if packed else fix}",
    )


def not_utf8(path: Path, wrong: str, fix: str = _FROM_LATIN) -> UserError:
    packed = path.suffix.lower() in _PACKED
    text = path.with_suffix("") if packed else path
    made = shlex.quote(f"utf8-{text.name}")
    fix = fix.format(name=text.name, stem=path.stem, path=shlex.quote(str(text)), made=made)
    fix = f"decompress it, and {fix}" if packed else fix
    return refuse(
        "data-encoding", f"path={path}", wrong, because="text in another encoding would be trained as garbage", fix=fix
    )


def foreign(path: Path, start: bytes) -> UserError | None:
    """What is wrong with a file that begins so, if it is no text in UTF-8 at all."""
    for magic, (what, fix) in _MAGIC.items():
        if start.startswith(magic, _TAR_AT if magic.startswith(b"ustar") else 0):
            return not_utf8(path, f"it is {what}, by its first bytes", fix)
    mark = next((mark for mark in _MARKS if start.startswith(mark)), None)
    if mark is not None:
        words = f"line 1, byte 1 (0x{start[0]:02X}) is not UTF-8: it is {_MARKS[mark].upper()}"
        return not_utf8(path, words, _FROM_OTHER.format(encoding=_MARKS[mark]))
    if b"\0" in start and (encoding := _unmarked(start)):
        words = f"it is {encoding.upper()} without a byte-order mark, by its first bytes"
        return not_utf8(path, words, _FROM_OTHER.format(encoding=encoding))
    control = len(start) - len(start.translate(None, _CONTROL))
    if control > len(start) * _NO_TEXT and not _is_utf8(start):
        return not_utf8(path, "it is not text, by its first bytes", _OTHER_FILE)
    return None


def _unmarked(start: bytes) -> str | None:
    """The encoding in which the bytes are text, as of a file whose writer left out the mark that says so."""
    return next((name for name in _UNMARKED if _is_text(start, name)), None)


def _is_text(start: bytes, encoding: str) -> bool:
    """Whether it is, as other bytes hardly are: no control characters, and more ASCII than anything else."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeDecodeError:
        return False
    return bool(text) and not _CONTROL_TEXT.search(text) and sum(map(str.isascii, text)) > len(text) / 2


def _is_utf8(start: bytes) -> bool:
    """Whether it is, up to a character that may go on."""
    try:
        codecs.utf_8_decode(start, "strict", False)
    except UnicodeDecodeError:
        return False
    return True


def not_utf8_at(path: Path, line: int, column: int, byte: int) -> UserError:
    return not_utf8(path, byte_words(line, column, byte))


def byte_words(line: int, column: int, byte: int, encoding: str = "UTF-8") -> str:
    return f"line {line}, byte {column} (0x{byte:02X}) is not {encoding}"


def damaged(path: Path, error: Exception, after: str) -> Exception:
    """What to raise for an error out of a decompressor or of Arrow: the system's own errors stay what they are."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    said = str(error).partition("\n")[0][:200]
    return cut(path, f"it is cut or damaged {after} ({said or type(error).__name__})")


def cut(path: Path, wrong: str) -> UserError:
    return refuse(
        "data-damaged",
        f"path={path}",
        wrong,
        because="half a file would be trained as if it were the whole",
        fix="download or copy it again",
    )


def kind(value: Any) -> str:
    """A JSON value's type in words."""
    return {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}.get(type(value), "a number")


def unsound(value: Any, text: str) -> str | None:
    """Why UTF-8 or another process could not hold `value`, which was read from `text`."""
    if text.count("[") + text.count("{") > DEEPEST and _deep(value):
        return "is nested too deeply"
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return f"has half of a surrogate pair after {error.object[max(0, error.start - 30) : error.start]!r}"
    return None


def _deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inner = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True
