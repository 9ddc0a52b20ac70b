"""Pairs of answers to questions about images: trained, with a reference that tells like rows by what they show."""

import json
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import pytest
import seers
import torch
from conftest import refusals
from PIL import Image
from transformers import AutoModelForImageTextToText

from factory.data import batches
from factory.losses import sequence_log_probs
from factory.stages.dpo import run as dpo

COLOURS = {"red": (210, 30, 30), "blue": (30, 60, 210), "green": (20, 150, 40), "grey": (120, 120, 120)}
SHORT = ("precision=fp32", "stage.batch_size=2", "stage.learning_rate=1e-2", "stage.logging_steps=1")


@pytest.fixture(params=["llava", "qwen2_vl", "idefics3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return seers.save(request.param, tmp_path / request.param)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """The same question with the same two answers, about images that differ."""
    rows = []
    for number, colour in enumerate([*COLOURS.values()] * 3):
        name = f"{number}.png"
        Image.new("RGB", (16, 12), tuple((part + number) % 256 for part in colour)).save(tmp_path / name)
        row = {"prompt": "<image>Is it red?", "chosen": "Yes.", "rejected": "No.", "images": [name]}
        rows.append(row | ({"chosen": "No.", "rejected": "Yes."} if number % 4 else {}))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pairs.jsonl"


def test_each_row_refers_to_its_own_image(
    base: Path, pairs: Path, execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two epochs and on the held-out rows: the base's log-probabilities of each row alone."""
    given: list[dict[str, Any]] = []
    original = dpo.loss

    def loss(model: Any, batch: dict[str, Any], own: dict[str, Any]) -> Any:
        given.append(dict(batch))
        return original(model, batch, own)

    monkeypatch.setattr(dpo, "loss", loss)
    done = execute(f"model.path={base}", "stage=dpo", "data=file", f"data.path={pairs}", *SHORT, "stage.num_epochs=2")
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert done.losses[0] == pytest.approx(log(2), abs=1e-6) and done.losses[-1] != done.losses[0]

    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()
    wanted = set[tuple[str, float]]()
    for samples in (done.dataset.train, done.dataset.validation):
        for number in range(len(samples)):
            for example in batches.examples(samples[number]):
                batch = batches.collate([example], 0, "cpu", media=done.dataset.media)
                with torch.no_grad():
                    value = sequence_log_probs(model, batch)[0].item()
                wanted.add((str(example.ids), round(value, 3)))
    values = [value for _, value in wanted]
    assert len(set(values)) > 2 * len({ids for ids, _ in wanted})  # the images matter
    found = [value for batch in given for value in batch["reference"].tolist()]
    assert all(min(abs(value - other) for other in values) < 2e-3 for value in found)
    for batch in given:
        with torch.no_grad():
            alone = {name: value for name, value in batch.items() if name != "reference"}
            assert batch["reference"].tolist() == pytest.approx(sequence_log_probs(model, alone)[0].tolist(), abs=1e-3)


def test_answers_that_are_judged_one_by_one_have_no_images_yet(tmp_path: Path, here: Path) -> None:
    rows = [{"prompt": "<image>Is it red?", "completion": "Yes.", "label": True, "images": ["0.png"]}] * 20
    (here / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (f"model.path={seers.save('llava', tmp_path / 'llava')}", "hardware=cpu", "stage=kto")
    found = refusals(*words, "data=file", "data.path=labelled.jsonl")
    assert [refusal.rule for refusal in found] == ["media-not-taken"]
