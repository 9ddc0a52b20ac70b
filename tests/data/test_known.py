"""A plan's steps are exact once its data were prepared, and a guess again when anything of them changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled

from factory.plan import known
from factory.plan.plan import Range

DATA = ("data=file", "data.path=rows.txt", "stage=pt", "stage.num_epochs=3", "stage.batch_size=2")


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(here: Path, tiny_model: Path) -> tuple[str, ...]:
    (here / "rows.txt").write_text("\n\n".join(f"The number {n} follows {n - 1}, as it should." for n in range(80)))
    return (f"model.path={tiny_model}", "tracking=none", "hardware=cpu")


def test_steps_are_exact_after_packing(model: tuple[str, ...], execute: Callable[..., Any]) -> None:
    before = compiled(*DATA, *model).estimate.steps
    done = execute(*DATA, *model, "data.max_length=64", "evaluate.samples=0")
    assert compiled(*DATA, *model).estimate.steps == before  # another length is another packing
    after = compiled(*DATA, *model, "data.max_length=64").estimate.steps
    assert after == Range(low=done.result["train"]["steps"], high=done.result["train"]["steps"])
    # what changes no sequence changes nothing of it but the count
    assert compiled(*DATA, *model, "data.max_length=64", "stage.num_epochs=6").estimate.steps.low == 2 * after.low


@pytest.mark.parametrize("change", ["seed=7", "data.validation_fraction=0.2", "data.isolate_documents=true", "content"])
def test_another_data_set_is_not_taken_for_it(
    change: str, model: tuple[str, ...], here: Path, execute: Callable[..., Any]
) -> None:
    given = (*DATA, *model, "data.max_length=64")
    execute(*given, "evaluate.samples=0")
    if change == "content":
        with (here / "rows.txt").open("a") as file:
            file.write("\n\nOne more.")
        change = "data.packing=auto"
    found = compiled(*given, change).estimate.steps
    assert found.low != found.high


def test_the_same_bytes_under_another_suffix_are_other_rows(model: tuple[str, ...], here: Path) -> None:
    """Eighty objects a line each, or one document."""
    for name in ("rows.jsonl", "lines.txt"):
        (here / name).write_text("\n".join(f'{{"text": "The number {n} follows {n - 1}."}}' for n in range(80)))
    lines, document = (compiled(*DATA, *model, f"data.path={name}") for name in ("rows.jsonl", "lines.txt"))
    known.remember(lines, 40, 3000)
    assert known.exact(lines).estimate.steps == Range(low=60, high=60)
    assert known.exact(document) == document


def test_the_same_sets_in_another_order_are_packed_otherwise(model: tuple[str, ...], here: Path) -> None:
    one, other = (compiled(f"data=[{sets}]", *DATA[1:], *model) for sets in ("file,demo", "demo,file"))
    known.remember(one, 40, 3000)
    assert known.exact(one).estimate.steps == Range(low=60, high=60)
    assert known.exact(other) == other


def test_a_cache_that_cannot_be_written_is_no_loss(
    model: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = compiled(*DATA, *model)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "file"))
    known.remember(plan, 5, 300)
    assert known.exact(plan) == plan


def test_of_a_functions_rows_nothing_is_taken_to_be_known(
    model: tuple[str, ...], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(here))
    (here / "texts_of_mine.py").write_text(
        "def rows():\n    return [{'text': f'The number {n}.'} for n in range(1500)]\n"
    )
    plan = compiled(*DATA[2:], *model, "data=function", "data.path=texts_of_mine:rows")
    known.remember(plan, 40, 3000)
    assert known.exact(plan) == plan
