"""A recipe's run is planned with what those that it reads will leave: what its turn would refuse is refused first."""

import dataclasses
from functools import partial
from unittest.mock import patch

import pretended
import pytest

from factory.config import compose
from factory.run import chain
from factory.run.jobs import Job
from factory.verbs.train import of_recipe

GPU = pretended.MACHINES["gpu"]
BARE = dataclasses.replace(GPU, packages={name: at for name, at in GPU.packages.items() if name != "trl"})


def planned(*words: str) -> dict[str, Job]:
    """On a machine that has what a default install has, and no TRL."""
    with patch.dict(pretended.MACHINES, bare=BARE), pretended.facts("bare"):
        return {job.name: job for job in chain.planned(compose.parse([*words]), partial(of_recipe, training=False))}


def test_rewards_of_a_run_that_is_awaited_need_no_package() -> None:
    found = planned("recipe=rlhf")
    assert not any(job.refusals for job in found.values())
    plan = found["ppo"].plan
    assert plan is not None and not [warning for warning in plan.warnings if "trl" in warning]
    assert [note for note in plan.notes if "the adapter and the score head in" in note]
    assert plan.overrides == found["ppo"].overrides


@pytest.mark.parametrize(
    ("words", "rules"),
    [
        ("recipe=dpo_after_sft method=pissa", {"adapter-start", "adapter-fits"}),
        ("recipe=dpo_after_sft runs.sft.method=olora", {"adapter-fits"}),
        ("recipe=dpo_after_sft runs.dpo.method=full", {"adapter-fits"}),
        ("recipe=dpo_after_sft runs.dpo.method.rank=4", {"adapter-fits"}),
        ("recipe=rlhf method=pissa", {"adapter-start", "adapter-fits", "reward-model"}),
        ("recipe=rlhf runs.ppo.stage.reward=m:f", {"reward"}),
        ("recipe=rlhf runs.rm.method=oft", {"reward-model"}),
        ("recipe=rlhf runs.sft.method=full", {"reward-model"}),
    ],
)
def test_what_its_turn_would_refuse_is_refused_before_any_run(words: str, rules: set[str]) -> None:
    *before, last = planned(*words.split()).values()
    assert not any(job.refusals for job in before)
    assert {refusal.rule for refusal in last.refusals} == rules


@pytest.mark.parametrize(
    "words",
    [
        "recipe=dpo_after_sft method=qlora",
        "recipe=dpo_after_sft runs.sft.method=pissa runs.dpo.method.rank=16 runs.dpo.method.alpha=32",
        "recipe=dpo_after_sft method=full model=llama3_8b model.revision=abc hardware=h100_80gb",
        "recipe=dpo_after_sft method=llama_pro",
        "recipe=rlhf method=oft",
        "recipe=rlhf runs.rm.method=full",
    ],
)
def test_what_goes_on_from_it_is_planned(words: str) -> None:
    assert {name: job.refusals for name, job in planned(*words.split()).items() if job.refusals} == {}
