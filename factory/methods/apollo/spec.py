"""Full-parameter training whose step sizes come from a low-rank random projection (APOLLO, Zhu et al. 2024).

The gradient keeps its direction; only how far each channel moves is what Adam does at the low rank (arXiv 2412.05270,
algorithm 1).
"""

from typing import Literal

from pydantic import Field

from factory.methods.full.spec import gradients, trainable
from factory.methods.galore import spec as galore
from factory.methods.galore.spec import optimizer_bytes, projected
from factory.optimizers.spec import no_adam as unfit

__all__ = ["RANKS", "Settings", "gradients", "optimizer_bytes", "projected", "trainable", "unfit"]


class Settings(galore.Settings):
    scaling: Literal["channel", "tensor"] = Field(
        description="what shares a step size: a channel, or the whole tensor (APOLLO-Mini)"
    )
    growth_limit: float = Field(
        description="an update's norm grows at most by this factor a step (Fira's limiter)", gt=1
    )


RANKS = "alone"
