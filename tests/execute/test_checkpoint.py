"""Checkpoints: a run that is stopped, killed or out of disk goes on to the very same weights."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import refusals
from safetensors import SafetensorError
from test_methods import FITTING

from factory.config import groups
from factory.config.refusal import UserError
from factory.config.words import size
from factory.execute import checkpoint, memory
from factory.execute.context import Interrupted
from factory.execute.report import comparable, write_report
from factory.plan.plan import to_yaml
from factory.run.folder import RunFolder, is_whole, write_whole
from factory.steps import train

Execute = Callable[..., Any]
STEPS, STOPPED = 7, 4
SHORT = (
    f"stage.max_steps={STEPS}",  # of 5 an epoch: the resumed run crosses into the second
    "data.max_samples=22",
    "stage.logging_steps=1",
    "stage.learning_rate=1e-2",
    "stage.save_steps=null",
    "stage.gradient_accumulation_steps=2",
    "stage.batch_size=2",
    "stage.weight_decay=0.1",
    "precision=fp32",
    "data.max_length=200",
)
OPTIONS = ("adalora", "full", "freeze", "galore", "ia3", "loha", "lokr", "lora", "oft", "olora", "qlora", "rslora")
# stopped and continued in tests/methods, in the ways that are their own
IN_METHODS = (
    "apollo",
    "apollo_mini",
    "badam",
    "badam_ratio",
    "dora",
    "llama_pro",
    "loftq",
    "lora_plus",
    "pissa",
    "vera",
)
RUNS = {name: (f"method={name}", *FITTING[name]) for name in OPTIONS} | {
    "ia3": ("method=ia3", "stage.weight_decay=0"),  # a rule
    "adalora when settled": ("method=adalora", *FITTING["adalora"], "method.final_phase=0.6"),
    "lora with dropout": ("method=lora", "method.rank=4", "method.dropout=0.1"),
    "adamw_8bit": ("method=full", "stage.optimizer=adamw_8bit"),
    "pure_bf16": ("method=full", "precision=pure_bf16"),
}
LORA = (*RUNS["lora"], *SHORT, "evaluate.perplexity=false")


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[Any], None]) -> None:
    """Does it in the middle of the given step (from 1)."""
    original, done = train._updates, iter(range(1, 1000))

    def updates(run: Any, *values: Any) -> Any:
        if next(done) == step:
            action(run)
        return original(run, *values)

    monkeypatch.setattr(train, "_updates", updates)


def ask_to_stop(run: Any) -> None:
    run.stopping = True


def die(_run: Any) -> None:
    raise KeyboardInterrupt  # nothing in the child catches it: as good as a kill


def same(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must repeat bit for bit: all but times and memory."""
    names = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens")
    return [{name: line[name] for name in names} for line in metrics]


def assert_equal(done: Any, whole: Any) -> None:
    assert same(done.metrics) == same(whole.metrics)
    assert [line["step"] for line in done.metrics] == list(range(1, STEPS + 1))
    wanted = dict(whole.model.named_parameters())
    for name, value in done.model.named_parameters():
        assert torch.equal(value, wanted[name]), name
    for name in ("evaluate", "data"):
        assert done.result[name] == whole.result[name]
    for name in ("steps", "tokens", "first_loss", "final_loss"):
        assert done.result["train"][name] == whole.result["train"][name]


def test_every_option_is_stopped_somewhere() -> None:
    assert sorted((*OPTIONS, *IN_METHODS)) == [name for name in groups.options("method") if name != "none"]


@pytest.mark.parametrize("method", RUNS)
def test_an_interrupted_run_is_the_uninterrupted_one(
    method: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*SHORT, *RUNS[method])
    whole = execute(*options, folder="whole")
    assert len({line["loss"] for line in whole.metrics}) == STEPS
    with monkeypatch.context() as patched:
        at_step(patched, STOPPED, ask_to_stop)
        with pytest.raises(Interrupted):
            execute(*options)
    saved = RunFolder("run").checkpoint()
    assert saved is not None and saved.name == f"step-{STOPPED:06d}"
    assert not Path("run/model").exists()
    assert_equal(execute(*options, resume_from=saved), whole)


def test_stopped_at_the_first_step(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA A has no gradient yet: what is still watched is carried over."""
    whole = execute(*LORA, folder="whole")
    with monkeypatch.context() as patched:
        at_step(patched, 1, ask_to_stop)
        with pytest.raises(Interrupted):
            execute(*LORA)
    done = execute(*LORA, resume_from=RunFolder("run").checkpoint())
    assert_equal(done, whole)
    assert done.run.checks["gradients_alive"] == whole.run.checks["gradients_alive"]


def test_a_resumed_runs_peak_is_the_most_of_all_its_processes(
    execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its steps, tokens and seconds are of all: the first process is the larger one, then the second."""
    with monkeypatch.context() as patched:
        patched.setattr(memory, "peak", lambda device: 3 * 2**40)
        at_step(patched, STOPPED, ask_to_stop)
        with pytest.raises(Interrupted):
            execute(*LORA)
    saved = RunFolder("run").checkpoint()
    assert saved is not None
    for other, most in ((2**40, 3 * 2**40), (4 * 2**40, 4 * 2**40)):
        monkeypatch.setattr(memory, "peak", lambda device, other=other: other)
        done = execute(*LORA, resume_from=saved)
        assert (done.run.memory_by_step["train"], done.run.memory_by_step["attach"]) == (most, other)
        write_report(done.run, "finished", done.result, None)
        report = json.loads(done.run.folder.report.read_text())
        assert report["memory"]["peak_bytes"] == most
        judged = size(comparable(report["memory"]))
        assert report["checks"]["memory_as_estimated"]["detail"].startswith(f"{judged} were reached")
    state = checkpoint.state_of(saved)
    del state["peak_bytes"]  # as checkpoints were
    assert train.State.from_json(state).peak_bytes == 0


def test_a_killed_run_repeats_what_no_checkpoint_holds(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = execute(*LORA, folder="whole")
    with monkeypatch.context() as patched:
        at_step(patched, 6, die)
        with pytest.raises(KeyboardInterrupt):
            execute(*LORA, "stage.save_steps=3")
    with Path("run/metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "los')  # the line that a kill cut short
    saved = RunFolder("run").checkpoint()
    assert saved is not None and saved.name == "step-000003"
    assert_equal(execute(*LORA, "stage.save_steps=3", resume_from=saved), whole)


def test_the_newest_whole_checkpoint_is_taken(execute: Execute) -> None:
    execute(*LORA, "stage.save_steps=1", "stage.save_total_limit=3")
    folder = RunFolder("run")
    names = ["step-000005", "step-000006", "step-000007"]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == names
    five, six, seven = (folder.checkpoints / name for name in names)
    assert folder.checkpoint() == seven
    for broken in ("trained.safetensors", "optimizer.pt", "random.pt", "state.json", "manifest.json"):
        copy = folder.checkpoints / "step-000008"
        shutil.copytree(seven, copy)
        assert is_whole(copy)
        if broken == "manifest.json":
            (copy / broken).unlink()
        else:
            (copy / broken).write_bytes((seven / broken).read_bytes()[:-1])
        assert folder.checkpoint() == seven, broken
        shutil.rmtree(copy)
    (seven / "optimizer.pt").unlink()
    assert folder.checkpoint() == six
    (six / "manifest.json").write_text('{"files": ')
    assert folder.checkpoint() == five
    shutil.rmtree(five)
    assert folder.checkpoint() is None


@pytest.mark.parametrize("limit", [1, 2])
def test_only_so_many_are_kept(limit: int, execute: Execute) -> None:
    execute(*LORA, "stage.save_steps=2", f"stage.save_total_limit={limit}")
    kept = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert kept == ["step-000006", "step-000007"][-limit:]  # the last step's too


def test_one_of_the_last_step_goes_on_in_another_folder(execute: Execute) -> None:
    """No step is left that would save there: what it ends with can be continued from all the same."""
    whole = execute(*LORA)
    done = execute(*LORA, resume_from=whole.run.folder.checkpoint(), folder="other")
    assert done.run.checks == whole.run.checks and done.run.checks["resume_point"]["passed"]
    assert [path.name for path in done.run.folder.whole_checkpoints()] == [f"step-{STEPS:06d}"]


def test_a_checkpoint_of_another_run_is_refused(execute: Execute) -> None:
    execute(*LORA, "stage.save_steps=3", folder="other")
    with pytest.raises(UserError, match="resume-other-run"):
        execute(*LORA, "method.rank=8", resume_from=RunFolder("other").checkpoint())


def test_it_goes_on_whatever_is_recomputed(execute: Execute) -> None:
    """On another machine `auto` may say otherwise."""
    whole = execute(*LORA, "stage.save_steps=5", folder="other")
    start, words = Path("other/checkpoints/step-000005"), whole.run.plan.overrides
    write_whole(whole.run.folder.plan, to_yaml(whole.run.plan))
    asked = (*words, f"stage.resume={start}", "compute.recomputed_layers=1", "hydra.run.dir=run")
    assert [found.rule for found in refusals(*asked, "method.rank=8")] == ["resume-other-run"]
    assert not refusals(*asked)
    done = execute(*LORA, "stage.save_steps=5", "compute.recomputed_layers=1", resume_from=start)
    assert done.model.is_gradient_checkpointing
    assert done.losses[-2:] == pytest.approx(whole.losses[-2:], rel=1e-6)


def test_other_rows_are_not_gone_on_with(execute: Execute) -> None:
    """What no plan knows beforehand: a function's rows, or a branch of the hub."""
    rows, words = Path("rows.jsonl"), (*LORA, "data=file", "data.path=rows.jsonl", "stage.save_steps=3")
    given = [json.dumps({"instruction": f"Say {number}.", "output": str(number)}) for number in range(30)]
    rows.write_text("\n".join(given))
    execute(*words, folder="first")
    saved = RunFolder("first").checkpoint()
    execute(*words, resume_from=saved, folder="same")
    rows.write_text("\n".join([*given[:-1], given[0]]))
    with pytest.raises(UserError, match="resume-other-rows"):
        execute(*words, resume_from=saved, folder="others")


FULL = [
    ("safetensors.torch.save_file", OSError(errno.ENOSPC, "No space left on device")),
    ("safetensors.torch.save_file", SafetensorError("I/O error: No space left on device (os error 28)")),
    ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 534")),
]


@pytest.mark.parametrize(("function", "error"), FULL, ids=["OSError", "SafetensorError", "RuntimeError"])
def test_a_full_disk_keeps_the_checkpoint_before(
    function: str, error: Exception, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*LORA, "stage.save_steps=3")
    whole = execute(*options, folder="whole")

    def fill_the_disk(_run: Any) -> None:
        def fails(_what: Any, to: Any, *_: Any, **__: Any) -> None:
            if isinstance(to, checkpoint._Counter):  # which is on no disk
                return
            if isinstance(to, Path):
                to.write_bytes(b"half")
            else:
                to.write(b"half")
            raise error

        patched.setattr(function, fails)

    with monkeypatch.context() as patched:
        at_step(patched, 6, fill_the_disk)
        with pytest.raises(UserError, match=r"\[(disk-full|cannot-write)\]"):
            execute(*options)
    folder = RunFolder("run")
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000003"]
    saved = folder.checkpoint()
    assert saved is not None
    assert_equal(execute(*options, resume_from=saved), whole)


def test_a_full_disk_leaves_no_half_model(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import PeftModel

    def fails(_model: Any, path: Path, **_: Any) -> None:
        (Path(path) / "adapter_model.safetensors").write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PeftModel, "save_pretrained", fails)
    with pytest.raises(UserError, match=r"\[cannot-write\].*No space left"):
        execute(*LORA, "stage.save_steps=3")
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "checkpoints",
        "events.jsonl",
        "metrics.jsonl",
        "plan.yaml",
    ]
    state = json.loads((Path("run/checkpoints") / f"step-{STEPS:06d}" / "state.json").read_text())
    assert state["step"] == STEPS  # nothing of the training is lost


def test_a_model_is_on_the_disk_before_it_has_its_name(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a checkpoint is: the report says that the run is finished, whatever a power cut leaves."""
    synced, missing = set[str](), dict[str, set[str]]()
    sync, rename = os.fsync, Path.rename

    def noted(handle: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{handle}").readlink()))
        sync(handle)

    def named(path: Path, target: Path) -> Path:
        if path.is_dir():
            missing[target.name] = {str(each.resolve()) for each in (path, *path.rglob("*"))} - synced
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", named)
    execute(*LORA)
    assert missing["model"] == missing[f"step-{STEPS:06d}"] == set()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.EIO])
def test_a_file_system_that_syncs_no_folder(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFS, 9p and some of FUSE say so; of a file, and of any other error, a save is not whole."""
    folder, file = tmp_path / "step", tmp_path / "step" / "file"
    folder.mkdir()
    file.touch()

    def fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink() == refused:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    for refused in (folder, file):
        if refused == folder and number != errno.EIO:
            checkpoint.all_to_disk(folder)
        else:
            with pytest.raises(OSError, match=os.strerror(number)):
                checkpoint.all_to_disk(folder)


class _Code:
    """What a pickle runs when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("canary"),)


@pytest.mark.parametrize("name", ["optimizer.pt", "random.pt"])
def test_a_pickle_in_a_checkpoint_runs_nothing(name: str, execute: Execute) -> None:
    execute(*LORA, "stage.save_steps=3")
    saved = RunFolder("run").checkpoint()
    assert saved is not None
    torch.save({"state": _Code()}, saved / name)
    with pytest.raises(UserError, match="more than tensors"):
        execute(*LORA, "stage.save_steps=3", resume_from=saved)
    assert not Path("canary").exists()
    torch.load(saved / name, weights_only=False)
    assert Path("canary").exists()  # it would have


def test_objects_in_kept_figures_are_not_read(tmp_path: Path) -> None:
    import numpy as np

    from factory.data import dataset
    from factory.steps import reference

    run = SimpleNamespace(folder=RunFolder(tmp_path))
    np.savez(tmp_path / "reference.npz", keys=np.array([_Code()], dtype=object), sums=np.zeros(1))
    with pytest.raises(UserError, match="cannot be read"):
        reference.kept(run)  # type: ignore[arg-type]
    np.savez(tmp_path / "pieces.npz", bounds=np.array([_Code()], dtype=object))
    assert dataset._kept(tmp_path / "pieces.npz") is None
    assert not Path("canary").exists()
