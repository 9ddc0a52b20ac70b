"""What an export refuses before anything is loaded, and that it leaves nothing half written."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
from exporting import HERE, SHORT, exported, files, planned
from families import KINDS, built_of, roomy
from forbidden import forbid

from factory.config.hub import lost
from factory.config.refusal import UserError
from factory.export import card, gguf, hub, modelfile
from factory.export.folder import forget_the_dead
from factory.export.spec import is_export
from factory.plan import exporting as export_rules
from factory.plan.inspect import machine as look
from factory.plan.plan import read_plan, to_yaml
from factory.plan.rule import rules_in

GEMMA = "gemma"
# rule → words; what machine they need is in PRETENDED
FIRES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("export-dir", ()),
    ("export-dir", ("export.dir=there",)),
    ("export-dir", ("export.dir=other", "export.overwrite=true")),
    ("export-format", ("export.dir=x", "export.format=adapter")),
    ("export-family", ("export.dir=x", "export.format=gguf", "model.path=gemma")),
    ("export-format", ("export.dir=x", "export.quantization=q8_0")),
    ("export-push", ("export.dir=x", "export.push=mine", "export.dry_run=true")),
    ("hub-token", ("export.dir=x", "export.push=me/mine")),
    ("export-register", ("export.dir=x", "export.register=mine")),
    ("export-format", ("export.dir=x", "export.quantization=gptq", "export.calibration=nowhere.txt")),
    ("package-missing", ("export.dir=x", "export.quantization=gptq")),
    ("export-base", ("export.dir=x", "model.adapter=started", "method.quantization.bits=8")),
    ("export-base", ("export.dir=x", "model.path=gptq")),
    ("export-unwritable", ("export.dir=x",)),
    ("export-unwritable", ("export.dir=file/x",)),
)


def put(here: Path, words: tuple[str, ...]) -> None:
    """An export, a folder of something else, a file, and the model of another kind that the words name."""
    (here / "there").mkdir()
    (here / "there" / "export.json").write_text('{"written_by": "factory export"}')
    (here / "other").mkdir()
    (here / "other" / "thesis.txt").write_text("years")
    (here / "file").write_text("")
    if "model.path=gemma" in words:
        tiny.save(here / "gemma", model_type="gemma", head_dim=8)
    if "model.adapter=started" in words:
        _start_over_four_bits(here / "started")
    if "model.path=gptq" not in words:
        return
    tiny.save(here / "gptq")
    config = json.loads((here / "gptq" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (here / "gptq" / "config.json").write_text(json.dumps(config))


def _start_over_four_bits(folder: Path) -> None:
    """What is read of an adapter that has a base to itself."""
    import torch
    from safetensors.torch import save_file

    from factory.config.settings import Quantization
    from factory.own_base import OwnBase, save

    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(2, 4)}, folder / "adapter_model.safetensors")
    four = Quantization(method="bitsandbytes", bits=4, type="nf4", double_quantization=True)
    own = OwnBase(scale=2, dtype="float32", quantization=four, computed_in="float32", ids=(), losses=())
    save(folder, {}, own)


@pytest.mark.parametrize(("rule", "words"), FIRES, ids=str)
def test_a_rule_fires(
    rule: str,
    words: tuple[str, ...],
    here: Path,
    tiny_model: Path,
    machine: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(here, words)
    packages = look.look_at_machine().packages | {"gptqmodel": "7.0", "optimum": "2.0"}
    packages |= {} if rule == "package-missing" else {"auto-round": "0.16"}
    machine(hub_token=False, packages=dict(packages.items()))
    if rule == "package-missing":
        machine(packages={name: version for name, version in packages.items() if name != "auto-round"})
    if rule == "export-unwritable" and words == ("export.dir=x",):
        monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage(1000))
    own = any(word.startswith("model.path=") for word in words)
    with pytest.raises(UserError) as error:
        planned(*(() if own else (f"model.path={tiny_model}",)), *words)
    found = [refusal.rule for refusal in error.value.refusals]
    assert rule in found, found
    assert found == [rule] or "model.path=gptq" in words or "export.quantization=gptq" in words, found


class _Usage:
    def __init__(self, free: int):
        self.total, self.used, self.free = 10**12, 0, free


def test_a_file_in_the_place_of_the_folder_is_told_as_one(here: Path, tiny_model: Path) -> None:
    put(here, ())
    with pytest.raises(UserError) as error:
        planned(f"model.path={tiny_model}", "export.dir=file")
    (found,) = error.value.refusals
    assert (found.rule, found.wrong) == ("export-dir", "it is a file, and an export is a folder")


def test_a_disks_own_folder_is_refused_and_one_within_it_is_not(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was found after all the work, as nothing can be renamed to it; behind a link too."""
    (here / "disk").mkdir()
    (here / "link").symlink_to("disk")
    monkeypatch.setattr("os.path.ismount", lambda path: str(path) == str(here / "disk"))
    for name in ("disk", "link"):
        with pytest.raises(UserError) as error:
            planned(f"model.path={tiny_model}", f"export.dir={name}")
        (found,) = error.value.refusals
        assert found.rule == "export-unwritable" and "mounted" in found.wrong
        assert found.fix.endswith(f" export.dir={name}/mine")
    planned(f"model.path={tiny_model}", "export.dir=link/mine")


def test_a_folder_is_as_writable_as_the_one_that_it_lies_in(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "shut" / "out").mkdir(parents=True)
    (here / "link").symlink_to("shut/out")
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: path != here / "shut" and access(path, mode))
    for name in ("shut/out", "link"):
        with pytest.raises(UserError, match="export-unwritable"):
            planned(f"model.path={tiny_model}", f"export.dir={name}")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_written_behind(there: bool, here: Path, tiny_model: Path) -> None:
    """It failed after all the work: a folder takes the place of none."""
    (here / "large").mkdir()
    if there:
        (here / "large" / "out").mkdir()
    (here / "link").symlink_to("large/out")
    words = (f"model.path={tiny_model}", "export.dir=link", "export.check=false")
    exported(*words)
    assert (here / "link").is_symlink() and is_export(here / "large" / "out")
    exported(*words, "export.overwrite=true")
    assert (here / "link").is_symlink() and [path.name for path in (here / "large").iterdir()] == ["out"]


def test_a_folder_that_may_not_be_entered_is_told(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what else is wrong: it was an error of ours, and hid it."""
    (here / "shut").mkdir()
    forbid(here / "shut", monkeypatch)
    with pytest.raises(UserError) as error:
        planned(f"model.path={tiny_model}", "export.dir=shut/out", "export.format=adapter")
    first, *others = error.value.refusals
    assert (first.rule, first.setting) == ("cannot-read", str(here / "shut/out"))
    assert [refusal.rule for refusal in others] == ["export-format"]


def test_each_rule_has_a_case() -> None:
    assert {rule for rule, _ in FIRES} >= {rule.id for rule in rules_in(export_rules)}


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("method=lora",), "export-key"),
        (("data.max_samples=3",), "export-key"),
        (("model.rope_scaling=yarn", "export.dir=x"), "export-key"),
        (("export.dir=x", "precision=fp32"), "export-key"),
        (("run=nowhere", "export.dir=x"), "run-model"),
        (("model.path=./gone", "export.dir=x", "export.format=adapter", "export.check=false"), "model-missing"),
        (("export.dir=x", "hardware.num_processes=2", "hardware.strategy=ddp"), "export-key"),
        (("export.dir=x", "serve.port=1"), "key-of-another-verb"),
        (("-m", "export.dir=x,y"), "plan-of-a-sweep"),
        (("export.dri=x",), "unknown-key"),
        (("export.format=safetensors",), "bad-value"),
        (("export.shard_size=big",), "bad-value"),
        (("export.shard_size=0GB",), "bad-value"),
    ],
)
def test_wrong_words(words: tuple[str, ...], rule: str, command: Callable[..., Any], tiny_model: Path) -> None:
    said = command("export", f"model.path={tiny_model}", *HERE, *words)
    assert said.code == 2 and rule in said.rules, said.err
    assert not list(Path().iterdir())


def test_an_option_of_several_processes_is_refused(command: Callable[..., Any], tiny_model: Path, here: Path) -> None:
    """Each of them would write the export."""
    (here / "own" / "hardware").mkdir(parents=True)
    (here / "own" / "hardware" / "two.yaml").write_text("defaults: [cpu]\nnum_processes: 2\nstrategy: ddp\n")
    said = command("export", "--config-dir", "own", f"model.path={tiny_model}", "hardware=two", "export.dir=x")
    assert said.rules == ["export-key"] and "hardware=two" in said.err


def test_its_keys_are_its_own(command: Callable[..., Any]) -> None:
    assert command("train", "export.dir=x").rules == ["key-of-another-verb"]
    assert command("plan", "export.format=gguf").rules == ["key-of-another-verb"]


def test_an_export_replaces_an_export_and_nothing_else(here: Path, tiny_model: Path) -> None:
    words = (f"model.path={tiny_model}", "export.dir=out", "export.check=false")
    exported(*words)
    Path("out/left.txt").write_text("of the old one")
    with pytest.raises(UserError, match="export-dir"):
        exported(*words)
    exported(*words, "export.overwrite=true")
    assert is_export(Path("out")) and "left.txt" not in files("out") and not list(here.glob(".out*"))


@pytest.mark.parametrize("fails", ["space", "broken"])
def test_a_full_disk_leaves_what_was_there(fails: str, here: Path, tiny_model: Path, monkeypatch: Any) -> None:
    words = (f"model.path={tiny_model}", "export.dir=out", "export.format=gguf", "export.check=false")
    exported(*words)
    before = Path("out/model.gguf").read_bytes()

    def full(path: Path, *others: Any, **named: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device") if fails == "space" else ZeroDivisionError

    monkeypatch.setattr(gguf, "write", full)
    with pytest.raises(UserError if fails == "space" else ZeroDivisionError):
        exported(*words, "export.overwrite=true")
    assert Path("out/model.gguf").read_bytes() == before and not list(here.glob(".out*"))


def test_an_export_is_on_the_disk_before_it_has_its_name(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its name before the one that it replaces goes: whatever a power cut leaves, one of them is whole."""
    words = (f"model.path={tiny_model}", "export.dir=out", "export.check=false")
    exported(*words)
    synced, did, missing = set[str](), list[str](), set[str]()
    sync, rename, remove = os.fsync, Path.rename, shutil.rmtree

    def noted(handle: int) -> None:
        synced.add(name := str(Path(f"/proc/self/fd/{handle}").readlink()))
        did.append(name)
        sync(handle)

    def named(path: Path, target: Path) -> Path:
        if target == here / "out":
            missing.update({str(each) for each in (path, *path.rglob("*"))} - synced)
            did.append("named")
        return rename(path, target)

    def removed(path: Path, **how: Any) -> None:
        did.extend(["removed"] * (path.suffix == ".old" and path.exists()))
        remove(path, **how)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", named)
    monkeypatch.setattr(shutil, "rmtree", removed)
    exported(*words, "export.overwrite=true")
    assert not missing and did[did.index("named") :] == ["named", str(here), "removed"]


def test_what_a_killed_export_left_is_removed(here: Path) -> None:
    dead = 4_999_999  # above the system's largest
    for name in (f".out.{dead}", f".out.{os.getpid()}", ".out.words", f".lost.{dead}.old"):
        Path(name).mkdir()
    forget_the_dead(Path("out"))
    forget_the_dead(Path("lost"))  # killed between two renames: the old one comes back
    assert {path.name for path in here.iterdir()} == {f".out.{os.getpid()}", ".out.words", "lost"}


def test_a_plan_of_an_export_is_a_file(here: Path, tiny_model: Path) -> None:
    made = planned(f"model.path={tiny_model}", "export.dir=out")
    Path("plan.yaml").write_text(to_yaml(made))
    assert read_plan(Path("plan.yaml")) == made and made.export is not None
    assert made.export.dtype == "float32" and made.export.bytes > 4 * 51_360
    changed = made.settings.export.model_copy(update={"dir": "elsewhere", "push": "me/mine"})
    elsewhere = made.with_settings(export=changed)
    assert elsewhere.digest() == made.digest()
    assert replace(made, export=replace(made.export, dtype="float16")).digest() != made.digest()


# --- each key of the schema changes something, or is refused (tests/test_dead_keys.py)

KEYS = {
    "export.dtype=bfloat16": "dtype",
    "export.quantization=nf4": "quantization",
    "export.shard_size=1GB": "shard_size",
    "export.overwrite=true": "overwrite",
    "export.check=false": "check",
}


def test_a_key_changes_the_plan(here: Path, tiny_model: Path) -> None:
    base = (f"model.path={tiny_model}", "export.dir=out")
    ours = planned(*base).settings.export
    for word, name in KEYS.items():
        assert getattr(ours, name) != getattr(planned(*base, word).settings.export, name), word


def test_the_keys_of_an_adapter_and_of_a_modelfile(execute: Callable[..., Any], here: Path) -> None:
    execute("method=lora", "method.rank=4", *SHORT)
    words = ("run=run", "export.format=adapter", "export.base=me/base", "export.dtype=bfloat16")
    told = exported(*words, "export.dir=adapter")
    assert told["quantization"] is None and Path("adapter/adapter_model.safetensors").stat().st_size < 25_000
    assert json.loads(Path("adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "me/base"
    pushed = (*words[:2], "export.dir=pushed", "export.push=me/mine", "export.dry_run=true")
    assert [text for text in planned(*pushed).warnings if "set export.base=owner/name" in text]
    assert not planned(*pushed, "export.base=me/base").warnings
    exported("run=run", "export.format=gguf", "export.modelfile=false", "export.dir=gguf", "export.check=false")
    assert "Modelfile" not in files("gguf")


# by kind: what its config.json says of code that comes with the model, and of what the refusal tells
REGISTERED: dict[str, tuple[dict[str, Any], str | None]] = {
    "llama": ({}, None),
    "gemma3": ({}, None),
    "smolvlm": ({}, "reads no smolvlm model"),
    "qwen2_audio": ({}, "reads no qwen2_audio model"),
    "granite_speech": ({}, "reads no granite_speech model"),
    "internlm": ({"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}, "reads no internlm model"),
    "llama by its code": ({"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}, "its own code reads it"),
    "llama with code": ({"AutoTokenizer": ["tokenization_mine.MineTokenizer", None]}, None),
}
WALKED = {  # it hears by parts that Factory does not know, and is no kind of text either
    "model_type": "granite_speech",
    "text_config": KINDS["llama"],
    "encoder_config": {"num_layers": 1, "hidden_dim": 32, "num_heads": 2, "dim_head": 16, "output_dim": 8},
    "projector_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
}


@pytest.mark.parametrize("kind", REGISTERED)
def test_what_mlflow_does_not_read_is_not_registered(kind: str, here: Path) -> None:
    """Before the export, which would be whole without it."""
    folder, words = here / "model", ["export.dir=out", "export.register=mine", "tracking=mlflow"]
    code, wrong = REGISTERED[kind]
    if kind.startswith(("llama", "internlm")):
        tiny.save(folder)
    else:
        built_of(roomy(WALKED if kind == WALKED["model_type"] else KINDS[kind]), "cpu").save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
    if code:
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": kind.partition(" ")[0], "auto_map": code, "bias": False}
        (folder / "config.json").write_text(json.dumps(config))
        words.append("model.trust_remote_code=true")
    with nullcontext() if wrong is None else pytest.raises(UserError) as error:
        planned(f"model.path={folder}", *words)
    if wrong is not None and error is not None:
        (found,) = error.value.refusals
        assert found.rule == "export-register" and wrong in found.wrong
        assert ("model.trust_remote_code=false" in found.fix) == (kind == "llama by its code")


# --- the card

READ_BY = {
    "llama": ("AutoModelForCausalLM", "AutoTokenizer", "text-generation"),
    "smolvlm": ("AutoModelForImageTextToText", "AutoProcessor", "image-text-to-text"),
    "llava": ("AutoModelForImageTextToText", "AutoProcessor", "image-text-to-text"),
    "qwen2_audio": ("AutoModelForMultimodalLM", "AutoProcessor", "audio-text-to-text"),
    "nougat": ("AutoModelForCausalLM", "AutoTokenizer", "text-generation"),  # whose config has no defaults
    "of_its_own": ("AutoModelForCausalLM", "AutoTokenizer", "text-generation"),
}


@pytest.mark.parametrize("kind", READ_BY)
def test_a_card_names_the_classes_that_read_the_model(kind: str, here: Path, tiny_model: Path) -> None:
    made = planned(f"model.path={tiny_model}", "export.dir=out")
    load = replace(made.steps.load, config={"model_type": kind})
    made = replace(made, steps=replace(made.steps, load=load))
    model, inputs, task = READ_BY[kind]
    told = card.card(made)
    assert f"pipeline_tag: {task}\n" in told and f"from transformers import {model}, {inputs}\n" in told
    assert f'model = {model}.from_pretrained("THIS_FOLDER"' in told
    (here / "adapter_config.json").write_text("{}")
    made = replace(made, steps=replace(made.steps, load=replace(load, adapter=str(here))))
    adapter = made.settings.export.model_copy(update={"format": "adapter"})
    told = card.card(made.with_settings(export=adapter))
    assert f'base = {model}.from_pretrained("THE_BASE")' in told and f"import {model}\n" in told


# --- the hub


class FakeApi:
    there: tuple[str, ...] = ()
    exists = False
    private = True
    did: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012

    def repo_exists(self, repo: str) -> bool:
        return self.exists

    def repo_info(self, repo: str) -> Any:
        return type("Info", (), {"private": self.private})()

    def list_repo_files(self, repo: str) -> list[str]:
        return list(self.there)

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        """One that is there stays as visible as it is."""
        named = {"private": private, "exist_ok": exist_ok}
        if not self.exists:
            type(self).private = private
        self.did.append(("create", {"repo": repo, **named}))

    def upload_folder(self, **named: Any) -> Any:
        self.did.append(("upload", named))
        return type("Commit", (), {"oid": "abc"})()


def test_a_folder_is_pushed(here: Path, tiny_model: Path, machine: Callable[..., None], monkeypatch: Any) -> None:
    import huggingface_hub

    machine(hub_token=True)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "did", [])
    monkeypatch.setattr(FakeApi, "private", True)
    words = (f"model.path={tiny_model}", "export.push=me/mine", "export.check=false")
    told = exported(*words, "export.dir=dry", "export.dry_run=true")["push"]
    assert told["dry_run"] and set(told["files"]) == files("dry") and not FakeApi.did
    told = exported(*words, "export.dir=out", "export.private=false")["push"]
    assert told["commit"] == "abc" and [name for name, _ in FakeApi.did] == ["create", "upload"]
    assert FakeApi.did[0][1]["private"] is False
    assert told["private"] is False
    monkeypatch.setattr(FakeApi, "exists", True)
    monkeypatch.setattr(FakeApi, "private", True)
    monkeypatch.setattr(FakeApi, "there", ("model.safetensors",))
    with pytest.raises(UserError, match="push-there"):
        exported(*words, "export.dir=again")
    assert not Path("again").exists()
    assert FakeApi.did[1][1]["delete_patterns"] is None
    exported(*words, "export.dir=again", "export.overwrite=true")  # in the place of all that was there, as in a folder
    assert FakeApi.did[-1][1]["delete_patterns"] == "*"


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_that_is_there_is_as_private_as_is_said(
    private: bool, here: Path, tiny_model: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub leaves it as it is: weights would be public that the plan calls private. Also of one made meanwhile."""
    import huggingface_hub

    machine(hub_token=True)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "did", [])
    words = (f"model.path={tiny_model}", "export.dir=out", "export.push=me/mine", f"export.private={private}".lower())
    plan = planned(*words).settings.export
    monkeypatch.setattr(FakeApi, "exists", True)
    monkeypatch.setattr(FakeApi, "private", not private)
    for asks in (hub.check, partial(hub.push, folder=here)):
        with pytest.raises(UserError, match=rf"\[push-visibility\].*\n.*\n.*export.private={not private}".lower()):
            asks(plan)
    assert "upload" not in dict(FakeApi.did)


def test_a_hub_that_goes_away_is_told(
    here: Path, tiny_model: Path, machine: Callable[..., None], monkeypatch: Any
) -> None:
    """Before the work and after it; the errors of its client's HTTP library are no OSErrors."""
    import huggingface_hub

    machine(hub_token=True)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "did", [])
    plan = planned(f"model.path={tiny_model}", "export.dir=out", "export.push=me/mine").settings.export
    assert lost() and not any(issubclass(error, OSError) for error in lost())
    for error in lost():

        def unreachable(*_: Any, error: type[Exception] = error, **__: Any) -> None:
            raise error("no route")

        monkeypatch.setattr(FakeApi, "repo_exists", unreachable)

        def of_a_file(*_: Any, error: type[Exception] = error, **__: Any) -> None:
            raise RuntimeError("Error while uploading 'a' to the Hub.") from error("no route")

        for upload in (unreachable, of_a_file):
            monkeypatch.setattr(FakeApi, "upload_folder", upload)
            for asks in (hub.check, partial(hub.push, folder=here)):
                with pytest.raises(UserError, match=r"\[push-unreachable\].*no route"):
                    asks(plan)

    def broken(*_: Any, **__: Any) -> None:
        try:
            raise OSError("what was asked for first")
        except OSError:
            raise RuntimeError("no more memory")  # noqa: B904  which has nothing to do with it

    monkeypatch.setattr(FakeApi, "upload_folder", broken)
    with pytest.raises(RuntimeError, match="no more memory"):
        hub.push(plan, here)


# --- the Modelfile


def _with(name: str) -> Any:
    import copy

    from factory import templates

    made = copy.deepcopy(tiny.tokenizer())
    made.chat_template = templates.read(name)
    return made


def test_chatml_in_ollamas_words() -> None:
    text = modelfile.text_of(_with("chatml"), ["<|im_end|>"])
    assert text == (
        "FROM ./model.gguf\n"
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ else }}'
        "<|im_start|>user\n{{ end }}{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n"
        '{{ .Response }}<|im_end|>\n"""\n'
        'PARAMETER stop "<|im_end|>"\n'
    )


def test_an_end_of_turn_that_is_no_token_ends_an_answer_as_a_text() -> None:
    """It was trained in pieces; of a tokenizer that has it, it is the first that ends one."""
    assert modelfile.text_of(_with("llama3"), ["<|im_end|>"]).endswith(
        'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|eot_id|>"\n'
    )


def test_a_stop_is_written_as_it_is() -> None:
    """Ollama's reader takes away the marks around a value, three or one, and nothing else (its parser.go, unquote)."""
    stops = ["<|im_end|>", "a\n### B:", 'say "no"', "back\\slash", '"\n']
    text = modelfile.text_of(_with("chatml"), stops).partition("PARAMETER stop ")[2].removesuffix("\n")
    read = []
    for value in text.split("\nPARAMETER stop "):
        mark = '"""' if value.startswith('"""') else '"'
        assert value.startswith(mark) and value.endswith(mark) and (mark == '"""' or '"' not in value[1:-1])
        read.append(value[len(mark) : -len(mark)])
    assert read == stops


def test_named_templates_are_said_or_refused() -> None:
    from factory import templates

    said = set()
    for name in templates.names():
        try:
            modelfile.turn_of(_with(name))
        except UserError as error:
            assert [refusal.rule for refusal in error.refusals] == ["export-unfit"]
        else:
            said.add(name)
    assert {"chatml", "llama3", "mistral", "gemma", "qwen3"} <= said, said
    assert len(said) > len(templates.names()) / 2


def test_a_template_of_no_form_is_refused() -> None:
    made = _with("chatml")
    made.chat_template = "{{ messages | length }}{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="Ollama cannot say the chat template"):
        modelfile.turn_of(made)


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_a_base_model_is_written_without_a_chat_template(form: str, here: Path) -> None:
    bare = tiny.save(here / "bare", template=False)
    words = (f"model.path={bare}", f"export.format={form}", "export.dir=out", "export.check=false")
    exported(*words)
    assert (here / "out" / ("model.gguf" if form == "gguf" else "model.safetensors")).is_file()


def test_an_adapter_without_its_run_is_not_written_without_its_tokens(
    execute: Callable[..., Any], here: Path, tmp_path: Path
) -> None:
    base = tiny.save(tmp_path / "base")
    execute(f"model.path={base}", "stage.max_steps=2", "precision=fp32", "model.new_tokens=['<tool>']")
    (here / "run/model").rename(here / "moved")
    with pytest.raises(UserError, match=r"\[adapter-tokens\] .*has trained '<tool>' too"):
        planned("run=moved", "export.dir=out")
    assert planned("run=moved", "export.dir=out", "model.new_tokens=['<tool>']").steps.patch.vocabulary == 513
