"""A Kronecker product beside each linear layer, its larger factor of low rank (LoKr, Yeh et al. 2023, LyCORIS)."""

from typing import Any

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.methods.full.spec import optimizer_bytes
from factory.methods.loha.spec import trains_over
from factory.methods.lora.targets import PREFIX, Adapter, targets

__all__ = ["Settings", "optimizer_bytes", "peft", "trainable", "trains_over"]


class Settings(Adapter):
    rank: int = Field(description="rank of the larger factor; it is whole where it is not larger than twice that", ge=1)
    alpha: float = Field(description="scale: the adapter adds alpha / rank times the product", gt=0)


def factors(size: int) -> tuple[int, int]:
    """The two factors of a size that are nearest to its root, the smaller first."""
    smaller = max(number for number in range(1, int(size**0.5) + 1) if size % number == 0)
    return smaller, size // smaller


def peft(method: Settings, arch: Architecture) -> dict[str, Any]:
    return {"peft_type": "LOKR", "r": method.rank, "alpha": method.alpha}


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """w1 ⊗ w2: of (out, in) = (o₁·o₂, i₁·i₂), w1 is (o₁, i₁) and w2 is (o₂, i₂), or w2_a w2_b of the rank."""
    shapes: dict[str, Shape] = {}
    for name, (outputs, inputs) in targets(method, arch).items():
        at = f"{PREFIX}{name}.lokr_w"
        (o1, o2), (i1, i2) = factors(outputs), factors(inputs)
        shapes[f"{at}1.default"] = (o1, i1)
        if method.rank < max(o2, i2) / 2:
            shapes |= {f"{at}2_a.default": (o2, method.rank), f"{at}2_b.default": (method.rank, i2)}
        else:
            shapes[f"{at}2.default"] = (o2, i2)
    return shapes
