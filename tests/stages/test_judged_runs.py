"""Whole runs of the stages that judge answers: their reference, every method, going on, and what is shown of them."""

import json
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from grids import diagonal
from peft import PeftModel
from test_judged import log_prob
from test_methods import FITTING, SHORT
from transformers import AutoModelForCausalLM

from factory.config import registry
from factory.data.batches import micro_batches, mismatched
from factory.data.dataset import IGNORED, Example, Labelled
from factory.execute.context import Interrupted
from factory.execute.report import write_report
from factory.run.folder import RunFolder
from factory.steps import reference, train
from factory.tracking.to_mlflow import connect
from factory.tracking.tracker import Tracker

Execute = Callable[..., Any]
STAGES = ("dpo", "orpo", "kto")
START = {"dpo": log(2), "kto": 0.5}  # the loss of a model that is its own reference
LORA = ("method=lora", "method.rank=4")
RUN = (
    "precision=fp32",
    "stage.logging_steps=1",
    "stage.warmup_ratio=0",
    "stage.lr_scheduler=constant",
    "stage.learning_rate=1e-2",
    "stage.batch_size=2",
    "stage.save_steps=null",
    "data.max_samples=12",
    "evaluate.batch_size=2",
)
PAIR_METRICS = {"rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy"}
METRICS = {"dpo": PAIR_METRICS, "orpo": PAIR_METRICS, "kto": {"rewards/chosen", "rewards/rejected", "kl"}}


# --- the reference


@pytest.fixture
def referred(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[dict[str, Any]]]:
    """The batches that a stage's loss is given from now on."""

    def referred(stage: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        module = registry.run("stages", stage)
        original = module.loss

        def loss(model: Any, batch: dict[str, Any], own: dict[str, Any]) -> Any:
            found.append(dict(batch))
            return original(model, batch, own)

        monkeypatch.setattr(module, "loss", loss)
        return found

    return referred


def assert_refers_to(model: Any, batches: list[dict[str, Any]]) -> None:
    """Each row's reference is what this model gives it, padding and all."""
    for batch in batches:
        rows = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
        wanted = [log_prob(model, Example(ids, labels)) for ids, labels in rows]
        assert batch["reference"].tolist() == pytest.approx(wanted, rel=1e-5)


def exact(folder: Path, adapter: Path | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    return model.eval() if adapter is None else PeftModel.from_pretrained(model, adapter).eval()


@pytest.mark.parametrize("method", [LORA, ("method=full",)], ids=["lora", "full"])
@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_the_reference_is_the_base(
    stage: str, method: tuple[str, ...], execute: Execute, tiny_model: Path, referred: Callable[..., Any]
) -> None:
    """In each of three epochs, and on the held-out rows before and after; no second copy of weights is there."""
    batches = referred(stage)
    done = execute(f"stage={stage}", *method, *RUN, "stage.num_epochs=3")
    rows = len(done.dataset.train) * 3 + len(done.dataset.validation) * 2
    assert sum(len(batch["input_ids"]) for batch in batches) == 2 * rows
    assert_refers_to(exact(tiny_model), batches)
    now = done.model.double()  # trained far enough that its own would not do
    with pytest.raises(AssertionError):
        assert_refers_to(now, batches[:1])


@pytest.mark.parametrize("dropout", [0, 0.3])
def test_the_reference_is_the_adapter_that_is_gone_on_from(
    dropout: float, execute: Execute, tiny_model: Path, referred: Callable[..., Any]
) -> None:
    """Without what is dropped out in training."""
    first = execute(*LORA, *RUN, "stage.max_steps=4", folder="sft")
    batches = referred("dpo")
    adapter = first.run.folder.model.resolve()
    more = (f"model.adapter={adapter}", f"method.dropout={dropout}")
    done = execute("stage=dpo", *LORA, *RUN, *more, folder="dpo")
    assert done.run.plan.steps.train.reference == "adapter"
    assert (done.losses[0] == pytest.approx(log(2), rel=1e-6)) == (dropout == 0)
    assert_refers_to(exact(tiny_model, adapter), batches)
    with pytest.raises(AssertionError):  # the bare base is another
        assert_refers_to(exact(tiny_model), batches[:1])
    names = [name for name, _ in done.model.named_parameters()]
    assert len(done.model.peft_config) == 1 and len(names) == len({name.replace(".default", "") for name in names})


@pytest.mark.parametrize("stage", START)
def test_a_model_that_drops_out_starts_as_its_reference(stage: str, execute: Execute, tmp_path: Path) -> None:
    """GPT-2's config says 0.1, in three places."""
    base = tiny.save(tmp_path / "gpt2", model_type="gpt2", n_inner=64, num_key_value_heads=4)
    done = execute(f"stage={stage}", *LORA, *RUN, f"model.path={base}", "stage.max_steps=1", folder=stage)
    assert done.losses[0] == pytest.approx(START[stage], abs=1e-5)
    assert "own dropout is off" in done.run.folder.events.read_text()
    assert done.model.config.attn_pdrop == 0.1


def test_without_a_reference_none_is_measured(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_measure", None)
    for words in (("stage=orpo",), ("stage=dpo", "stage.loss=simpo"), ("stage=dpo", "stage.loss=cpo")):
        done = execute(*words, *LORA, *RUN, "stage.max_steps=1", folder="-".join(words))
        assert not done.run.folder.reference.exists()


def test_a_row_is_measured_once(execute: Execute) -> None:
    """Two answers a row, in however many epochs and however padded."""
    done = execute("stage=dpo", *LORA, *RUN, "stage.num_epochs=3")
    with np.load(done.run.folder.reference) as kept:
        assert len(kept["sums"]) == 2 * (len(done.dataset.train) + len(done.dataset.validation))


# --- stopped and gone on


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: type[BaseException] | None = None) -> None:
    original, done = train._updates, iter(range(1, 100))

    def updates(run: Any, *values: Any) -> Any:
        if next(done) == step:
            if error:
                raise error
            run.stopping = True
        return original(run, *values)

    monkeypatch.setattr(train, "_updates", updates)


def repeats(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must repeat bit for bit: all but times and memory."""
    unlike = {"tokens_per_second", "memory", "seconds", "time"}
    return [{name: value for name, value in line.items() if name not in unlike} for line in metrics]


def assert_equal(done: Any, whole: Any) -> None:
    assert repeats(done.metrics) == repeats(whole.metrics)
    assert METRICS[whole.run.plan.settings.stage.name] <= set().union(*whole.metrics)
    wanted = dict(whole.model.named_parameters())
    assert all(torch.equal(value, wanted[name]) for name, value in done.model.named_parameters())
    assert done.result["evaluate"] == whole.result["evaluate"]


RESUMED = {
    "full": ("method=full",),
    "lora with dropout": (*LORA, "method.dropout=0.1"),
    "pissa": ("method=pissa", *FITTING["pissa"]),
}
GOES_ON = (*RUN, "stage.gradient_accumulation_steps=2", "stage.weight_decay=0.1", "stage.max_steps=7")


@pytest.mark.parametrize(("stage", "method"), diagonal(STAGES, RESUMED))
def test_an_interrupted_run_is_the_uninterrupted_one(
    stage: str, method: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reference is not measured again: the model is no longer there."""
    options = (f"stage={stage}", *RESUMED[method], *GOES_ON)
    whole = execute(*options, folder="whole")
    assert whole.metrics[-1]["epoch"] > 2
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        with pytest.raises(Interrupted):
            execute(*options)
    with monkeypatch.context() as patched:
        patched.setattr(reference, "_measure", None)
        done = execute(*options, resume_from=RunFolder("run").checkpoint())
    assert_equal(done, whole)
    if stage != "orpo":
        kept = [RunFolder(name).reference.read_bytes() for name in ("run", "whole")]
        assert kept[0] == kept[1]


@pytest.mark.parametrize("method", ["full", "pissa"])
def test_a_killed_run_whose_reference_is_lost_measures_the_same(
    method: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken before the checkpoint's weights are put in place; so it is too for a checkpoint of another folder."""
    options = ("stage=kto", *RESUMED[method], *GOES_ON)
    whole = execute(*options, folder="whole")
    with monkeypatch.context() as patched:
        stop_at(patched, 6, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            execute(*options, "stage.save_steps=3")
    saved = RunFolder("run").checkpoint()
    assert saved is not None and saved.name == "step-000003"
    RunFolder("run").reference.unlink()
    assert_equal(execute(*options, "stage.save_steps=3", resume_from=saved), whole)


def test_a_new_run_measures_anew(execute: Execute, tiny_model: Path, referred: Callable[..., Any]) -> None:
    """What an earlier run left in its folder is not read."""
    where = RunFolder("run")
    where.path.mkdir()
    np.savez(where.reference, keys=np.zeros(16, np.uint8), sums=np.zeros(1))
    batches = referred("dpo")
    execute("stage=dpo", *LORA, *RUN, "stage.max_steps=1")
    assert_refers_to(exact(tiny_model), batches)


# --- every method

METHODS = ("full", "freeze", "lora", "qlora", "galore", "dora", "pissa", "badam", "adalora", "llama_pro")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_method_trains_it(stage: str, method: str, execute: Execute) -> None:
    done = execute(f"stage={stage}", f"method={method}", *FITTING[method], *SHORT, "stage.learning_rate=1e-2")
    assert len(done.losses) == 3
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert {"trainable_as_planned", "gradients_alive", "tokens_accounted", "loss_mask"} <= done.run.checks.keys()
    for name, value in done.model.named_parameters():
        assert value.detach().equal(done.start[name]) != value.requires_grad, name
    if stage in START:
        assert done.losses[0] == pytest.approx(START[stage], abs=1e-5)
        assert done.losses[0] != done.losses[2]


@pytest.mark.parametrize(("method", "precision"), diagonal(("full", "lora", "qlora"), ("bf16", "pure_bf16")))
def test_the_reference_is_rounded_as_the_model_is(method: str, precision: str, execute: Execute) -> None:
    """In the first step the model is its own reference to the bit: nothing of its rewards is rounding."""
    short = (f"method={method}", *FITTING[method], *RUN, f"precision={precision}", "stage.max_steps=3")
    done = execute("stage=dpo", *short)
    first = done.metrics[0]
    assert first["loss"] == pytest.approx(log(2), rel=1e-6)
    assert first["rewards/margin"] == first["rewards/accuracy"] == 0
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks


def test_the_reference_is_multiplied_as_the_model_is(execute: Execute) -> None:
    """Layers of 8 bits: on a CPU they round what comes in, but where they train."""
    done = execute("stage=dpo", *LORA, "method.quantization.bits=8", *RUN, "stage.max_steps=2")
    first = done.metrics[0]
    assert first["loss"] == pytest.approx(log(2), rel=1e-6)
    assert first["rewards/margin"] == pytest.approx(0, abs=1e-6)
    assert done.result["evaluate"]["loss_before"] == pytest.approx(log(2), rel=1e-6)
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks


@pytest.mark.parametrize("stage", STAGES)
def test_checkpointed_activations_change_no_loss(stage: str, execute: Execute) -> None:
    short = (f"stage={stage}", *LORA, *RUN, "stage.max_steps=4")
    plain = execute(*short, folder="plain")
    recomputed = execute(*short, "compute.activation_checkpointing=true", folder="recomputed")
    assert recomputed.model.is_gradient_checkpointing
    assert recomputed.losses == pytest.approx(plain.losses, rel=1e-5)


def test_the_reference_point_is_taken_without_a_gradient(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both forward passes of a step nothing but the answers' is kept for the backward one."""
    from factory.stages.kto import run as kto

    seen, original = list[tuple[int, bool]](), kto.sequence_log_probs

    def looking(model: Any, batch: dict[str, Any]) -> Any:
        found = original(model, batch)
        seen.append((len(batch["labels"]), found[0].requires_grad))
        return found

    monkeypatch.setattr(kto, "sequence_log_probs", looking)
    execute("stage=kto", *LORA, *RUN, "stage.max_steps=2", "evaluate.perplexity=false")
    assert seen == [(2, False), (2, True)] * 2


# --- a micro-batch of one


def test_one_sample_alone_is_given_anothers_answer(execute: Execute) -> None:
    """5 rows in batches of 2: the fifth is trained, and its reference point is not measured on itself."""
    done = execute("stage=kto", "method=full", *RUN, "data.max_samples=6", "data.validation_fraction=0.17")
    rows = done.dataset.train
    assert len(rows) == 5 and len(done.metrics) == 3
    assert done.run.plan.settings.stage.batch_size == 2
    for number in range(5):
        one = rows[number]
        asked = one.example.ids[: one.prompt]
        (found,) = mismatched([one], None, rows)
        answers = [each.example.ids[each.prompt :] for each in rows if each.example.ids[: each.prompt] != asked]
        assert found.ids[: one.prompt] == asked and found.ids[one.prompt :] == answers[0]
    last = done.metrics[-1]
    assert ("rewards/chosen" in last) != ("rewards/rejected" in last)  # of one sample


def test_one_sample_alone_of_all_keeps_its_answer() -> None:
    sample = Labelled(Example([3, 4, 5, 6], [IGNORED, IGNORED, 5, 6]), True, 2)
    assert mismatched([sample], None, [sample, sample]) == mismatched([sample]) == [sample.example]


@pytest.mark.parametrize("loss", ["sigmoid", "aot", "aot_unpaired"])
def test_pairs_that_are_ranked_stay_beside_those_they_were_drawn_with(
    loss: str, execute: Execute, referred: Callable[..., Any]
) -> None:
    """By length, a margin would be ranked among those of answers as long as its own."""
    batches = referred("dpo")
    done = execute(
        "stage=dpo",
        f"stage.loss={loss}",
        *LORA,
        *RUN,
        "stage.gradient_accumulation_steps=3",
        "evaluate.perplexity=false",
    )
    rows, seed = done.dataset.train, done.run.plan.settings.seed
    drawn = [micro for step in range(len(done.metrics)) for micro in micro_batches(step, len(rows), 2, 3, seed)]
    assert max(map(len, drawn)) == 2 and len(batches) == len(drawn)
    chosen = [[rows[number].chosen.ids for number in micro] for micro in drawn]
    given = [
        [row[: len(ids)] for row, ids in zip(batch["input_ids"].tolist(), wanted, strict=False)]
        for batch, wanted in zip(batches, chosen, strict=True)
    ]
    assert (given == chosen) == (loss != "sigmoid")


# --- what is shown


@pytest.mark.parametrize("stage", STAGES)
def test_what_people_watch_is_written_and_reported(stage: str, execute: Execute) -> None:
    done = execute(f"stage={stage}", *LORA, *RUN, "data.max_samples=30", "stage.batch_size=9", "evaluate.samples=1")
    assert all({"loss", *METRICS[stage]} <= line.keys() for line in done.metrics)
    write_report(done.run, "finished", done.result, None)
    report = json.loads(done.run.folder.report.read_text())
    names = {"loss", *METRICS[stage]}
    assert report["evaluate"].keys() == names | {f"{name}_before" for name in names}
    assert len(report["samples"]) == 1


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.mark.slow
def test_mlflow_gets_what_people_watch(uri: str, execute: Execute) -> None:
    done = execute("stage=dpo", *LORA, *RUN, "stage.max_steps=3", "tracking=mlflow", f"tracking.uri={uri}")
    write_report(done.run, "finished", done.result, None)
    report = json.loads(done.run.folder.report.read_text())
    tracker = Tracker(done.run.plan, done.run.folder)
    tracker.finish(report)
    assert tracker.problem is None
    client, experiment = connect(done.run.plan.settings.tracking)
    (run,) = client.search_runs([experiment])
    measured = {name: value for name, value in report["evaluate"].items() if name.endswith("_before")}
    assert {"loss_before", "rewards/accuracy_before"} <= measured.keys()
    assert {name: run.data.metrics[name] for name in measured} == measured
    for name in ("loss", *PAIR_METRICS):
        history = client.get_metric_history(run.info.run_id, name)
        assert [(point.step, point.value) for point in history] == [(line["step"], line[name]) for line in done.metrics]


@pytest.mark.parametrize(
    ("wanted", "weight", "told"), [(6, 1, None), (3, 1, "0.333 to 1"), (9, 1, "3 to 1"), (9, 3, None), (9, 2, None)]
)
def test_labels_that_outweigh_the_others_are_told(
    wanted: int, weight: float, told: str | None, execute: Execute, here: Path
) -> None:
    """With the weight that evens them out."""
    rows = [{"prompt": f"{n}?", "completion": f"{n}.", "label": n < wanted} for n in range(12)]
    (here / "judged.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = ("data=file", "data.path=judged.jsonl", "data.validation_fraction=0")
    done = execute("stage=kto", *LORA, *RUN, *file, f"stage.undesirable_weight={weight}", "stage.max_steps=1")
    notes = [note for note in done.dataset.notes if "weigh" in note]
    assert [told in note for note in notes] == ([] if told is None else [True])
    if told is not None:
        even = wanted / (12 - wanted)
        assert f"stage.undesirable_weight={even:.3g} or stage.desirable_weight={1 / even:.3g}" in notes[0]
