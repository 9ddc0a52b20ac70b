"""The elementwise product of two low-rank matrices beside each linear layer (FedPara, Hyeon-Woo et al. 2022; LoHa)."""

from typing import Any

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.methods.full.spec import optimizer_bytes
from factory.methods.lora.targets import PREFIX, Adapter, targets

__all__ = ["Settings", "optimizer_bytes", "peft", "trainable", "trains_over"]


class Settings(Adapter):
    rank: int = Field(description="rank of each of the two matrices", ge=1)
    alpha: float = Field(description="scale: the adapter adds alpha / rank times the product", gt=0)


def trains_over(method: Settings, library: str, bits: int | None) -> bool:
    """PEFT reads the shape of a weight's storage, which of 4-bit weights is another."""
    return (library, bits) == ("bitsandbytes", 8)


def peft(method: Settings, arch: Architecture) -> dict[str, Any]:
    return {"peft_type": "LOHA", "r": method.rank, "alpha": method.alpha}


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """Proposition 1 of the paper: (w1_a w1_b) ⊙ (w2_a w2_b)."""
    return {
        f"{PREFIX}{name}.hada_w{matrix}_{side}.default": (outputs, method.rank)
        if side == "a"
        else (method.rank, inputs)
        for name, (outputs, inputs) in targets(method, arch).items()
        for matrix in (1, 2)
        for side in ("a", "b")
    }
