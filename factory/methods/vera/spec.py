"""Two vectors beside each linear layer, around random matrices that all layers share (VeRA, Kopiczko et al. 2024)."""

from typing import Any

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.methods.full.spec import optimizer_bytes
from factory.methods.lora.targets import PREFIX, Adapter, as_saved, targets
from factory.methods.lora.targets import over_bitsandbytes as trains_over

__all__ = ["Settings", "optimizer_bytes", "peft", "saved", "trainable", "trains_over"]


class Settings(Adapter):
    rank: int = Field(description="rank of the shared random matrices", ge=1)
    dropout: float = Field(description="dropout on the adapter's input", ge=0, le=0.99)
    initial: float = Field(description="where the vector d starts; b starts at 0", gt=0)
    projection_seed: int = Field(description="the seed of the random matrices", ge=0)


def peft(method: Settings, arch: Architecture) -> dict[str, Any]:
    """The random matrices are saved too: those of another torch would be others."""
    seed = method.projection_seed
    return {"peft_type": "VERA", "r": method.rank, "projection_prng_key": seed, "save_projection": True}


def saved(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """With the random matrices that every layer takes its part of."""
    adapted = targets(method, arch).values()
    outputs, inputs = (max((shape[side] for shape in adapted), default=0) for side in (0, 1))
    projections = {"base_model.vera_A": (method.rank, inputs), "base_model.vera_B": (outputs, method.rank)}
    return as_saved(trainable(method, arch)) | projections


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """Equation 2 of the paper: the vectors d of (rank,) and b of (out,)."""
    shapes: dict[str, Shape] = {}
    for name, (outputs, _) in targets(method, arch).items():
        shapes[f"{PREFIX}{name}.vera_lambda_b.default"] = (outputs,)
        shapes[f"{PREFIX}{name}.vera_lambda_d.default"] = (method.rank,)
    return shapes
