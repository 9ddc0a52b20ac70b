"""LoRA and what was made of it, against NumPy, PEFT's own forms, and the optimizer's own steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from built import Built, built, weight_of
from conftest import compiled, refusals

from factory.methods.lora.targets import PREFIX

LAYER = "model.layers.1.mlp.up_proj"
FAR = ("method.rank=4", "method.alpha=6", "method.target_modules=[layers.1.mlp.up_proj]")


def randomized(made: Built) -> Built:
    torch.manual_seed(1)
    with torch.no_grad():
        for value in made.trained.values():
            value.add_(torch.randn_like(value) * 0.3)
    return made


def array(value: Any) -> np.ndarray:
    return value.detach().double().numpy()


def effective(made: Built, name: str = LAYER) -> np.ndarray:
    """What the adapted layer does to each unit vector: its whole matrix, as (out, in)."""
    module = made.model.get_submodule(f"{PREFIX}{name}")
    with torch.no_grad():
        return array(module(torch.eye(made.arch.linears()[name][1]))).T


def pair(made: Built, name: str = LAYER) -> tuple[np.ndarray, np.ndarray]:
    at = f"{PREFIX}{name}.lora"
    return array(made.trained[f"{at}_B.default.weight"]), array(made.trained[f"{at}_A.default.weight"])


@pytest.mark.parametrize(("method", "scale"), [("lora", 6 / 4), ("rslora", 6 / 4**0.5)])
def test_the_scale_is_the_papers(method: str, scale: float, tiny_model: Path) -> None:
    made = randomized(built(tiny_model, f"method={method}", *FAR))
    b, a = pair(made)
    np.testing.assert_allclose(effective(made), array(weight_of(made.model, LAYER)) + scale * b @ a, atol=1e-5)


def test_dora_is_length_times_direction(tiny_model: Path) -> None:
    """W' = m · (W + sBA) / ‖W + sBA‖ by row (DoRA, equation 5; PEFT's rows are the paper's columns)."""
    made = built(tiny_model, "method=dora", *FAR)
    weight = array(weight_of(made.model, LAYER))
    lengths = made.trained[f"{PREFIX}{LAYER}.lora_magnitude_vector.default.weight"]
    np.testing.assert_allclose(array(lengths), np.linalg.norm(weight, axis=1), rtol=1e-5)
    np.testing.assert_allclose(effective(made), weight, atol=1e-6)
    b, a = pair(randomized(made))
    turned = weight + 6 / 4 * b @ a
    wanted = array(lengths)[:, None] * turned / np.linalg.norm(turned, axis=1, keepdims=True)
    np.testing.assert_allclose(effective(made), wanted, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_b_learns_faster(optimizer: str, execute: Callable[..., Any]) -> None:
    """After a first step only B has moved (A's gradient is 0 then): by its ratio times as far."""
    moves = []
    for ratio in (1, 16):
        done = execute(
            "method=lora",
            "method.rank=4",
            f"method.b_learning_rate_ratio={ratio}",
            f"stage.optimizer={optimizer}",
            "stage.learning_rate=1e-3",
            "stage.max_steps=1",
            "stage.warmup_ratio=0",
            "precision=fp32",
            "evaluate.perplexity=false",
            folder=f"{ratio}",
        )
        trained = {name: value for name, value in done.model.named_parameters() if value.requires_grad}
        moves.append({name: value.detach() - done.start[name] for name, value in trained.items()})
    assert any(move.abs().max() > 0 for name, move in moves[0].items() if ".lora_B." in name)
    for name, move in moves[1].items():
        wanted = 16 * moves[0][name] if ".lora_B." in name else torch.zeros_like(move)
        torch.testing.assert_close(move, wanted, rtol=1e-3, atol=1e-9, msg=name)


def test_a_keeps_its_rate(tiny_model: Path) -> None:
    made = built(tiny_model, "method=lora_plus", "method.rank=4", "stage.learning_rate=1e-3")
    optimizer = made.method.optimizer(made.model, made.settings, made.plan, made.arch)
    names = {id(value): name for name, value in made.trained.items()}
    for group in optimizer.param_groups:
        assert {".lora_B." in names[id(value)] for value in group["params"]} == {group["lr_ratio"] == 16}


@pytest.mark.parametrize("method", ["lora", "dora", "vera"])
def test_transposed_and_fused_projections(method: str, tmp_path: Path) -> None:
    """GPT-2's layers hold (in, out), and one of them the queries, keys and values."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "num_key_value_heads": 4}
    folder = tiny.save(tmp_path / "gpt2", model_type="gpt2", **sizes)
    made = built(folder, f"method={method}", "method.rank=4")
    assert any(".attn.c_attn." in name for name in made.trained)
    torch.testing.assert_close(made.logits(), made.logits(made.base()))
    assert made.train() == set()
    torch.testing.assert_close(made.logits(made.exported()), made.logits(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "kaiming"])
def test_starts_that_leave_the_base(kind: str, tiny_model: Path) -> None:
    """A is random (of deviation 1/rank, or uniform within √(1/in)), B is 0."""
    made = built(tiny_model, "method=lora", "method.rank=16", f"method.initialization={kind}")
    firsts = torch.cat([v.detach().flatten() for n, v in made.trained.items() if ".lora_A." in n and "down" not in n])
    assert all(not value.any() for name, value in made.trained.items() if ".lora_B." in name)
    if kind == "gaussian":
        assert firsts.std().item() == pytest.approx(1 / 16, rel=0.05)
    else:
        assert firsts.abs().max().item() == pytest.approx(32**-0.5, rel=0.01)


@pytest.mark.parametrize(
    ("names", "layers"),
    [("[q_proj]", 2), ("[self_attn.q_proj,down_proj]", 4), ("[layers.0.mlp.up_proj]", 1), ("all-linear", 14)],
)
def test_layers_by_the_end_of_their_names(names: str, layers: int, tiny_model: Path) -> None:
    made = built(tiny_model, "method=lora", "method.rank=4", f"method.target_modules={names}")
    assert len(made.trained) == 2 * layers


@pytest.mark.parametrize(
    ("name", "said"), [("q_porj", "did you mean q_proj"), ("query_key_value", "it has q_proj, k_proj, v_proj, o_proj")]
)
def test_an_unknown_layer_is_refused_with_what_there_is(name: str, said: str, tiny_model: Path) -> None:
    found = refusals(f"model.path={tiny_model}", "method=lora", f"method.target_modules=[{name}]", "hardware=cpu")
    assert [refusal.rule for refusal in found] == ["target-modules"]
    assert said in found[0].wrong


def test_qlora_is_lora_with_another_base(tiny_model: Path) -> None:
    plans = [compiled(f"model.path={tiny_model}", "hardware=cpu", f"method={name}") for name in ("lora", "qlora")]
    counts = [plan.estimate.parameters.trainable for plan in plans]
    assert counts[0] == counts[1]
    assert [plan.settings.method.quantization.bits for plan in plans] == [None, 4]
