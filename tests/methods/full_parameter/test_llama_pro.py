"""Block expansion: the same model until it is trained, and only the new layers are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import AS_TRANSFORMERS, refusals
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from factory.methods.llama_pro.spec import expanded, is_residual, order
from factory.steps.walk import walk

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": False},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
    "granite_swa": {"layer_rope_theta": [10000.0, 500.0, 0, 10000.0], "sliding_window": 16},
    "mellum": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
}
SHORT = (
    "method=llama_pro",
    "stage.max_steps=4",
    "stage.learning_rate=1e-2",
    "stage.warmup_ratio=0",
    "stage.logging_steps=1",
    "precision=fp32",
    *AS_TRANSFORMERS,
)


def test_the_new_layers_are_evenly_spread() -> None:
    from types import SimpleNamespace

    found = order(SimpleNamespace(num_new_layers=2), 6)  # type: ignore[arg-type]
    assert found == [(0, False), (1, False), (2, False), (2, True), (3, False), (4, False), (5, False), (5, True)]
    assert len(order(SimpleNamespace(num_new_layers=8), 32)) == 40  # type: ignore[arg-type]  # LLaMA Pro 8.3B


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    saved = tiny.save(tmp_path / "base", model_type=request.param, num_hidden_layers=4, **KINDS[request.param])
    tensors = load_file(saved / "model.safetensors")
    for name, value in tensors.items():
        if name.endswith("bias"):  # new ones are zero
            tensors[name] = value + torch.randn(value.shape, generator=torch.manual_seed(0))
    save_file(tensors, saved / "model.safetensors", {"format": "pt"})
    return saved


def short(folder: Path) -> tuple[str, ...]:
    """Some have no kernel of torch's: their sinks are in the sum of the softmax."""
    eager = json.loads((folder / "config.json").read_text())["model_type"] in ("gpt_oss", "granite_swa")
    return tuple(word.replace("sdpa", "eager") for word in SHORT) if eager else SHORT


def test_an_untrained_expansion_is_the_model(folder: Path, execute: Callable[..., Any]) -> None:
    """Losses are the model's as long as the rate is nothing; the saved one reloads with its new layers and agrees."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    done = execute(*short(folder), f"model.path={folder}", "method.num_new_layers=2", "stage.learning_rate=1e-30")
    again: Any = AutoModelForCausalLM.from_pretrained(done.run.folder.model, dtype=torch.float32)
    assert again.config.num_hidden_layers == 6
    assert walk(again).blocks == walk(base).blocks[:1] * 6
    ids = torch.tensor([done.dataset.train[0].ids])
    with torch.no_grad():
        wanted, mine, theirs = (model(input_ids=ids).logits for model in (base, done.model.eval(), again))
    assert torch.equal(mine, wanted)
    assert torch.equal(theirs, wanted)
    cached, plain = (
        again.generate(ids[:, :9], max_new_tokens=9, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, plain)


def test_only_the_new_layers_are_trained(folder: Path, execute: Callable[..., Any]) -> None:
    done = execute(*short(folder), f"model.path={folder}", "method.num_new_layers=2")
    changed = {name for name, value in done.model.named_parameters() if not value.detach().equal(done.start[name])}
    assert changed == {name for name in done.start if name.startswith(("model.layers.2.", "model.layers.5."))}
    for new, old in ((2, 1), (5, 4)):
        for name, value in done.start.items():
            inner = name.removeprefix(f"model.layers.{new}.")
            if inner != name:
                wanted = done.start[f"model.layers.{old}.{inner}"]
                assert value.equal(torch.zeros_like(value) if is_residual(inner) else wanted), name
    again = AutoModelForCausalLM.from_pretrained(done.run.folder.model, dtype=torch.float32)
    ids = torch.tensor([done.dataset.train[0].ids])
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, done.model.eval()(input_ids=ids).logits, rtol=0, atol=0)
    assert done.run.checks["gradients_alive"]["passed"]


def test_the_expanded_architecture_is_the_models(tiny_model: Path) -> None:
    from types import SimpleNamespace

    from factory.methods.llama_pro.run import attach

    model = AutoModelForCausalLM.from_pretrained(tiny_model).requires_grad_(False)
    arch, settings = walk(model), SimpleNamespace(num_new_layers=1)
    model = attach(model, settings, Any, arch)  # type: ignore[arg-type]
    assert dict(walk(model).tensors()) == dict(expanded(settings, arch).tensors())  # type: ignore[arg-type]
    # a kernel of attention that is set later is that of the new layers too
    assert all(layer.self_attn.config is model.config for layer in model.model.layers)


def test_what_is_said_of_each_layer_is_said_of_the_new_ones() -> None:
    """And nothing else is: two tokens that end a text are as many as the layers by chance."""
    from types import SimpleNamespace

    from factory.methods.llama_pro.run import describe

    said = {"mlp_layer_types": ["dense", "sparse"], "thetas": (1, 2), "eos_token_id": [7, 9], "windows": [1, 2, 3]}
    config: Any = SimpleNamespace(num_hidden_layers=2, vocab_size=2, **said)
    describe(config, SimpleNamespace(num_new_layers=2), SimpleNamespace(layers=2))  # type: ignore[arg-type]
    assert vars(config) == {
        **said,
        "num_hidden_layers": 4,
        "vocab_size": 2,
        "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
        "thetas": (1, 1, 2, 2),
    }


def test_lists_of_all_layers_numbers_have_the_new_ones_too() -> None:
    """As their classes write them (Molmo2, Mistral Large 4); they were extended as if each layer had an entry."""
    from types import SimpleNamespace

    from factory.methods.llama_pro.run import describe

    config: Any = SimpleNamespace(rope_scaling_layers=[0, 1, 2, 3], mlp_only_layers=[], windows=[4, 5, 6, 7])
    describe(config, SimpleNamespace(num_new_layers=2), SimpleNamespace(layers=4))  # type: ignore[arg-type]
    assert (config.rope_scaling_layers, config.mlp_only_layers) == ([0, 1, 2, 3, 4, 5], [])
    assert config.windows == [4, 5, 5, 6, 7, 7]


@pytest.mark.parametrize("numbers", [[0, 1], [0, 0, 2, 2], [0, 1, 2, 3]])
def test_lists_of_some_layers_numbers_are_refused(numbers: list[int], tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "base", num_hidden_layers=4)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"kv_source_layers": numbers}))
    words = (f"model.path={folder}", "method=llama_pro", "method.num_new_layers=2", "hardware=cpu")
    found = [each.wrong for each in refusals(*words, training=False) if each.rule == "llama-pro-architecture"]
    assert found == ([] if len({*numbers}) == 4 else ["its config.json has lists of its layers' numbers"])


@pytest.mark.parametrize(
    ("option", "told"), [("minicpm3_4b", "scaled by their number"), ("llama4_scout", "lists of its layers' numbers")]
)
def test_layers_that_are_told_by_their_numbers_are_refused(option: str, told: str) -> None:
    found = refusals(f"model={option}", "method=llama_pro", "method.num_new_layers=2", "hardware=cpu", training=False)
    assert [told in each.wrong for each in found if each.rule == "llama-pro-architecture"] == [True]
