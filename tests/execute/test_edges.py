"""Edges that once went wrong: each is a small thing that a user would meet."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled

from factory.config.refusal import UserError
from factory.execute.verify import verify
from factory.run.folder import MANIFEST, RunFolder

ONE_STEP = ("stage.max_steps=1", "stage.batch_size=2", "precision=fp32")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_a_conversation_without_a_question_is_counted(execute: Callable[..., Any], here: Path) -> None:
    good = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "x"}]} for n in range(8)
    ]
    write_rows(here / "rows.jsonl", [*good, {"messages": [{"role": "assistant", "content": "alone"}]}])
    done = execute("data=file", "data.path=rows.jsonl", "evaluate.samples=3", *ONE_STEP)
    assert done.result["data"]["dropped"] == {"no message is the user's": 1}
    assert len(done.result["samples"]) == 1  # as many as are held out


def test_rows_that_are_all_alike_stay_on_one_side(execute: Callable[..., Any], here: Path) -> None:
    write_rows(here / "rows.jsonl", [{"instruction": "a", "output": "b"}] * 20)
    done = execute("data=file", "data.path=rows.jsonl", *ONE_STEP)
    assert (done.result["data"]["used"], done.result["data"]["validation"]) == (20, 0)
    assert "perplexity" not in done.result["evaluate"]  # nothing is held out to measure it on


def test_composed_accents_turn_no_check_red(execute: Callable[..., Any], here: Path) -> None:
    write_rows(here / "rows.jsonl", [{"instruction": f"{n}", "output": "cafe\u0301"} for n in range(8)])
    done = execute("data=file", "data.path=rows.jsonl", *ONE_STEP)
    assert done.run.checks["loss_mask"]["passed"]


def test_a_text_column_serves_pretraining_whatever_stands_beside_it(execute: Callable[..., Any], here: Path) -> None:
    write_rows(here / "rows.jsonl", [{"instruction": "a", "output": "b", "text": f"All of it, {n}."} for n in range(9)])
    done = execute("data=file", "data.path=rows.jsonl", "stage=pt", *ONE_STEP)
    assert done.run.plan.steps.align.sources["file"].format == "text"


def test_a_tied_head_is_saved_once(execute: Callable[..., Any], tmp_path: Path) -> None:
    import tiny
    from safetensors import safe_open

    model = tiny.save(tmp_path / "tied", tie_word_embeddings=True)
    execute(f"model.path={model}", "method=full", "stage.max_steps=1", "precision=bf16")
    with safe_open(tmp_path / "run" / "model" / "model.safetensors", "pt") as saved:
        assert "lm_head.weight" not in saved.keys()  # noqa: SIM118


def test_checkpoints_are_ordered_by_their_number(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (999_900, 1_000_000, 7):
        path = folder.checkpoints / f"step-{step:06d}"
        path.mkdir(parents=True)
        (path / MANIFEST).write_text('{"files": {}}')
    assert [path.name for path in folder.whole_checkpoints()] == ["step-000007", "step-999900", "step-1000000"]
    assert folder.checkpoint() == folder.checkpoints / "step-1000000"


def test_a_plan_for_a_gpu_is_not_replayed_without_one(tiny_model: Path) -> None:
    plan = compiled(f"model.path={tiny_model}", "hardware=cpu")
    verify(plan)
    load = replace(plan.steps.load, device="cuda")
    with pytest.raises(UserError, match="there is no GPU here"):
        verify(replace(plan, steps=replace(plan.steps, load=load)))
