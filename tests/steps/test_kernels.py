"""How a model computes is changed, what it computes is not."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest

SHORT = (
    "stage.max_steps=3",
    "stage.logging_steps=1",
    "data.max_samples=16",
    "precision=fp32",
    "stage.learning_rate=1e-2",
)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kept", ["true", "selective"])
def test_recomputed_activations_give_the_same_steps(method: str, kept: str, execute: Callable[..., Any]) -> None:
    plain = execute(f"method={method}", *SHORT, folder="plain")
    done = execute(f"method={method}", f"compute.activation_checkpointing={kept}", *SHORT, folder="recomputed")
    assert done.losses == pytest.approx(plain.losses, rel=1e-6)


def test_selective_keeps_the_matmuls(execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the backward pass, `selective` multiplies no matrices again that the forward pass did."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def flops(kept: str) -> int:
        done = execute("method=full", f"compute.activation_checkpointing={kept}", *SHORT, folder=f"run-{kept}")
        tokens = torch.tensor([done.dataset.train[0].ids])
        with FlopCounterMode(display=False) as counted:
            done.model.train()(input_ids=tokens, labels=tokens).loss.backward()
        return counted.get_total_flops()

    assert flops("false") == flops("selective") < flops("true")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_give_the_same_steps(execute: Callable[..., Any]) -> None:
    plain = execute("method=lora", *SHORT, folder="plain")
    done = execute("method=lora", "compute.compile=true", *SHORT, folder="compiled")
    assert done.losses == pytest.approx(plain.losses, rel=1e-4)
