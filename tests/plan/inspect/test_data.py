"""What is seen of a data set before it is read: its format, how many rows, what they carry."""

import gzip
import json
import random
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from factory.config.refusal import Refusal, UserError
from factory.config.settings import Source
from factory.plan.facts import DataFacts
from factory.plan.inspect import data
from factory.plan.inspect.data import look_at_data

ALPACA = [{"instruction": f"Say {number}.", "output": "word " * (number % 7 + 1)} for number in range(400)]
LINES = "".join(json.dumps(row) + "\n" for row in ALPACA).encode()


def source(**changes: Any) -> Source:
    values: dict[str, Any] = {
        "origin": "file",
        "path": None,
        "subset": None,
        "split": "train",
        "revision": None,
        "format": "auto",
        "columns": {},
        "tags": {},
        "folder": None,
        "max_samples": None,
        "weight": 1.0,
        "rows": None,
        "license": None,
    }
    return Source(**{**values, **changes})


def look(stage: str = "sft", **changes: Any) -> DataFacts:
    return look_at_data("mine", source(**changes), stage)


def refused(stage: str = "sft", **changes: Any) -> Refusal:
    with pytest.raises(UserError) as error:
        look(stage, **changes)
    (refusal,) = error.value.refusals
    return refusal


def parquet(path: Path, found: list[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), path)


def test_a_small_file_is_known_exactly(here: Path) -> None:
    (here / "rows.jsonl").write_bytes(LINES)
    facts = look(path="rows.jsonl", folder="pictures", max_samples=9, weight=2.0)
    assert (facts.source.origin, facts.path, facts.format, facts.kind) == (
        "file",
        str(here / "rows.jsonl"),
        "alpaca",
        "messages",
    )
    assert (facts.rows, facts.peeked, facts.bytes) == (400, False, len(LINES))
    assert facts.columns == ("instruction", "output")
    assert facts.longest_row_bytes == max(len(json.dumps(row)) for row in ALPACA)
    assert facts.sha256
    assert (facts.source.folder, facts.source.max_samples, facts.source.weight) == ("pictures", 9, 2.0)
    assert not facts.tools
    assert not facts.media


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "folder"])
def test_a_large_set_is_estimated_from_its_first_rows(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = ALPACA * 20
    written = {
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in many),
        "rows.json": json.dumps(many),
        "rows.csv": "instruction,output\n" + "".join(f"{row['instruction']},{row['output']}\n" for row in many),
    }
    if name == "folder":
        (here / name).mkdir()
        for part in range(3):
            (here / name / f"{part}.jsonl").write_text(written["rows.jsonl"])
        many = many * 3
    else:
        (here / name).write_text(written[name])
    monkeypatch.setattr(data, "READ_WHOLE", 2000)
    monkeypatch.setattr("factory.data.read.opened.BUFFER", 512)
    monkeypatch.setattr("factory.data.read.objects.BUFFER", 512)
    facts = look(path=name)
    assert facts.peeked
    assert facts.rows == pytest.approx(len(many), rel=0.12)


def test_a_large_compressed_file_is_estimated_by_its_size_on_the_disk(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(0)
    lines = "".join(json.dumps({"text": chance.randbytes(200).hex()}) + "\n" for _ in range(40_000))
    (here / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode(), 1))
    monkeypatch.setattr(data, "READ_WHOLE", 8 * 2**20)
    facts = look("pt", path="rows.jsonl.gz")
    assert facts.peeked
    assert facts.rows == pytest.approx(40_000, rel=0.3)  # what the decompressor holds ready counts as read


def test_a_small_file_of_many_rows_is_large_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = {"instruction": "x" * 5000, "output": "y"}
    parquet(here / "a.parquet", [*ALPACA * 20, last])
    facts = look(path="a.parquet")
    assert facts.longest_row_bytes == len(json.dumps(last))
    monkeypatch.setattr(data, "READ_WHOLE", facts.bytes)
    facts = look(path="a.parquet")
    assert (facts.rows, facts.peeked) == (8001, False)  # as the file itself says
    assert facts.longest_row_bytes < 100


def test_a_large_table_says_itself_how_many_rows_it_has(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "READ_WHOLE", 100)
    (here / "set").mkdir()
    parquet(here / "set" / "a.parquet", ALPACA)
    parquet(here / "set" / "b.parquet", ALPACA[:7])
    facts = look(path="set")
    assert (facts.rows, facts.peeked) == (407, False)
    (here / "set" / "c.jsonl").write_bytes(LINES)
    facts = look(path="set")
    assert facts.peeked
    assert facts.rows == pytest.approx(807, rel=0.05)


def test_a_link_keeps_its_own_name(here: Path) -> None:
    """What it leads to may have no suffix, as in the hub's cache, and images lie beside the link."""
    (here / "blobs").mkdir()
    (here / "blobs" / "0f3a").write_bytes(LINES)
    (here / "rows.jsonl").symlink_to("blobs/0f3a")
    found = look(path="rows.jsonl")
    assert (found.path, found.rows) == (str(here.resolve() / "rows.jsonl"), 400)


def test_images_and_tools_are_seen(here: Path) -> None:
    messages = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "That."}]
    parquet(here / "a.parquet", [{"messages": messages, "images": [{"bytes": b"\xff" * 5000, "path": None}]}])
    facts = look(path="a.parquet")
    assert facts.media == ("images",)
    assert not facts.tools
    assert facts.longest_row_bytes < 300  # an image is no text
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    talk = [messages[0] | {"content": "Do."}, call, {"role": "tool", "content": "1"}, messages[1]]
    (here / "a.json").write_text(json.dumps([{"messages": talk}]))
    facts = look(path="a.json")
    assert facts.tools
    assert not facts.media


@pytest.mark.parametrize("column", ["videos", "audios"])
def test_videos_and_audios_are_seen(column: str, here: Path) -> None:
    single = column.removesuffix("s")
    answer = {"role": "assistant", "content": "That."}
    listed = {"messages": [{"role": "user", "content": f"<{single}>What?"}, answer], column: ["a.bin"]}
    part = [{"type": single, single: "a.bin"}, {"type": "text", "text": "What?"}]
    for row in (listed, {"messages": [{"role": "user", "content": part}, answer]}):
        (here / "rows.jsonl").write_text(LINES.decode().splitlines()[0] + "\n" + json.dumps(row))
        assert look(path="rows.jsonl", format="messages").media == (column,)
    (here / "rows.jsonl").write_text(json.dumps({"messages": listed["messages"]}))
    assert not look(path="rows.jsonl").media  # a text like any other
    assert look(origin="hub", path="me/set", format="messages", columns={column: "clip"}).media == (column,)


def test_what_later_rows_show_is_seen_too(here: Path) -> None:
    """As far as the file is read; of all that is read later each row is looked at when it is prepared."""
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    part = [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What?"}]
    rows = [{"messages": said}] * 150 + [{"messages": [{"role": "user", "content": part}, said[1]]}]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert look(path="rows.jsonl").media == ("videos",)


def test_columns_and_tags_are_the_sets_own(here: Path) -> None:
    row = {"talk": [{"who": "customer", "says": "hi"}, {"who": "clerk", "says": "ho"}]}
    (here / "a.jsonl").write_text(json.dumps(row))
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "customer", "assistant_tag": "clerk"}
    facts = look(path="a.jsonl", columns={"conversations": "talk"}, tags=tags)
    assert (facts.format, facts.source.columns, facts.source.tags) == ("sharegpt", {"conversations": "talk"}, tags)


@pytest.mark.parametrize(
    ("changes", "rule", "setting", "wrong"),
    [
        ({}, "data-missing", "data.sources.mine.path=null", "no file is named"),
        ({"origin": "hub"}, "data-missing", "data.sources.mine.path=null", "nothing is named"),
        ({"path": ""}, "data-missing", "data.sources.mine.path=", "no file is named"),
        ({"path": "-"}, "data-stdin", "data.sources.mine.path=-", "standard input"),
        ({"path": "row.jsonl"}, "data-missing", "data.sources.mine.path=row.jsonl", "no such file"),
        ({"path": "empty"}, "data-empty", "data.sources.mine.path=empty", "there is no file in it"),
        ({"path": "rows.jsonl", "rows": 3}, "data-origin", "data.sources.mine.rows=3", "are counted"),
        ({"path": "rows.jsonl", "subset": "en"}, "data-origin", "data.sources.mine.subset=en", "from a file"),
        ({"path": "a:b", "origin": "function", "split": "x"}, "data-origin", "data.sources.mine.split=x", "a function"),
        (
            {"path": "rows.jsonl", "columns": {"instuction": "a"}},
            "unknown-column",
            "data.sources.mine.columns=instuction",
            "no such column",
        ),
        ({"path": "rows.jsonl", "tags": {"role": "a"}}, "unknown-tag", "data.sources.mine.tags=role", "no such tag"),
        (
            {"path": "rows.jsonl", "columns": {"instruction": "ask"}},
            "data-format",
            "data.sources.mine.format=auto",
            "the columns instruction, output lack ask",
        ),
        (
            {"path": "rows.jsonl", "format": "kto"},
            "data-format",
            "data.sources.mine.format=kto",
            "lack label",
        ),
        ({"path": "me/set", "origin": "hub"}, "hub-undeclared", "data.sources.mine.format=auto", "columns"),
        ({"path": "rows.jsonl", "origin": "hub"}, "hub-missing", "data.sources.mine.path=rows.jsonl", "owner/name"),
        ({"path": "nope:rows", "origin": "function"}, "function-missing", "path=nope:rows", "no module nope"),
    ],
)
def test_what_cannot_be_read_is_refused(
    changes: dict[str, Any], rule: str, setting: str, wrong: str, here: Path
) -> None:
    (here / "rows.jsonl").write_bytes(LINES)
    (here / "empty").mkdir()
    found = refused(**changes)
    assert (found.rule, found.setting) == (rule, setting)
    assert wrong in found.wrong


def test_near_names_are_told(here: Path) -> None:
    (here / "rows.jsonl").write_bytes(LINES)
    assert "did you mean rows.jsonl?" in refused(path="row.jsonl").fix
    assert "did you mean instruction?" in refused(path="rows.jsonl", columns={"instuction": "a"}).fix
    assert "did you mean role_tag?" in refused(path="rows.jsonl", tags={"role": "a"}).fix


def test_columns_that_are_spelled_otherwise_are_told_how_to_be_read(here: Path) -> None:
    """As `instruction, output` in a table, whose second column begins with a space, or Instruction."""
    (here / "rows.csv").write_text("Instruction, output,id\nSay a.,a,1\n")
    found = refused(path="rows.csv")
    assert found.wrong == "the columns ' output', Instruction, id fit no known format"
    word = found.fix.partition("data.sources.mine.columns=")[2]
    assert shlex.split(word) == ['{output: " output", instruction: Instruction}']
    assert look(path="rows.csv", columns={"output": " output", "instruction": "Instruction"}).format == "alpaca"


def test_rows_of_another_format_than_was_said_are_told_which(here: Path) -> None:
    """A catalogue's entry is alpaca where it says nothing; `columns='{}'`, which was told, changes nothing."""
    (here / "wiki.txt").write_text("One text.\nAnother text.\n")
    found = refused("pt", path="wiki.txt", format="alpaca")
    assert found.fix.startswith("its columns are those of text: set data.sources.mine.format=text; or map yours")
    assert "{}" not in found.fix
    assert look("pt", path="wiki.txt", format="text").format == "text"
    unread = refused("sft", path="wiki.txt", format="alpaca")  # a stage that no text is for
    assert unread.fix.startswith("map yours") and "{}" not in unread.fix


def test_of_many_columns_some_are_named(here: Path) -> None:
    """An object whose keys are the numbers of its rows has a column a row."""
    (here / "rows.json").write_text(json.dumps({str(number): ALPACA[0] for number in range(400)}))
    found = refused(path="rows.json").wrong
    assert len(found) < 200 and found.endswith("and 380 more fit no known format")


def test_a_pattern_is_told_to_be_none(here: Path) -> None:
    (here / "rows.jsonl").write_bytes(LINES)
    for pattern in ("*.jsonl", "row?.jsonl", "rows[0-9].jsonl"):
        assert refused(path=pattern).fix.startswith("patterns are not read: of several files name the folder")


def test_a_mapped_column_is_sought_among_the_sets_own(here: Path) -> None:
    (here / "rows.jsonl").write_text('{"question": "a", "answer": "b"}')
    found = refused(path="rows.jsonl", columns={"instruction": "question", "output": "answr"})
    assert "the columns answer, question lack answr" in found.wrong
    assert "did you mean answer?" in found.fix


@pytest.mark.parametrize("more", [{}, {"system": "s", "id": 3}])
def test_pairs_without_a_known_prompt_are_told_which_column_may_hold_it(more: dict[str, Any], here: Path) -> None:
    row = {**more, "question": "q", "chosen": "good", "rejected": "bad"}
    (here / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"rejected": ""}))
    found = refused("dpo", path="rows.jsonl")
    assert (found.rule, found.setting) == ("data-format", "data.sources.mine.format=auto")
    assert "are of pairs, and none of them is known to hold the prompt" in found.wrong
    assert found.fix.endswith("data.sources.mine.columns='{prompt: question}'")
    assert look("dpo", path="rows.jsonl", columns={"prompt": "question"}).format == "pairs"
    said = {"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: a\n\nAssistant: b"}
    (here / "rows.jsonl").write_text(json.dumps(said))
    assert look("dpo", path="rows.jsonl").format == "transcripts"  # of equal answers


def test_labelled_rows_are_what_their_stage_makes_of_them(here: Path) -> None:
    """Of a stage that trains each answer they are no examples; one that samples its own reads the prompts alone."""
    rows = [{"prompt": "q", "completion": "a", "label": number % 2 == 0} for number in range(4)]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = {stage: look(stage, path="rows.jsonl").format for stage in ("sft", "kto", "grpo", "ppo")}
    assert found == {"sft": "kto", "kto": "kto", "grpo": "prompt_completion", "ppo": "prompt_completion"}
    assert look("sft", path="rows.jsonl", format="prompt_completion").kind == "messages"
    (here / "rows.jsonl").write_text(json.dumps({**rows[0], "label": "maybe"}))
    assert look("kto", path="rows.jsonl").kind == "labelled"  # the row's own reason is told when it is read
    assert look("sft", path="rows.jsonl").kind == "messages"


def test_broken_lines_are_counted_and_tell_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "rows.jsonl").write_bytes(b"{\n" + LINES + b'["a"]\n\xff' + b"x" * 9999)
    facts = look(path="rows.jsonl")
    assert (facts.rows, facts.format, facts.columns) == (403, "alpaca", ("instruction", "output"))
    assert facts.longest_row_bytes < 100
    (here / "rows.jsonl").write_bytes(b"\n[}\n" + b"x\n" * 5000)
    monkeypatch.setattr(data, "READ_WHOLE", 200)  # and is not read to its end for that
    found = refused(path="rows.jsonl")
    assert (found.rule, found.setting) == ("data-broken", "path=rows.jsonl")
    assert "line 2, column 2 is not JSON" in found.wrong
    (here / "set").mkdir()
    (here / "set" / "a.txt").write_bytes(b"\n")
    (here / "set" / "b.jsonl").write_bytes(b'{"text": "\xe9"}\n' * 3)
    found = refused(path="set")
    assert (found.rule, found.setting) == ("data-encoding", "path=set/b.jsonl")


def test_a_folders_file_with_other_columns_is_named(here: Path) -> None:
    (here / "set").mkdir()
    (here / "set" / "a.jsonl").write_bytes(LINES)
    (here / "set" / "b.csv").write_text("instruction,output,note\na,b,c\n")
    assert look(path="set").rows == 401  # more columns harm nothing
    (here / "set" / "c.csv").write_text("question,output\na,b\n")
    (here / "set" / "d.txt").write_text("")
    found = refused(path="set")
    assert (found.rule, found.setting) == ("data-format", "data.sources.mine.format=auto")
    assert "c.csv with output, question lacks instruction" in found.wrong
    (here / "set" / "c.csv").write_text("ask,say\na,b\n")
    (here / "set" / "a.jsonl").unlink()
    (here / "set" / "b.csv").write_text("ask,say,note\na,b,\n")
    assert look(path="set", columns={"instruction": "ask", "output": "say"}).rows == 2


@pytest.mark.parametrize("indent", [None, 1])
def test_rows_below_a_key_are_written_out_by_the_command_that_is_told(indent: int | None, here: Path) -> None:
    rows = [{"question": "What is é?", "answer": "A letter."}] * 3
    (here / "set.json").write_text(json.dumps({"version": 1, "data": rows}, indent=indent))
    found = refused(path="set.json")
    assert (found.rule, found.wrong) == ("data-wrapped", 'it is one object, whose key "data" has the list of rows')
    assert refused(path="set.json", columns={"instruction": "question", "output": "answer"}) == found
    _, *words, into, name = shlex.split(found.fix.partition(": ")[2])
    assert (into, name) == (">", "rows.jsonl")
    written = subprocess.run([sys.executable, *words], check=True, cwd=here, capture_output=True).stdout
    assert [json.loads(line) for line in written.splitlines()] == rows


def test_a_set_of_the_hub_is_what_its_option_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket", None)
    facts = look(
        origin="hub",
        path="me/set",
        subset="en",
        split="test",
        revision="v1",
        format="prompt_completion",
        columns={"prompt": "question"},
        rows=5,
    )
    assert (facts.source.origin, facts.path, facts.source.subset, facts.source.split, facts.source.revision) == (
        "hub",
        "me/set",
        "en",
        "test",
        "v1",
    )
    assert (facts.kind, facts.columns, facts.rows, facts.sha256) == ("messages", ("completion", "question"), 5, None)
    assert look(origin="hub", path="me/set", format="text").rows == data.UNKNOWN
    assert look(origin="hub", path="me/set", format="messages", columns={"images": "image"}).media == ("images",)


def test_a_function_is_asked_for_its_first_rows(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (here / "given_rows.py").write_text(
        "def few():\n    return [{'text': 'a'}] * 3\n"
        "def none():\n    return []\n"
        "def endless():\n    while True:\n        yield {'text': 'a'}\n"
    )
    facts = look("pt", origin="function", path="given_rows:few")
    assert (facts.source.origin, facts.path, facts.rows, facts.peeked) == ("function", "given_rows:few", 3, False)
    assert (facts.format, facts.bytes) == ("text", 3 * len('{"text": "a"}'))
    facts = look("pt", origin="function", path="given_rows:endless", rows=10**6)
    assert (facts.rows, facts.peeked, facts.bytes) == (10**6, True, 10**6 * len('{"text": "a"}'))
    assert look("pt", origin="function", path="given_rows:endless").rows == data.UNKNOWN
    assert refused("pt", origin="function", path="given_rows:none").rule == "data-empty"


def test_arrow_is_not_imported_for_a_file_of_lines(here: Path) -> None:
    (here / "rows.jsonl").write_bytes(LINES)
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from factory.plan.inspect.data import look_at_data
from factory.config.settings import Source
values = dict(subset=None, split="train", revision=None, columns={{}}, tags={{}}, folder=None, max_samples=None)
values |= dict(weight=1.0, rows=None, license=None)
look_at_data("a", Source(origin="file", path="rows.jsonl", format="auto", **values), "sft")
look_at_data("b", Source(origin="hub", path="me/set", format="text", **values), "pt")
assert not {{"pyarrow", "datasets", "huggingface_hub", "torch", "numpy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
