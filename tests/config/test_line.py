"""A form's state is a command line: changed, written, pasted and saved without a loss."""

import shlex
from pathlib import Path

import pytest

from factory.board import file
from factory.config import compose, line
from factory.config.refusal import UserError
from factory.config.words import pasted
from factory.verbs import settings_of


def test_a_key_is_set_where_it_stood() -> None:
    before = ("method=qlora", "method.rank=4", "stage=dpo")
    assert line.changed(before, "method.rank", "8") == ("method=qlora", "method.rank=8", "stage=dpo")
    assert line.changed(before, "method.rank", None) == ("method=qlora", "stage=dpo")
    assert line.changed(before, "seed", "1") == (*before, "seed=1")
    assert line.changed(("a=1", "b=2", "+a=3"), "a", "4") == ("b=2", "a=4")


@pytest.mark.parametrize(
    "text",
    [
        "rows.jsonl",
        "my rows.jsonl",
        "it's",
        "a,b",
        "C:\\x",
        "1e-4",
        "{a: b}",
        "[x,y]",
        "ünï",
        "$HOME",
        "a=b",
        "a{b",
        "",
    ],
)
def test_what_is_typed_arrives(text: str) -> None:
    """Through the grammar of the command line, and through a shell."""
    override = f"data.path={line.spelt(text)}"
    (back,) = line.read(line.command((override,)))
    assert back == override
    found = compose.compose(compose.CommandLine(overrides=(override,))).tree["data"]["path"]
    expected = {"1e-4": 1e-4, "{a: b}": {"a": "b"}, "[x,y]": ["x", "y"]}.get(text, text)
    assert found == expected


def test_each_of_a_list_is_a_text() -> None:
    texts = ["[TOOL]", "{x}", "a,b", "it's", "plain", ""]
    override = f"model.new_tokens={line.listed(texts)}"
    assert compose.compose(compose.CommandLine(overrides=(override,))).tree["model"]["new_tokens"] == texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("python -m factory method=qlora stage=dpo", ("method=qlora", "stage=dpo")),
        ("$ HF_TOKEN=x .venv/bin/factory train \\\n  'data.path=my rows.jsonl'", ("data.path=my rows.jsonl",)),
        ("factory plan model=llama3_8b  # what it would take", ("model=llama3_8b",)),
        ("factory", ()),
        ("factory plan plan.search=true plan.top=2 method=qlora", ("method=qlora",)),
        ("factory preview method=qlora preview.rows=10", ("method=qlora",)),
        ("factory plan preview.rows=10", ("preview.rows=10",)),  # which is another verb's, and told
        ("factory train plan.search=true", ("plan.search=true",)),
    ],
)
def test_a_pasted_line(text: str, expected: tuple[str, ...]) -> None:
    assert line.read(text) == expected


@pytest.mark.parametrize("text", ["factory train --from-plan plan.yaml", "factory plan --diff a b"])
def test_a_line_of_plan_files_is_not_told_to_be_what_it_is(text: str) -> None:
    with pytest.raises(UserError, match="it has flags") as error:
        line.read(text)
    assert [found.rule for found in error.value.refusals] == ["board-line"]


@pytest.mark.parametrize("text", ["factory -m method=lora,qlora", "factory chat run=x", "factory 'a", "factory --nope"])
def test_another_line_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        line.read(text)


STATES = [
    (),
    ("method=qlora", "stage.learning_rate=1e-5", "data=[alpaca,dolly]", "stage.max_steps=3"),
    ("recipe=sft_chat", "model=llama3_8b", "seed=3", "model.rope_scaling=linear", "method.target_modules=[q_proj]"),
    ("data=file", "data.path='my rows.jsonl'", "evaluate.metrics=[bleu4,rougeL]", "data.validation=null"),
    ("model.new_tokens=['<a>','x, y']",),
]


@pytest.mark.parametrize("overrides", STATES)
def test_a_saved_file_composes_to_the_same(overrides: line.Overrides, tmp_path: Path) -> None:
    tree = compose.compose(compose.CommandLine(overrides=overrides)).tree
    text = file.written(overrides, tree)
    assert compose.compose(compose.CommandLine(overrides=file.read(text))).tree == tree
    if not any(text.startswith("recipe=") for text in overrides):  # it is a recipe itself, where one looks for them
        (tmp_path / "recipe").mkdir()
        (tmp_path / "recipe" / "mine.yaml").write_text(text, encoding="utf-8")
        by_name = compose.CommandLine(overrides=("recipe=mine",), config_dirs=(str(tmp_path),))
        assert compose.compose(by_name).tree == tree


@pytest.mark.parametrize("text", ["", "[1]", "runs: {a: []}", "a: [", "defaults: [{x: 1, y: 2}]"])
def test_another_file_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        file.read(text)


def test_a_command_is_for_a_shell() -> None:
    assert shlex.split(line.command(("data.path='my rows.jsonl'",)))[-1] == "data.path='my rows.jsonl'"


def test_a_command_names_the_folders_of_options() -> None:
    text = line.command(("method=mine",), ("my own", "b"))
    assert shlex.split(text)[-3:] == ["--config-dir=my own", "--config-dir=b", "method=mine"]
    assert line.read(text, ("my own", "b")) == line.read("factory method=mine", ("b",)) == ("method=mine",)
    with pytest.raises(UserError, match="it has flags"):
        line.read(text, ("b",))


ODD = ("outputs/2026-11-30/11-27-07", "a run", "lr=1e-4,b", "étude", "it's", "a#b")


@pytest.mark.parametrize("name", ODD)
def test_what_is_printed_to_be_pasted_means_the_folder(name: str) -> None:
    """To a shell, and to Hydra's grammar where a key has the name."""
    (word,) = shlex.split(line.setting("sweep.resume", name))
    assert settings_of([word], "sweep").sweep.resume == name
    assert shlex.split(line.setting("run", Path(name))) == [f"run={name}"]
    assert line.run_of(f"run={name}") == line.run_of(f"run={line.spelt(name)}") == name  # as the board says it, too
    assert shlex.split(pasted("resume", Path(name)))[-2:] == ["resume", name]
