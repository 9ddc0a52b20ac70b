"""The table of settings for a memory budget: every row is a plan that compiles, fits, and can be pasted."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from conftest import compiled

from factory.plan.anew import Anew
from factory.plan.plan import Span
from factory.run.search import Found, Row, as_text, search

GB = 10**9
LLAMA = ("model=llama3_8b", "hardware=single_gpu", "hardware.memory=24GB")


def found(*overrides: str) -> Found:
    return search(compiled(*overrides, training=False), Anew())


@pytest.fixture(scope="module")
def eight() -> Found:
    return found(*LLAMA)


def test_every_row_can_be_pasted(eight: Found) -> None:
    """Composed anew from its overrides it is the same plan, with the same memory."""
    assert len(eight.rows) >= 5
    for row in eight.rows:
        made = compiled(*LLAMA, *row.overrides, training=False)
        assert made.takes_as(row.plan)
        assert made.estimate.memory == row.plan.estimate.memory
        assert made.estimate.memory.total <= eight.budget == 24 * GB


@pytest.mark.parametrize(("high", "told"), [(9.0, True), (11.0, False)])
def test_a_guess_that_is_wide_ranks_nothing(eight: Found, high: float, told: bool) -> None:
    plan = eight.rows[0].plan
    guessed = replace(plan, estimate=replace(plan.estimate, speed=Span(low=1.0, high=high)))
    cost = Row(overrides=(), plan=guessed, way=0).cost
    assert cost == pytest.approx(high**-0.5) if told else cost is None


def test_what_changes_less_of_the_run_comes_first(eight: Found) -> None:
    assert eight.rows[0].overrides == ()
    ways = [row.way for row in eight.rows]
    assert ways == sorted(ways)
    assert {"method.quantization.bits=8"} < {text for row in eight.rows for text in row.overrides}


def test_no_doubled_micro_batch_or_rank_would_fit_too(eight: Found) -> None:
    """Beyond the largest that a row names, the next does not fit."""
    batches = {row.overrides[0]: row for row in eight.rows if row.sequences > 4}
    assert batches
    for row in batches.values():
        recomputed = f"compute.activation_checkpointing={str(row.plan.steps.patch.activation_checkpointing).lower()}"
        more = (*row.overrides, recomputed, f"stage.batch_size={2 * row.plan.settings.stage.batch_size}")
        assert not compiled(*LLAMA, *more, training=False).estimate.memory.fits
    (rank,) = (row.rank for row in eight.rows if row.rank != 8)
    assert rank
    more = (f"method.rank={2 * rank}", "compute.activation_checkpointing=false")
    assert not compiled(*LLAMA, *more, training=False).estimate.memory.fits


@pytest.mark.slow
def test_a_smaller_budget_makes_smaller_micro_batches_of_the_same_step() -> None:
    """Without anything computed again where that fits, which is less work; with it the micro-batch may be larger."""
    rows = found(*LLAMA[:2], "hardware.memory=17GiB", "data.packing=true").rows
    assert {row.sequences for row in rows} == {4}
    assert not any(one.plan.takes_as(other.plan) for one, other in combinations(rows, 2))
    eight_bits = [row for row in rows if row.way == 2 and row.rank == 8]
    sizes = {row.plan.steps.patch.activation_checkpointing: row.plan.settings.stage.batch_size for row in eight_bits}
    assert sizes == {False: 1, "selective": 2, True: 4}
    work = [row.flops_per_token for row in eight_bits]
    assert work[0] == work[1] < 0.8 * work[2]


def test_of_no_more_layers_than_need_be() -> None:
    """Rows recompute what `auto` does, which their command lines say by saying nothing."""
    asked = (*LLAMA[:2], "hardware.memory=17GiB", "compute.kernels=none")
    few = [row for row in found(*asked).rows if row.plan.steps.patch.activation_checkpointing]
    assert few and all(row.plan.steps.patch.recomputed_layers for row in few)
    for row in few:
        assert compiled(*asked, *row.overrides, training=False).takes_as(row.plan)
        assert not any("recomputed" in text or "checkpointing" in text for text in row.overrides)


def test_what_was_asked_to_be_recomputed_is_tried_anew() -> None:
    """Each line stands behind the command line that it changes."""
    asked = (*LLAMA[:2], "hardware.memory=17GiB", "compute.recomputed_layers=3")
    rows = found(*asked).rows
    assert {row.plan.steps.patch.recomputed_layers for row in rows} - {3}
    for row in rows:
        assert compiled(*asked, *row.overrides, training=False).takes_as(row.plan)


@pytest.mark.slow
def test_other_methods_only_where_the_asked_one_does_not_fit() -> None:
    rows = found("hardware=single_gpu", "hardware.memory=700MB", "method=full").rows
    assert rows and all({"method=lora", "method=qlora"} & set(row.overrides) for row in rows)
    kept = found("hardware=single_gpu", "hardware.memory=2GB", "method=full").rows
    assert {row.plan.settings.method.name for row in kept} == {"full"}
    assert kept[0].overrides[0] == "stage.optimizer=adamw_8bit"


@pytest.mark.parametrize(
    ("asked", "both"),
    [
        (("precision=fp32",), {"method.quantization.bits=4", "precision=pure_bf16"}),
        (("method=full",), {"method=qlora", "precision=pure_bf16"}),
    ],
)
def test_four_bits_and_sixteen_for_the_rest(asked: tuple[str, ...], both: set[str]) -> None:
    """Where neither fits alone. What does not fit whatever is recomputed costs a plan, and no more."""
    table = found("model=llama3_8b", "hardware=cpu", "hardware.memory=8GB", *asked)
    assert table.rows and all(both <= set(row.overrides) for row in table.rows)
    assert table.tried <= 25


@pytest.mark.parametrize(("capability", "pure"), [(8.0, True), (7.5, False)])
def test_a_card_without_bfloat16_is_not_offered_it(capability: float, pure: bool) -> None:
    """All weights in 900 MB take it; a card that would emulate it is offered adapters."""
    asked = ("method=full", "hardware=single_gpu", "hardware.memory=900MB")
    rows = found(*asked, f"hardware.compute_capability={capability}").rows
    assert {"precision=pure_bf16" in row.overrides for row in rows} == {pure}


def test_what_no_rule_allows_is_not_shown() -> None:
    """KTO compares the rows of a micro-batch: one of a single row is refused."""
    kto = found("stage=kto", "hardware=single_gpu", "hardware.memory=600MB")
    assert kto.refused > 0 and kto.rows
    assert min(row.plan.settings.stage.batch_size for row in kto.rows) == 2


def test_nothing_fits() -> None:
    nothing = found("hardware=single_gpu", "hardware.memory=100MB")
    assert nothing.rows == ()
    assert as_text(nothing, 80).startswith("Nothing fits 95.4 MiB")
    assert nothing.tried <= 10  # a way to hold the model each


def test_few_plans_do(eight: Found) -> None:
    """A plan of 8 billion takes a tenth of a second: the whole search is meant to take less than five."""
    assert eight.tried <= 20


def test_it_is_shown_as_a_table_and_as_json(command: Callable[..., Any]) -> None:
    words = ("plan", "plan.search=true", "hardware=single_gpu", "hardware.memory=24GB")
    said = command(*words)
    assert said.code == 0 and "Settings that fit 22.35 GiB" in said.out
    tree = json.loads(command(*words, "plan.format=json").out)
    assert tree.keys() >= {"digest", "steps", "estimate", "search"}
    first = tree["search"]["rows"][0]
    assert (first["overrides"], first["digest"], first["rank"]) == ([], tree["digest"], 8)
    lines = said.out.splitlines()
    for row in tree["search"]["rows"]:
        assert any(line.endswith(" ".join(row["overrides"]) or "(nothing: as it is)") for line in lines)


def test_only_what_is_pasted_is_wider_than_the_terminal(eight: Found) -> None:
    """A command stands below its row where there is no room for all of them beside; it is not broken."""
    lines = as_text(eight, 80).splitlines()
    commands = [" ".join(row.overrides) or "(nothing: as it is)" for row in eight.rows]
    below = [line.removeprefix("    add  ") for line in lines if line.startswith("    add  ")]
    assert below == commands
    assert all(len(line) <= 80 for line in lines if line.removeprefix("    add  ") not in commands)
    beside = as_text(eight, 400).splitlines()[-len(commands) :]
    assert [line.endswith(f"  {command}") for line, command in zip(beside, commands, strict=True)] == [True] * len(
        below
    )


def test_nothing_is_searched_for_a_card_that_nobody_knows(
    command: Callable[..., Any], machine: Callable[..., None]
) -> None:
    machine(gpus=())
    said = command("plan", "plan.search=true", "hardware=single_gpu")
    assert (said.code, said.rules, said.out) == (2, ["search-without-memory"], "")
    assert "hardware.memory=80GB" in said.err


def test_it_is_no_plan_file(command: Callable[..., Any]) -> None:
    said = command("plan", "plan.search=true", "plan.format=yaml")
    assert (said.code, said.rules) == (2, ["search-as-yaml"])
    assert command("train", "plan.search=true").rules == ["key-of-another-verb"]
