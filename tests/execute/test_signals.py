"""SIGTERM, wherever it comes: a run that trains saves and ends, one that does not yet ends at once."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
import rolling
import torch
import transformers
from commands import alike
from conftest import compiled
from test_checkpoint import SHORT

import factory.losses
from factory.config import function
from factory.execute import executor
from factory.execute.context import Interrupted, Run
from factory.rewards import source
from factory.run.folder import RunFolder, last_logged
from factory.steps import align, attach, evaluate, train
from factory.stopping import asking

Execute = Callable[..., Any]
RUN = (
    "method=lora",
    "method.rank=4",
    *[text for text in SHORT if "accumulation" not in text],
    "stage.save_steps=3",
    "stage.eval_steps=2",
    "evaluate.batch_size=2",
)


@pytest.fixture(autouse=True)
def listening(monkeypatch: pytest.MonkeyPatch, hangup: None) -> Iterator[None]:
    """Runs in this process listen as the child does."""
    walk, handlers = executor.walk, {number: signal.getsignal(number) for number in asking()}

    def listens(run: Run) -> Any:
        run.listen()
        return walk(run)

    monkeypatch.setattr(executor, "walk", listens)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def ask(
    monkeypatch: pytest.MonkeyPatch, home: Any, name: str, time: int = 1, number: int = signal.SIGTERM
) -> list[int]:
    """Sends the signal when the function is called for the given time; returns how often it was called."""
    original, calls = getattr(home, name), list[int]()

    def asking(*values: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == time:
            os.kill(os.getpid(), number)
        return original(*values, **more)

    monkeypatch.setattr(home, name, asking)
    return calls


BEFORE: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "the config": (transformers.AutoConfig, "from_pretrained", ()),
    "the tokenizer": (transformers.AutoTokenizer, "from_pretrained", ()),
    "the data": (align, "align", ()),
    "the weights": (attach, "materialize", ()),
    "the reference of dpo": (factory.losses, "sequence_log_probs", ("stage=dpo",)),
    "the reference of kto": (factory.losses, "sequence_log_probs", ("stage=kto",)),
    "the first measure": (evaluate, "held_out", ()),
    "the first measure of rm": (evaluate, "held_out", ("stage=rm",)),
}


@pytest.mark.parametrize("place", BEFORE)
def test_before_training_it_ends_at_once(place: str, execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    home, name, words = BEFORE[place]
    calls = ask(monkeypatch, home, name)
    with pytest.raises(Interrupted):
        execute(*words, *RUN)
    assert len(calls) == 1  # nothing went on
    assert RunFolder("run").checkpoint() is None and not Path("run/model").exists()


def test_no_function_of_the_users_is_told_to_have_raised_it(here: Path) -> None:
    """In whose code a signal may come as anywhere."""
    run = Run(plan=compiled(training=False), folder=RunFolder("run"), resume_from=None, at_once=True)
    run.listen()
    with pytest.raises(Interrupted):
        function.called("mine:rows", "it raised", lambda: os.kill(os.getpid(), signal.SIGTERM))


def equal(done: Any, whole: Any) -> bool:
    wanted = dict(whole.model.named_parameters())
    same = all(torch.equal(value, wanted[name]) for name, value in done.model.named_parameters())
    return same and alike(done.metrics) == alike(whole.metrics) and done.result["evaluate"] == whole.result["evaluate"]


WHILE = {
    "in a step": (train, "_updates", 5, 5),
    "while saving": ("save_file", None, 1, 3),
    "in an evaluation": (train, "held_out", 2, 4),
    "in the last step": (train, "_updates", 7, 7),
}
STAGES = {**commands.STAGES, "sft packed": ("data.packing=true", "data.max_length=256")}
CELLS = [("sft", place) for place in WHILE] + [(stage, "in an evaluation") for stage in STAGES if stage != "sft"]


@pytest.mark.parametrize(("stage", "place"), CELLS)
def test_while_training_it_saves_and_goes_on(
    stage: str, place: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    options = [*STAGES[stage], *RUN]
    if "streaming" in stage:
        options = [text for text in options if "max_samples" not in text]
    whole = execute(*options, folder="whole")
    home, name, time, step = WHILE[place]
    with monkeypatch.context() as patched:
        ask(patched, *((safetensors.torch, home) if name is None else (home, name)), time)
        with pytest.raises(Interrupted):
            execute(*options)
    saved = RunFolder("run").checkpoint()
    assert saved is not None and saved.name == f"step-{step:06d}"
    assert last_logged(saved) == (step - 1 if place in ("in an evaluation", "in the last step") else step)
    assert equal(execute(*options, resume_from=saved), whole)


def test_while_answers_are_scored_it_ends_at_once(
    execute: Execute, scoring: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What scores them may be a server that is gone. The step before is saved, as it ended."""
    options = (*rolling.STAGES["grpo"], *rolling.LORA, *rolling.SHORT, scoring, "evaluate.perplexity=false")
    whole = execute(*options, folder="whole")
    with monkeypatch.context() as patched:
        calls = ask(patched, source, "scores", 3)
        trained = ask(patched, train, "_updates", 100)
        with pytest.raises(Interrupted):
            execute(*options)
    saved = RunFolder("run").checkpoint()
    assert saved is not None and saved.name == "step-000002" and (len(calls), len(trained)) == (3, 2)
    assert equal(execute(*options, resume_from=saved), whole)


def test_a_hangup_saves_too(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(monkeypatch, train, "_updates", 2, signal.SIGHUP)
    with pytest.raises(Interrupted):
        execute(*RUN)
    saved = RunFolder("run").checkpoint()
    assert saved is not None and saved.name == "step-000002"


def test_after_training_nothing_is_lost(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = execute(*RUN, folder="whole")
    with monkeypatch.context() as patched:
        ask(patched, evaluate, "held_out", 2)  # train has its own name for it
        with pytest.raises(Interrupted):
            execute(*RUN)
    saved = RunFolder("run").checkpoint()
    assert saved is not None and saved.name == "step-000007" and Path("run/model").is_dir()
    assert equal(execute(*RUN, resume_from=saved), whole)
