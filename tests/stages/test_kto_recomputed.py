"""KTO calls the model twice in a step: what is recomputed is what was computed."""

from collections.abc import Callable
from typing import Any

import pytest

SHORT = (
    "stage=kto",
    "stage.max_steps=2",
    "stage.batch_size=2",
    "data.max_samples=8",
    "method.rank=2",
    "precision=bf16",
)


@pytest.mark.parametrize("how", ["true", "selective"])
def test_recomputed_or_not_the_losses_are_the_same(how: str, execute: Callable[..., Any]) -> None:
    plain = execute(*SHORT, folder="plain").losses
    assert execute(*SHORT, f"compute.activation_checkpointing={how}").losses == pytest.approx(plain, rel=1e-6)
