"""Files as people have them: read, or refused with the place that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.data.formats import FORMATS, BadRow, Record
from factory.data.read import digest, rows
from factory.refusal import UserError

A, B = {"text": "one"}, {"text": "zwei ü"}
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (A, B)).encode()
PRETTY = json.dumps([A, B], ensure_ascii=False, indent=2).encode()
BOM = b"\xef\xbb\xbf"


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
        ("a.txt", "one\n\nzwei ü\n".encode()),
        ("a.txt", BOM + "\n\none\r\n\r\n \r\nzwei ü".encode()),
    ],
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
        ("a.jsonl", GOOD + b'{"text": "b"]\n' + GOOD, "data-broken", "line 2, column 13 "),
        ("a.jsonl", GOOD * 3 + b'{"text": \n', "data-broken", "line 4, column 10 "),
        ("a.jsonl", BOM + b'{"text"; "a"}', "data-broken", "line 1, column 8 "),
        ("a.jsonl", b"\n\n{'text': 'a'}", "data-broken", "line 3, column 2 "),
        ("a.jsonl", GOOD + GOOD.rstrip() + GOOD, "data-broken", "line 2, column 14 "),
        ("a.json", b'[\n  {\n    "text": "a"\n  },\n  {\n    "text" "b"\n  }\n]', "data-broken", "line 6, column 12 "),
        ("a.json", b'\r\n[\r\n {"text": "a"}\r\n}', "data-broken", "line 4, column 1 "),
        ("a.json", PRETTY[:-3], "data-broken", "line "),
        ("a.jsonl", GOOD + b"3\n", "data-broken", "row 2 is a number"),
        ("a.jsonl", GOOD + b'"text"\n', "data-broken", "row 2 is a text"),
        ("a.jsonl", GOOD + b"null\n", "data-broken", "row 2 is null"),
        ("a.json", b'[{"text": "a"}, ["b"]]', "data-broken", "row 2 is a list"),
        ("a.json", b"[true]", "data-broken", "row 1 is a truth value"),
        ("a.jsonl", GOOD + b'{"a": ' + b"[" * 100_000, "data-broken", "line 2 is nested too deeply"),
        ("a.json", b"[" * 100_000, "data-broken", "nested too deeply"),
        ("a.jsonl", GOOD + b'{"text": ' + b"1" * 5000 + b"}", "data-broken", "line 2"),
        ("a.jsonl", GOOD + b'{"text": "half \\uD83D of it"}', "data-broken", "half of a surrogate pair"),
        ("a.jsonl", GOOD + b'{"text": "caf\xe9"}\n', "data-encoding", "line 2, byte 14 (0xE9)"),
        ("a.json", b'[\n{"text":\n"caf\xe9"}]', "data-encoding", "line 3, byte 5 (0xE9)"),
        ("a.json", b'[{"text": "caf\xe9"}]', "data-encoding", "line 1, byte 15 (0xE9)"),
        ("a.txt", b"one\n\ncaf\xe9\n", "data-encoding", "line 3, byte 4 (0xE9)"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "data-encoding", "line 1, byte 1 (0xFF)"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(name: str, content: bytes, rule: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, name, content)
    (refusal,) = error.value.refusals
    assert refusal.rule == rule
    assert where in f"{refusal.wrong} "
    assert name in refusal.setting


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    assert read(tmp_path, "a.jsonl", b'{"text": "\\ud83d\\ude00 \\\\ud800"}') == [{"text": "😀 \\ud800"}]


def test_rows_before_the_bad_one_are_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD * 2 + b"x")
    found = rows(tmp_path / "a.jsonl")
    assert [next(found), next(found)] == [{"text": "a"}] * 2
    with pytest.raises(UserError, match="line 3, column 1"):
        next(found)


def test_the_digest_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc")
    assert digest(tmp_path / "a.txt") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


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
        json.dumps(row, ensure_ascii=False).encode()  # as the facts are taken
        for format in FORMATS.values():
            try:
                assert isinstance(format.align(row), Record)
            except BadRow:
                continue
