"""Files as people have them: read, or refused with the place that is wrong."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import pickle
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planned import planned

from factory.config.refusal import UserError
from factory.data import function
from factory.data.formats import FORMATS, BadRow, Record, align
from factory.data.read import Broken, Mended, digest, files, objects, rows, sample, source_digest, source_rows
from factory.plan.plan import DataSource

A, B = {"text": "one"}, {"text": "zwei ü"}
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (A, B)).encode()
PRETTY = json.dumps([A, B], ensure_ascii=False, indent=2).encode()
BOM = b"\xef\xbb\xbf"


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)  # the same in every process that collects these tests


def short(value: object) -> str | None:
    return f"{len(value)} bytes" if isinstance(value, bytes) and len(value) > 60 else None


def parquet(found: list[dict[str, Any]], **options: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), file, **options)
    return file.getvalue()


def arrow(found: list[dict[str, Any]], new: Callable[..., Any]) -> bytes:
    file, table = io.BytesIO(), pyarrow.Table.from_pylist(found)
    with new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    return file.getvalue()


def _csv(found: list[dict[str, Any]]) -> bytes:
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, list(found[0]))
    table.writeheader()
    table.writerows(found)
    return file.getvalue().encode()


def read(folder: Path, name: str, content: bytes) -> list[dict[str, Any]]:
    (folder / name).write_bytes(content)
    return list(rows(folder / name))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl", BOM + LINES),
        ("a.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("a.jsonl", b"\n\r\n  \n" + LINES.replace(b"\n", b"\n\n") + b"\t\n"),
        ("a.jsonl", LINES.rstrip()),
        ("a.json", LINES),
        ("a.json", PRETTY),
        ("a.json", BOM + PRETTY.replace(b"\n", b"\r\n")),
        ("a.json", b"\n  " + json.dumps([A, B]).encode()),
        ("a.jsonl", PRETTY),
        ("a.ndjson", LINES),
        ("A.JSONL", LINES),
        ("a.csv", "text\none\nzwei ü\n".encode()),
        ("a.csv", BOM + 'text\r\n\r\none\r\n"zwei ü"'.encode()),
        ("a.csv", "text\rone\rzwei ü\r".encode()),
        ("a.tsv", "text\none\nzwei ü\n".encode()),
        ("a.jsonl.gz", zipped(LINES)),
        ("a.jsonl.gz", zipped(BOM + LINES[:20]) + zipped(LINES[20:])),
        ("a.json.bz2", bz2.compress(PRETTY)),
        ("a.csv.xz", lzma.compress("text\none\nzwei ü\n".encode())),
        ("a.jsonl.zst", pyarrow.compress(LINES, codec="zstd", asbytes=True)),
        ("a.parquet", parquet([A, B])),
        ("a.parquet.gz", zipped(parquet([A, B]))),
        ("a.arrow", arrow([A, B], pyarrow.ipc.new_stream)),
        ("a.arrow", arrow([A, B], pyarrow.ipc.new_file)),
        ("a.arrow.zst", pyarrow.compress(arrow([A, B], pyarrow.ipc.new_file), codec="zstd", asbytes=True)),
        ("a.txt", "one\n\nzwei ü\n".encode()),
        ("a.txt", BOM + "\n\none\r\n\r\n \r\nzwei ü".encode()),
    ],
    ids=short,
)
def test_is_read(name: str, content: bytes, tmp_path: Path) -> None:
    assert read(tmp_path, name, content) == [A, B]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
@pytest.mark.parametrize("content", [b"", b" \n\t\r\n", BOM, BOM + b"\n"])
def test_nothing_is_no_row(name: str, content: bytes, tmp_path: Path) -> None:
    assert read(tmp_path, name, content) == []


def test_a_document_keeps_its_lines(tmp_path: Path) -> None:
    found = read(tmp_path, "a.txt", b"  first\r\nsecond\n\n[third\n")
    assert found == [{"text": "  first\nsecond"}, {"text": "[third"}]


GOOD = b'{"text": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "rule", "where"),
    [
        ("a.json", GOOD + b'{"text": "b"]\n', "data-broken", "line 2, column 13 "),
        ("a.json", GOOD + b"3", "data-broken", "line 2 is a number"),
        ("a.json", GOOD + b'{"text": "caf\xe9"}\n', "data-encoding", "line 2, byte 14 (0xE9)"),
        ("a.json", b'[\n  {\n    "text": "a"\n  },\n  {\n    "text" "b"\n  }\n]', "data-broken", "line 6, column 12 "),
        ("a.json", b'\r\n[\r\n {"text": "a"}\r\n}', "data-broken", "line 4, column 1 "),
        ("a.json", PRETTY[:-3], "data-broken", "line "),
        ("a.json", b'[{"text": "a"}, ["b"]]', "data-broken", "row 2 is a list"),
        ("a.json", b'{\n "version": "1.0",\n "data": [\n  {"text": "a"}\n ]\n}', "data-wrapped", 'key "data"'),
        ("a.json", b'{\n "messages": [\n  {"role": "user", "content": "a"}\n ]\n}', "data-broken", "line 1, column 2"),
        ("a.json", b"[true]", "data-broken", "row 1 is a truth value"),
        ("a.json", b"[" * 100_000, "data-broken", "nested too deeply"),
        ("a.json", b'[\n{"text":\n"caf\xe9"}]', "data-encoding", "line 3, byte 5 (0xE9)"),
        ("a.json", b'[{"text": "caf\xe9"}]', "data-encoding", "line 1, byte 15 (0xE9)"),
        ("a.txt", b"one\n\ncaf\xe9\n", "data-encoding", "line 3, byte 4 (0xE9)"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "data-encoding", "line 1, byte 1 (0xFF)"),
        ("a.json", b"[\n" + b'{"a": ' * 101 + b"1" + b"}" * 101 + b"]", "data-broken", "line 2 is nested too deeply"),
        ("a.csv", b'a,b\n1,"2\n3",4\n', "data-broken", "the row of line 2 has 3 cells"),
        ("a.csv", b'a,b\n1,"2" x\n', "data-broken", "line 2: "),
        ("a.csv", b'a,b\n1,"2\n', "data-broken", "unexpected end of data"),
        ("a.csv", b"a,b,a\n1,2,3\n", "data-broken", "names the column 'a' twice"),
        ("a.csv", b"a,b\n1,caf\xe9\n", "data-encoding", "line 2, byte 6 (0xE9)"),
        ("a.csv", b"a,b\n1,2\0\n", "data-broken", "line 2 has a NUL character"),
        ("a.txt", b"one\n\0", "data-broken", "line 2 has a NUL character"),
        ("a.jsonl.gz", zipped(GOOD)[:-9], "data-damaged", "it is cut or damaged"),
        ("a.jsonl.gz", zipped(GOOD)[:-5] + b"\0" * 5, "data-damaged", "CRC check failed"),
        ("a.json.gz", zipped(GOOD + b'{"text": '), "data-broken", "line 2, column 10 "),
        ("a.json.gz", GOOD, "data-damaged", "at its start (Not a gzipped file"),
        ("a.jsonl.bz2", bz2.compress(GOOD)[:-1], "data-damaged", "it is cut or damaged"),
        ("a.jsonl.xz", lzma.compress(GOOD)[:-1], "data-damaged", "it is cut or damaged"),
        ("a.jsonl.zst", pyarrow.compress(GOOD, codec="zstd", asbytes=True)[:-1], "data-damaged", "Truncated"),
        ("a.parquet", parquet([A, B])[:-1], "data-damaged", "at its start"),
        ("a.parquet", b"", "data-damaged", "at its start"),
        ("a.arrow", arrow([A, B], pyarrow.ipc.new_stream)[:-8], "data-damaged", "the stream has no end mark"),
        ("a.arrow", arrow([A, B], pyarrow.ipc.new_file)[:-1], "data-damaged", "at its start"),
        ("a.arrow", b"\xff\xff", "data-damaged", "the stream has no end mark"),
        ("a.arrow.gz", gzip.compress(b"", mtime=0), "data-damaged", "the stream has no end mark"),
        ("a.xlsx", b"", "data-file-type", "a.xlsx is of type .xlsx"),
        ("a.gz", b"", "data-file-type", "a.gz is of type .gz"),
        ("a", b"", "data-file-type", "a is of type (none)"),
    ],
    ids=short,
)
def test_what_is_wrong_is_named_by_its_place(name: str, content: bytes, rule: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, name, content)
    (refusal,) = error.value.refusals
    assert refusal.rule == rule
    assert where in f"{refusal.wrong} "
    assert name in refusal.setting


@pytest.mark.parametrize(
    ("content", "reason", "where"),
    [
        (GOOD + b'{"text": "b"]\n' + GOOD, "not JSON", "line 2, column 13 "),
        (GOOD * 3 + b'{"text": \n', "not JSON", "line 4, column 10 "),
        (BOM + b'{"text"; "a"}', "not JSON", "line 1, column 8 "),
        (b"\n\n{'text': 'a'}", "not JSON", "line 3, column 2 "),
        (GOOD + GOOD.rstrip() + GOOD, "not JSON", "line 2, column 14 "),
        (GOOD + b"3\n", "not an object", "line 2 is a number"),
        (GOOD + b'"text"\n', "not an object", "line 2 is a text"),
        (GOOD + b"null\n", "not an object", "line 2 is null"),
        (GOOD + b'{"a": ' + b"[" * 100_000, "is nested too deeply", "line 2 is nested too deeply"),
        (GOOD + b'{"text": ' + b"1" * 5000 + b"}", "has a number of thousands of digits", "line 2"),
        (GOOD + b'{"text": "half \\uD83D of it"}', "has half of a surrogate pair", "half of a surrogate pair"),
        (GOOD + b'{"text": "b", "text": "c"}', "has a key twice", "line 2 has a key twice: 'text'"),
        (GOOD + b'{"a": [{"b": 1, "c": 2, "b": 1}]}', "has a key twice", "line 2 has a key twice: 'b'"),
        (GOOD + b'{"text": "caf\xe9"}\n', "not UTF-8", "line 2, byte 14 (0xE9)"),
        (GOOD + b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}", "is nested too deeply", "line 2 is nested too deeply"),
        (b'[{"text": "b"}\n' + GOOD, "not JSON", "line 1, column 15 "),
        (b"[1, 2]\n" + GOOD, "not an object", "line 1 is a list"),
    ],
    ids=short,
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz"])
def test_a_line_that_is_no_row_stands_in_its_place(
    name: str, content: bytes, reason: str, where: str, tmp_path: Path
) -> None:
    content += b"\n\n" + GOOD
    found = read(tmp_path, name, zipped(content) if name.endswith(".gz") else content)
    (broken,) = (row for row in found if isinstance(row, Broken))
    assert broken.reason == reason
    assert where in f"{broken.wrong} "
    lines = [line for line in content.removeprefix(BOM).splitlines() if line.strip()]
    assert len(found) == len(lines)
    assert broken["line"].strip() == lines[found.index(broken)].strip()
    assert all(row == {"text": "a"} for row in found if row is not broken)
    assert list(rows(tmp_path / name, len(found) - 1)) == [{"text": "a"}]
    again = pickle.loads(pickle.dumps(broken))  # as it goes to another process
    assert (again, again.reason, again.wrong, again.path) == (broken, reason, broken.wrong, tmp_path / name)
    for format in FORMATS:
        with pytest.raises(BadRow, match=reason):
            align(broken, format, {"text": "line"}, {})


def test_a_line_with_other_cells_than_the_header_stands_in_its_place(tmp_path: Path) -> None:
    found = read(tmp_path, "a.csv", b"a,b\n1,2\n\n3\n4,5,6\n7,8\n")
    good = [{"a": "1", "b": "2"}, {"a": "7", "b": "8"}]
    assert [found[0], found[3]] == good
    assert [row.wrong for row in found if isinstance(row, Broken)] == [
        "the row of line 4 has 1 cells where the header has 2",
        "the row of line 5 has 3 cells where the header has 2",
    ]
    for skip in range(6):
        assert list(rows(tmp_path / "a.csv", skip)) == found[skip:]


@pytest.mark.parametrize("content", [b'[{"text": "a"},\n{"text": "b"}\n]', b'[\n{"text": "a"}\n]', b'[{"text": "a"}]'])
def test_an_array_in_a_file_of_lines_is_still_one(content: bytes, tmp_path: Path) -> None:
    assert read(tmp_path, "a.jsonl", content) == json.loads(content)


@pytest.mark.parametrize(
    ("name", "content", "fix"),
    [
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "iconv -f utf-16 -t utf-8 {here}/a.jsonl > utf8-a.jsonl"),
        ("a.csv", "text\na\n".encode("utf-16-be").join([b"\xfe\xff", b""]), "iconv -f utf-16 "),
        ("a.jsonl", GOOD.decode().encode("utf-16-le"), "iconv -f utf-16-le -t utf-8 {here}/a.jsonl > utf8-a.jsonl"),
        ("a.csv", "text\nzwei ü\n".encode("utf-16-be"), "iconv -f utf-16-be "),
        ("a.jsonl", GOOD.decode().encode("utf-32"), "iconv -f utf-32 "),
        ("a.jsonl", GOOD.decode().encode("utf-32-be"), "iconv -f utf-32-be "),
        ("a.jsonl", zipped(GOOD), "name it a.jsonl.gz"),
        ("a.json", bz2.compress(GOOD), "name it a.json.bz2"),
        ("a.txt", lzma.compress(GOOD), "name it a.txt.xz"),
        ("a.jsonl", pyarrow.compress(GOOD, codec="zstd", asbytes=True), "name it a.jsonl.zst"),
        ("a.jsonl", parquet([A, B]), "name it a.parquet"),
        ("a.jsonl", arrow([A, B], pyarrow.ipc.new_file), "name it a.arrow"),
        ("a.jsonl", b"PK\3\4 and so on", "unpack it"),
        ("a.jsonl", bytes(range(256)), "name a file of text"),
        ("a.jsonl.gz", zipped(zipped(GOOD)), "decompress it, and name it a.jsonl.gz"),
        ("a.csv", b"text\ncaf\xe9", "iconv -f latin1 -t utf-8 {here}/a.csv > utf8-a.csv"),
        ("b c.csv", b"text\ncaf\xe9", "iconv -f latin1 -t utf-8 '{here}/b c.csv' > 'utf8-b c.csv'"),
        (
            "a.csv.gz",
            zipped(b"text\ncaf\xe9"),
            "decompress it, and convert it, as in: iconv -f latin1 -t utf-8 {here}/a.csv >",
        ),
    ],
    ids=short,
)
def test_the_advice_is_for_what_the_file_is(name: str, content: bytes, fix: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, name, content)
    (refusal,) = error.value.refusals
    assert refusal.rule == "data-encoding"
    assert fix.format(here=tmp_path) in refusal.fix


@pytest.mark.parametrize("end", ["\r]", "\r", "\r\n", "\rab", "\r\r", "\rx\n", ""])
def test_a_table_ends_with_whatever_the_csv_module_takes_as_a_line(end: str, tmp_path: Path) -> None:
    """A lone carriage return ends a line wherever it stands, just before the file's last character too."""
    text = f"text\r\none{end}"
    file = tmp_path / "rows.csv"
    file.write_bytes(text.encode())
    _, *wanted = filter(None, csv.reader(io.StringIO(text, newline=""), strict=True))
    assert list(rows(file)) == [{"text": cell} for (cell,) in wanted]


@pytest.mark.parametrize(
    ("name", "header", "fix"),
    [
        ("a.csv", b"a;b", "convert it to commas"),
        ("a.csv", b"a|b", "convert it to commas"),
        ("a.csv", b"a\tb", "name it a.tsv"),
        ("a.tsv", b"a,b", "name it a.csv"),
    ],
)
def test_another_separator_is_told(name: str, header: bytes, fix: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"(?s)data-separator.*the header, is one column.*{fix}"):
        read(tmp_path, name, header + b"\n1\n")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").write_bytes(GOOD)
    os.mkfifo(tmp_path / "set" / "z.jsonl")
    for path in (tmp_path / "set", tmp_path / "set" / "z.jsonl"):
        with pytest.raises(UserError, match=r"\[data-special\].*z.jsonl is neither a file nor a folder"):
            list(rows(path))
    with pytest.raises(UserError, match=r"\[data-special\].*null is neither"):
        files(Path("/dev/null"))


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "z.jsonl").symlink_to("nowhere.jsonl")
    for path in (tmp_path, tmp_path / "z.jsonl"):
        with pytest.raises(UserError, match=r"\[data-link\].*z.jsonl is a link to nowhere.jsonl"):
            list(rows(path))


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    original = os.scandir

    def scandir(path: Any) -> Any:  # the tests may run as root
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        files(tmp_path)


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    assert read(tmp_path, "a.jsonl", b'{"text": "\\ud83d\\ude00 \\\\ud800"}') == [{"text": "😀 \\ud800"}]


def test_rows_before_the_bad_one_are_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(GOOD * 2 + b"x")
    found = rows(tmp_path / "a.json")
    assert [next(found), next(found)] == [{"text": "a"}] * 2
    with pytest.raises(UserError, match="line 3, column 1"):
        next(found)


def test_the_digest_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc")
    assert digest(tmp_path / "a.txt") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


MANY = [{"text": f"row {number}", "more": [number, None, {"a": "ü\n" * number}]} for number in range(30)]
FLAT = [{"text": f"row {number}", "more": 'a\nb,"c"' * number or None} for number in range(30)]
FILES: dict[str, tuple[bytes, list[dict[str, Any]]]] = {
    "a.jsonl": ("\n\n".join(map(json.dumps, MANY)).encode(), MANY),
    "a.json": (json.dumps(MANY, indent=1, ensure_ascii=False).encode(), MANY),
    "a.json.gz": (zipped(json.dumps(MANY).encode()), MANY),
    "a.csv": (_csv(FLAT), FLAT),
    "a.csv.zst": (pyarrow.compress(_csv(FLAT), codec="zstd", asbytes=True), FLAT),
    "a.txt": ("\n\n".join(row["text"] for row in MANY).encode(), [{"text": row["text"]} for row in MANY]),
    "a.parquet": (parquet(FLAT, row_group_size=7), FLAT),
    "a.arrow": (arrow(FLAT, pyarrow.ipc.new_stream), FLAT),
}


@pytest.mark.parametrize("name", FILES)
def test_reading_starts_at_any_row(name: str, tmp_path: Path) -> None:
    content, wanted = FILES[name]
    (tmp_path / name).write_bytes(content)
    for skip in range(len(wanted) + 2):
        assert list(rows(tmp_path / name, skip)) == wanted[skip:]


def test_a_folders_files_are_one_set(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "b").mkdir(parents=True)
    wanted: list[dict[str, Any]] = []
    for place, name in (("a", "a.json"), ("a", "a.parquet"), ("b", "a.csv.zst"), ("c", "a.jsonl")):
        content, found = FILES[name]
        (folder / place).mkdir(exist_ok=True)
        (folder / place / name).write_bytes(content)
        wanted += found
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.jsonl").write_text("not read")
    (folder / ".hidden.csv").write_text("not read")
    (folder / "c" / "again").symlink_to(folder)  # a folder within itself ends
    assert [file.name for file in files(folder)] == ["a.json", "a.parquet", "a.csv.zst", "a.jsonl"]
    for skip in (0, 1, 29, 30, 31, 60, 75, 119, 120, 130):
        assert list(rows(folder, skip)) == wanted[skip:]
    (folder / "b" / "README.md").write_text("")
    with pytest.raises(UserError, match=r"\[data-file-type\].*README.md is of type .md"):
        list(rows(folder))


def test_a_folders_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_bytes(b"abc")
    first = digest(tmp_path / "one")
    assert first == digest(tmp_path / "two")
    (tmp_path / "two" / "a.txt").rename(tmp_path / "two" / "b.txt")
    assert first != digest(tmp_path / "two")
    (tmp_path / "two" / "b.txt").rename(tmp_path / "two" / "a.txt")
    (tmp_path / "two" / "a.txt").write_bytes(b"abd")
    assert first != digest(tmp_path / "two")


def test_what_datasets_saved_is_read_without_its_notes(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    Dataset.from_list(FLAT[:7]).save_to_disk(tmp_path / "one", num_shards=2)
    assert list(rows(tmp_path / "one")) == FLAT[:7]
    DatasetDict(train=Dataset.from_list(FLAT[:5]), test=Dataset.from_list(FLAT[5:7])).save_to_disk(tmp_path / "two")
    assert list(rows(tmp_path / "two" / "test")) == FLAT[5:7]
    with pytest.raises(UserError, match=r"\[data-splits\].*it holds the splits test, train"):
        list(rows(tmp_path / "two"))


@pytest.mark.parametrize(
    ("names", "told", "fix"),
    [
        (("train.jsonl", "test.jsonl"), r"test \(test.jsonl\), train \(train.jsonl\)", "set/train.jsonl"),
        (("data/train-00000-of-00001.jsonl", "data/dev.jsonl"), "validation", "set/data/train-00000-of-00001.jsonl"),
        (("train/a.jsonl", "train/b.jsonl", "eval_set.jsonl.gz"), "test .*, train ", "set/train"),
        (("train_1.jsonl", "train_2.jsonl", "val.jsonl"), "validation", "move train_1.jsonl and the others of train"),
        (("train/x_train.jsonl", "train/x_dev.jsonl"), "train .*, validation", "set/train/x_train.jsonl"),
        (("valid.jsonl", "test.jsonl"), "test .*, validation", "set/test.jsonl"),
    ],
)
def test_files_that_were_set_apart_are_not_read_together(
    names: tuple[str, ...], told: str, fix: str, here: Path
) -> None:
    for name in names:
        (here / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "set" / name).write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=rf"\[data-splits\].*it holds the splits .*{told}") as error:
        list(rows(Path("set")))
    assert error.value.refusals[0].fix.endswith(fix)


def test_names_that_say_one_split_or_none_are_read_together(here: Path) -> None:
    names = ("train-0.jsonl", "train/testimony.jsonl", "latest.jsonl", "dev-blog.jsonl", "testing_software.jsonl")
    for name in names:
        (here / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "set" / name).write_text('{"text": "a"}\n')
    assert len(list(rows(Path("set")))) == len(names)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    found=st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=4),
    indent=st.sampled_from([None, 0, 3]),
    ascii=st.booleans(),
    size=st.integers(1, 9),
)
def test_an_array_is_read_in_pieces_of_any_size(
    found: list[dict[str, Any]], indent: int | None, ascii: bool, size: int, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(found, indent=indent, ensure_ascii=ascii), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "BUFFER", size)
        assert list(rows(tmp_path / "a.json")) == found


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b'[\n{"text": "a"},\n{"text" "b"}\n]', "line 3, column 9 "),
        (b'[{"text": "a"},\n\n', "line 3, column 1 "),
        (b'[{"text": "a"}]\n\n x', "line 3, column 2 "),
        (b'[\n{"text": "a"} {', "line 2, column 15 "),
        ('[{"text": "üüü"},\n {"text": "b'.encode(), "line 2, column 11 "),
        ('[{"text": "üüü"},\n {"text": "ü'.encode() + b"\xe9", "line 2, byte 14 (0xE9)"),
        ('[{"text": "üüü"},\n {"text": "'.encode() + b"\xc3", "line 2, byte 12 (0xC3)"),
        (b'[{"text": 12345678901234567890}, 12345678901234567890]', "row 2 is a number"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 7, 2**16])
def test_places_are_the_same_in_pieces_of_any_size(
    size: int, content: bytes, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(objects, "BUFFER", size)
    with pytest.raises(UserError) as error:
        read(tmp_path, "a.json", content)
    assert where in f"{error.value.refusals[0].wrong} "


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz", "a.csv"])
def test_a_large_file_takes_no_memory(name: str, tmp_path: Path) -> None:
    many = [{"text": "word " * 40}] * 40_000  # 8 MB
    texts = {
        "a.json": json.dumps(many),
        "a.jsonl.gz": "\n".join(map(json.dumps, many)),
        "a.csv": "text\n" + "".join(f"{row['text']}\n" for row in many),
    }
    content = texts.pop(name).encode()
    (tmp_path / name).write_bytes(zipped(content) if name.endswith(".gz") else content)
    tracemalloc.start()
    try:
        assert sum(1 for _ in rows(tmp_path / name)) == 40_000
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


def test_a_cell_may_be_longer_than_pythons_limit(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", b"text\n" + b"x" * 200_000) == [{"text": "x" * 200_000}]


def test_cells_stay_texts_and_empty_ones_are_nothing(tmp_path: Path) -> None:
    found = read(tmp_path, "a.tsv", b'text\tn\tlabel\n"a\tb ""c""\nd"\t007\ttrue\n\t\tnull\n')
    assert found == [{"text": 'a\tb "c"\nd', "n": "007", "label": "true"}, {"text": None, "n": None, "label": "null"}]


def _of_tools(name: str) -> dict[str, Any]:
    call = {"name": "f", "arguments": {name: "Paris", "near": [None, {name: 1}]}}
    schema = {"type": "object", "properties": {name: {"type": "string"}}}
    return {"messages": [{"role": "user"}, {"role": "assistant", "calls": [call]}], "tools": [schema], "system": None}


def test_objects_in_arrow_have_no_keys_of_other_rows(tmp_path: Path) -> None:
    """A null between them, or in the place of a column, was written by someone."""
    found = [_of_tools("city"), _of_tools("symbol")]
    (tmp_path / "a.parquet").write_bytes(parquet(found))
    (tmp_path / "b.arrow").write_bytes(arrow(found, pyarrow.ipc.new_file))
    assert list(rows(tmp_path)) == found * 2


def test_a_null_in_json_stays(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"call": {"city": null}}\n')
    assert list(rows(tmp_path / "a.jsonl")) == [{"call": {"city": None}}]


def test_a_text_in_arrow_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    binary = pyarrow.table({"text": pyarrow.array([b"a", b"caf\xe9"])})
    broken = binary.set_column(0, "text", binary["text"].chunk(0).view(pyarrow.string()))
    pyarrow.parquet.write_table(broken, tmp_path / "a.parquet", store_schema=False)
    with pytest.raises(UserError, match="data-encoding"):
        list(rows(tmp_path / "a.parquet"))


def test_a_sample_says_how_much_of_the_file_it_took(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD * 1000)
    assert sample(tmp_path / "a.jsonl", 100, 0) == (100, 100 * len(GOOD))
    assert sample(tmp_path / "a.jsonl", 10, 50 * len(GOOD)) == (50, 50 * len(GOOD))
    assert sample(tmp_path / "a.jsonl", 5000, 0) == (1000, 1000 * len(GOOD))


def test_a_planned_file_is_read_from_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert list(source_rows(_planned("file", str(tmp_path / "a.jsonl")), 1)) == [B]


def test_a_planned_sources_digest_is_of_what_it_holds_now(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (here / "a.jsonl").write_bytes(LINES)
    assert source_digest(_planned("file", "a.jsonl")) == digest(here / "a.jsonl")
    assert source_digest(_planned("hub", "me/set")) is None
    (here / "digested_rows.py").write_text("def rows():\n    return [{'text': 'a'}]\n")
    assert source_digest(_planned("function", "digested_rows:rows")) == function.look("digested_rows:rows").sha256
    (here / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"path=a.jsonl: it is gone"):
        source_digest(_planned("file", "a.jsonl"))


def _planned(origin: str, path: str) -> DataSource:
    return planned(origin=origin, path=path, format="text")


SEED = (
    b'{"instruction": "Say \\u00fc.", "output": "ok", "history": [["a", "b"]]}\n'
    b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\r\n'
    b'{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}], "system": "s"}\n'
    b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n{"text": "t"}\n'
)
PIECES = [bytes([byte]) for byte in b'[]{}"\\,:-3\n\r \x00\x1c\xff\xc3']
PIECES += [b"", BOM, b"\\ud800", b"null", b"NaN", b"true", b"1" * 4400, b"[" * 2000, b"[]", b"{}", b'"a"', b'["user"]']
SHARED_FOLDER = [HealthCheck.function_scoped_fixture]
CHANGE = st.tuples(st.integers(0, len(SEED)), st.integers(0, 12), st.sampled_from(PIECES))


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=SHARED_FOLDER)
@given(changes=st.lists(CHANGE, min_size=1, max_size=4), name=st.sampled_from(["a.jsonl", "a.json", "a.txt"]))
def test_mutated_bytes_are_rows_or_refused(changes: list[tuple[int, int, bytes]], name: str, tmp_path: Path) -> None:
    content = SEED
    for start, length, piece in changes:
        content = content[:start] + piece + content[start + length :]
    try:
        found = read(tmp_path, name, content)
    except UserError:
        return
    for row in found:
        if isinstance(row, Broken):
            continue
        json.dumps(row, ensure_ascii=False).encode()  # as the facts are taken
        for format in FORMATS.values():
            try:
                assert isinstance(format.align(row), Record)
            except BadRow:
                continue


def test_a_folder_of_too_many_files_is_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.data.read._MOST_FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="more than 3 files"):
        files(tmp_path)
    (tmp_path / "0.jsonl").unlink()
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize("name", ["../other.arrow", "/etc/passwd", "a/b.arrow"])
def test_a_saved_set_names_files_of_its_own(name: str, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(UserError, match="data-broken"):
        files(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "cells", "mended"),
    [
        ("a.csv", b'text\r\n"a\r\nb"\r\n"c\r\n\r\nd"\r\ne\r\n', ["a\nb", "c\n\nd", "e"], 2),
        ("a.tsv", b'text\r\n"a\r\nb"\r\n', ["a\nb"], 1),
        ("a.csv.gz", zipped(b'text\r\n"a\r\nb"'), ["a\nb"], 1),
        ("a.csv", BOM + b'text\r\n"a\nb"\r\n"c\rd"\r\n', ["a\nb", "c\rd"], 0),  # as a spreadsheet writes them
        ("a.csv", b'text\n"a\r\nb"\n', ["a\r\nb"], 0),  # whoever wrote this meant it
        ("a.jsonl", b'{"text": "a\\r\\nb"}\r\n', ["a\r\nb"], 0),
    ],
    ids=str,
)
def test_line_ends_of_windows_are_read_as_those_of_text_where_they_are_the_files_own(
    name: str, content: bytes, cells: list[str], mended: int, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    told = Mended()
    assert [row["text"] for row in rows(tmp_path / name, mended=told)] == cells
    assert told.rows == mended
    assert [row["text"] for row in rows(tmp_path / name, 1)] == cells[1:]
