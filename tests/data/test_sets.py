"""The named data sets and the built-in rows: each says what it is, and its rows align."""

import base64
import io
import json
import re
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from factory.config import compose, groups, settings
from factory.config.groups import CONF
from factory.config.settings import Source
from factory.data import formats
from factory.data.record import Kind, Record
from factory.demo import images
from factory.plan.inspect.data import look_at_data

GENERIC = ("demo", "file", "function", "llamafactory")
NAMED = sorted(set(groups.options("data")) - set(GENERIC))
FACTS: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "sets.yaml").read_text(encoding="utf-8"))
DEMO = Path(images.__file__).parent
BUILT_IN = {
    "text": "text",
    "messages": "alpaca",
    "pairs": "pairs",
    "labelled": "kto",
    "tools": "messages",
}
ANSWERS = {  # the set's own column that is trained, where it has another name than ours
    "adgen": "summary",
    "adgen_test": "summary",
    "cnn_dailymail": "highlights",
    "cnn_dailymail_test": "highlights",
    "dolly": "response",
    "gsm8k": "answer",
    "metamathqa": "response",
    "openorca": "response",
    "pubmed": "content",
    "xsum": "summary",
    "xsum_test": "summary",
}
LICENCE = re.compile(r"[a-z0-9.-]+(, [a-z0-9.-]+)*")


@cache
def sources() -> dict[str, Source]:
    """Every named set, composed at once as `data=[a,b,…]` would."""
    composed = compose.compose(compose.parse([f"data=[{','.join(NAMED)}]"]))
    assert not composed.problems
    return settings.validate(composed.tree).data.sources


def built_in(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEMO / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def aligned(rows: list[dict[str, Any]], format: str) -> list[Record]:
    return [formats.align(row, format, {}, {}) for row in rows]


def test_every_option_composes_under_its_own_name() -> None:
    assert sorted(sources()) == NAMED
    assert len([name for name, source in sources().items() if source.origin == "hub"]) >= 30


@pytest.mark.parametrize("name", NAMED)
def test_an_option_says_what_it_is(name: str) -> None:
    option = groups.packaged("data", name)
    assert option.package == f"data.sources.{name}"
    assert re.match(r"\w.{15,}", option.about)
    source = sources()[name]
    assert source.license is not None and LICENCE.fullmatch(source.license)
    assert set(source.columns) <= formats.STANDARD


def test_the_golden_table_has_every_hub_set_and_where_its_facts_were_read() -> None:
    assert sorted(FACTS) == sorted(name for name, source in sources().items() if source.origin == "hub")
    for facts in FACTS.values():
        assert facts["read"]
        assert all(re.match(r"https://(huggingface\.co/datasets|github\.com)/", link) for link in facts["read"])


def test_the_page_of_the_docs_lists_every_set() -> None:
    lines = (CONF.parent / "docs" / "data.md").read_text(encoding="utf-8").splitlines()
    listed = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    for name, source in sources().items():
        rows = f"{source.rows:,}" if source.rows else ""
        facts = (
            (f"`{source.path}`", f"| {rows} |".replace("|  |", "| |"), f"| {source.license} |")
            if source.origin == "hub"
            else ()
        )
        assert all(fact in listed[name] for fact in facts)


@pytest.mark.parametrize("name", sorted(FACTS))
def test_a_row_in_the_published_shape_aligns(name: str) -> None:
    source, row = sources()[name], FACTS[name]["row"]
    assert source.path is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", source.path)
    assert set(source.columns.values()) <= set(row)
    assert not formats.FORMATS[source.format].lacks(set(formats.rename(row, source.columns)))
    record = formats.align(row, source.format, source.columns, source.tags)
    assert record.response[-1]["content"].strip()
    kind = formats.FORMATS[source.format].kind
    assert bool(record.rejected) == (kind == "pairs")
    assert (record.label is not None) == (kind == "labelled")
    assert bool(record.prompt) == (kind != "text")


@pytest.mark.parametrize("name", sorted(FACTS))
def test_planning_sees_tools_and_images_without_the_network(name: str) -> None:
    source, row = sources()[name], FACTS[name]["row"]
    found = look_at_data(name, source, "sft")
    record = formats.align(row, source.format, source.columns, source.tags)
    assert (found.tools, found.media) == (bool(record.tools), ("images",) if record.images else ())


@pytest.mark.parametrize(("name", "column"), ANSWERS.items())
def test_the_answer_is_the_right_column(name: str, column: str) -> None:
    source, row = sources()[name], FACTS[name]["row"]
    assert formats.align(row, source.format, source.columns, source.tags).response[0]["content"] == row[column]


def test_every_renamed_answer_is_held() -> None:
    answers = {"completion", "output", "text"}
    assert sorted(ANSWERS) == sorted(name for name, source in sources().items() if answers & set(source.columns))


def test_columns_are_taken_for_what_they_mean() -> None:
    def record(name: str) -> Record:
        return formats.align(FACTS[name]["row"], sources()[name].format, sources()[name].columns, sources()[name].tags)

    dolly = record("dolly")
    assert "Who is it about?" in dolly.prompt[0]["content"]
    assert "Ada wrote the first program." in dolly.prompt[0]["content"]
    assert dolly.response[0]["content"] == "Ada."
    assert [message["role"] for message in record("openorca").prompt] == ["system", "user"]
    calls = [call for message in record("glaive_function_calling_v2").prompt for call in message.get("tool_calls", [])]
    assert calls == [{"name": "to_feet", "arguments": {"metres": 2}}]
    assert record("glaive_function_calling_v2").tools[0]["name"] == "to_feet"
    assert len(record("llava_instruct_150k").images) == 1
    assert record("openthoughts").response[0].get("reasoning") == "9 = 3 * 3."
    transcript = record("hh_rlhf")
    assert [message["role"] for message in transcript.prompt] == ["user", "assistant", "user"]
    assert (transcript.response[0]["content"], transcript.rejected[0]["content"]) == ("A week or two.", "No idea.")
    # its weights of 0 and of null stand beside messages that are no answers
    assert record("slimorca").response[0].get("weight", 1.0) == 1.0
    mix = record("kto_mix_15k")
    assert (len(mix.prompt), mix.label) == (1, True)


@pytest.mark.parametrize(("name", "format"), BUILT_IN.items())
def test_built_in_rows_align_and_are_known_by_their_columns(name: str, format: str) -> None:
    rows = built_in(name)
    kind = formats.FORMATS[format].kind
    records = aligned(rows, format)
    assert formats.recognise({column for row in rows for column in row}, rows, (kind,)) == format
    assert len(records) >= 30
    assert len({json.dumps(row, sort_keys=True) for row in rows}) == len(rows)


def test_there_are_built_in_rows_for_every_kind() -> None:
    assert all((DEMO / f"{kind}.jsonl").is_file() for kind in get_args(Kind))


def test_built_in_labels_are_balanced_and_taken_from_the_pairs() -> None:
    rows, pairs = built_in("labelled"), {row["prompt"]: row for row in built_in("pairs")}
    assert len(rows) >= 40
    assert sum(row["label"] for row in rows) * 2 == len(rows)
    for row in rows:
        assert row["completion"] == pairs[row["prompt"]]["chosen" if row["label"] else "rejected"]


def test_built_in_calls_fit_their_tools() -> None:
    rows = built_in("tools")
    with_calls = 0
    for row in rows:
        declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row.get("tools", [])}
        open_calls: list[str] = []
        for message in row["messages"]:
            for call in message.get("tool_calls", []):
                arguments = json.loads(call["function"]["arguments"])
                parameters = declared[call["function"]["name"]]
                assert set(parameters["required"]) <= set(arguments) <= set(parameters["properties"])
                open_calls.append(call["id"])
            if message["role"] == "tool":
                assert message["tool_call_id"] == open_calls.pop(0)
                json.loads(message["content"])
            elif "tool_calls" not in message:
                assert not open_calls
        with_calls += any("tool_calls" in message for message in row["messages"])
    assert with_calls >= 24
    assert len(rows) - with_calls >= 6  # chats, and questions that need no tool


def test_pictures_are_drawn_as_the_rows_say() -> None:
    rows = list(images.rows())
    assert len(rows) == sources()["demo_images"].rows
    for row, record in zip(rows, aligned(rows, "messages"), strict=True):
        assert [base64.b64decode(url.partition(",")[2]) for url in record.images] == [
            image["bytes"] for image in row["images"]
        ]
        assert sum(message["content"].count("<image>") for message in record.prompt) == len(row["images"])
    content = [image["bytes"] for row in rows for image in row["images"]]
    assert len(set(content)) == len(content) >= 40
    assert list(images.rows()) == rows
    drawn = chain(images._single(), images._several(), images._side_by_side(), images._two_pictures())
    for row, (pictures, turns) in zip(rows, drawn, strict=True):
        shown = {word for shapes in pictures for each in shapes for word in (each.shape, each.colour)}
        said = set(re.findall(r"[a-z]+", " ".join(text.lower() for turn in turns for text in turn)))
        assert {word for word in (*images.SHAPES, *images.COLOURS) if {word, f"{word}s"} & said} <= shown
        for image, shapes in zip(row["images"], pictures, strict=True):
            picture = _opened(image["bytes"])
            assert picture.size == (images.SIDE, images.SIDE)
            assert all(picture.getpixel(each.middle) == images.COLOURS[each.colour] for each in shapes)
    picture = _opened(rows[0]["images"][0]["bytes"])  # a red circle in the top left corner
    assert picture.getpixel((36, 36)) == images.COLOURS["red"]
    assert picture.getpixel((92, 92)) == images.BACKGROUND


def _opened(content: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(content))
