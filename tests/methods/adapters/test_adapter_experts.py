"""Adapters on mixtures: the experts' stacked matrices, and the layers whose names PEFT would take for them."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from built import IDS, QUANTIZED, Built, built
from conftest import refusals

from factory.architecture import FAMILIES, experts
from factory.methods.lora.targets import EXPERTS_BY_NAME, PREFIX

LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
NARROW = {"moe_intermediate_size": 24, "num_experts_per_tok": 2, "head_dim": 8}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 40, **NARROW},
    "qwen3_moe": {"num_experts": 4, **NARROW},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 48, "head_dim": 8},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {**LATENT, **ROUTED, "first_k_dense_replace": 1},
    "glm4_moe": {**ROUTED, "first_k_dense_replace": 1, "head_dim": 8},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}


def mixture(kind: str, folder: Path) -> Path:
    return tiny.save(folder / kind, model_type=kind, **MIXTURES[kind])


def alive_and_read_back(made: Built) -> None:
    torch.testing.assert_close(made.logits(), made.logits(made.base()))
    assert made.train(4) == set()
    trained = made.logits()
    assert (trained - made.logits(made.base())).abs().max() > 1e-3
    torch.testing.assert_close(made.logits(made.exported()), trained, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_train_exactly_as_planned(kind: str, tmp_path: Path) -> None:
    made = built(mixture(kind, tmp_path), "method=lora", "method.rank=3", "method.target_experts=true")
    adapted = [name for name in made.trained if ".experts." in name]
    assert len(adapted) == 2 * len(made.arch.experts()) > 0
    alive_and_read_back(made)


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_experts_over_a_quantized_base(base: str, tmp_path: Path) -> None:
    """No library quantizes the stacked matrices: they train whole, the attention's over quantized weights."""
    folder = mixture("mixtral", tmp_path)
    made = built(folder, "method=lora", "method.rank=3", "method.target_experts=true", *QUANTIZED[base])
    assert any(value.dtype in (torch.uint8, torch.int8) for value in made.model.parameters())
    alive_and_read_back(made)


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_stay_unless_asked(kind: str, tmp_path: Path) -> None:
    """Shared experts and dense layers of some kinds have names that PEFT gives to its experts."""
    made = built(mixture(kind, tmp_path), "method=lora", "method.rank=3")
    assert not any(".experts." in name for name in made.trained)
    alive_and_read_back(made)


def test_one_pair_for_each_expert(tmp_path: Path) -> None:
    """Expert e's matrix is W + scale · B[:, e] A[e], A's rows by expert, B's columns by rank."""
    made = built(
        mixture("mixtral", tmp_path), "method=lora", "method.rank=3", "method.alpha=6", "method.target_experts=true"
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for value in made.trained.values():
            value.add_(torch.randn_like(value) * 0.3)
    logits = made.logits()
    merged = made.base()
    with torch.no_grad():
        for name, module in merged.named_modules():
            at = f"{PREFIX}{name}"
            if f"{at}.lora_A.default.weight" in made.trained and not name.endswith("experts"):
                module.weight += (
                    2 * made.trained[f"{at}.lora_B.default.weight"] @ made.trained[f"{at}.lora_A.default.weight"]
                )
        for name, parameter in merged.named_parameters():
            if name in made.arch.experts():
                module, _, leaf = name.rpartition(".")
                at = f"{PREFIX}{module}{'.base_layer' if leaf == 'gate_up_proj' else ''}"
                a = made.trained[f"{at}.lora_A.default.weight"].reshape(4, 3, -1)
                b = made.trained[f"{at}.lora_B.default.weight"].reshape(-1, 3, 4)
                for expert in range(4):
                    parameter[expert] += 2 * b[:, :, expert] @ a[expert]
    torch.testing.assert_close(merged(input_ids=IDS).logits, logits, rtol=0, atol=1e-4)


def test_the_names_that_peft_takes_for_experts() -> None:
    from peft.utils.transformers_weight_conversion import _MOE_TARGET_MODULE_MAPPING
    from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN

    renamed = {kind for kind, base in _MODEL_TO_CONVERSION_PATTERN.items() if base in _MOE_TARGET_MODULE_MAPPING}
    assert renamed & FAMILIES.keys() == EXPERTS_BY_NAME
    assert experts.FAMILIES.keys() >= EXPERTS_BY_NAME


def test_a_layer_that_peft_would_misread_is_refused(tmp_path: Path) -> None:
    folder = mixture("deepseek_v3", tmp_path)
    found = refusals(f"model.path={folder}", "hardware=cpu", "method=lora", "method.target_modules=[gate_proj]")
    assert [refusal.rule for refusal in found] == ["target-modules"]
    assert "would take for experts" in found[0].wrong


def test_experts_in_one_flat_matrix_are_refused() -> None:
    found = refusals("model=dbrx_132b", "method=lora", "method.target_experts=true", training=False)
    assert [refusal.rule for refusal in found] == ["adapted-experts"]
    assert "dbrx" in found[0].wrong
    assert refusals("model=dbrx_132b", "method=lora", training=False) == []


def test_plans_say_what_is_not_adapted(tmp_path: Path) -> None:
    from factory.methods.lora.spec import notes

    made = built(mixture("deepseek_v3", tmp_path), "method=lora", "method.rank=3")
    (said,) = notes(made.settings, made.arch)
    assert "6 layers" in said  # a dense layer's three, and a shared expert's
