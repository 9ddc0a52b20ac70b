"""The proofs on rows: which rows they look at, and what they see of a mask that is not as it should be."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from planned import align, questions, spec, written

from factory.data import prepare, proof
from factory.data.prepare.store import Prepared, Side
from factory.plan import PlannedSource

MARKED: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "This.", "train": False},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "That.", "weight": 0.5},
    ]
}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))


def verdict(source: PlannedSource, seed: int = 0, **packs: Any) -> tuple[bool, str]:
    """Of the mask."""
    plan: Any = SimpleNamespace(steps=SimpleNamespace(align=align({"a": source})), seed=seed)
    made = spec(**packs)
    found = proof.loss_mask(plan, prepare.prepare(plan.steps.align, made, seed, 1), made, tiny.tokenizer())
    verdicts = {name: (passed, detail) for name, passed, detail in found}
    assert verdicts["template"][0]
    return verdicts["loss_mask"]


def spoiled(monkeypatch: pytest.MonkeyPatch, first: int) -> list[int]:
    """The mask is one token off in the rows from this one on; the rows that were looked at."""
    real, seen = Prepared.side, list[int]()

    def side(prepared: Prepared, row: int, **which: Any) -> Side:
        seen.append(row)
        found = real(prepared, row, **which)
        return replace(found, spans=found.spans - 1) if row >= first else found

    monkeypatch.setattr(Prepared, "side", side)
    return seen


def test_rows_are_drawn_out_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "rows.jsonl", questions(400))
    assert verdict(source) == (True, "in 50 of 50 rows the trained tokens spell exactly the answer")
    seen = spoiled(monkeypatch, 200)
    passed, _ = verdict(source)
    assert not passed and len(set(seen)) == 50 and seen == sorted(seen)
    again = seen.copy()
    seen.clear()
    verdict(source)
    assert seen == again, "the seed alone draws them"
    seen.clear()
    verdict(source, seed=1)
    assert seen != again
    seen.clear()
    monkeypatch.setattr(proof, "_NEAR", 100)
    assert verdict(source)[0] and max(seen) < 100, "what lies far behind is not read"


def test_a_few_rows_are_all_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spoiled(monkeypatch, 99)
    assert verdict(written(tmp_path / "rows.jsonl", questions(7)))[0]
    assert seen == [*range(7)]


def test_where_prompts_are_trained_all_is_but_what_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = written(tmp_path / "rows.jsonl", [MARKED], format="messages")
    right = (True, "in 1 of 1 rows all is trained but the answers that are marked otherwise")
    assert verdict(marked, train_on_prompt=True) == right
    real = Prepared.side

    def whole(prepared: Prepared, row: int, **which: Any) -> Side:
        found = real(prepared, row, **which)
        return replace(found, spans=np.array([[0, len(found.ids)]], np.int32), weights=np.ones(1, np.float32))

    monkeypatch.setattr(Prepared, "side", whole)
    passed, detail = verdict(marked, train_on_prompt=True)
    assert not passed and detail.endswith("it is [] and should be ['This.<|im_end|>', 'That.<|im_end|>']")
    assert verdict(written(tmp_path / "more.jsonl", questions(3)), train_on_prompt=True)[0]
