"""LLaMA-Factory's dataset_info.json: what its entries become, and what is said of those that cannot."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled, refusals

from factory.config.refusal import UserError
from factory.config.settings import Source
from factory.data import formats
from factory.data.catalogue import expand, sources
from factory.data.read import rows
from factory.plan.inspect.data import look_at_data


def catalogue(folder: Path, **entries: Any) -> str:
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return str(folder)


def refused(folder: Path, **entry: Any) -> tuple[str, str, str]:
    with pytest.raises(UserError) as error:
        sources(catalogue(folder, mine=entry), ["mine"])
    (refusal,) = error.value.refusals
    return refusal.rule, refusal.wrong, refusal.fix


SHAREGPT = {"formatting": "sharegpt", "file_name": "a.json"}
OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"file_name": "a.json"}, {"origin": "file", "format": "alpaca", "columns": {}}),
        (
            {"file_name": "a.json", "columns": {"prompt": "q", "query": "input", "response": "a", "system": "sys"}},
            {"format": "alpaca", "columns": {"instruction": "q", "output": "a", "system": "sys"}},
        ),
        ({"file_name": "a.json", "columns": {"prompt": "text"}}, {"format": "text", "columns": {}}),
        ({"file_name": "a.json", "columns": {"prompt": "content", "response": None}}, {"columns": {"text": "content"}}),
        (
            {
                "file_name": "a.json",
                "ranking": True,
                "columns": {"prompt": "q", "chosen": "good", "rejected": "rejected"},
            },
            {"format": "alpaca_pairs", "columns": {"instruction": "q", "chosen": "good"}},
        ),
        (
            {"file_name": "a.json", "columns": {"prompt": "q", "response": "a", "kto_tag": "liked"}},
            {"format": "kto", "columns": {"instruction": "q", "output": "a", "label": "liked"}},
        ),
        ({**SHAREGPT}, {"format": "sharegpt", "columns": {}, "tags": {}, "folder": None}),
        (
            {**SHAREGPT, "columns": {"messages": "conversations", "tools": "functions", "images": "images"}},
            {"format": "sharegpt", "columns": {"tools": "functions"}, "folder": "HERE"},
        ),
        (
            {
                **SHAREGPT,
                "ranking": True,
                "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
            },
            {"format": "sharegpt_pairs", "columns": {}},
        ),
        (
            {**SHAREGPT, "columns": {"messages": "messages", "kto_tag": "label"}, "tags": OPENAI_TAGS},
            {"format": "kto", "columns": {"conversations": "messages"}, "tags": OPENAI_TAGS},
        ),
        (
            {"file_name": "a.json", "formatting": "openai", "columns": {"messages": "talk"}, "tags": OPENAI_TAGS},
            {"format": "messages", "columns": {"messages": "talk"}},
        ),
        (
            {"hf_hub_url": "me/set", "ms_hub_url": "Me/set", "subset": "en", "split": "test", "num_samples": 9},
            {"origin": "hub", "path": "me/set", "subset": "en", "split": "test", "max_samples": 9, "folder": None},
        ),
        (
            {"hf_hub_url": "me/code", "folder": "python", "columns": {"prompt": "content"}},
            {"origin": "hub", "path": "me/code/python", "format": "text", "split": "train"},
        ),
        ({"file_name": "sub/a.json"}, {"path": "HERE/sub/a.json"}),
        ({"file_name": "/data/a.json"}, {"path": "/data/a.json"}),
    ],
)
def test_an_entry_becomes_a_source(entry: dict[str, Any], wanted: dict[str, Any], tmp_path: Path) -> None:
    found = sources(catalogue(tmp_path, mine=entry), ["mine"])["mine"]
    for key, value in wanted.items():
        assert getattr(found, key) == (value.replace("HERE", str(tmp_path)) if isinstance(value, str) else value), key
    assert set(found.columns) <= formats.STANDARD
    assert set(found.tags) <= formats.TAGS


@pytest.mark.parametrize(
    ("entry", "rule", "wrong", "fix"),
    [
        ({"file_nam": "a.json"}, "catalogue-key", "there is no key file_nam", "did you mean file_name?"),
        ({"file_name": 3}, "catalogue-key", "file_name is 3, not a text", ""),
        ({"file_name": "a.json", "ranking": "yes"}, "catalogue-key", 'ranking is "yes", not true or false', ""),
        ({"file_name": "a.json", "num_samples": True}, "catalogue-key", "num_samples is true, not a number", ""),
        ({"file_name": "a.json", "num_samples": 0}, "catalogue-key", "num_samples is less than 1", ""),
        ({"file_name": "a.json", "formatting": "sharegtp"}, "catalogue-key", "is sharegtp", "did you mean sharegpt?"),
        (
            {**SHAREGPT, "columns": {"mesages": "a"}},
            "catalogue-key",
            "columns has no mesages",
            "did you mean messages?",
        ),
        ({**SHAREGPT, "columns": {"messages": "a", "query": "b"}}, "catalogue-key", "sharegpt has no query", ""),
        ({**SHAREGPT, "columns": {"tools": "a"}}, "catalogue-key", "do not say which one is the messages", ""),
        ({**SHAREGPT, "columns": {"messages": ["a"]}}, "catalogue-key", 'columns.messages is ["a"], not a text', ""),
        ({**SHAREGPT, "tags": {"role": "a"}}, "catalogue-key", "tags has no role", "did you mean role_tag?"),
        ({**SHAREGPT, "ranking": True}, "catalogue-key", "do not name chosen and rejected", ""),
        (
            {"file_name": "a", "columns": {"prompt": "a", "query": "b"}},
            "catalogue-key",
            "which one is the response",
            "",
        ),
        ({"file_name": "a.json", "subset": "en"}, "catalogue-key", "subset says which part of a hub's set", ""),
        ({"formatting": "alpaca"}, "catalogue-key", "nothing of where its rows are", "file_name"),
        ({"ms_hub_url": "me/set"}, "catalogue-origin", "it has ms_hub_url", "hf_hub_url"),
        ({"script_url": "set.py", "file_name": "a"}, "catalogue-origin", "it has script_url", "data=function"),
        ({"cloud_file_name": "s3://a"}, "catalogue-origin", "it has cloud_file_name", "file_name"),
    ],
)
def test_an_entry_that_is_not_understood_is_refused(
    entry: dict[str, Any], rule: str, wrong: str, fix: str, tmp_path: Path
) -> None:
    found = refused(tmp_path, **entry)
    assert found[0] == rule
    assert wrong in found[1]
    assert fix in found[2]


def test_all_wrong_names_are_told_at_once(tmp_path: Path) -> None:
    path = catalogue(tmp_path, alpaca={"file_name": "a.json"}, broken={"file_nam": "a"}, other=3)
    with pytest.raises(UserError) as error:
        sources(path, ["alpca", "alpaca", "broken", "other"])
    assert [refusal.rule for refusal in error.value.refusals] == [
        "catalogue-names",
        "catalogue-key",
        "catalogue-broken",
    ]
    assert "did you mean alpaca?" in error.value.refusals[0].fix
    assert list(sources(path, ["alpaca"])) == ["alpaca"]  # what is not asked for may be anything
    with pytest.raises(UserError, match=r"\[catalogue-names\] data.names=\[\]"):
        sources(path, [])
    with pytest.raises(UserError, match=r"\[catalogue-names\] data.names=alpaca: it is named twice"):
        sources(path, ["alpaca", "alpaca"])


@pytest.mark.parametrize(
    "content",
    [b"[]", b'{"a": ', b"\xff", b"[" * 100_000, b'{"a": {"file_name": "a.json"}, "a": {"file_name": "b.json"}}'],
    ids=["list", "cut", "bytes", "deep", "twice"],
)
def test_a_broken_catalogue_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_bytes(content)
    with pytest.raises(UserError, match="catalogue-broken"):
        sources(str(tmp_path), ["a"])


def test_a_missing_catalogue_names_the_one_beside_it(tmp_path: Path) -> None:
    catalogue(tmp_path)
    with pytest.raises(UserError, match=r"\[catalogue-missing\][^?]*did you mean .*dataset_info.json\?"):
        sources(str(tmp_path / "dataset_inf.json"), ["a"])


def source(**changes: Any) -> Source:
    values: dict[str, Any] = {
        "origin": "file",
        "path": "a.json",
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


def test_a_set_of_a_catalogue_may_have_keys_of_its_own(tmp_path: Path) -> None:
    rows = [{"instruction": "Say one.", "output": "One."}] * 9
    (tmp_path / "a.json").write_text(json.dumps(rows))
    path = catalogue(tmp_path, a={"file_name": "a.json"}, b={"file_name": "a.json"})
    chosen = ("data=llamafactory", f"data.path={path}", "hardware=cpu", "+data.sources.b.weight=2.5")
    plan = compiled(*chosen, "data.names=[a,b]")
    assert [source.asked.weight for source in plan.sources.values()] == [1.0, 2.5]
    with pytest.raises(UserError) as caught:
        compiled(*chosen, "data.names=[a]")
    assert [each.rule for each in caught.value.refusals] == ["unknown-set"]
    assert "llamafactory, a" in str(caught.value)


def test_a_catalogues_place_is_taken_by_its_sets(tmp_path: Path) -> None:
    path = catalogue(tmp_path, a={"file_name": "a.json"}, b={"file_name": "b.json"}, own={"file_name": "c.json"})
    selected = {"own": source(), "llamafactory": source(origin="catalogue", path=path)}
    assert list(expand(selected, ["b", "a"])) == ["own", "b", "a"]
    assert expand({"own": source()}, []) == {"own": source()}
    with pytest.raises(UserError, match=r"data.names=own: another selected set has this name"):
        expand(selected, ["own"])
    with pytest.raises(UserError, match=r"data.path=null: no catalogue is named"):
        expand({"llamafactory": source(origin="catalogue", path=None)}, ["a"])


SETS: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str]] = {
    "instructions": ({}, [{"instruction": "Say it.", "input": "a", "output": "b"}], "sft"),
    "web": ({"columns": {"prompt": "text"}}, [{"text": "a page"}], "pt"),
    "calls": (
        {"formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"}},
        [
            {
                "conversations": [
                    {"from": "human", "value": "What is the time?"},
                    {"from": "function_call", "value": '{"name": "clock", "arguments": {}}'},
                    {"from": "observation", "value": "12:00"},
                    {"from": "gpt", "value": "Noon."},
                ],
                "tools": '[{"name": "clock", "description": "the time", "parameters": {}}]',
            }
        ],
        "sft",
    ),
    "pairs": (
        {
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
        [
            {
                "conversations": [{"from": "human", "value": "hi"}],
                "chosen": {"from": "gpt", "value": "hello"},
                "rejected": {"from": "gpt", "value": "what"},
            }
        ],
        "dpo",
    ),
    "labels": (
        {"formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "label"}, "tags": OPENAI_TAGS},
        [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], "label": True}],
        "kto",
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_its_sets_are_looked_at_and_align(name: str, tmp_path: Path) -> None:
    entry, written, stage = SETS[name]
    (tmp_path / "set.json").write_text(json.dumps(written))
    found = sources(catalogue(tmp_path, **{name: {"file_name": "set.json", **entry}}), [name])[name]
    facts = look_at_data(name, found, stage)
    assert (facts.rows, facts.peeked, facts.tools) == (1, False, name == "calls")
    record = formats.align(next(rows(Path(facts.path))), facts.format, facts.source.columns, facts.source.tags)
    assert record.response
    assert (record.label is True) == (name == "labels")
    assert bool(record.rejected) == (name == "pairs")


def test_a_list_of_names_that_is_a_bad_value_is_refused_beside_what_is_set_of_an_entry(tmp_path: Path) -> None:
    path = catalogue(tmp_path, b={"file_name": "b.json"})
    found = refusals("data=llamafactory", f"data.path={path}", "data.names=[inf,b]", "data.sources.b.max_samples=3")
    assert "bad-value" in {each.rule for each in found}
