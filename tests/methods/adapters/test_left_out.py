"""Layers of Mamba's kinds whose weights its classes read by themselves: an adapter beside them would not train."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from built import IDS, built

from factory.methods.lora.spec import notes
from factory.methods.lora.targets import LEFT_OUT, left_out, target_modules
from factory.plan.rule import Case
from factory.steps.walk import walk

JAMBA = {"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4}
MAMBAS: list[tuple[str, dict[str, Any], int]] = [  # and how many layers have no adapter
    ("mamba", {"state_size": 8}, 6),
    ("falcon_mamba", {"state_size": 8}, 6),
    ("jamba", JAMBA | {"use_mamba_kernels": False}, 1),
]


@pytest.mark.parametrize(("kind", "numbers", "without"), MAMBAS)
def test_every_adapter_has_a_gradient(kind: str, numbers: dict[str, Any], without: int, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_config(tiny.config(model_type=kind, **numbers))
    arch, like = walk(model), built(tiny_model, "method=lora")
    model.requires_grad_(False)
    (note,) = notes(like.settings, arch)
    assert f"{without} layers whose weight" in note
    attached = like.method.attach(model, like.settings, like.plan.steps.attach, arch)
    trained = {name: value for name, value in attached.named_parameters() if value.requires_grad}
    for value in trained.values():  # B starts at 0, where A has no gradient
        torch.nn.init.normal_(value)
    attached(input_ids=IDS, labels=IDS).loss.backward()
    assert not [name for name, value in trained.items() if value.grad is None]


def test_a_layer_that_is_left_out_is_refused_by_its_name(tiny_model: Path) -> None:
    """By the rule alone: the whole compiler would walk the model in another process."""
    from transformers import AutoModelForCausalLM

    arch = walk(AutoModelForCausalLM.from_config(tiny.config(model_type="mamba", state_size=8)))
    settings: Any = built(tiny_model, "method=lora").settings

    def wrong(*names: str) -> Any:
        asked: Any = SimpleNamespace(
            arch=arch, settings=SimpleNamespace(method=settings.model_copy(update={"target_modules": names}))
        )
        case: Case = asked
        return target_modules.check(case)

    assert "out_proj of a mamba model" in wrong("in_proj", "out_proj")
    assert wrong("in_proj") is None
    assert left_out(settings, built(tiny_model, "method=lora").arch) == ({}, "")


def test_all_that_peft_refuses_is_left_out() -> None:
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba as check
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    def refused(kind: str) -> bool:
        model: Any = SimpleNamespace(config=SimpleNamespace(model_type=kind))
        lora: Any = SimpleNamespace(peft_type="LORA")
        try:
            check(lora, model, "out_proj")
        except ValueError:
            return True
        return False

    kinds = {kind for kind in CONFIG_MAPPING.keys() if refused(kind)}  # noqa: SIM118  it iterates over classes otherwise
    assert "mamba" in kinds
    assert all("out_proj" in LEFT_OUT[kind][0] for kind in kinds)
