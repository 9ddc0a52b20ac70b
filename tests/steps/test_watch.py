"""Bad updates: none moves a weight unless the user lets it, and each is told with the rows that it came from."""

import json
import shlex
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compiled
from safetensors.torch import load_file

from factory.config import registry
from factory.config.refusal import UserError
from factory.data import batches
from factory.execute.context import Interrupted
from factory.execute.report import write_report
from factory.run import launch
from factory.run.folder import RunFolder
from factory.run.screen import Screen
from factory.steps import train
from factory.steps.engine import Engine
from factory.steps.watch import Losses, _onward

Execute = Callable[..., Any]
BAD = 3  # the step whose loss is bad
RUN = (
    "method=full",
    "precision=fp32",
    "stage.learning_rate=1e-3",
    "stage.logging_steps=1",
    "stage.save_steps=1",
    "stage.save_total_limit=9",
    "stage.batch_size=2",
    "stage.max_steps=5",
    "data.max_samples=20",
    "data.max_length=200",
    "evaluate.perplexity=false",
)
UNLIKE = {"tokens_per_second", "memory", "seconds", "time"}


def bend(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float], stage: str = "sft") -> list[dict[str, Any]]:
    """The losses of these micro-batches of the training (from 1) times a factor; returns the batches as they come."""
    module, seen = registry.run("stages", stage), list[dict[str, Any]]()
    original = module.loss

    def loss(model: Any, batch: dict[str, Any], own: dict[str, Any]) -> Any:
        found = original(model, batch, own)
        if not model.training:  # what is checked before
            return found
        seen.append(batch)
        return type(found)(found.total * factors.get(len(seen), 1.0), found.metrics)

    monkeypatch.setattr(module, "loss", loss)
    return seen


def events(run: Any, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in run.folder.events.read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def tensors(step: int, folder: str = "run") -> dict[str, Any]:
    return load_file(RunFolder(folder).checkpoints / f"step-{step:06d}" / "trained.safetensors")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# --- what is bad


@pytest.mark.parametrize(
    ("changes", "loss", "norm", "wanted"),
    [
        ({}, 2.0, 1.0, None),
        ({}, nan, 1.0, "not-finite"),
        ({}, inf, 1.0, "not-finite"),
        ({}, 2.0, inf, "not-finite"),
        ({}, 1e9, 1e9, None),  # off by default
        ({"spike_factor": 3.0}, 5.9, 1.0, None),
        ({"spike_factor": 3.0}, 6.1, 1.0, "loss-spike"),
        ({"spike_norm": 4.0}, 2.0, 4.0, None),
        ({"spike_norm": 4.0}, 2.0, 4.1, "gradient-spike"),
    ],
)
def test_what_is_bad(
    changes: dict[str, Any], loss: float, norm: float, wanted: str | None, train_plan: Callable[..., Any]
) -> None:
    """After ten losses of 2."""
    losses = Losses()
    for _ in range(10):
        losses.add(2.0)
    found = losses.wrong(train_plan(**changes).settings.stage, loss, norm, skips_overflows=False)
    assert (found and found[0]) == wanted


def test_before_the_mean_says_something_nothing_is_a_spike(train_plan: Callable[..., Any]) -> None:
    losses, plan = Losses(), train_plan(spike_factor=2.0).settings.stage
    for _ in range(9):
        losses.add(1.0)
        assert losses.wrong(plan, 100.0, 1.0, skips_overflows=False) is None
    losses.add(1.0)
    assert losses.wrong(plan, 100.0, 1.0, skips_overflows=False) is not None


def test_the_mean_runs_over_the_last_ten() -> None:
    losses = Losses()
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    for value in values:
        losses.add(value)
    wanted = values[0]
    for value in values[1:]:
        wanted = wanted + 0.1 * (value - wanted)
    assert losses.mean == pytest.approx(wanted)


def test_of_negative_losses_too(train_plan: Callable[..., Any]) -> None:
    losses, plan = Losses(), train_plan(spike_factor=3.0).settings.stage
    for _ in range(10):
        losses.add(-1.0)
    assert losses.wrong(plan, 0.9, 1.0, skips_overflows=False) is None
    assert losses.wrong(plan, 1.1, 1.0, skips_overflows=False) is not None


def test_float16_overflows_are_the_scalers(train_plan: Callable[..., Any]) -> None:
    assert Losses().wrong(train_plan().settings.stage, 1.0, inf, skips_overflows=True) is None
    assert Losses().wrong(train_plan().settings.stage, nan, inf, skips_overflows=True) is not None


def test_what_overflows_whatever_the_scale_is_not_finite(train_plan: Callable[..., Any]) -> None:
    losses, plan = Losses(), train_plan().settings.stage
    for _ in range(32):
        assert losses.wrong(plan, 1.0, inf, skips_overflows=True) is None
        losses.add(1.0, inf)
    rule, wrong = losses.wrong(plan, 1.0, inf, skips_overflows=True) or ("", "")
    assert rule == "not-finite" and "norm inf, as in the 32 updates before" in wrong
    losses.add(1.0, 2.0)
    assert losses.wrong(plan, 1.0, inf, skips_overflows=True) is None and losses.overflows == 32


# --- what is done about it


def test_stop_is_the_default(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        bend(patched, {BAD: nan})
        with pytest.raises(
            UserError, match=r"\[not-finite\] step=3: the loss is nan.*its rows: [\d, ]+ of demo"
        ) as error:
            execute(*RUN)
    assert "stage.on_bad_update=skip" in str(error.value)
    assert [path.name for path in RunFolder("run").whole_checkpoints()][-1] == "step-000002"
    done = execute(*RUN, folder="whole")
    dataset, step = done.dataset.train, BAD - 1
    ((first, second),) = batches.micro_batches(step, len(dataset), 2, 1, done.run.plan.settings.seed)
    wanted = [row + 1 for number in (first, second) for _, row, _ in dataset.pieces(number)]
    (told,) = [json.loads(line) for line in Path("run/events.jsonl").read_text().splitlines() if "bad_update" in line]
    assert [entry["row"] for entry in told["rows"]] == wanted
    rows = [json.loads(line) for line in (registry._PACKAGE / "demo" / "messages.jsonl").read_text().splitlines()]
    answers = [str(list(rows[number - 1].values())[-1]) for number in wanted]
    texts = [done.dataset.train[number].ids for number in (first, second)]
    import tiny

    assert all(answer in tiny.tokenizer().decode(ids) for answer, ids in zip(answers, texts, strict=True))


def test_the_command_that_leaves_it_out_goes_on_in_the_same_folder(
    execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new folder would train from the first step; and a resume as it was planned would meet the update again."""
    with monkeypatch.context() as patched:
        bend(patched, {BAD: nan})
        with pytest.raises(UserError) as error:
            execute(*RUN, "stage.on_bad_update=stop", folder="a run")
    told = str(error.value).rpartition("leave this update out and continue from the last checkpoint: ")[2]
    words = shlex.split(told)
    words = words[words.index("train") + 1 :]
    assert words[-3:] == ["hydra.run.dir=a run", "stage.resume=auto", "stage.on_bad_update=skip"]
    plan, there = compiled(*words), RunFolder("a run")
    assert plan.digest() == there.plan_digest() and plan.settings.stage.on_bad_update == "skip"
    there.path.rename("moved")
    assert "begin again: " in _onward(plan, there)


def test_deepspeed_which_leaves_nothing_out_is_not_told_to() -> None:
    shared = ("model=llama2_7b", "hardware=cpu", "hardware.num_processes=2")
    told = _onward(compiled(*shared, "hardware.strategy=zero2", training=False), RunFolder("run"))
    assert told == "start a new run with hardware.strategy=ddp or fsdp and stage.on_bad_update=skip"
    for strategy in ("ddp", "fsdp"):
        compiled(*shared, f"hardware.strategy={strategy}", "stage.on_bad_update=skip", training=False)


LAYERWISE = "method.layerwise=true stage.max_grad_norm=null"


@pytest.mark.parametrize(("words", "rule"), [("", "not-finite"), (LAYERWISE, "layerwise-bad-update")])
def test_a_method_that_decomposes_gradients_does_not_hide_it(
    words: str, rule: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LAPACK raises at what is no number, and does so within the backward pass."""
    bend(monkeypatch, {BAD: nan})
    galore = ("method=galore", "method.rank=8", "method.update_interval=1", *words.split())
    with pytest.raises(UserError, match=rf"\[{rule}\] step=3: the loss is nan"):
        execute(*galore, *RUN[1:])


def test_a_spike_within_the_backward_pass_has_moved_weights_and_says_so(execute: Execute) -> None:
    """What cannot be skipped is not offered to be, of this run."""
    with pytest.raises(UserError, match=r"\[layerwise-bad-update\] step=1: the gradient's norm is ") as error:
        execute(*RUN, *LAYERWISE.split(), "stage.spike_norm=1e-9")
    assert "has moved weights already" in str(error.value) and "stage.resume" not in str(error.value)


@pytest.mark.parametrize("policy", ["skip", "warn"])
def test_an_update_that_is_not_finite_is_never_applied(
    policy: str, execute: Execute, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bend(monkeypatch, {BAD: nan})
    done = execute(*RUN, f"stage.on_bad_update={policy}")
    assert same(tensors(2), tensors(3)) and not same(tensors(3), tensors(4))
    before, after = (
        torch.load(RunFolder("run").checkpoints / f"step-{step:06d}" / "optimizer.pt", weights_only=True)
        for step in (2, 3)
    )
    assert str(before["state"]) == str(after["state"])
    assert [line["loss"] is None for line in done.metrics] == [False, False, True, False, False]
    assert all(torch.isfinite(value).all() for value in tensors(5).values())
    write_report(done.run, "finished", done.result, None)
    report = json.loads(done.run.folder.report.read_text())
    (event,) = events(done.run, "bad_update")
    (told,) = report["bad_updates"]["first"]
    assert (report["bad_updates"]["count"], report["bad_updates"]["skipped"]) == (1, 1)
    assert (told["step"], told["action"], told["what"], len(told["rows"])) == (3, "skipped", "not-finite", 2)
    assert told["rows"] == event["rows"]
    screen = Screen()
    launch.show(event, screen)
    for line in done.metrics:
        launch.show(line, screen)
    screen.print(launch.report_panel(report, Path("run")))
    said = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "step 3: the loss is nan" in said and "the update is skipped" in said
    assert "step 3 loss not finite" in said and "1, 1 of them skipped" in said


def test_a_spike_is_applied_where_it_is_only_warned_of(execute: Execute) -> None:
    spiky = ("stage.spike_norm=1e-9", "stage.max_steps=3")
    plain = execute(*RUN, "stage.max_steps=3", folder="plain")
    warned = execute(*RUN, *spiky, "stage.on_bad_update=warn", folder="warned")
    assert same(tensors(3, "warned"), tensors(3, "plain"))
    assert warned.run.bad_updates["count"] == 3 and warned.run.bad_updates["skipped"] == 0
    assert [event["action"] for event in events(warned.run, "bad_update")] == ["applied"] * 3
    assert plain.run.bad_updates is None
    with pytest.raises(UserError, match=r"\[gradient-spike\] step=1"):
        execute(*RUN, *spiky, folder="stopped")


def test_a_loss_that_jumps_is_skipped(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    bend(monkeypatch, {12: 50.0})
    done = execute(
        *RUN, "stage.max_steps=13", "stage.spike_factor=3", "stage.on_bad_update=skip", "stage.save_total_limit=20"
    )
    assert same(tensors(11), tensors(12)) and not same(tensors(12), tensors(13))
    assert done.run.bad_updates["first"][0]["what"] == "loss-spike"


def test_so_many_skips_in_a_row_stop_the_run(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    skipping = ("stage.on_bad_update=skip", "stage.max_skipped_updates=2")
    with monkeypatch.context() as patched:
        bend(patched, {2: nan, 4: nan})
        assert execute(*RUN, *skipping, folder="apart").run.bad_updates["skipped"] == 2
    bend(monkeypatch, {2: nan, 3: nan})
    with pytest.raises(UserError, match=r"\[skipped-in-a-row\].*2 updates in a row were skipped up to step 3"):
        execute(*RUN, *skipping)


def overflowing(monkeypatch: pytest.MonkeyPatch, updates: set[int]) -> None:
    """A scaler as of float16, and gradients that overflow in these updates (from 1)."""
    original, stage, seen = Engine.__init__, registry.run("stages", "sft"), list[int]()
    plain = stage.loss

    def made(self: Engine, *values: Any) -> None:
        original(self, *values)
        self.skips_overflows, self._scaler = True, torch.amp.GradScaler("cpu")

    def loss(model: Any, batch: dict[str, Any], own: dict[str, Any]) -> Any:
        found = plain(model, batch, own)
        if model.training:
            seen.append(1)
            if len(seen) in updates:
                found.total.register_hook(lambda gradient: gradient * inf)
        return found

    monkeypatch.setattr(Engine, "__init__", made)
    monkeypatch.setattr(stage, "loss", loss)


def test_what_overflows_in_float16_is_counted(
    execute: Execute, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many at the start of a run as the scaler needs: none is a bad update."""
    overflowing(monkeypatch, {1, 2})
    done = execute(*RUN)
    assert done.result["train"]["overflows"] == 2 and done.run.bad_updates is None
    assert done.run.checks["gradients_alive"]["passed"]
    assert same(tensors(1), tensors(2)) and not same(tensors(2), tensors(3))
    write_report(done.run, "finished", done.result, None)
    Screen().print(launch.report_panel(json.loads(done.run.folder.report.read_text()), Path("run")))
    assert "2 updates overflowed in float16 and moved nothing" in capsys.readouterr().out


@pytest.mark.parametrize("why", ["overflows", "skipped"])
def test_a_run_that_applied_no_update_is_red(why: str, execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "overflows":
        overflowing(monkeypatch, {1, 2, 3})
        done = execute(*RUN, "stage.max_steps=3")
        counts = "3 overflowed in float16, 0 were skipped"
    else:
        done = execute(*RUN, "stage.max_steps=3", "stage.spike_norm=1e-9", "stage.on_bad_update=skip")
        counts = "0 overflowed in float16, 3 were skipped"
    check = done.run.checks["gradients_alive"]
    assert not check["passed"] and check["detail"] == f"none of 3 updates was applied: {counts}"


def test_what_was_skipped_is_carried_over_a_resume(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*RUN, "stage.on_bad_update=skip", "stage.spike_factor=50")
    with monkeypatch.context() as patched:
        bend(patched, {BAD: nan})
        whole = execute(*options, folder="whole")
    with monkeypatch.context() as patched:
        bend(patched, {BAD: nan})
        original = train._updates

        def stopping(run: Any, *values: Any) -> Any:
            run.stopping = values[0].state.step == 3
            return original(run, *values)

        patched.setattr(train, "_updates", stopping)
        with pytest.raises(Interrupted):
            execute(*options)
    done = execute(*options, resume_from=RunFolder("run").checkpoint())
    assert done.run.bad_updates == whole.run.bad_updates
    lines = [[{n: v for n, v in line.items() if n not in UNLIKE} for line in each.metrics] for each in (done, whole)]
    assert lines[0] == lines[1]
    assert same(tensors(5), tensors(5, "whole"))


def test_the_policy_may_be_set_anew_when_a_run_goes_on() -> None:
    plans = [
        compiled(*more, training=False) for more in ((), ("stage.on_bad_update=skip", "stage.max_skipped_updates=3"))
    ]
    assert plans[0].digest() == plans[1].digest()
    assert compiled("stage.spike_norm=9", training=False).digest() != plans[0].digest()


# --- whose rows


@pytest.mark.parametrize(
    "words",
    [
        ("data.packing=true",),
        ("data.streaming=true", "data.shuffle_buffer=7"),
        ("data.streaming=true", "data.shuffle_buffer=7", "data.packing=true"),
        ("stage=pt", "data.streaming=true", "data.shuffle_buffer=7"),
        ("stage=dpo", "stage.loss=simpo", "data.streaming=true", "data.shuffle_buffer=7"),
        ("stage=kto",),
        ("stage=rm",),
    ],
    ids=" ".join,
)
def test_the_rows_are_those_of_the_batch(
    words: tuple[str, ...], execute: Execute, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    """Every row has a word of its own, which the batch's tokens spell."""
    stage = next((word.removeprefix("stage=") for word in words if word.startswith("stage=")), "sft")
    Path("rows.jsonl").write_text("".join(json.dumps(made(stage, number)) + "\n" for number in range(30)))
    options = [text for text in RUN if "max_samples" not in text]
    seen = bend(monkeypatch, {BAD: nan}, stage)
    data = ("data=file", "data.path=rows.jsonl", "stage.learning_rate=1e-4", "evaluate.samples=0")
    done = execute(*options, *data, "stage.on_bad_update=skip", *words)
    (told,) = events(done.run, "bad_update")
    import tiny

    text = tiny.tokenizer().decode(seen[BAD - 1]["input_ids"].flatten().tolist())
    assert {entry["row"] for entry in told["rows"]} == {n + 1 for n in range(30) if f"#{n:02d}#" in text}


def made(stage: str, number: int) -> dict[str, Any]:
    question, word = f"#{number:02d}# asks", f"#{number:02d}# " + "yes " * (number % 3 + 1)
    if stage == "pt":
        return {"text": word}
    if stage == "sft":
        return {"instruction": question, "output": word}
    if stage == "kto":
        return {"prompt": question, "completion": "yes, surely" if number % 2 else "no", "label": bool(number % 2)}
    return {"prompt": question, "chosen": word, "rejected": "no"}
