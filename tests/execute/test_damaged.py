"""A checkpoint that is cut or changed on the disk is found by its checksums before it is used."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harms import cut, flip
from test_checkpoint import LORA, ask_to_stop, assert_equal, at_step, die

from factory.config.refusal import UserError
from factory.execute import checkpoint
from factory.execute.context import Interrupted
from factory.run.folder import RunFolder, before_saved_again, damage, is_whole, write_whole

FILES = ("trained.safetensors", "optimizer.pt", "random.pt", "state.json")


@pytest.fixture
def saved(execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that died in its seventh step, with checkpoints of the second, fourth and sixth."""
    with monkeypatch.context() as patched:
        at_step(patched, 7, die)
        with pytest.raises(KeyboardInterrupt):
            execute(*LORA, "stage.save_steps=2", "stage.save_total_limit=3")
    return RunFolder("run")


def test_every_change_is_found(saved: RunFolder) -> None:
    two, four, six = saved.whole_checkpoints()
    assert damage(six) is None
    for harm in (flip, cut):
        for name in FILES:
            shutil.copytree(six, copy := saved.checkpoints / "step-000008")
            harm(copy / name)
            assert is_whole(copy) == (harm is flip)
            told: list[str] = []
            assert saved.sound_checkpoint(told.append) == six
            (said,) = told
            assert str(copy) in said and (name in said) == (harm is flip)
            shutil.rmtree(copy)
    flip(six / FILES[0]), flip(four / FILES[1])
    assert saved.sound_checkpoint(lambda _: None) == two
    flip(two / FILES[2])
    assert saved.sound_checkpoint(lambda _: None) is None


def test_the_one_before_goes_on_and_the_damaged_is_saved_anew(saved: RunFolder, execute: Callable[..., Any]) -> None:
    four, six = saved.whole_checkpoints()[1:]
    flip(six / "optimizer.pt")
    options = (*LORA, "stage.save_steps=2", "stage.save_total_limit=3")
    done = execute(*options, resume_from=saved.sound_checkpoint(lambda _: None))
    assert damage(six) is None
    assert_equal(done, execute(*options, folder="whole"))
    assert four.is_dir()


def test_what_a_run_has_gone_back_from_is_no_longer_its_own(
    saved: RunFolder, execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on from an earlier one by another policy: as soon as it has saved, no checkpoint is of the old one."""
    two, four, six = saved.whole_checkpoints()
    options = ("stage.save_steps=2", "stage.save_total_limit=3", "stage.on_bad_update=skip", "stage.spike_norm=1e-9")
    for steps, left in ((2, [two, four, six]), (3, [two, four])):
        with monkeypatch.context() as patched:
            at_step(patched, steps, die)
            with pytest.raises(KeyboardInterrupt):
                execute(*LORA, *options, resume_from=two)
        assert saved.whole_checkpoints() == left
    assert checkpoint.state_of(four)["losses"]["skipped"] == 2


def test_what_is_saved_is_kept_beside_a_damaged_one_of_a_later_step(
    saved: RunFolder, execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    four, six = saved.whole_checkpoints()[1:]
    flip(six / "optimizer.pt")
    with monkeypatch.context() as patched:
        at_step(patched, 1, ask_to_stop)
        with pytest.raises(Interrupted):
            execute(*LORA, "stage.save_steps=2", "stage.save_total_limit=1", resume_from=four)
    assert [path.name for path in saved.whole_checkpoints()] == ["step-000005"]


def test_a_named_one_is_refused_with_the_one_before(saved: RunFolder, command: Callable[..., Any]) -> None:
    four, six = saved.whole_checkpoints()[1:]
    flip(six / "trained.safetensors")
    path = saved.plan.read_text().partition("model.path=")[2].split()[0].strip("'\"")
    said = command(f"model.path={path}", "tracking=none", f"stage.resume={six}", "hydra.run.dir=other")
    assert said.code == 2 and said.rules == ["damaged-checkpoint"]
    assert "trained.safetensors is not what was written" in said.err and f"stage.resume={four}" in said.err


def test_a_damaged_best_is_never_put_back(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"files": {"a": 1}, "sha256": {"a": "0"}}')
    (tmp_path / "a").write_text("a")
    with pytest.raises(UserError, match=r"\[best-missing\].*a is not what was written"):
        checkpoint.refuse_damaged(tmp_path, "stage.resume=x")


def test_what_the_killed_left_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in (".model.12", "checkpoints/.step-000004.12"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "half").write_text("")
    (tmp_path / ".plan.yaml.12").write_text("")
    kept = [".lock", "plan.yaml", "checkpoints/step-000002"]
    for name in kept:
        (tmp_path / name).mkdir()
    folder.forget_the_killed()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == sorted([*kept, "checkpoints"])


@pytest.mark.parametrize("name", ["checkpoints/step-000004", "model"])
def test_what_is_saved_again_is_there_whenever_that_is_cut_off(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the renames neither has its name, and both lie where the killed leave what is removed."""
    folder, rename, target = RunFolder(tmp_path), Path.rename, tmp_path / name
    aside = target.with_name(f".{target.name}.12")
    for path, text in ((target, "before"), (aside, "after")):
        path.mkdir(parents=True)
        (path / "state.json").write_text(text)

    def is_as_before() -> bool:
        return not before_saved_again(target).exists() and (target / "state.json").read_text() == "before"

    def interrupted(path: Path, to: Path) -> Path:
        if path == aside:
            raise KeyboardInterrupt
        return rename(path, to)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", interrupted)
        checkpoint.take_place(aside, target)
    assert is_as_before()
    target.rename(before_saved_again(target))  # killed there
    folder.forget_the_killed()
    assert is_as_before() and not aside.exists()
    before_saved_again(target).mkdir()  # killed later, while it was being removed
    folder.forget_the_killed()
    assert is_as_before()


def test_what_was_being_written_is_gone_when_that_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.evaluation.mkdir()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", interrupted)
        write_whole(folder.evaluation / "rows.jsonl", "{}")
    assert not list(folder.evaluation.iterdir())
    (folder.evaluation / ".rows.jsonl.12").touch()  # killed there
    folder.forget_the_killed()
    assert not list(folder.evaluation.iterdir())
