"""What the hub has of a model, looked at before any of it is read."""

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import compiled

from factory import cache
from factory.config.refusal import UserError
from factory.plan.plan import Load
from factory.steps import source

WHOLE = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture
def of_hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    plan = compiled(f"model.path={tiny_model}", "hardware=cpu", "tracking=none").steps.load
    return replace(plan, source="hub", path="me/mine", revision="main")


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (WHOLE, None),
        ((), None),  # the hub says nothing of them
        (("config.json", "pytorch_model.bin", "tokenizer.json"), "[pickled-weights] model.path=me/mine: "),
        (("config.json", "tokenizer.json", "rm_head.safetensors"), "there are no safetensors in it"),
        (("config.json", "tokenizer.json", "original/model.safetensors"), "there are no safetensors in it"),
        (WHOLE[:2], "[model-incomplete] model.path=me/mine: there is no tokenizer in it"),
    ],
)
def test_what_the_hub_has_of_a_model(
    names: tuple[str, ...], wrong: str | None, of_hub: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
    monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: found)
    if wrong is None:
        source.check_hub(of_hub, allow_pickle=False)
        return
    with pytest.raises(UserError) as raised:
        source.check_hub(of_hub, allow_pickle=False)
    assert wrong in str(raised.value)
    with (
        pytest.raises(UserError) as raised,
        source.readable(of_hub, allow_pickle=False),
    ):  # instead of the words of who read it
        raise OSError("Please do not set `use_safetensors=True`")
    assert wrong in str(raised.value)


def test_a_hub_that_does_not_answer_is_left_to_who_reads(of_hub: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.model_info", away)
    source.check_hub(of_hub, allow_pickle=False)


def test_what_is_printed_while_a_file_is_converted_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`echo QUESTION | factory chat model.path=x.gguf > answer.txt` has the answer, and nothing else."""
    monkeypatch.setattr(source, "_written", lambda *_: print("[WARNING] Setting accelerator to CPU"))
    source._convert(Path("a.gguf"), Path("a"), "gguf")
    assert capsys.readouterr() == ("", "[WARNING] Setting accelerator to CPU\n")


@pytest.mark.parametrize("missing", [set(), {"model.norm.weight", "model.layers.1.mlp.up_proj.weight"}])
def test_a_file_that_lacks_weights_is_not_made_up(
    missing: set[str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers starts them at random, and says so in a log line at most."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)

    def read(*_: object, **given: object) -> object:
        info = {"missing_keys": missing}
        return (model, info) if given.get("output_loading_info") else model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", read)
    monkeypatch.setattr(source, "_tokenizer", lambda *_: tokenizer)
    if not missing:
        source._written(tmp_path / "a.gguf", tmp_path / "a", "gguf")
        assert (tmp_path / "a" / "config.json").is_file()
        return
    with pytest.raises(
        UserError, match=r"\[gguf-unread\] model.path=.*a.gguf: transformers reads no model.layers.1.mlp"
    ):
        source._written(tmp_path / "a.gguf", tmp_path / "a", "gguf")
    assert not (tmp_path / "a").exists()


def test_a_conversion_from_before_it_was_checked_is_not_read(of_hub: Load) -> None:
    """It may be of an incomplete file, with weights that transformers made up."""
    plan = replace(of_hub, source="gguf", path="a.gguf", fingerprint="f")
    before = cache.folder() / f"a-{hashlib.sha256(b'f').hexdigest()[:12]}"
    assert source._converted(plan) != before and cache.CONVERTED.search(source._converted(plan).name)


def _stopped_and_long(gguf: Path, _target: Path, _source: str) -> None:
    """Stands for a conversion in the middle of which the command is asked to stop."""
    os.kill(os.getppid(), signal.SIGUSR1)
    time.sleep(20)
    gguf.write_text("all of it was waited for")


def test_a_conversion_that_is_stopped_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_convert", _stopped_and_long)
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            source._convert_once(tmp_path / "a.gguf", tmp_path / "a", "gguf")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [path.name for path in tmp_path.iterdir()] == [".a.lock"]


def _quick(_gguf: Path, target: Path, _source: str) -> None:
    (target / "config.json").write_text("{}")


def test_a_file_system_without_locks_holds_conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands convert the file at once; the later one takes what the other has put there."""

    def refuses(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def slow(gguf: Path, target: Path, kind: str) -> None:
        monkeypatch.setattr(source, "_convert_apart", _quick)
        source._convert_once(gguf, tmp_path / "a", kind)
        _quick(gguf, target, kind)

    monkeypatch.setattr(fcntl, "flock", refuses)
    monkeypatch.setattr(source, "_convert_apart", slow)
    source._convert_once(tmp_path / "a.gguf", tmp_path / "a", "gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.lock", "a"]
    assert (tmp_path / "a" / "config.json").is_file()


ENDLESS = """
import os, time
from pathlib import Path
from factory.steps import source

def endless(*_):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    source._convert = endless
    source._convert_once(Path("a.gguf"), Path("a"), "gguf")
"""


def test_a_conversion_does_not_outlive_a_command_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ENDLESS)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, cwd=tmp_path) as command:
        assert command.stdout is not None
        worker = psutil.Process(int(command.stdout.readline()))
        command.kill()
    _, alive = psutil.wait_procs([worker], timeout=20)
    for each in alive:
        each.kill()
    assert alive == []
