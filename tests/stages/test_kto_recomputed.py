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
)


# selective recomputation keeps PEFT's layers, which round twice in bfloat16 what ours round once
@pytest.mark.parametrize(("how", "precision"), [("true", "bf16"), ("selective", "fp32")])
def test_recomputed_or_not_the_losses_are_the_same(how: str, precision: str, execute: Callable[..., Any]) -> None:
    words = (*SHORT, f"precision={precision}")
    plain = execute(*words, folder="plain").losses
    assert execute(*words, f"compute.activation_checkpointing={how}").losses == pytest.approx(plain, rel=1e-6)
