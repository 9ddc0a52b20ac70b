"""Every adapter, over every base that it may stand beside: exact, alive, and the same when it is read back."""

from pathlib import Path

import pytest
import torch
from built import QUANTIZED, built

ADAPTERS = {
    "lora": ("method.rank=4",),
    "dora": ("method.rank=4",),
    "rslora": ("method.rank=4",),
    "lora_plus": ("method.rank=4",),
    "pissa": ("method.rank=4",),
    "olora": ("method.rank=4",),
    "loftq": ("method.rank=4",),
    "vera": ("method.rank=8",),
    "oft": ("method.block_size=8",),
    "ia3": (),
    "loha": ("method.rank=4",),
    "lokr": ("method.rank=2",),
}
FROM_WEIGHTS = ("pissa", "olora", "loftq")
CANNOT = {
    ("dora", "int8"),
    ("loha", "nf4"),
    ("lokr", "nf4"),
    ("loftq", "none"),
    ("olora", "nf4"),
    ("olora", "int8"),
}  # rules
CASES = [(name, base) for name in ADAPTERS for base in QUANTIZED if (name, base) not in CANNOT]


@pytest.mark.parametrize(("name", "base"), CASES)
def test_trains_and_reads_back(name: str, base: str, tiny_model: Path) -> None:
    made = built(tiny_model, f"method={name}", *ADAPTERS[name], *QUANTIZED[base])
    plain = made.logits(made.base())
    if name not in FROM_WEIGHTS:
        torch.testing.assert_close(made.logits(), plain, rtol=0, atol=1e-5)  # it starts where the base is
    frozen = {key: value.detach().clone() for key, value in made.model.named_parameters() if not value.requires_grad}
    start = {key: value.detach().clone() for key, value in made.trained.items()}
    assert made.train() == set()
    assert all(not value.equal(start[key]) for key, value in made.trained.items())
    assert all(value.equal(frozen[key]) for key, value in made.model.named_parameters() if key in frozen)
    trained = made.logits()
    assert (trained - plain).abs().max() > 1e-3
    if name not in FROM_WEIGHTS or base == "none":
        torch.testing.assert_close(made.logits(made.exported()), trained, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("name", "base"), sorted(CANNOT))
def test_what_cannot_work_is_refused(name: str, base: str, tiny_model: Path) -> None:
    from conftest import refusals

    found = refusals(f"model.path={tiny_model}", "hardware=cpu", f"method={name}", *ADAPTERS[name], *QUANTIZED[base])
    rules = {"loftq": "adapter-start", "olora": "adapter-start"}
    assert [refusal.rule for refusal in found] == [rules.get(name, "quantized-weights")]
