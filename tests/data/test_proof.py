"""The proofs on rows: which rows they look at, and what they see of a mask that is not as it should be."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from planned import pack, questions, settings, written
from test_encoding import bytes_of, pieces_of

from factory import templates
from factory.data import prepare, proof
from factory.data.encoding import Encoder, spec_of
from factory.data.prepare.store import Prepared, Side
from factory.data.record import Kind
from factory.plan.plan import DataSource

MARKED: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "This.", "train": False},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "That.", "weight": 0.5},
    ]
}
RIGHT = (True, "in 1 of 1 rows the trained tokens spell exactly the answer")
ASKED = {"role": "user", "content": "Hi"}
STEPS = [
    {"role": "assistant", "content": "One."},
    {"role": "tool", "content": "Two."},
    {"role": "assistant", "content": "Three."},
]
TALK = "\n\nHuman: Hi\n\nAssistant: {}\n\nHuman: And?\n\nAssistant: {}"
# rows whose judged answers are several, or begin where the other side's do
JUDGED: dict[str, tuple[Kind, str, dict[str, Any]]] = {
    "an early fork": ("pairs", "transcripts", {"chosen": TALK.format("a", "b"), "rejected": TALK.format("c", "d")}),
    "a chain": ("pairs", "pairs", {"prompt": [ASKED], "chosen": STEPS, "rejected": STEPS[:1]}),
    "a labelled chain": ("labelled", "kto", {"prompt": [ASKED], "completion": STEPS, "label": True}),
    "one thinks": ("pairs", "pairs", {"prompt": "Hi", "chosen": "a", "rejected": "<think>\nHm.\n</think>\n\nb"}),
}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))


def verdict(
    source: DataSource, seed: int = 0, *, tokenizer: Any = None, kind: Kind = "messages", **packs: Any
) -> tuple[bool, str]:
    """Of the mask."""
    sources = {"a": source}
    plan: Any = SimpleNamespace(sources=sources, settings=SimpleNamespace(seed=seed))
    tokenizer = tokenizer or tiny.tokenizer()
    made = spec_of(tokenizer, pack(**packs), kind)
    found = proof.loss_mask(plan, prepare.prepare(settings(sources), sources, made, seed, 1), made, tokenizer)
    verdicts = {name: (passed, detail) for name, passed, detail in found}
    assert verdicts["template"][0]
    return verdicts["loss_mask"]


def every_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder trains what is context, too."""
    real = Encoder._side

    def side(encoder: Encoder, rendered: Any, placed: Any, spans: Any) -> Any:
        return real(encoder, rendered, placed, [(start, end, 1.0) for start, end, _ in spans])

    monkeypatch.setattr(Encoder, "_side", side)


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


@pytest.mark.parametrize("template", ["llama2", "vicuna", "mistral", "mistral_v1", "deepseek", "falcon"])
def test_an_answer_may_begin_with_a_space(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder as Llama 2's takes the first one of what it is given away."""
    tokenizer = deepcopy(pieces_of("legacy"))
    tokenizer.chat_template = templates.read(template)
    rows = [{"instruction": f"{text} is it?", "output": f"It is {text}."} for text in ("What", "a star", "红🙂")]
    source = written(tmp_path / "rows.jsonl", rows)
    right = (True, "in 3 of 3 rows the trained tokens spell exactly the answer")
    assert verdict(source, tokenizer=tokenizer, max_length=400) == right
    spoiled(monkeypatch, 0)
    assert not verdict(source, tokenizer=tokenizer, max_length=400)[0]


@pytest.mark.parametrize("case", JUDGED)
def test_all_that_is_judged_is_trained(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, form, row = JUDGED[case]
    tokenizer = bytes_of("thinks") if case == "one thinks" else None
    source = written(tmp_path / "rows.jsonl", [row], format=form)
    assert verdict(source, tokenizer=tokenizer, kind=kind, max_length=400) == RIGHT
    spoiled(monkeypatch, 0)
    assert not verdict(source, tokenizer=tokenizer, kind=kind, max_length=400)[0]


@pytest.mark.parametrize("kind", ["messages", "labelled"])
def test_context_that_is_trained_is_red(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [ASKED, *STEPS[:1], ASKED]
    rows: dict[Kind, Any] = {
        "messages": {"messages": [*prompt, *STEPS[2:]]},
        "labelled": {"prompt": prompt, "completion": STEPS[2:], "label": True},
    }
    source = written(tmp_path / "rows.jsonl", [rows[kind]], format="kto" if kind == "labelled" else kind)
    packs: dict[str, Any] = {"kind": kind, "mask_history": kind == "messages"}
    assert verdict(source, **packs) == RIGHT
    every_answer_counts(monkeypatch)
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "other"))
    passed, detail = verdict(source, **packs)
    assert not passed and "it is ['One.<|im_end|>', 'Three.<|im_end|>'] and should be ['Three.<|im_end|>']" in detail
