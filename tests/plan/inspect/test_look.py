"""What is missing or broken outside is named before anything is loaded."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from conftest import compiled, refusals
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError

from factory.config import compose
from factory.config.refusal import UserError, refuse
from factory.data import hub
from factory.plan import anew
from factory.plan.facts import Gpu
from factory.plan.inspect import machine as look
from factory.plan.inspect.harness import look_at_harness
from factory.plan.inspect.model import fingerprint_now
from factory.plan.plan import read_plan, to_yaml
from factory.plan.vocabulary import added_tokens, tokens_in

BASE = ("hardware=cpu", "tracking=none", "stage.max_steps=1")
Change = Callable[[Path], object]


@pytest.fixture
def copy(tiny_model: Path, here: Path) -> Path:
    return shutil.copytree(tiny_model, here / "model")


def _cut(name: str, size: int) -> Change:
    return lambda folder: os.truncate(folder / name, size)


def _write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def _tar(format: int) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=format) as archive:
        archive.addfile(tarfile.TarInfo("rows.jsonl"))
    return made.getvalue()


def _without(*names: str) -> Change:
    return lambda folder: [path.unlink() for name in names for path in folder.glob(name)]


def _longer(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _sharded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


BROKEN: dict[str, tuple[Change, str, str]] = {
    "no config.json": (_without("config.json"), "model-incomplete", "config.json"),
    "config.json is cut": (_cut("config.json", 40), "model-broken", "config.json"),
    "config.json is empty": (_cut("config.json", 0), "model-broken", "config.json"),
    "config.json is a list": (_write("config.json", b"[]"), "model-broken", "config.json"),
    "config.json is Latin-1": (_write("config.json", b'{"a": "\xe9"}'), "model-broken", "config.json"),
    "config.json has no numbers": (_write("config.json", b'{"model_type": "qwen2"}'), "incomplete-config", "hidden"),
    "another architecture": (_write("config.json", b'{"model_type": "berd"}'), "unknown-architecture", "not know it"),
    "a model that writes no text": (_write("config.json", b'{"model_type": "vit"}'), "unknown-architecture", "text"),
    "code of its own": (_write("config.json", b'{"model_type": "berd", "auto_map": {}}'), "remote-code", "berd"),
    "weights of 0 bytes": (_cut("model.safetensors", 0), "model-broken", "model.safetensors"),
    "weights cut in the header": (_cut("model.safetensors", 100), "model-broken", "model.safetensors"),
    "weights cut in a tensor": (_cut("model.safetensors", 50_000), "model-broken", "50,000 bytes long"),
    "weights with a tail": (_longer, "model-broken", "its header says"),
    "weights are noise": (_write("model.safetensors", b"\xff" * 64), "model-broken", "not a safetensors file"),
    "weights are a pointer": (_write("model.safetensors", b"version https://git-lfs"), "model-broken", "safetensors"),
    "no weights": (_without("*.safetensors"), "model-incomplete", "no safetensors"),
    "only a pickle": (_pickled, "pickled-weights", "only pytorch_model.bin"),
    "a shard is missing": (_sharded, "model-broken", "model-00002-of-00002.safetensors"),
    "the index is broken": (_write("model.safetensors.index.json", b"{}"), "model-broken", "index.json"),
    "no tokenizer": (_without("tokenizer*"), "model-incomplete", "tokenizer"),
    "an adapter": (_adapter, "model-is-adapter", "it is an adapter"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_refused_naming_the_file(name: str, copy: Path) -> None:
    change, rule, named = BROKEN[name]
    assert not refusals(*BASE, f"model.path={copy}")
    change(copy)
    (refusal,) = refusals(*BASE, f"model.path={copy}")
    assert refusal.rule == rule
    assert named in refusal.wrong
    if rule.startswith("model-") or rule == "pickled-weights":
        assert refusal.setting == f"model.path={copy}"


def test_each_file_that_a_model_is_read_from_changes_its_fingerprint(copy: Path) -> None:
    def now() -> str:
        return fingerprint_now("folder", str(copy))

    for name in (
        *("chat_template.jinja", "generation_config.json", "preprocessor_config.json", "special_tokens_map.json"),
        *("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "modeling_own.py", "model.safetensors"),
    ):
        file = copy / name
        content = bytearray(file.read_bytes() if file.is_file() else b"a b" * 40_000)
        file.write_bytes(content)
        before = now()
        content[len(content) // 3] ^= 1  # where no block of a sample lies
        file.write_bytes(content)
        assert now() != before, name
    before = now()
    (copy / "README.md").write_text("What nobody reads.")
    assert now() == before


def test_planning_needs_the_config_alone(copy: Path) -> None:
    before = compiled(*BASE, f"model.path={copy}").estimate.parameters
    _without("*.safetensors", "tokenizer*", "generation*")(copy)
    assert compiled(*BASE, f"model.path={copy}", training=False).estimate.parameters == before


@pytest.mark.parametrize("path", ["./nowhere", "nowhere", "a/b/c", "rows.jsonl"])
def test_a_path_that_is_no_model_is_refused(path: str, here: Path) -> None:
    (here / "rows.jsonl").write_text("{}")
    (refusal,) = refusals(*BASE, f"model.path={path}", training=False)
    assert (refusal.rule, refusal.setting) == ("model-missing", f"model.path={path}")
    assert refusal.wrong == ("it is a file, and no GGUF" if path == "rows.jsonl" else "there is no such folder or file")


SCRIPT = "import sys; from factory import cli; sys.exit(cli.main(sys.argv[1:]))"


def test_a_hub_model_without_the_hub_is_refused(here: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(here / "hub")}
    arguments = ["plan", "model.path=somebody/nothing-7b", "data=file", "data.path=nope.jsonl"]
    run = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "[model-unreachable] model.path=somebody/nothing-7b: " in done.stderr
    assert "[data-missing]" in done.stderr  # the others are shown too
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_named_model_without_the_hub_plans_and_does_not_train(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(here))

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    assert compiled("model=llama3_8b", "hardware=cpu", training=False).steps.load.source == "hub"
    found = refusals("model=llama3_8b", "hardware=cpu")
    assert "model-unreachable" in [refusal.rule for refusal in found]


@pytest.mark.parametrize("revision", ["main", "v2", "d" * 40])
@pytest.mark.parametrize("answers", [True, False])
def test_a_plan_that_is_written_for_later_names_the_commit(
    answers: bool, revision: str, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or warns where nobody knows it: a branch may be other weights when the run goes on."""
    named = ("model=qwen2.5_0.5b", "hardware=cpu", f"model.revision={revision}")
    commit, config = "c" * 40, compiled(*named, training=False).steps.load.config

    def hub_config(path: str, asked: str) -> tuple[dict[str, Any], str]:
        if not answers:
            raise refuse(
                "model-unreachable", f"model.path={path}", "there is no network", because="it is", fix="change it"
            )
        return config, asked if asked == "d" * 40 else commit

    monkeypatch.setattr("factory.plan.inspect.model._hub_config", hub_config)
    made = yaml.safe_load(command("plan", *named, "plan.format=yaml").out)
    pinned = "d" * 40 if revision == "d" * 40 else commit if answers else revision
    assert made["steps"]["load"]["revision"] == pinned
    assert made["steps"]["load"]["fingerprint"].endswith(f"@{pinned}")
    said = [text for text in made["warnings"] if "not pinned" in text]
    assert [f"which commit {revision} is:" in text for text in said] == [True] * (len(pinned) < 40)
    shown = json.loads(command("plan", *named, "plan.format=json").out)  # which asks nobody
    assert shown["steps"][0]["revision"] == revision and not any("not pinned" in text for text in shown["warnings"])


def test_a_branch_that_is_not_there_is_no_hub_that_is_not_reached(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_branch(path: str, revision: str) -> None:
        raise refuse(
            "revision-missing",
            f"model.revision={revision}",
            f"the hub has none of {path}",
            because="it is",
            fix="change it",
        )

    monkeypatch.setattr("factory.plan.inspect.model._hub_config", no_branch)
    said = command("plan", "model=qwen2.5_0.5b", "hardware=cpu", "model.revision=v3", "plan.format=yaml")
    assert (said.code, said.rules) == (2, ["revision-missing"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RevisionNotFoundError, "[revision-missing] model.revision=v2: the hub has none of me/mine."),
        (RemoteEntryNotFoundError, "[model-incomplete] model.path=me/mine: there is no config.json in it."),
        (
            HfHubHTTPError,
            "[model-unreachable] model.path=me/mine: it is not in the cache and the hub cannot be reached",
        ),
    ],
)
def test_a_hub_that_answers_is_not_called_away(
    error: type[HfHubHTTPError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(*_: object) -> Path:
        raise error("no", response=httpx.Response(404, request=httpx.Request("GET", "https://hub")))

    monkeypatch.setattr("factory.plan.inspect.model._hub_file", answers)
    (refusal,) = refusals("model.path=me/mine", "model.revision=v2", training=False)
    assert str(refusal).startswith(said)


def test_a_set_of_a_hub_that_is_not_reached_plans_and_does_not_train(
    monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    sets: list[str] = []

    def unreachable(path: str) -> str:
        sets.append(path)
        return "there is no network"

    monkeypatch.setattr(hub, "unreachable", unreachable)
    line = ("data=alpaca_cleaned", "hardware=cpu")
    (warning,) = (text for text in compiled(*line, training=False).warnings if "hub-unreachable" in text)
    assert warning.startswith(
        "[hub-unreachable] data.sources.alpaca_cleaned.path=yahma/alpaca-cleaned: there is no net"
    )
    assert "hub-unreachable" in [refusal.rule for refusal in refusals(*line)]
    Path("dataset_info.json").write_text('{"away": {"hf_hub_url": "me/away"}}')
    (of_catalogue,) = refusals("data=llamafactory", "data.path=dataset_info.json", "data.names=[away]", "hardware=cpu")
    assert str(of_catalogue).startswith("[hub-unreachable] data.names=[away]: away is me/away on the hub: there is no")
    sets.clear()
    compiled("hardware=cpu", training=False)  # of the demo's rows
    composed = compose.compose(compose.parse(list(line), "chat"))
    anew.compiled(composed, training=True, verb="chat")  # which reads no rows
    assert sets == []


def test_its_tokenizer_is_not_waited_for_without_the_hub(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """Its client would try again for half a minute."""
    config = json.loads((tiny_model / "config.json").read_text())
    monkeypatch.setattr("factory.plan.inspect.model._hub_config", lambda path, revision: (config, "a1b2c3"))

    def unreachable(url: str) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("factory.plan.inspect.model.ask", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the client was asked"))
    found = refusals("model.path=me/mine", "model.new_tokens=['<a>']")
    assert "vocabulary-unknown" in [refusal.rule for refusal in found]


def test_a_hub_models_numbers_come_from_its_config(
    monkeypatch: pytest.MonkeyPatch, copy: Path, tiny_model: Path
) -> None:
    asked = []

    def download(path: str, name: str, **options: object) -> str:
        asked.append((path, name, options["revision"]))
        return str(copy / name)

    monkeypatch.setattr("factory.plan.inspect.model.ask", lambda url: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    plan = compiled("model.path=me/mine", "model.revision=v2", training=False)
    assert asked == [("me/mine", "config.json", "v2")]
    assert plan.estimate.parameters.total == compiled(f"model.path={tiny_model}").estimate.parameters.total


@pytest.mark.parametrize(
    ("path", "content", "rule", "wrong"),
    [
        ("nope.jsonl", None, "data-missing", "no such file"),
        (".", None, "data-empty", "no file"),
        ("rows.xls", b"a,b", "data-file-type", ".xls"),
        ("rows", b"{}", "data-file-type", "(none)"),
        ("rows.zip", b"PK\3\4", "data-file-type", ".zip"),
        ("rows.tar", b"", "data-file-type", ".tar"),
        ("rows.tar.gz", b"", "data-file-type", ".tar.gz"),
        ("rows.jsonl", b"PK\3\4", "data-encoding", "a zip archive"),
        ("rows.jsonl", _tar(tarfile.USTAR_FORMAT), "data-encoding", "a tar archive"),
        ("rows.csv", _tar(tarfile.GNU_FORMAT), "data-encoding", "a tar archive"),
        ("rows.jsonl", b"", "data-empty", "0 bytes"),
        ("rows.json", b"[]", "data-empty", "2 bytes"),
        ("rows.txt", b"\n \n", "data-empty", "3 bytes"),
        ("rows.json", b'{"instruction": "a", "output": "b"}\n{"instruction": ', "data-broken", "line 2, column 17"),
        ("rows.jsonl", b'\n{"instruction": \n3\n', "data-broken", "line 2, column 17"),
        ("https://a.b/rows.jsonl", None, "data-url", "a URL is not read"),
        ("s3://a/rows.jsonl", None, "data-url", "a URL is not read"),
        ("rows.jsonl", b'{"instruction": "caf\xe9", "output": "b"}', "data-encoding", "0xE9"),
        ("rows.jsonl", b"{}", "data-format", "(none)"),
    ],
)
def test_a_file_that_cannot_be_trained_on_is_refused(
    path: str, content: bytes | None, rule: str, wrong: str, here: Path, tiny_model: Path
) -> None:
    if content is not None:
        (here / path).write_bytes(content)
    (refusal,) = refusals(*BASE, f"model.path={tiny_model}", "data=file", f"data.path={path}")
    assert refusal.rule == rule
    assert wrong in refusal.wrong


def test_a_missing_file_names_the_one_beside_it(here: Path) -> None:
    (here / "rows.jsonl").write_text("{}")
    (refusal,) = refusals("data=file", "data.path=row.jsonl", training=False)
    assert "did you mean rows.jsonl?" in refusal.fix


def test_a_missing_file_is_told_with_the_path_that_was_tried(here: Path) -> None:
    (refusal,) = refusals("data=file", "data.path=some/rows.jsonl", training=False)
    assert refusal.wrong == f"there is no such file as {here / 'some' / 'rows.jsonl'}"
    (refusal,) = refusals("data=file", f"data.path={here / 'rows.jsonl'}", training=False)
    assert refusal.wrong == "there is no such file"  # the setting has it


def test_a_file_beside_its_own_option_is_named_as_what_to_set(here: Path) -> None:
    (here / "own" / "data").mkdir(parents=True)
    option = "# @package data.sources.shop\ndefaults: [_base@_here_]\npath: shop.jsonl\nformat: alpaca\n"
    (here / "own" / "data" / "shop.yaml").write_text(option)
    words = ("--config-dir", "own", "data=shop")
    (refusal,) = refusals(*words, training=False)
    assert (refusal.rule, refusal.wrong) == ("data-missing", f"there is no such file as {here / 'shop.jsonl'}")
    assert "own/data" not in refusal.fix
    lies = here / "own" / "data" / "shop.jsonl"
    lies.write_text('{"instruction": "a", "output": "b"}\n')
    (refusal,) = refusals(*words, training=False)
    assert refusal.fix.startswith(f"set data.sources.shop.path={lies} (")
    assert refusals(*words, f"data.sources.shop.path={lies}", training=False) == []
    (here / "shop.jsonl").write_bytes(lies.read_bytes())  # what a relative path means is as it was
    assert refusals(*words, training=False) == []


def test_a_hub_id_in_the_place_of_a_file_is_told_by_its_keys() -> None:
    (refusal,) = refusals("data=file", "data.path=owner/rows", training=False)
    assert "add data.sources.file.origin=hub data.sources.file.format=FORMAT for the hub's owner/rows" in refusal.fix
    (refusal,) = refusals("data=file", "data.path=owner/rows.jsonl", training=False)
    assert "origin=hub" not in refusal.fix


def test_no_other_name_is_told_than_one_like_it(here: Path) -> None:
    (here / "train.jsonl").write_text("{}")
    (here / "again.jsonl").symlink_to("again.jsonl")
    (refusal,) = refusals("data=file", "data.path=rows.jsonl", training=False)
    assert "did you mean" not in refusal.fix
    (refusal,) = refusals("data=file", "data.path=again.jsonl", training=False)
    assert (refusal.rule, "did you mean" in refusal.fix) == ("data-link", False)


@pytest.mark.parametrize("training", [True, False])
def test_a_file_that_cannot_be_opened_is_refused_before_the_run_too(
    training: bool, here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "set").mkdir()
    (here / "set" / "a.jsonl").write_text('{"instruction": "a", "output": "b"}')
    (here / "set" / "z.jsonl").symlink_to(here / "nowhere")
    overrides = (*BASE, f"model.path={tiny_model}", "data=file", "data.path=set")
    (refusal,) = refusals(*overrides, training=training)
    assert (refusal.rule, "z.jsonl is a link to" in refusal.wrong) == ("data-link", True)
    (here / "set" / "z.jsonl").unlink()
    original = Path.open

    def opened(path: Path, *arguments: Any, **named: Any) -> Any:  # the tests may run as root
        if path.name == "a.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", opened)
    (refusal,) = refusals(*overrides, training=training)
    assert (refusal.rule, refusal.setting) == ("cannot-read", "set/a.jsonl")


def test_a_path_may_start_at_home(here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home").mkdir()
    (here / "home" / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}')
    overrides = ("data=file", "data.path='~/rows.jsonl'", "stage.max_steps=1")
    plan = compiled(*overrides, f"model.path={tiny_model}", "hardware=cpu", training=False)
    source = plan.steps.align.sources["file"]
    assert source.path == str(here / "home" / "rows.jsonl")


def test_a_file_is_not_named(here: Path) -> None:
    (refusal,) = refusals("data=file", training=False)
    assert (refusal.rule, refusal.setting) == ("data-missing", "data.path=null")
    (refusal,) = refusals("data.sources.demo.path='package:demo/{other}.jsonl'", training=False)
    assert refusal.rule == "data-missing"


def test_a_large_file_is_peeked_at(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    row = json.dumps({"instruction": "a" * 50, "output": "b"}) + "\n"
    (here / "rows.jsonl").write_text(row * 300 + "broken, but beyond what planning reads\n")
    monkeypatch.setattr("factory.plan.inspect.data.READ_WHOLE", 1000)
    steps = compiled("data=file", "data.path=rows.jsonl", "stage.batch_size=1", training=False).estimate.steps
    assert steps.low < steps.high
    assert steps.high == pytest.approx(270, rel=0.02)


def test_a_folder_that_cannot_be_written_is_refused_to_train(
    monkeypatch: pytest.MonkeyPatch, here: Path, tiny_model: Path
) -> None:
    overrides = (*BASE, f"model.path={tiny_model}", "hydra.run.dir=closed/run")
    (here / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != here / "closed")  # the tests may run as root
    (refusal,) = refusals(*overrides)
    assert (refusal.rule, refusal.setting) == ("cannot-write", "hydra.run.dir=closed/run")
    assert str(here / "closed") in refusal.wrong
    assert not refusals(*overrides, training=False)
    (here / "file").write_text("")
    assert [found.rule for found in refusals(*overrides, "hydra.run.dir=file/run")] == ["cannot-write"]


def test_the_machine_is_what_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    machine = look.look_at_machine()
    assert machine.threads == 3
    assert machine.gpus == ()
    assert 0 < machine.available_bytes <= psutil.virtual_memory().total
    assert machine.memory_bytes is not None
    assert machine.available_bytes <= machine.memory_bytes <= psutil.virtual_memory().total
    assert {"torch", "transformers", "peft"} <= set(machine.packages)


CARDS = ("GPU-aa1, NVIDIA H100 80GB HBM3, 81559, 80000, 9.0", "GPU-ab2, Tesla T4, 15360, [N/A], 7.5")


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch, here: Path) -> Callable[[str], None]:
    """Makes an nvidia-smi of a shell script; what torch was built for is CUDA."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(look, "installed_version", lambda name: "2.13.0")

    def made(script: str) -> None:
        (here / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (here / "nvidia-smi").chmod(0o755)

    return made


def test_gpus_are_read_from_nvidia_smi(smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    smi("\n".join(f"echo '{line}'" for line in CARDS))
    h100, t4 = look.look_at_machine().gpus
    assert (h100.name, h100.memory_bytes, h100.compute_capability) == ("NVIDIA H100 80GB HBM3", 81559 * 2**20, 9.0)
    assert h100.usable_bytes == 80000 * 2**20
    assert (t4.free_bytes, t4.usable_bytes) == (None, 15360 * 2**20)
    smi("echo 'no driver' >&2; exit 9")
    assert look.look_at_machine().gpus == ()
    smi(f"echo '{CARDS[0]}'")
    monkeypatch.setattr(look, "installed_version", lambda name: "2.13.0+cpu")
    assert look.look_at_machine().gpus == ()


def test_a_card_without_memory_of_its_own_has_the_machines(smi: Callable[[str], None]) -> None:
    smi("echo 'GPU-c, NVIDIA GB10, [N/A], [N/A], 12.1'")  # as on a DGX Spark
    machine = look.look_at_machine()
    (gpu,) = machine.gpus
    assert (gpu.memory_bytes, gpu.free_bytes) == (machine.memory_bytes, machine.available_bytes)
    assert (gpu.compute_capability, machine.unread) == (12.1, ())


@pytest.mark.parametrize(
    "faulty",
    [
        "GPU-d, NVIDIA H100 80GB HBM3, 81559, 80000, [Unknown Error]",
        "GPU-d, NVIDIA H100 80GB HBM3, [Unknown Error], [Unknown Error], 9.0",
        "Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error",
    ],
)
def test_a_faulty_card_hides_no_other_and_is_told(
    faulty: str, smi: Callable[[str], None], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi("\n".join(f"echo '{line}'" for line in (CARDS[0], faulty, CARDS[1])))
    machine = look.look_at_machine()
    assert [gpu.name for gpu in machine.gpus] == ["NVIDIA H100 80GB HBM3", "Tesla T4"]
    assert machine.unread == (faulty,)
    for hardware, told in (("auto", True), ("single_gpu", True), ("cpu", False), ("h100_80gb", False)):
        warnings = compiled(f"model.path={tiny_model}", f"hardware={hardware}", training=False).warnings
        assert any(faulty in text for text in warnings) == told
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert look.look_at_machine().unread == ()


@pytest.mark.parametrize(
    ("visible", "names"),
    [("-1", ""), ("", ""), ("0", "H"), ("1", "T"), ("1,0", "TH"), ("GPU-ab", "T"), ("GPU-a", ""), ("1,7,0", "T")],
)
def test_only_visible_gpus_count(
    visible: str, names: str, smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    smi("\n".join(f"echo '{line}'" for line in CARDS))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert "".join(gpu.name.removeprefix("NVIDIA ")[0] for gpu in look.look_at_machine().gpus) == names


DIVIDED = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aa1)
  MIG 3g.40gb     Device  0: (UUID: MIG-5a)
  MIG 1g.10gb+me  Device  1: (UUID: MIG-5b)
GPU 1: Tesla T4 (UUID: GPU-ab2)
  MIG 1c.2g.20gb  Device  0: (UUID: MIG-GPU-ab2/5/0)"""
_LISTED, _ASKED = (" ".join(f"echo '{line}';" for line in lines) for lines in (DIVIDED.splitlines(), CARDS))
SAYS = f"if [ $1 = -L ]; then {_LISTED} else {_ASKED} fi"


@pytest.mark.parametrize(
    ("visible", "names", "gigabytes"),
    [
        ("MIG-5a", ["NVIDIA H100 80GB HBM3 MIG 3g.40gb"], 40),
        ("MIG-5b", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb+me"], 10),
        ("MIG-5b,MIG-5a,1", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb+me"], 10),  # CUDA takes one instance a process
        ("MIG-GPU-ab2/5/0", ["Tesla T4 MIG 1c.2g.20gb"], 20),  # of drivers before 470
        ("MIG-5", [], 0),  # either of two
        ("MIG-7", [], 0),
        ("1,MIG-5a", ["Tesla T4", "NVIDIA H100 80GB HBM3 MIG 3g.40gb"], 40),
    ],
)
def test_an_instance_of_a_card_is_a_gpu(
    visible: str, names: list[str], gigabytes: int, smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(SAYS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine = look.look_at_machine()
    assert [gpu.name for gpu in machine.gpus] == names
    assert machine.hidden == (None if names else visible)
    if names:
        (*_, part) = machine.gpus
        assert (part.memory_bytes, part.free_bytes) == (gigabytes * 10**9, None)
        assert part.compute_capability == (7.5 if "T4" in part.name else 9.0)


def test_of_a_divided_card_cuda_takes_the_first_instance(
    smi: Callable[[str], None], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(SAYS)
    monkeypatch.setattr(look, "_CAPABILITIES", here)
    assert [gpu.name for gpu in look.look_at_machine().gpus] == ["NVIDIA H100 80GB HBM3", "Tesla T4"]
    (here / "gpu0" / "mig" / "gi2").mkdir(parents=True)
    (part,) = look.look_at_machine().gpus
    assert (part.name, part.memory_bytes) == ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 40 * 10**9)
    smi("\n".join(f"echo '{line}'" for line in CARDS))  # of another driver: -L is not known to it
    assert len(look.look_at_machine().gpus) == 2


def test_a_gpu_that_no_name_leaves_is_told_by_the_name(
    smi: Callable[[str], None], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(SAYS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-7")
    found = {each.rule: each for each in refusals(f"model.path={tiny_model}", "hardware=single_gpu")}
    assert found["device-missing"].wrong == "there is no GPU here that CUDA_VISIBLE_DEVICES=MIG-7 names"


@pytest.fixture
def rocm(monkeypatch: pytest.MonkeyPatch, here: Path) -> Path:
    """A machine of AMD's driver: a CPU, an MI300X, a card that this process is not given, and an RX 6800."""

    def node(number: int, properties: dict[str, int], banks: tuple[dict[str, int], ...]) -> None:
        for index, bank in enumerate(banks):
            written(here / f"nodes/{number}/mem_banks/{index}/properties", bank)
        written(here / f"nodes/{number}/properties", properties)

    def written(file: Path, numbers: dict[str, int]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{name} {number}\n" for name, number in numbers.items()))

    def card(version: int, minor: int) -> dict[str, int]:
        return {"cpu_cores_count": 0, "simd_count": 4, "gfx_target_version": version, "drm_render_minor": minor}

    node(0, {"cpu_cores_count": 96, "gfx_target_version": 0, "drm_render_minor": 0}, ())
    node(10, card(100300, 130), ({"heap_type": 2, "size_in_bytes": 16 * 2**30}, {"heap_type": 5, "size_in_bytes": 7}))
    node(2, card(90402, 128), ({"heap_type": 1, "size_in_bytes": 192 * 2**30},))
    node(3, card(90010, 129), ({"heap_type": 1, "size_in_bytes": 64 * 2**30},))
    for device in ("kfd", "dri/renderD128", "dri/renderD130"):
        (here / "dev" / device).parent.mkdir(parents=True, exist_ok=True)
        (here / "dev" / device).touch()
    (here / "torch").mkdir()
    (here / "torch" / "version.py").write_text("cuda: Optional[str] = None\nhip: Optional[str] = '7.1.25424'\n")
    monkeypatch.setattr(look, "_KFD_NODES", here / "nodes")
    monkeypatch.setattr(look, "_DEVICES", here / "dev")
    monkeypatch.setattr(look, "_DRM", here / "drm")
    (here / "drm/renderD128/device").mkdir(parents=True)
    (here / "drm/renderD128/device/mem_info_vram_used").write_text(f"{3 * 2**30}\n")
    spec = ModuleSpec("torch", None, origin=str(here / "torch" / "__init__.py"))
    monkeypatch.setattr(look.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(look, "installed_version", lambda name: "2.13.0" if name == "torch" else None)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return here


def test_a_torch_that_was_built_for_cuda_is_told_from_others(rocm: Path) -> None:
    (rocm / "torch" / "version.py").write_text("cuda: Optional[str] = '13.2'\nhip: Optional[str] = None\n")
    assert look.look_at_machine().packages == {"torch": "2.13.0", "cuda": "13.2"}


def test_amd_cards_are_read_from_the_driver(rocm: Path) -> None:
    machine = look.look_at_machine()
    assert machine.packages == {"torch": "2.13.0", "rocm": "7.1.25424"}
    assert machine.gpus == (
        Gpu(name="AMD gfx942", memory_bytes=192 * 2**30, compute_capability=9.4, free_bytes=189 * 2**30),
        Gpu(name="AMD gfx1030", memory_bytes=16 * 2**30, compute_capability=10.3),
    )


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_amd_cards_can_be_hidden(name: str, rocm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "-1")
    assert look.look_at_machine().gpus == ()
    monkeypatch.setenv(name, "0")
    assert len(look.look_at_machine().gpus) == 2


def test_without_the_driver_or_a_torch_for_it_there_is_no_amd_card(rocm: Path) -> None:
    (rocm / "nodes/2/properties").unlink()  # as of a card that a container's rules hide
    assert [gpu.name for gpu in look.look_at_machine().gpus] == ["AMD gfx1030"]
    (rocm / "torch" / "version.py").write_text("hip: Optional[str] = None\n")
    machine = look.look_at_machine()
    assert machine.packages == {"torch": "2.13.0"} and machine.gpus == ()
    (rocm / "torch" / "version.py").write_text("hip = '7.1'\n")
    assert look.look_at_machine().gpus
    (rocm / "dev" / "kfd").unlink()
    assert look.look_at_machine().gpus == ()


def test_a_folder_of_task_files(here: Path) -> None:
    """Of lm-evaluation-harness: changed with its YAML and its code, not with what else lies there."""
    asked = here / "mine"
    with pytest.raises(UserError, match=r"\[harness-path\] evaluate\.harness_path=.*: there is no such folder"):
        look_at_harness(str(asked))
    (asked / "sums").mkdir(parents=True)
    (asked / "asked.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"\[harness-path\] .*: it holds no \.yaml file"):
        look_at_harness("mine")
    (asked / "sums" / "one.yaml").write_text("task: one")
    found = look_at_harness("mine")
    assert found.path == str(asked)
    (asked / "asked.jsonl").write_text("{} {}")
    assert look_at_harness("mine") == found
    (asked / "sums" / "score.py").write_text("def score(items): ...")
    assert look_at_harness("mine").sha256 != found.sha256


def _header(tree: object) -> bytes:
    text = json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"[" * 100_000),
        ("config.json", b"[]"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 1, "b": "model.safetensors"}}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../../x.safetensors"}}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "/etc/x.safetensors"}}'),
        ("model.safetensors", (100_000).to_bytes(8, "little") + b"[" * 100_000),
        ("model.safetensors", _header({"a": {"shape": [float("inf")], "data_offsets": [0, 0]}})),
        ("model.safetensors", _header({"a": {"shape": [-1], "data_offsets": [0, 0]}})),
        ("model.safetensors", _header({"a": {"shape": "12", "data_offsets": [0, 0]}})),
    ],
)
def test_a_hostile_file_of_a_model_is_refused(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    assert [refusal.rule for refusal in refusals(f"model.path={copy}", *BASE)] == ["model-broken"]


@pytest.mark.parametrize("number", ["Infinity", "1e400", "1e99", "2.5", "-1", str(10**30), '"7"', "null"])
def test_what_is_no_id_in_a_tokenizer_is_none(copy: Path, number: str) -> None:
    added = f'"added_tokens": [{{"content": "a", "id": {number}}}]'
    (copy / "tokenizer.json").write_text(f'{{"model": {{"vocab": {{}}}}, {added}}}')
    assert (added_tokens(copy), tokens_in(copy)) == ({}, None)


def test_a_config_may_hold_numbers_without_an_end(copy: Path) -> None:
    """Mamba's have `time_step_limit: [0, Infinity]`."""
    config = json.loads((copy / "config.json").read_text()) | {"time_step_limit": [0.0, float("inf")]}
    (copy / "config.json").write_text(json.dumps(config))
    plan = compiled(f"model.path={copy}", *BASE)
    (copy / "plan.yaml").write_text(to_yaml(plan))
    assert read_plan(copy / "plan.yaml") == plan


def test_positions_of_a_kind_that_is_no_word_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text()) | {"rope_parameters": {"rope_type": ["linear"]}}
    (copy / "config.json").write_text(json.dumps(config))
    rules = {refusal.rule for refusal in refusals(f"model.path={copy}", "model.rope_scaling=linear", *BASE)}
    assert "rope-scaling" in rules
