"""The plan as a file: it comes back equal, its digest covers what changes the result, and no more."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import compiled

from factory.config.refusal import UserError
from factory.plan.diff import differences
from factory.plan.plan import VERSION, Plan, read_plan, to_yaml
from factory.verbs import train

ROWS = "".join(json.dumps({"instruction": f"Say {n}.", "output": f"It is {n}."}) + "\n" for n in range(20))
Made = Callable[..., Plan]


@pytest.fixture
def made(here: Path, tiny_model: Path) -> Made:
    (here / "rows.jsonl").write_text(ROWS)
    base = ("hardware=cpu", "data=file", "data.path=rows.jsonl", f"model.path={tiny_model}")
    return lambda *overrides: compiled(*base, *overrides)


def _rules(path: Path) -> list[str]:
    with pytest.raises(UserError) as error:
        read_plan(path)
    return [refusal.rule for refusal in error.value.refusals]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("method=qlora", "stage=pt", "data=demo", "data.path=null"),
        ("method=galore", "method.rank=8", "stage.max_steps=7"),
        ("method=freeze", "method.layers=[0,1]", "stage.max_grad_norm=null", "tracking=none"),
        ("method.target_modules=[q_proj]", "stage.learning_rate=1e-10", "tracking.experiment='012: ümlaut #'"),
    ],
    ids=str,
)
def test_a_plan_comes_back_equal(overrides: tuple[str, ...], made: Made, here: Path) -> None:
    plan = made(*overrides)
    (here / "plan.yaml").write_text(to_yaml(plan), encoding="utf-8")
    again = read_plan(here / "plan.yaml")
    assert again == plan
    assert again.digest() == plan.digest()
    assert to_yaml(again) == to_yaml(plan)


@pytest.mark.parametrize(
    "override",
    [
        "hydra.run.dir=elsewhere",
        "tracking.uri=null",
        "tracking.experiment=other",
        "tracking.parent_run=abc",
        "stage.logging_steps=1",
        "stage.save_steps=3",
        "stage.save_total_limit=9",
        "stage.resume=auto",
        "hardware.threads=1",
        "compute.activation_checkpointing=true",
        "compute.activation_checkpointing=selective",
        "compute.recomputed_layers=1",
        "data.path=copy/rows.jsonl",
    ],
)
def test_the_digest_leaves_out_what_does_not_change_the_result(override: str, made: Made, here: Path) -> None:
    (here / "copy").mkdir()
    shutil.copy(here / "rows.jsonl", here / "copy" / "rows.jsonl")
    os.utime(here / "copy" / "rows.jsonl", (1, 1))
    assert made(override).digest() == made().digest()


@pytest.mark.parametrize(
    "override",
    [
        "stage.learning_rate=3e-4",
        "stage.batch_size=2",
        "stage.max_steps=3",
        "stage.optimizer=adamw_8bit",
        "seed=1",
        "method=full",
        "method.rank=4",
        "method.quantization.bits=4",
        "precision=fp32",
        "data.path=other.jsonl",
        "data.max_samples=10",
        "data.train_on_prompt=true",
        "data.sources.file.columns={instruction: output, output: instruction}",
        "model.template=alpaca",
        "compute.attention=eager",
    ],
)
def test_the_digest_covers_what_changes_the_result(override: str, made: Made, here: Path) -> None:
    (here / "other.jsonl").write_text(ROWS.replace("It is 7.", "It is 8."))
    assert made(override).digest() != made("precision=bf16").digest()


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("data.path", ("data=file", "data.sources.file.origin=hub", "data.sources.file.format=messages")),
        ("evaluate.path", ("evaluate.benchmarks=[mmlu]",)),
    ],
)
def test_which_set_of_the_hub_is_read_is_part_of_the_digest(key: str, more: tuple[str, ...]) -> None:
    """Its content is not known before it is there: its name is all that tells it from another."""
    one, again, other = (compiled("hardware=cpu", *more, f"{key}=org/set_{name}", training=False) for name in "aab")
    assert one.digest() == again.digest() != other.digest()
    assert [each.key.rpartition(".")[2] for each in differences(one, other).decisive] == ["path"]


def test_the_digest_covers_the_order_of_sets_that_are_drawn_of(made: Made, here: Path) -> None:
    one, other = (made("data=[file,demo]", *more) for more in ((), ("data=[demo,file]",)))
    assert one.digest() != other.digest()
    assert [each.key for each in differences(one, other).decisive] == ["align.order"]
    (here / "plan.yaml").write_text(to_yaml(other), encoding="utf-8")
    assert read_plan(here / "plan.yaml").digest() == other.digest()
    one, other = (made(f"data=[{sets}]", "data.validation=demo") for sets in ("file,demo", "demo,file"))
    assert one.digest() == other.digest()  # one is held out whole: there is no order


def test_other_weights_are_another_plan(made: Made, tiny_model: Path, here: Path) -> None:
    shutil.copytree(tiny_model, here / "model")
    before = made("model.path=model").digest()
    assert made("model.path=model").digest() == before
    with (here / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\2\3\4")
    assert made("model.path=model").digest() != before


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("settings", "stage", "learning_rate"), 0.1),
        (("settings", "seed"), 7),
        (("steps", "pack", "max_length"), 512),
        (("digest",), "0" * 16),
        (("digest",), None),
    ],
    ids=str,
)
def test_an_edited_plan_is_refused(path: tuple[str, ...], value: Any, made: Made, here: Path) -> None:
    tree = yaml.safe_load(to_yaml(made()))
    inner = tree
    for part in path[:-1]:
        inner = inner[part]
    assert inner[path[-1]] != value
    inner[path[-1]] = value
    (here / "plan.yaml").write_text(yaml.safe_dump(tree))
    assert _rules(here / "plan.yaml") == ["plan-edited"]


def test_a_value_of_the_wrong_type_is_refused(made: Made, here: Path) -> None:
    tree = yaml.safe_load(to_yaml(made()))
    tree["steps"]["load"]["dtype"], tree["steps"]["train"]["batch_size"] = "float8", "many"
    del tree["steps"]["patch"]
    (here / "plan.yaml").write_text(yaml.safe_dump(tree))
    assert set(_rules(here / "plan.yaml")) == {"plan-broken"}


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_plan_is_refused(share: float, made: Made, here: Path) -> None:
    text = to_yaml(made())
    (here / "plan.yaml").write_text(text[: int(len(text) * share)])
    assert set(_rules(here / "plan.yaml")) <= {"plan-broken", "plan-version", "bad-value", "plan-edited"}


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "plan-broken"),
        (b"[1, 2]", "plan-broken"),
        (b"a: [", "plan-broken"),
        (b"\xff\xfe\x00", "plan-broken"),
        (b"a: !!python/object:os.system {}", "plan-broken"),
        (b"version: 0\n", "plan-version"),
        (b"seed: 1\n", "plan-version"),
    ],
)
def test_what_is_no_plan_is_refused(content: bytes, rule: str, here: Path) -> None:
    (here / "plan.yaml").write_bytes(content)
    assert _rules(here / "plan.yaml") == [rule]


@pytest.mark.parametrize("name", ["nope.yaml", "."])
def test_a_missing_plan_is_refused(name: str, here: Path) -> None:
    assert _rules(here / name) == ["plan-missing"]


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
def test_another_version_is_refused(version: int, made: Made, here: Path) -> None:
    text = to_yaml(made("tracking.experiment='two words'"))
    (here / "plan.yaml").write_text(text.replace(f"version: {VERSION}", f"version: {version}", 1))
    with pytest.raises(UserError) as error:
        read_plan(here / "plan.yaml")
    (found,) = error.value.refusals
    assert found.rule == "plan-version"
    assert "data.path=rows.jsonl" in found.fix  # what to compile again, to be pasted
    assert "'tracking.experiment='\"'\"'two words'\"'\"''" in found.fix


@pytest.mark.parametrize("override", ["stage.learning_rate=1", "method=full", "+seed=3", "hydra.run.dri=x", "data"])
def test_a_replay_changes_places_only(override: str, command: Callable[..., Any], made: Made, here: Path) -> None:
    (here / "plan.yaml").write_text(to_yaml(made()))
    said = command("train", "--from-plan=plan.yaml", override, "tracking.uri=null")
    assert (said.code, said.rules) == (2, ["fixed-by-the-plan"])
    assert override in said.err


def test_a_replay_lies_where_the_quoted_name_says(
    command: Callable[..., Any], made: Made, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "plan.yaml").write_text(to_yaml(made()))
    places: list[Path] = []
    monkeypatch.setattr(train, "_launch_checked", lambda _plan, folder, _start: places.append(folder.path) or 0)
    for given in ("'my runs/one'", '"my runs/one"', "my runs/one"):
        assert command("train", "--from-plan=plan.yaml", f"hydra.run.dir={given}", "tracking=none").code == 0
    assert places == [Path("my runs/one")] * 3


# --- the JSON of the contracts


def test_the_json_is_the_contracts(command: Callable[..., Any], here: Path) -> None:
    said = command("plan", "model=llama3_8b", "method=qlora", "stage=dpo", "plan.format=json", "hardware=rtx4090")
    assert said.code == 0
    assert said.out.count("\n") == 1
    tree = json.loads(said.out)
    assert tree.keys() >= {"digest", "steps", "estimate", "warnings"}
    names = [step["name"] for step in tree["steps"]]
    assert names == ["load", "patch", "quantize", "attach", "align", "pack", "train", "evaluate"]
    estimate = tree["estimate"]
    assert estimate.keys() >= {"parameters", "memory", "steps", "flops_per_step"}
    assert estimate["parameters"].keys() == {"total", "trainable", "trainable_by_module"}
    assert estimate["parameters"]["total"] == 8_030_261_248
    memory = {"weights", "gradients", "optimizer", "activations", "total", "capacity", "fits"}
    assert estimate["memory"].keys() >= memory
    assert all(isinstance(estimate["memory"][name], int) for name in memory)
    assert isinstance(estimate["flops_per_step"], int)
    assert estimate["steps"].keys() == {"low", "high", "note"}
    assert any(text.startswith("[device-missing]") for text in tree["warnings"])
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=qlora", "stage=dpo", "hardware.memory=8GB"),
        (
            "stage.max_steps=3",
            "stage.learning_rate=2e-05",
            "hardware.memory=8GB",
        ),  # as json writes it, which YAML takes for a text
        ("hardware.memory=100MB",),  # with the changes that would need less
        ("hardware.memory=2GB", "plan.search=true"),
    ],
    ids=str,
)
def test_what_json_prints_is_a_plan_too(overrides: tuple[str, ...], command: Callable[..., Any], here: Path) -> None:
    printed = command("plan", "hardware=cpu", *overrides, "plan.format=json")
    (here / "plan.json").write_text(printed.out)
    plan = read_plan(here / "plan.json")
    assert plan.digest() == json.loads(printed.out)["digest"]
    shared = (text for text in overrides if not text.startswith("plan."))
    (here / "plan.yaml").write_text(command("plan", "hardware=cpu", *shared, "plan.format=yaml").out)
    assert plan == read_plan(here / "plan.yaml")


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (lambda tree: tree["steps"].pop(), "plan-broken"),
        (lambda tree: tree["steps"].append("train"), "plan-broken"),
        (lambda tree: tree.update(more=1), "plan-broken"),
        (lambda tree: tree["settings"].update(seed=7), "plan-edited"),
    ],
)
def test_of_json_nothing_else_is_taken(
    broken: Callable[[Any], Any], rule: str, command: Callable[..., Any], here: Path
) -> None:
    tree = json.loads(command("plan", "hardware=cpu", "plan.format=json").out)
    broken(tree)
    (here / "plan.json").write_text(json.dumps(tree))
    assert _rules(here / "plan.json")[:1] == [rule]


def test_the_json_has_a_number_of_steps_where_it_is_known(command: Callable[..., Any]) -> None:
    tree = json.loads(command("plan", "plan.format=json", "stage.max_steps=7").out)
    assert tree["estimate"]["steps"] == 7
    assert tree["digest"] == json.loads(command("plan", "plan.format=json", "stage.max_steps=7").out)["digest"]


def test_the_file_is_that_of_a_training(command: Callable[..., Any]) -> None:
    """What is said of the printing stays out of it: its line, given to `train`, compiles."""
    tree = yaml.safe_load(command("plan", "plan.format=yaml", "stage.max_steps=7").out)
    assert tree["settings"]["overrides"] == ["stage.max_steps=7"]


def test_the_text_has_the_steps_and_the_digest(command: Callable[..., Any]) -> None:
    said = command("plan", "stage.max_steps=7", "method.rank=4")
    digest = json.loads(command("plan", "stage.max_steps=7", "method.rank=4", "plan.format=json").out)["digest"]
    assert digest in said.out
    words = said.out.replace("│", " ").split()
    assert {"load", "patch", "quantize", "attach", "align", "pack", "train", "evaluate", "memory"} <= set(words)
    assert "1,221,120" in said.out


@pytest.mark.parametrize(
    ("value", "rule"), [("2001-01-01", "plan-broken"), ("!!binary YQ==", "plan-broken"), (".inf", "plan-edited")]
)
def test_a_plan_with_what_no_plan_has_is_refused(value: str, rule: str, tmp_path: Path) -> None:
    tree = yaml.safe_load(to_yaml(compiled("hardware=cpu", "tracking=none")))
    tree["steps"]["train"]["own"] = {"beta": "HERE"}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(tree).replace("HERE", value))
    with pytest.raises(UserError) as error:
        read_plan(tmp_path / "plan.yaml")
    assert [refusal.rule for refusal in error.value.refusals] == [rule]
