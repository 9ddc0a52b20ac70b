"""Two plans side by side: what differs is told by key, and whether it can change the result."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import side_by_side
from conftest import compiled

from factory.plan import diff
from factory.plan.plan import Plan, to_yaml
from factory.verbs.plan import plan_named

Made = Callable[..., Plan]


@pytest.fixture
def made(here: Path, tiny_model: Path) -> Made:
    return lambda *overrides: compiled("hardware=cpu", "tracking=none", f"model.path={tiny_model}", *overrides)


def test_a_plan_does_not_differ_from_itself(made: Made) -> None:
    found = diff.differences(made(), made())
    assert not (found.asked or found.decisive or found.versions)
    assert "same" in diff.verdict(found)


def test_each_key_is_told_once_and_where_it_belongs(made: Made) -> None:
    one = made()
    other = made("method.rank=4", "seed=7", "stage.logging_steps=3", "tracking.experiment=other", "method=dora")
    other = replace(other, packages={**other.packages, "torch": "2.0", "mlflow": "9"})
    found = diff.differences(one, other)
    assert {each.key for each in found.decisive} == {
        "seed",
        "attach.trainable",
        "method.rank",
        "method.dora",
    }
    assert {each.key for each in found.asked} == {"options.method", "overrides"}
    assert [each.key for each in found.versions] == ["packages.torch"]
    rest = {each.key for each in found.rest}
    assert {"stage.logging_steps", "tracking.experiment", "packages.mlflow"} <= rest
    assert not rest & {each.key for each in (*found.decisive, *found.asked, *found.versions)}
    values = {each.key: (each.one, each.other) for each in found.decisive}
    assert values["seed"] == (42, 7)
    assert "can differ" in diff.verdict(found)


def test_the_verdict_is_that_of_the_digests(made: Made) -> None:
    """Whatever is asked, the digests are equal exactly where no decisive key differs."""
    one = made()
    for override in ("stage.save_steps=3", "hardware.threads=1", "stage.batch_size=2", "compute.attention=eager"):
        other = made(override)
        found = diff.differences(one, other)
        assert bool(found.decisive) == (one.digest() != other.digest()), override


def test_what_is_recomputed_decides_no_result(made: Made) -> None:
    found = diff.differences(made(), made("compute.recomputed_layers=1"))
    assert not found.decisive and diff.as_json(found)["same_result"]
    assert {"patch.activation_checkpointing", "patch.recomputed_layers"} <= {each.key for each in found.rest}


def test_other_versions_may_change_a_result_that_the_settings_decide(made: Made) -> None:
    other = replace(made(), packages={**made().packages, "torch": "2.0"})
    found = diff.differences(made(), other)
    assert not found.decisive
    assert "versions" in diff.verdict(found)
    assert diff.as_json(found)["same_result"] is False


def test_another_lm_eval_may_change_a_plan_that_asks_its_tasks(made: Made) -> None:
    for plan, versions in ((made(), []), (made("evaluate.harness=[arc_easy]"), ["packages.lm-eval"])):
        other = replace(plan, packages={**plan.packages, "lm-eval": "0.0.1"})
        assert [each.key for each in diff.differences(plan, other).versions] == versions
        assert [each.key for each in diff.among([plan, other]).versions] == versions


@pytest.mark.parametrize(
    ("reward", "versions"),
    [
        ("trl:think_format_reward", ["packages.trl"]),
        ("trl:accuracy_reward", ["packages.math-verify", "packages.trl"]),
        ("http://127.0.0.1:9/", []),
    ],
)
def test_another_trl_may_change_a_plan_whose_reward_it_has(reward: str, versions: list[str], made: Made) -> None:
    plan = made()
    train = replace(plan.steps.train, own={"reward": reward})
    plan = replace(plan, steps=replace(plan.steps, train=train))
    other = replace(plan, packages={**plan.packages, "trl": "0.0.1", "math-verify": "0.0.1"})
    assert sorted(each.key for each in diff.differences(plan, other).versions) == versions


def test_what_only_one_has_is_absent_in_the_other(made: Made) -> None:
    found = diff.differences(made("method=full"), made("method=lora"))
    values = {each.key: (each.one, each.other) for each in found.decisive}
    assert values["method.rank"] == ("(absent)", 8)


def test_files_and_folders(made: Made, here: Path, command: Any) -> None:
    for name, plan in (("one", made()), ("other", made("stage.learning_rate=3e-4"))):
        (here / name).mkdir()
        (here / name / "plan.yaml").write_text(to_yaml(plan))
    said = command("plan", "--diff", "one", "other/plan.yaml", "plan.format=json")
    assert said.code == 0
    tree = json.loads(said.out)
    assert tree["same_result"] is False
    assert tree["decisive"] == [{"key": "stage.learning_rate", "one": 2e-4, "other": 3e-4}]
    said = command("plan", "--diff=one", "other")
    assert said.out == command("plan", "--diff", "one", "other").out
    assert "stage.learning_rate  0.0002 -> 0.0003" in said.out
    assert said.out.splitlines()[-1].startswith("The results can differ: 1 ")


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("--diff", "one"), "diff-what"),
        (("--diff", "one", "plan.format=json"), "diff-what"),
        (("--diff", "one", "one", "seed=3"), "diff-what"),
        (("--diff", "one", "one", "three"), "diff-what"),
        (("--diff", "one", "nope"), "plan-missing"),
        (("--diff", "one", "0" * 32), "plan-missing"),
        (("--diff", "one", "empty"), "plan-missing"),
        (("--diff", "one", "one", "plan.format=xml"), "bad-value"),
        (("--diff", "one", "old.yaml"), "plan-version"),
    ],
)
def test_what_cannot_be_compared(
    arguments: tuple[str, ...], rule: str, made: Made, here: Path, command: Callable[..., Any]
) -> None:
    (here / "one").mkdir()
    (here / "one" / "plan.yaml").write_text(to_yaml(made()))
    (here / "old.yaml").write_text("version: 1\n")
    (here / "empty").mkdir()
    said = command("plan", *arguments)
    assert (said.code, said.rules, said.out) == (2, [rule], "")
    assert rule != "plan-missing" or "as in --diff " in said.err
    assert not (here / "mlflow.db").exists()


def test_a_run_of_mlflow(made: Made, here: Path) -> None:
    from mlflow import MlflowClient

    from factory.tracking.to_mlflow import connect

    uri = f"sqlite:///{here / 'mlflow.db'}"
    client, experiment = connect(side_by_side.tracking(uri))
    run = client.create_run(experiment).info.run_id
    plan = made()
    (here / "plan.yaml").write_text(to_yaml(plan))
    assert isinstance(client, MlflowClient)
    client.log_artifact(run, str(here / "plan.yaml"))
    assert plan_named(run, uri) == plan


def test_of_several_plans_it_is_what_not_all_have_in_common(made: Made) -> None:
    """Told by pairs and told at once is the same."""
    plans = [made(), made("method.rank=4"), made("method=full", "seed=7")]
    found = diff.among(plans)
    pairs = [diff.differences(plans[0], other) for other in plans[1:]]
    assert {each.key for each in found.decisive} == {each.key for pair in pairs for each in pair.decisive}
    values = {each.key: each.values for each in found.decisive}
    assert values["method.rank"] == (8, 4, diff.ABSENT)
    assert values["seed"] == (42, 42, 7)
    assert [each.key for each in found.asked] == ["options.method"]
    assert diff.among(plans[:1] * 3) == diff.Spreads(asked=(), decisive=(), versions=())
