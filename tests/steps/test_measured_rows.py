"""evaluate.rows=train: the perplexity of what trains, each row once, as the model itself gives it in float64."""

import json
from collections.abc import Callable
from itertools import groupby
from math import exp
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from factory.data import batches
from factory.data.dataset import Dataset
from factory.evaluation import rows

TEXTS = [f"The {animal} sleeps in the {place} until noon." for animal in ("cat", "fox") for place in ("hall", "wood")]


def test_every_row_that_trains_is_measured_once(execute: Callable[..., Any], here: Path) -> None:
    """A weight of 2 trains each row twice in an epoch, and measures it once."""
    (here / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    done = execute(
        "stage=pt",
        "method=full",
        "precision=fp32",
        "data=file",
        "data.path=texts.jsonl",
        "data.sources.file.weight=2",
        "data.validation_fraction=0",
        "data.max_length=64",
        "evaluate.rows=train",
        "stage.max_steps=2",
        "stage.learning_rate=1e-2",
    )
    measured, folder = done.result, done.run.folder.evaluation
    assert (measured["data"]["used"], measured["data"]["validation"]) == (len(TEXTS), 0)
    kept = rows.read(folder / f"{rows.PERPLEXITY}.jsonl")
    assert [row["id"] for row in kept] == [f"file:{number}" for number in range(len(TEXTS))]
    nats, tokens, model = 0.0, 0, done.model.double().eval()
    for text in TEXTS:
        ids = torch.tensor([[*tiny.tokenizer()(text)["input_ids"], tiny.tokenizer().eos_token_id]])
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits.log_softmax(-1)
        nats -= float(log_probs[0, :-1].gather(1, ids[0, 1:, None]).sum())
        tokens += ids.shape[1] - 1
    assert measured["evaluate"]["perplexity"] == pytest.approx(exp(nats / tokens), rel=1e-5)
    assert measured["evaluate"]["perplexity"] < measured["evaluate"]["perplexity_before"]


@pytest.mark.parametrize("stage", ["pt", "sft", "orpo"])
def test_rows_are_read_as_their_turn_comes(
    stage: str, execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that train may be measured: they are never in memory together."""
    told, known = list[str](), Dataset.__getitem__
    collate = batches.collate
    monkeypatch.setattr(Dataset, "__getitem__", lambda self, at: (told.append("read"), known(self, at))[1])
    monkeypatch.setattr(batches, "collate", lambda *given, **more: (told.append("batch"), collate(*given, **more))[1])
    run = ("data.validation_fraction=0", "data.max_samples=40", "evaluate.rows=train", "evaluate.batch_size=4")
    done = execute(f"stage={stage}", "method.rank=4", "precision=fp32", "stage.max_steps=1", *run)
    rows_read = [len(list(each)) for what, each in groupby(told) if what == "read"]
    assert done.result["evaluate"] and max(rows_read) < 20
