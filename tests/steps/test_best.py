"""Evaluation while training: it changes nothing, the best model is the one that is kept, and enough is enough."""

import json
from collections.abc import Callable
from math import exp, inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compiled
from harms import cut

from factory.config.refusal import UserError
from factory.execute import checkpoint
from factory.execute.context import Interrupted
from factory.execute.report import write_report
from factory.run import launch
from factory.run.folder import RunFolder, last_logged
from factory.run.screen import Screen
from factory.steps import train
from factory.steps.best import Best

Execute = Callable[..., Any]
RUN = (
    "method=lora",
    "method.rank=4",
    "method.dropout=0.1",  # so that a random number that an evaluation drew would show
    "precision=fp32",
    "stage.learning_rate=1e-2",
    "stage.logging_steps=1",
    "stage.save_steps=null",
    "stage.batch_size=2",
    "stage.max_steps=7",
    "data.max_samples=22",
    "data.max_length=200",
)
EVERY_TWO = (*RUN, "stage.eval_steps=2")
BEST = (*EVERY_TWO, "stage.load_best_model_at_end=true", "stage.save_total_limit=1")
UNLIKE = {"tokens_per_second", "memory", "seconds", "time"}


def lines(done: Any, *, evaluated: bool = True) -> list[dict[str, Any]]:
    """What must repeat bit for bit."""
    return [
        {
            name: value
            for name, value in line.items()
            if name not in UNLIKE and (evaluated or not name.startswith("eval_"))
        }
        for line in done.metrics
    ]


def weights(done: Any) -> dict[str, Any]:
    return dict(done.model.named_parameters())


def assert_same(done: Any, whole: Any) -> None:
    assert lines(done) == lines(whole)
    wanted = weights(whole)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(done).items())
    assert done.result["evaluate"] == whole.result["evaluate"]
    assert done.result["train"].get("best") == whole.result["train"].get("best")
    assert done.result["train"].get("stopped_early") == whole.result["train"].get("stopped_early")


# --- what counts as better, against a plain statement of it


def test_small_gains_add_up_to_an_improvement() -> None:
    best = Best("loss")
    found = [best.add(step, value, 0.25) for step, value in enumerate([2.0, 1.9, 1.8, 1.7, 1.75, nan, 1.6], start=1)]
    assert found == [True, True, True, True, False, False, True]
    assert (best.step, best.value, best.counted, best.stale) == (7, 1.6, 1.7, 3)


def test_of_what_is_not_a_loss_more_is_better() -> None:
    best = Best("rewards/accuracy")
    assert [best.add(step, value, 0) for step, value in enumerate([0.5, 0.75, 0.75, 0.6, inf])] == [
        True,
        True,
        *[False] * 3,
    ]
    assert (best.step, best.value, best.stale) == (1, 0.75, 3)


# --- in the loop


def test_an_evaluation_changes_nothing(execute: Execute) -> None:
    plain = execute(*RUN, folder="plain")
    done = execute(*EVERY_TWO)
    assert lines(done, evaluated=False) == lines(plain)
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(done).items())
    assert done.result["evaluate"] == plain.result["evaluate"]
    evaluated = {line["step"]: line for line in done.metrics if "eval_loss" in line}
    assert list(evaluated) == [2, 4, 6, 7]  # and after the last
    assert all(line["eval_perplexity"] == pytest.approx(exp(line["eval_loss"])) for line in evaluated.values())
    assert evaluated[7]["eval_perplexity"] == done.result["evaluate"]["perplexity"]
    best = done.result["train"]["best"]
    assert best["saved_model"] is (best["step"] == 7)  # the last step's is what is saved, whatever was asked


def test_an_evaluation_is_logged_where_no_step_is(execute: Execute) -> None:
    done = execute(*EVERY_TWO, "stage.logging_steps=100")
    assert [line["step"] for line in done.metrics] == [1, 2, 4, 6, 7]


def worsening(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """Held-out losses as given, by the number of the evaluation from 1; else 9."""
    original, number = train.held_out, iter(range(1, 1000))

    def held_out(*args: Any) -> dict[str, float]:
        return {**original(*args), "loss": values.get(next(number), 9.0)}

    monkeypatch.setattr(train, "held_out", held_out)


def test_the_best_is_kept_saved_and_evaluated(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = execute(*EVERY_TWO, "stage.save_steps=1", "stage.save_total_limit=9", folder="whole")
    with monkeypatch.context() as patched:
        worsening(patched, {1: 5.0, 2: 4.0, 3: 4.5})
        done = execute(*BEST)
    assert done.result["train"]["best"] == {"metric": "loss", "step": 4, "value": 4.0, "saved_model": True}
    assert [path.name for path in done.run.folder.whole_checkpoints()] == ["step-000004", "step-000007"]
    of_step_4 = RunFolder("whole").checkpoints / "step-000004"
    from safetensors.torch import load_file

    wanted = load_file(of_step_4 / "trained.safetensors")
    assert all(torch.equal(weights(done)[name], value) for name, value in wanted.items())
    measured = {line["step"]: line["eval_perplexity"] for line in whole.metrics if "eval_loss" in line}
    assert done.result["evaluate"]["perplexity"] == measured[4]  # not that of the last step
    assert measured[4] != measured[7]
    assert done.result["train"]["final_loss"] == whole.result["train"]["final_loss"]


@pytest.mark.parametrize("method", ["adalora", "badam"])
def test_what_a_method_knows_of_the_best_comes_back_with_it(
    method: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdaLoRA's pruned ranks and BAdam's block are those of the best step: the saved model is the one in memory."""
    own = {
        "adalora": ("method=adalora", "method.rank=2", "method.initial_rank=4", "method.update_interval=1"),
        "badam": ("method=badam", "method.switch_interval=2"),
    }[method]
    options = [text for text in BEST if not text.startswith("method")]
    with monkeypatch.context() as patched:
        worsening(patched, {2: 4.0})
        done = execute(*options, *own)
    wanted = execute(
        *[text for text in options if "eval" not in text and "best" not in text],
        *own,
        "stage.save_steps=4",
        "stage.save_total_limit=9",
        folder="whole",
    )
    assert done.result["train"]["best"]["step"] == 4
    state = torch.load(wanted.run.folder.checkpoints / "step-000004" / "optimizer.pt", weights_only=True)
    if method == "adalora":
        kept = done.model.peft_config["default"].rank_pattern  # which PEFT, saving, names otherwise
        assert kept == {name.removesuffix(".default"): values for name, values in state["kept"].items()}
    else:
        marked = [layer.mlp.up_proj.weight.requires_grad for layer in done.model.model.layers]
        assert marked == [True, True]  # whatever had its turn at the best step: what is proven is proven of all


def test_values_that_grew_again_are_saved(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdaLoRA's best model may be of a step that chose nothing: what the last choice set to zero has trained on."""
    from safetensors.torch import load_file

    own = ("method=adalora", "method.rank=2", "method.initial_rank=4", "method.update_interval=3")
    worsening(monkeypatch, {2: 4.0})
    done = execute(*[text for text in BEST if not text.startswith("method")], *own)
    assert done.result["train"]["best"]["step"] == 4
    saved = load_file(done.run.folder.model / "adapter_model.safetensors")
    assert {len(value) for name, value in saved.items() if "lora_E" in name} == {4}
    assert done.run.checks["save_reload"]["passed"], done.run.checks["save_reload"]


def test_training_stops_when_nothing_gets_better(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    worsening(monkeypatch, {1: 4.0, 2: 3.9, 3: 3.8})
    early = ("stage.early_stopping_patience=2", "stage.early_stopping_threshold=0.5")
    done = execute(*EVERY_TWO, *early, "stage.max_steps=100")
    assert done.result["train"]["steps"] == 6  # the gains of 0.1 do not count
    assert done.result["train"]["stopped_early"] is True
    saved = RunFolder("run").checkpoint()
    assert saved is not None and saved.name == "step-000006"
    events = [json.loads(line) for line in done.run.folder.events.read_text().splitlines()]
    assert any(event.get("text", "").startswith("Stopped early: 2 evaluations up to step 6") for event in events)
    again = execute(*EVERY_TWO, *early, "stage.max_steps=100", resume_from=saved)
    assert again.result["train"]["steps"] == 6  # killed after it had stopped: it trains no further
    assert lines(again) == lines(done)


@pytest.mark.parametrize("stage", ["rm", "dpo", "orpo", "kto"])
def test_stages_that_judge_measure_what_they_watch(stage: str, execute: Execute) -> None:
    metric = () if stage == "kto" else ("stage.metric_for_best_model=rewards/accuracy",)
    done = execute(f"stage={stage}", *BEST, *metric, "evaluate.batch_size=2")
    evaluated = [line for line in done.metrics if "eval_loss" in line]
    assert [line["step"] for line in evaluated] == [2, 4, 6, 7]
    best = done.result["train"]["best"]
    name = "loss" if stage == "kto" else "rewards/accuracy"
    choose = min if stage == "kto" else max
    wanted = choose(evaluated, key=lambda line: line[f"eval_{name}"])  # the first of equals
    assert (best["step"], best["value"]) == (wanted["step"], wanted[f"eval_{name}"])
    assert done.result["evaluate"]["loss"] == wanted["eval_loss"]
    assert all(any(name.startswith("eval_rewards/") for name in line) for line in evaluated)
    write_report(done.run, "finished", done.result, None)
    assert json.loads(done.run.folder.report.read_text())["train"]["best"] == best


# --- over a resume


def stop_in_evaluation(monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException] | None = None) -> None:
    original, count = train.held_out, iter(range(1, 100))

    def held_out(run: Any, *args: Any) -> Any:
        if next(count) == number:
            if error:
                raise error
            run.stopping = True
        return original(run, *args)

    monkeypatch.setattr(train, "held_out", held_out)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_interrupted_in_an_evaluation(number: int, execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its step is saved, its line waits, and the resumed run is the uninterrupted one."""
    options = (*BEST, "stage.early_stopping_patience=9", "stage.save_total_limit=9")
    whole = execute(*options, folder="whole")
    with monkeypatch.context() as patched:
        stop_in_evaluation(patched, number)
        with pytest.raises(Interrupted):
            execute(*options)
    saved = RunFolder("run").checkpoint()
    step = min(2 * number, 7)
    assert saved is not None and saved.name == f"step-{step:06d}" and last_logged(saved) == step - 1
    logged = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert logged == list(range(1, step))
    done = execute(*options, resume_from=saved)
    assert_same(done, whole)
    assert_same(execute(*options, resume_from=saved), whole)  # once more: no line is written twice


def test_killed_in_an_evaluation(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = execute(*BEST, folder="whole")
    with monkeypatch.context() as patched:
        stop_in_evaluation(patched, 3, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            execute(*BEST)
    assert_same(execute(*BEST, resume_from=RunFolder("run").checkpoint()), whole)


def test_the_best_follows_into_another_folder(execute: Execute, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    with monkeypatch.context() as patched:
        worsening(patched, {1: 4.0})
        whole = execute(*BEST, "stage.save_steps=5", "stage.save_total_limit=2", folder="whole")
    five = RunFolder("whole").checkpoints / "step-000005"
    with monkeypatch.context() as patched:
        worsening(patched, {})
        done = execute(*BEST, resume_from=five, folder="other")
    assert done.result["train"]["best"] == whole.result["train"]["best"]
    assert done.result["evaluate"] == whole.result["evaluate"]
    import shutil

    shutil.rmtree(five.parent / "step-000002")
    with pytest.raises(UserError, match=r"\[best-missing\].*step-000002: it is gone"):
        execute(*BEST, resume_from=five, folder="third")


def test_the_best_before_stays_while_the_run_may_go_back_to_it(
    execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest is the best, and is damaged: those before it name another best, without which none goes on."""
    options = (*BEST, "stage.save_steps=1")
    with monkeypatch.context() as patched:
        worsening(patched, {1: 4.0, 3: 3.0})
        whole = execute(*options, folder="whole")
    with monkeypatch.context() as patched:
        worsening(patched, {1: 4.0, 3: 3.0})
        stop_in_evaluation(patched, 4, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            execute(*options)
    run = RunFolder("run")
    assert [path.name for path in run.whole_checkpoints()] == [f"step-{step:06d}" for step in (2, 5, 6)]
    cut(run.checkpoints / "step-000006" / "trained.safetensors")
    with monkeypatch.context() as patched:
        worsening(patched, {1: 3.0})
        done = execute(*options, resume_from=run.sound_checkpoint(lambda _: None))
    assert done.result["train"]["best"]["step"] == 6
    assert_same(done, whole)
    assert [path.name for path in run.whole_checkpoints()] == ["step-000006", "step-000007"]


def test_interrupted_in_the_same_evaluation_again(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is made meanwhile, whose weights would be measured in its stead."""
    whole = execute(*BEST, folder="whole")
    saved = None
    for _ in range(2):
        with monkeypatch.context() as patched:
            stop_in_evaluation(patched, 1)
            with pytest.raises(Interrupted):
                execute(*BEST, resume_from=saved)
        saved = RunFolder("run").checkpoint()
        assert saved is not None and saved.name == "step-000002" and last_logged(saved) == 1
    assert_same(execute(*BEST, resume_from=saved), whole)


def test_what_an_interrupted_evaluation_finds_best_is_in_the_folder_that_goes_on(
    execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_in_evaluation(patched, 1)
        with pytest.raises(Interrupted):
            execute(*BEST)
    with monkeypatch.context() as patched:
        worsening(patched, {1: 4.0})
        done = execute(*BEST, resume_from=RunFolder("run").checkpoint(), folder="other")
    assert done.result["train"]["best"] == {"metric": "loss", "step": 2, "value": 4.0, "saved_model": True}
    assert [path.name for path in done.run.folder.whole_checkpoints()] == ["step-000002", "step-000007"]


# --- refused, shown


def test_no_row_is_left_to_hold_out(execute: Execute, here: Path) -> None:
    Path("rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 20)  # all alike stay on one side
    with pytest.raises(UserError, match=r"\[nothing-held-out\] stage.eval_steps=2"):
        execute("data=file", "data.path=rows.jsonl", *EVERY_TWO)


def test_what_is_measured_is_shown(execute: Execute, capsys: pytest.CaptureFixture[str]) -> None:
    done = execute(*BEST)
    screen = Screen()
    for line in done.metrics:
        launch.show(line, screen)
    write_report(done.run, "finished", done.result, None)
    screen.print(launch.report_panel(json.loads(done.run.folder.report.read_text()), Path("run")))
    said = " ".join(capsys.readouterr().out.split())
    last = done.metrics[-1]
    assert f"held out: loss {last['eval_loss']:.4f} perplexity {last['eval_perplexity']:.4f}" in said
    best = done.result["train"]["best"]
    assert f"step {best['step']}: loss {best['value']:.3f} on the held-out rows" in said.replace("│", "")
    assert "and every 2 steps" in " ".join(str(_panel_text(done)).split())


def _panel_text(done: Any) -> str:
    screen = Screen()
    with screen.console.capture() as captured:
        screen.print(launch.plan_panel(done.run.plan))
    return captured.get().replace("│", "")


def test_checkpoints_of_a_step_have_one_name() -> None:
    assert checkpoint.of_step(RunFolder("run"), 7).name == "step-000007"
    assert compiled("stage.eval_steps=3", training=False).settings.stage.eval_steps == 3
