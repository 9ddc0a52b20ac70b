"""The FLOPs of a step against those that torch counts."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import compiled

from factory.architecture import architecture
from factory.config import registry
from factory.estimate import flops
from factory.methods.parts import of_parts
from factory.plan.plan import Plan

LAYERS = 8
CONFIG = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": LAYERS,
          "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 1024,
          "tie_word_embeddings": False}  # fmt: skip
METHODS = {
    "full": "method=full",
    "lora": "method=lora method.rank=16",
    "freeze": "method=freeze method.num_layers=2",
}


@cache
def _plan(words: str) -> Plan:
    return compiled("hardware=cpu", "stage=pt", "precision=fp32", *words.split(), training=False)


def _method(words: str) -> Any:
    run: Any = SimpleNamespace(plan=_plan(words))
    return run.plan.settings.method


def _counted(method: str, length: int, again: int = 0) -> float:
    """FLOPs of a token, forward and backward, as torch's counter has them: of attention the whole scores."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    from factory.steps.kernels import recompute

    recomputed = f"true compute.recomputed_layers={again}" if again else "false"
    words = f"{METHODS[method]} compute.activation_checkpointing={recomputed}"
    config = AutoConfig.for_model(**CONFIG)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager").requires_grad_(False)
    attach = registry.run("methods", method).attach
    model = attach(model, _method(words), _plan(words).steps.attach, architecture(CONFIG))
    recompute(model, _plan(words), architecture(CONFIG))
    model.train()
    ids = torch.zeros(1, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids).logits.sum().backward()
    return counted.get_total_flops() / length


def _estimated(method: str, length: int, again: int = 0) -> float:
    arch, settings = architecture(CONFIG), _method(METHODS[method])
    shapes = registry.spec("methods", method).trainable(settings, arch)
    return flops.trained(arch, shapes, length, again)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("again", [0, 3, LAYERS])
def test_a_short_sequence_is_the_products_of_its_weights(method: str, again: int) -> None:
    """Of a layer that is made again, torch leaves out the last product where nobody needs it."""
    assert _estimated(method, 8, again) == pytest.approx(_counted(method, 8, again), rel=0.08 if again else 0.03)


@pytest.mark.parametrize("method", METHODS)
def test_a_longer_one_has_scores_too(method: str) -> None:
    """Half of what torch counts: the scores of what lies ahead are left out."""
    longer = _counted(method, 512) - _counted(method, 8)
    assert 2 * (_estimated(method, 512) - _estimated(method, 8)) == pytest.approx(longer, rel=0.1)


@pytest.mark.parametrize("part", ["vision", "projector"])
def test_what_sees_learns_through_every_layer_of_the_decoder(part: str) -> None:
    tower = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    arch = architecture({"model_type": "llava", "text_config": CONFIG, "vision_config": tower})
    trained = of_parts(dict(arch.tensors()), (part,), arch)
    assert flops.trained(arch, trained, 64, 0) > 2 * flops.forward(arch, 64)
