"""What is offered after a run is offered where it works, and is what a person would type."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import compiled

from factory.plan import Export
from factory.run.folder import RunFolder
from factory.run.next_commands import next_commands

EXPORT = Export(
    dir="my models/one",
    format="hf",
    dtype="bfloat16",
    quantization=None,
    calibration=None,
    shard_size=10**9,
    modelfile=True,
    base=None,
    overwrite=False,
    check=True,
    push=None,
    private=True,
    dry_run=False,
    register=None,
    run=None,
    scores=False,
    bytes=1,
)


def _commands(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in text.splitlines()[1:]]


@pytest.mark.parametrize(("stage", "talks"), [("sft", True), ("dpo", True), ("rm", False), ("pt", False)])
def test_a_model_that_answers_is_talked_to(stage: str, talks: bool, here: Path) -> None:
    told = next_commands(compiled("hardware=cpu", f"stage={stage}", training=False), RunFolder("outputs/a run"))
    words = _commands(told)
    assert ("chat" in {line[-2] for line in words}) is talks
    assert any(line[-3:] == ["export", "run=outputs/a run", "export.dir=exports/a run"] for line in words)
    assert any(line[-2:] == ["--from-plan", "outputs/a run/plan.yaml"] for line in words)


def test_after_an_export(here: Path) -> None:
    plan = replace(
        compiled("hardware=cpu", training=False), verb="export", overrides=("run=a b", "export.dry_run=true")
    )

    def told(export: Export) -> list[list[str]]:
        return _commands(next_commands(replace(plan, export=export), RunFolder("outputs/x")))

    ((*_, verb, path),) = told(EXPORT)
    assert (verb, path) == ("chat", "model.path=my models/one")
    ((*start, file),) = told(replace(EXPORT, format="gguf"))
    assert start == ["ollama", "create", "NAME", "-f"] and file == "my models/one/Modelfile"
    assert told(replace(EXPORT, format="gguf", modelfile=False)) == told(replace(EXPORT, scores=True)) == []
    (*_, upload) = told(replace(EXPORT, push="me/it", dry_run=True))
    assert upload[-3:] == ["export", "run=a b", "export.overwrite=true"]


def test_nothing_follows_from_a_measurement(here: Path) -> None:
    plan = replace(compiled("hardware=cpu", training=False), verb="evaluate")
    assert next_commands(plan, RunFolder("outputs/x")) == ""
