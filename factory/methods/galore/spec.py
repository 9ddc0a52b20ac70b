"""Full-parameter training whose gradients of matrices are projected to a low rank (GaLore, Zhao et al. 2024)."""

from dataclasses import dataclass
from math import prod

from factory import schema
from factory.architecture import Shape
from factory.compile.rule import Case, Rule
from factory.methods.full.spec import trainable
from factory.typed import key

__all__ = ["RULES", "Settings", "is_projected", "optimizer_elements", "trainable"]
QUANTIZABLE = False  # whether it trains beside a base that stays quantized


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(schema.Method):
    rank: int = key("rank of the projected gradient", low=1)
    update_interval: int = key("optimizer steps between two singular value decompositions", low=1)
    scale: float = key("the projected update is multiplied by this", above=0)


def is_projected(name: str, linears: dict[str, Shape]) -> bool:
    """Whether the tensor's gradient is projected: the matrices of the linear layers, embedding and head are not."""
    return any(name.endswith(f".{linear}.weight") for linear in linears)


def optimizer_elements(method: Settings, shapes: dict[str, Shape]) -> int:
    """Two moments at the projected size and the projector, of the smaller side (paper, section 4.1); others as Adam."""
    total = 0
    for name, shape in shapes.items():
        if ".layers." in name and len(shape) == 2:
            small, large = min(shape), max(shape)
            rank = min(method.rank, small)
            total += 2 * rank * large + rank * small
        else:
            total += 2 * prod(shape)
    return total


def _rank_too_high(case: Case) -> str | None:
    smallest = min(min(shape) for shape in case.arch.linears.values())
    rank = case.settings.method.rank
    return f"the narrowest matrix of the model has {smallest} rows" if rank > smallest else None


def _other_optimizer(case: Case) -> str | None:
    name = case.settings.stage.optimizer
    return "GaLore brings its own AdamW" if name != "adamw" else None


RULES = (
    Rule("galore-rank", _rank_too_high),
    Rule("galore-optimizer", _other_optimizer),
)
