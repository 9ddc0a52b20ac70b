"""Where a GPU is asked for more than it has done: nothing is read within a step, and all is as if it had been."""

import json
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from reads import Reads
from test_watch import RUN, UNLIKE, bend, same

from factory.config.refusal import UserError
from factory.stages import loss
from factory.steps import train

Execute = Callable[..., Any]
# as on a GPU, where Factory's layers for a CPU are not
PLAIN = (*(text for text in RUN if "save_steps" not in text), "compute.kernels=none")
LATE = (*PLAIN, "stage.save_steps=null", "stage.max_steps=6")


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[Reads]:
    """As if the CPU ran behind; of each step that was asked for, what was read before it was whole."""
    found, ask = list[Reads](), train._asked

    def asked(*given: Any) -> Any:
        found.append(Reads())
        with found[-1]:
            return ask(*given)

    monkeypatch.setattr(train, "_asked", asked)
    monkeypatch.setattr(train, "runs_ahead", lambda _: True)
    return found


def lines(done: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in UNLIKE} for line in done.metrics]


@pytest.mark.parametrize(
    "options",
    [
        ("stage.batch_size=1", "compute.attention=per_document"),
        ("stage.gradient_accumulation_steps=2", "data.max_samples=40"),
        ("stage=pt",),
        ("data.packing=true", "data.isolate_documents=true"),
        ("method=lora", "stage.optimizer=adamw"),
        ("stage=dpo", "method=lora"),
        ("stage=rm",),
        ("stage=orpo",),
        ("stage=kto",),
    ],
    ids=["rows", "accumulated", "pt", "packed", "lora", "dpo", "rm", "orpo", "kto"],
)
def test_no_step_reads_what_it_computes(options: tuple[str, ...], execute: Execute, ahead: list[Reads]) -> None:
    done = execute(*LATE, *options)
    assert len(ahead) == 6 - (2 if "method=lora" in options else 1)  # as long as it is watched whether tensors live
    assert all(step.operations > 100 for step in ahead)
    assert [step.seen for step in ahead] == [[]] * len(ahead)
    assert [line["step"] for line in done.metrics] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto"])
def test_what_is_read_late_was_sent_before(
    stage: str, execute: Execute, ahead: list[Reads], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's own number would be there when all that was asked for after it is: the next step."""
    copies, later, ask = list[torch.Tensor](), list[Reads](), train._asked

    def sent(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        copies.append(value.clone())
        return copies[-1]

    def asked(*given: Any) -> Callable[[], Any]:
        read = ask(*given)

        def reading() -> Any:
            later.append(Reads())
            with later[-1]:
                return read()

        return reading

    monkeypatch.setattr(train, "_asked", asked)
    for place in (train, loss):
        monkeypatch.setattr(place, "sent", sent)
    execute(*LATE, f"stage={stage}")
    assert len(later) == len(ahead) > 3
    assert all(each.numbers for each in later)
    assert set[int]().union(*(each.numbers for each in later)) <= {each.data_ptr() for each in copies}


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_all_is_as_if_it_had_been_read(
    stage: str, execute: Execute, ahead: list[Reads], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line, evaluation and weight, with a bad update that is skipped."""
    options = (*LATE, f"stage={stage}", "stage.on_bad_update=skip", "stage.max_steps=8", "stage.logging_steps=2")
    options = (*options, "stage.eval_steps=4", "evaluate.perplexity=true")
    found = []
    for late in (True, False):
        with monkeypatch.context() as patched:
            patched.setattr(train, "runs_ahead", lambda _, late=late: late)
            bend(patched, {6: nan}, stage)
            found.append(execute(*options, folder=f"{late}"))
    one, other = found
    assert len(ahead) > 4
    assert lines(one) == lines(other)
    assert one.run.bad_updates == other.run.bad_updates and one.run.bad_updates["skipped"] == 1
    assert same(dict(one.model.state_dict()), dict(other.model.state_dict()))
    assert one.result["train"]["final_loss"] == other.result["train"]["final_loss"]


def test_a_bad_update_stops_a_step_later(execute: Execute, ahead: list[Reads], monkeypatch: pytest.MonkeyPatch) -> None:
    batches = bend(monkeypatch, {4: nan})
    with pytest.raises(UserError, match="step=4") as error:
        execute(*LATE)
    assert "not-finite" in str(error.value)
    assert len(batches) == 5
    logged = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3]


@pytest.mark.parametrize("key", ["spike_factor", "spike_norm"])
def test_a_spike_is_known_before_it_moves_a_weight(key: str, execute: Execute, ahead: list[Reads]) -> None:
    execute(*LATE, f"stage.{key}=1000")
    assert ahead == []


@pytest.mark.parametrize("options", [("stage.optimizer=sgd",), ("method=galore", "method.rank=8")])
def test_other_optimizers_are_told_before(options: tuple[str, ...], execute: Execute, ahead: list[Reads]) -> None:
    execute(*LATE, *options)
    assert ahead == []
