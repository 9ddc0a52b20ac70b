"""Rotations of each linear layer's input, block by block (OFT, Qiu et al. 2023; on the input: OFTv2, 2506.19847)."""

from typing import Any

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.methods.full.spec import optimizer_bytes
from factory.methods.lora.targets import PREFIX, Adapter, targets
from factory.methods.lora.targets import over_bitsandbytes as trains_over
from factory.plan.rule import Case, rule

__all__ = ["Settings", "optimizer_bytes", "peft", "trainable", "trains_over"]


class Settings(Adapter):
    block_size: int = Field(description="inputs that are rotated together; it divides every layer's inputs", ge=2)
    neumann_terms: int | None = Field(
        description="terms of the series that stands for the Cayley transform's inverse; null: the exact inverse", ge=2
    )


def peft(method: Settings, arch: Architecture) -> dict[str, Any]:
    return {
        "peft_type": "OFT",
        "r": 0,  # as many blocks as there are
        "oft_block_size": method.block_size,
        "use_cayley_neumann": method.neumann_terms is not None,
        "num_cayley_neumann_terms": method.neumann_terms or 0,
    }


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """A skew-symmetric matrix for each block, as what is above its diagonal."""
    size = method.block_size
    return {
        f"{PREFIX}{name}.oft_R.default.weight": (inputs // size, size * (size - 1) // 2)
        for name, (_, inputs) in targets(method, arch).items()
    }


@rule(
    "oft-blocks",
    keys=("method.block_size", "method.target_modules", "model.path"),
    reason="a layer's inputs are rotated in blocks of one size",
    fix="set method.block_size to a divisor of the inputs, as 8, 16 or 32",
)
def oft_blocks(case: Case) -> str | None:
    method = case.settings.method
    for name, (_, inputs) in targets(method, case.arch).items():
        if inputs % method.block_size:
            return f"{name} has {inputs} inputs"
    return None
