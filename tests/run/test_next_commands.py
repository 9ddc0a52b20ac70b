"""What is offered after a run is offered where it works, and is what a person would type."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled

from factory.config import compose, settings
from factory.data import hub
from factory.plan.plan import Export
from factory.run.folder import RunFolder
from factory.run.next_commands import next_commands

ASKED: dict[str, Any] = {
    "dir": "my models/one",
    "format": "hf",
    "modelfile": True,
    "push": None,
    "private": True,
    "dry_run": False,
}


def _exported(*, scores: bool = False, **changes: Any) -> list[list[str]]:
    plan = compiled("hardware=cpu", training=False)
    plan = plan.with_settings(verb="export", export=settings.Export.model_construct(**{**ASKED, **changes}))
    plan = replace(plan, export=Export(dtype="bfloat16", scores=scores, bytes=1))
    return _commands(next_commands(plan, RunFolder("outputs/x")))


def _commands(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in text.splitlines()[1:]]


@pytest.mark.parametrize(("stage", "talks"), [("sft", True), ("dpo", True), ("rm", False), ("pt", False)])
def test_a_model_that_answers_is_talked_to(stage: str, talks: bool, here: Path) -> None:
    told = next_commands(compiled("hardware=cpu", f"stage={stage}", training=False), RunFolder("outputs/a run"))
    words = _commands(told)
    assert ("chat" in {line[-2] for line in words}) is talks
    assert any(line[-3:] == ["export", "run=outputs/a run", "export.dir=exports/a run"] for line in words)
    assert any(line[-2:] == ["--from-plan", "outputs/a run/plan.yaml"] for line in words)


def test_a_model_of_a_stage_of_ones_own_is_talked_to(here: Path) -> None:
    (here / "mine.py").write_text(
        "from factory.stages.sft.spec import KIND, Settings\ndef loss(model, batch, own): ..."
    )
    assert any(line[-2] == "chat" for line in _after("stage.name=mine.py"))


@pytest.mark.parametrize("name", ["lr=1e-4,b", "étude", "it's", "a run"])
def test_what_is_offered_is_read_whatever_the_folder_is_called(name: str, here: Path) -> None:
    """By a shell, and then by Hydra's grammar, which takes few of these as they are; `run=` is no key of Hydra's."""
    told = next_commands(compiled("hardware=cpu", training=False), RunFolder(f"outputs/{name}"))
    (export,) = (line for line in _commands(told) if line[-3] == "export")
    assert export[-2] == f"run=outputs/{name}"
    assert compose.compose(compose.parse(export[-1:], "export")).tree["export"]["dir"] == f"exports/{name}"
    (here / name).mkdir()
    (here / name / "chat_template.jinja").write_text("")
    ((*_, chat),) = _exported(dir=name)
    assert compose.compose(compose.parse([chat])).tree["model"]["path"] == name


def _after(*overrides: str) -> list[list[str]]:
    return _commands(next_commands(compiled("hardware=cpu", *overrides, training=False), RunFolder("outputs/x")))


def test_methods_are_compared_on_the_same_rows(here: Path) -> None:
    """As the run's own line said, but for what the comparison sets and for what one run alone has."""
    (here / "my rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 20)
    own = ["data=file", "data.path='my rows.jsonl'", "stage.max_steps=2", "data.max_length=64"]
    dropped = ["method=qlora", "method.rank=4", "hydra.run.dir=somewhere"]
    told = _after(*own, *dropped)
    (compares,) = (line for line in told if line[-1].startswith("method="))
    assert " ".join(compares).endswith(" ".join(["factory -m hardware=cpu", *own, "method=qlora,lora"]))
    compose.compose(compose.parse([*own, "method=lora"]))
    assert not any("data.path=YOURS.jsonl" in line for line in told)  # which they are


def test_the_folder_of_ones_own_options_is_named(here: Path) -> None:
    (here / "my conf").mkdir()
    made = compiled("--config-dir", "my conf", "hardware=cpu", training=False)
    told = _commands(next_commands(made, RunFolder("outputs/x")))
    (compares,) = (line for line in told if line[-1].startswith("method="))
    assert compares[-4:] == ["--config-dir", "my conf", "hardware=cpu", "method=lora,qlora"]
    assert any(line[-5:-2] == ["--config-dir", "my conf", "hardware=cpu"] for line in told)  # one's own rows


@pytest.mark.parametrize("data", ["demo", "demo_images", "alpaca_cleaned"])
def test_rows_of_ones_own_are_offered_where_they_were_ours(
    data: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "unreachable", lambda path: None)
    model = ("model=smolvlm_256m",) if data == "demo_images" else ()
    told = _after(f"data={data}", "data.max_length=64", *model, "method.rank=4")
    kept = ["hardware=cpu", "data.max_length=64", *model, "method.rank=4"]
    assert any(line[-len(kept) - 2 :] == [*kept, "data=file", "data.path=YOURS.jsonl"] for line in told)


@pytest.mark.parametrize(
    "given",
    [
        ("data=function", "data.path=mine:rows"),
        ("data=file", "data.path=me/set", "data.sources.file.origin=hub", "data.sources.file.format=alpaca"),
    ],
)
def test_rows_of_ones_own_need_no_file(given: tuple[str, ...], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "unreachable", lambda path: None)
    monkeypatch.syspath_prepend(here)
    (here / "mine.py").write_text("def rows():\n    yield from [{'instruction': 'a', 'output': 'b'}] * 20\n")
    assert not any("data.path=YOURS.jsonl" in line for line in _after(*given))


def test_after_an_export(here: Path) -> None:
    assert _exported() == []  # without a chat template nobody can talk to it
    Path(ASKED["dir"]).mkdir(parents=True)
    (Path(ASKED["dir"]) / "chat_template.jinja").touch()
    ((*_, verb, path),) = _exported()
    assert (verb, path) == ("chat", "model.path=my models/one")
    ((*_, verb, path),) = _exported(format="adapter")
    assert (verb, path) == ("chat", "run=my models/one")
    assert _exported(format="adapter", scores=True) == []
    ((*start, file),) = _exported(format="gguf")
    assert start == ["ollama", "create", "NAME", "-f"] and file == "my models/one/Modelfile"
    assert _exported(format="gguf", modelfile=False) == _exported(scores=True) == []
    (*_, upload) = _exported(push="me/it", dry_run=True)
    made = ["hf", "repos", "create", "me/it", "--private", "&&"]  # which fails where there is one, maybe a public one
    assert upload == [*made, "hf", "upload", "me/it", "my models/one"]
    (*_, upload) = _exported(push="me/it", dry_run=True, private=False)
    assert upload == ["hf", "upload", "me/it", "my models/one"]


def test_nothing_follows_from_a_measurement(here: Path) -> None:
    plan = compiled("hardware=cpu", training=False).with_settings(verb="evaluate")
    assert next_commands(plan, RunFolder("outputs/x")) == ""
