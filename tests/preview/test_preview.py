"""The verb: what it prints, counts and refuses, on the tiny model and on files made for it."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import Said, compiled, empty_cache
from test_imports import REFUSED, SCRIPT

from factory.data.dataset import IGNORED

Command = Callable[..., Said]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    empty_cache(tmp_path_factory.mktemp("cache") / "empty", monkeypatch)


@pytest.fixture
def preview(command: Command, tiny_model: Path) -> Command:
    def preview(*words: str) -> Said:
        return command("preview", f"model.path={tiny_model}", "hardware=cpu", *words)

    return preview


@pytest.fixture
def as_json(preview: Command) -> Callable[..., dict[str, Any]]:
    def as_json(*words: str) -> dict[str, Any]:
        said = preview("preview.format=json", *words)
        assert said.code == 0, said.err
        return json.loads(said.out)

    return as_json


def rows(path: str, *found: dict[str, Any]) -> tuple[str, str]:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in found))
    return "data=file", f"data.path={path}"


def question(number: int, output: Any = "Blue.") -> dict[str, Any]:
    return {"instruction": f"Question {number}?", "output": output}


def accounted(data: dict[str, Any]) -> int:
    return data["used"] + data["validation"] + data["not_sampled"] + sum(data["dropped"].values())


@pytest.mark.parametrize("stage", ["sft", "pt"])
def test_json_keeps_the_contract(stage: str, as_json: Callable[..., dict[str, Any]], here: Path) -> None:
    tree = as_json(f"stage={stage}", "data.max_length=200", "preview.rows=2")
    data = tree["data"]
    assert accounted(data) == data["rows"] > 0
    assert {"truncated", "tokens", "trained_tokens", "packing_efficiency"} <= data.keys()
    assert len(tree["samples"]) == 2
    for sample in tree["samples"]:
        assert len(sample["input_ids"]) == len(sample["labels"]) <= 200
        assert sample["text"] == tiny.tokenizer().decode(sample["input_ids"])
        assert set(sample["labels"]) != {IGNORED}
    assert (data["packing_efficiency"] is None) == (stage == "sft")
    assert list(here.iterdir()) == []  # no run's folder, no log


@pytest.mark.parametrize(("stage", "prefix"), [("dpo", "chosen_"), ("kto", "")])
def test_stages_that_are_trained_later_can_be_seen(
    stage: str, prefix: str, as_json: Callable[..., dict[str, Any]]
) -> None:
    tree = as_json(f"stage={stage}", "data.max_length=250", "preview.rows=1")
    (sample,) = tree["samples"]
    trained = [label for label in sample[f"{prefix}labels"] if label != IGNORED]
    assert tiny.tokenizer().decode(trained).endswith("<|im_end|>")
    assert "chosen_input_ids" not in sample if stage == "kto" else sample["rejected_text"] != sample["chosen_text"]


def test_the_steps_are_those_of_the_run(as_json: Callable[..., dict[str, Any]], here: Path) -> None:
    words = rows("rows.jsonl", *(question(number) for number in range(20)))
    tree = as_json(*words, "stage.batch_size=2", "stage.gradient_accumulation_steps=2", "stage.num_epochs=3")
    assert (tree["sequences"], tree["steps"]) == (18, 15)
    assert as_json(*words, "stage.max_steps=7")["steps"] == 7


def test_what_is_dropped_is_told_with_its_rows(
    preview: Command, as_json: Callable[..., dict[str, Any]], here: Path
) -> None:
    found = [question(number) for number in range(20)]
    found[3]["output"], found[8]["output"], found[9]["output"] = "", "word " * 500, "word " * 600
    words = rows("rows.jsonl", *found)
    tree = as_json(*words, "data.max_length=100")
    assert accounted(tree["data"]) == tree["data"]["rows"] == 20
    by_reason = {each["reason"]: each for each in tree["dropped_rows"]}
    assert by_reason["longer than max_length"] == {
        "source": "file",
        "reason": "longer than max_length",
        "count": 2,
        "first": [9, 10],
    }
    assert [each["first"] for each in tree["dropped_rows"] if each["count"] == 1] == [[4]]
    said = preview(*words, "data.max_length=100")
    assert "2: longer than max_length (file rows 9, 10)" in said.out


def test_a_row_that_is_held_out_elsewhere_is_told_too(as_json: Callable[..., dict[str, Any]], here: Path) -> None:
    rows("train.jsonl", *(question(number) for number in range(10)))
    rows("held.jsonl", *(question(number) for number in range(8, 12)))
    Path("dataset_info.json").write_text(
        json.dumps({name: {"file_name": f"{name}.jsonl"} for name in ("train", "held")})
    )
    tree = as_json(
        "data=llamafactory", "data.path=dataset_info.json", "data.names=[train,held]", "data.validation=held"
    )
    assert accounted(tree["data"]) == tree["data"]["rows"] == 14
    assert [(each["source"], each["count"], each["first"]) for each in tree["dropped_rows"]] == [(None, 2, [])]


def test_what_is_cut_is_counted(preview: Command, here: Path) -> None:
    found = [question(number, "word " * 300 if number == 5 else "Blue.") for number in range(10)]
    said = preview(
        *rows("rows.jsonl", *found), "data.max_length=100", "data.truncation=right", "data.validation_fraction=0"
    )
    assert "1 row (" in said.out and "1 without the end of their answer" in said.out


@pytest.mark.parametrize("isolated", ["true", "false"])
def test_packed_documents_are_parted(isolated: str, as_json: Callable[..., dict[str, Any]], here: Path) -> None:
    texts = [{"text": f"Text {number} " + "is long. " * number} for number in range(12)]
    tree = as_json(*rows("rows.jsonl", *texts), "stage=pt", "data.max_length=64", f"data.isolate_documents={isolated}")
    eos = tiny.tokenizer().eos_token_id
    for sample in tree["samples"]:
        at, ends = 0, []
        for document in sample["documents"]:
            at += document["tokens"]
            ends.append(at)
        assert at == len(sample["input_ids"])
        assert [end for end in ends[:-1] if sample["input_ids"][end - 1] != eos] == []
    assert len(tree["samples"][0]["documents"]) > 1
    assert tree["settings"]["max_length"] == "64 tokens; longer rows: joined and cut, no token is lost"


def test_answers_that_are_sampled_are_none_of_the_rows(as_json: Callable[..., dict[str, Any]], here: Path) -> None:
    Path("short.py").write_text("def short(*_, **__): return []\n")
    given = (*rows("rows.jsonl", *map(question, range(12))), "stage=grpo", "stage.reward=short:short")
    tree, learnt = as_json(*given), as_json(*given[:2])
    assert "sampled" in tree["settings"]["loss"] and tree["data"]["trained_tokens"] == 0
    assert tree["data"]["tokens"] == learnt["data"]["tokens"] and learnt["data"]["trained_tokens"]
    for sample in tree["samples"]:
        assert set(sample["labels"]) == {IGNORED} and "Blue." not in sample["text"] and "Question" in sample["text"]
        assert [each["tokens"] for each in sample["documents"]] == [len(sample["input_ids"])]


def test_a_stream_shows_its_first_block(as_json: Callable[..., dict[str, Any]], here: Path) -> None:
    found = [question(number, "" if number == 4 else "Blue.") for number in range(40)]
    tree = as_json(*rows("rows.jsonl", *found), "data.streaming=true", "data.shuffle_buffer=20", "stage.max_steps=5")
    assert accounted(tree["data"]) == tree["data"]["rows"] == 20
    assert tree["steps"] == 5
    assert len(tree["samples"]) == 3
    assert tree["dropped_rows"][0]["first"] == [5]


def test_the_lengths_of_a_packed_stream_are_those_of_its_sequences(preview: Command, here: Path) -> None:
    texts = [{"text": f"Text {number} " + "is long. " * number} for number in range(40)]
    given = (*rows("rows.jsonl", *texts), "stage=pt", "data.max_length=64", "stage.max_steps=2")
    assert "tokens a row" in preview(*given).out
    assert "tokens a sequence" in preview(*given, "data.streaming=true").out


def test_several_sets_are_named(as_json: Callable[..., dict[str, Any]], here: Path) -> None:
    Path("conf/data").mkdir(parents=True)
    for at, name in enumerate(("one", "two")):
        rows(f"{name}.jsonl", *map(question, range(20 * at, 20 * at + 20)))
        Path(f"conf/data/{name}.yaml").write_text(
            f"# @package data.sources.{name}\ndefaults: [_base@_here_]\npath: {name}.jsonl\n"
        )
    told = as_json("--config-dir", "conf", "data=[one,two]", "data.sources.one.weight=2", "data.validation=two")
    assert told["settings"]["data"] == "one, two"
    assert told["settings"]["set one"] == "one.jsonl, alpaca, weight 2"
    assert told["settings"]["set two"] == "two.jsonl, alpaca, held out whole"


def test_one_is_one(preview: Command, here: Path) -> None:
    said = preview(*rows("rows.jsonl", question(1, "An end: <|im_end|>")), "data.validation_fraction=0").out
    assert "over 1 sequence" in said and "1 sequences" not in said
    assert "1 row has the text of a special token" in " ".join(said.split())


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_what_the_tokenizer_lacks_is_noted(streaming: str, as_json: Callable[..., dict[str, Any]], here: Path) -> None:
    given = (*rows("rows.jsonl", *map(question, range(20))), f"data.streaming={streaming}", "stage.max_steps=5")
    notes = as_json(*given, "model.template=llama3")["notes"]
    (note,) = (note for note in notes if note.startswith("The tokenizer has no token <|eot_id|>"))
    (advised,) = (word for word in shlex.split(note.replace("'s", "")) if word.startswith("model.new_tokens="))
    assert compiled("hardware=cpu", advised, training=False).settings.model.new_tokens == ("<|eot_id|>", "<|eom_id|>")


def test_text_prints_marks_and_no_control_characters(preview: Command, here: Path) -> None:
    found = [question(number, f"Blue\x1b[31m {number}\r") for number in range(10)]
    said = preview(*rows("rows.jsonl", *found), "preview.rows=1")
    assert said.code == 0
    assert "⟦Blue␛[31m 0␍<|im_end|>⟧" in said.out
    assert "\x1b" not in said.out and "\r" not in said.out


def test_a_page_is_written_beside_the_json(preview: Command, here: Path) -> None:
    said = preview("preview.format=json", "preview.html=page.html", "preview.rows=1")
    assert said.code == 0
    assert json.loads(said.out)["samples"][0]["text"]
    assert "The page is page.html" in said.err
    assert Path("page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_what_a_data_function_prints_is_no_part_of_the_json(
    as_json: Callable[..., dict[str, Any]], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("talking.py").write_text(
        "def rows():\n    print('here I am')\n"
        "    yield from ({'instruction': f'Question {n}?', 'output': 'Blue.'} for n in range(10))\n"
    )
    monkeypatch.syspath_prepend(here)
    assert as_json("data=function", "data.path=talking:rows")["data"]["rows"] == 10


def test_no_weight_is_read(preview: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("a weight is read")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", read)
    assert preview("preview.rows=1").code == 0


def test_mistakes_are_refused_together_before_anything_is_read(
    preview: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.preview import gather

    monkeypatch.setattr(gather, "preview", lambda *_: pytest.fail("the data are read"))
    said = preview("preview.rws=3", "preview.html=rows.jsonl", "preview.format=xml", "seed=x")
    assert said.code == 2
    assert sorted(said.rules) == ["bad-value", "bad-value", "preview-page", "unknown-key"]
    assert "did you mean preview.rows?" in said.err


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("rows.jsonl", "its name does not end in .html"),
        ("folder.html", "it is a folder"),
        ("none/page.html", "there is no such folder"),
        (f"{'a' * 300}.html", "it cannot be written (File name too long)"),
    ],
)
def test_a_page_that_cannot_be_is_refused_beforehand(name: str, wrong: str, preview: Command, here: Path) -> None:
    Path("folder.html").mkdir()
    said = preview(f"preview.html={name}")
    assert (said.code, said.rules) == (2, ["preview-page"])
    assert f"preview.html={name}: {wrong}." in said.err


def test_a_refusal_imports_nothing_heavy(here: Path) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, "preview", *REFUSED], check=True, capture_output=True, timeout=60)
    code, imported, _ = json.loads(Path("found.json").read_text())
    assert (code, imported) == (2, [])


def test_a_sweep_is_refused(preview: Command) -> None:
    said = preview("-m")
    assert (said.code, said.rules) == (2, ["plan-of-a-sweep"])


def test_rows_that_do_not_fit_fail_the_preview(preview: Command, here: Path) -> None:
    said = preview(*rows("rows.jsonl", *(question(number, "") for number in range(10))))
    assert (said.code, said.rules, said.out) == (1, ["rows-empty"], "")


def test_ctrl_c_ends_it(preview: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory.preview import gather

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gather, "aligned", interrupted)
    said = preview()
    assert (said.code, said.out) == (130, "")
    assert "Interrupted." in said.err
