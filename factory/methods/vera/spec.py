"""Two vectors beside each linear layer, around random matrices that all layers share (VeRA, Kopiczko et al. 2024)."""

from dataclasses import dataclass

from factory.architecture import Architecture, Shape
from factory.methods.full.spec import optimizer_bytes
from factory.methods.lora.targets import PREFIX, RULES, Adapter, targets
from factory.typed import key

__all__ = ["QUANTIZABLE", "RULES", "Settings", "optimizer_bytes", "trainable"]

QUANTIZABLE = True  # whether it trains beside a base that stays quantized


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Adapter):
    rank: int = key("rank of the shared random matrices", low=1)
    dropout: float = key("dropout on the adapter's input", low=0, high=0.99)
    initial: float = key("where the vector d starts; b starts at 0", above=0)
    projection_seed: int = key("the seed of the random matrices", low=0)


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """Equation 2 of the paper: the vectors d of (rank,) and b of (out,)."""
    shapes: dict[str, Shape] = {}
    for name, (outputs, _) in targets(method, arch).items():
        shapes[f"{PREFIX}{name}.vera_lambda_b.default"] = (outputs,)
        shapes[f"{PREFIX}{name}.vera_lambda_d.default"] = (method.rank,)
    return shapes
