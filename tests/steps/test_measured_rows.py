"""evaluate.rows=train: the perplexity of what trains, each row once, as the model itself gives it in float64."""

import json
import threading
from collections.abc import Callable
from itertools import groupby
from math import exp
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import compiled

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


@pytest.mark.parametrize("stage", ["pt", "sft"])
def test_a_set_is_measured_whole_though_nothing_is_left_to_train_on(
    stage: str, execute: Callable[..., Any], here: Path, tiny_model: Path
) -> None:
    """And its figure is that of the same rows where they are all those that train; of two sets the other counts for
    nothing."""
    row = (lambda text: {"text": text}) if stage == "pt" else (lambda text: {"instruction": "Say it.", "output": text})
    for name, texts in (("one", TEXTS), ("two", TEXTS[:1])):
        (here / f"{name}.jsonl").write_text("".join(json.dumps(row(text)) + "\n" for text in texts))
    base = (f"model.path={tiny_model}", "hardware=cpu", "tracking=none", "evaluate.samples=2", "method=none")
    base += (f"stage={stage}", "data.max_length=64", "data=file", "data.path=one.jsonl")
    ways = {
        "whole": ("data.validation=file",),
        "all": ("evaluate.rows=train", "data.validation_fraction=0"),
        "part": ("data.validation_fraction=0.5",),
    }
    done = {
        name: execute(plan=compiled(*base, *words, verb="evaluate"), folder=name).result for name, words in ways.items()
    }
    assert done["whole"]["measured_rows"] == {"count": 4, "set": "file"}
    assert done["whole"]["evaluate"]["perplexity"] == pytest.approx(done["all"]["evaluate"]["perplexity"], rel=1e-5)
    data = done["whole"]["data"]
    assert (data["used"], data["validation"], data["rows"]) == (0, 4, 4)
    assert data["trained_tokens"] and len(done["whole"]["samples"]) == 2
    assert (done["all"]["measured_rows"], done["part"]["measured_rows"]) == (
        {"count": 4, "set": None},
        {"count": 2, "set": None},
    )


def test_held_out_batches_are_made_in_another_thread(
    execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the device computes one, the next is made: the thread that asks for work makes none."""
    made, collate = list[threading.Thread](), batches.collate

    def noted(*given: Any, **named: Any) -> Any:
        made.append(threading.current_thread())
        return collate(*given, **named)

    monkeypatch.setattr(batches, "collate", noted)
    done = execute("stage.max_steps=1", "data.packing=false", "checks=none")
    assert done.result["evaluate"]["perplexity"] > 1
    assert made and threading.main_thread() not in made
