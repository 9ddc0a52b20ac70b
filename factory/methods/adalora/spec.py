"""LoRA as P Λ Q whose least important singular values are set to zero (AdaLoRA, Zhang et al. 2023).

arXiv 2303.10512, algorithm 1: so all adapters share a budget of ranks, which falls along a cubic to what they keep.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

from factory.architecture import Architecture, Shape
from factory.compile.rule import Case, Rule
from factory.methods.lora.targets import PREFIX, Adapter, targets
from factory.methods.lora.targets import RULES as TARGET_RULES
from factory.methods.lora.targets import over_bitsandbytes as trains_over
from factory.optimizers.spec import state_bytes
from factory.typed import key

__all__ = ["RULES", "Settings", "optimizer_bytes", "peft", "phases", "trainable", "trains_over"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Adapter):
    rank: int = key("rank that the adapters keep, on average", low=1)
    initial_rank: int = key("rank that each adapter starts with", low=2)
    alpha: float = key("scale: the adapter adds alpha / initial_rank times P Λ Q", above=0)
    dropout: float = key("dropout on the adapter's input", low=0, high=0.99)
    initial_phase: float = key("share of the steps before the rank begins to fall", low=0, high=1)
    final_phase: float = key("share of the steps at the end, when what is kept stays so", low=0, high=1)
    update_interval: int = key("steps between two choices of what is kept", low=1)
    orthogonality: float = key("weight of the penalty that holds P and Q near orthogonal matrices", low=0)


def phases(method: Settings, total: int) -> tuple[int, int]:
    """The last step (from 1) of full rank, and the one that chooses for the last time."""
    return int(method.initial_phase * total), total - int(method.final_phase * total)


def peft(method: Settings, arch: Architecture) -> dict[str, Any]:
    return {
        "peft_type": "ADALORA",
        "init_r": method.initial_rank,
        "target_r": method.rank,
        "lora_alpha": method.alpha,
    }


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """Q is PEFT's A, P its B and Λ its E. What is set to zero is kept in these shapes until the adapter is saved."""
    rank, shapes = method.initial_rank, dict[str, Shape]()
    for name, (outputs, inputs) in targets(method, arch).items():
        own = {"A": (rank, inputs), "E": (rank, 1), "B": (outputs, rank)}
        shapes |= {f"{PREFIX}{name}.lora_{side}.default": shape for side, shape in own.items()}
    return shapes


def optimizer_bytes(method: Settings, optimizer: str, shapes: dict[str, Shape], arch: Architecture) -> int:
    """With each element's importance, and the means of it and of its deviation (equations 8 to 10)."""
    return state_bytes(optimizer, shapes, arch) + 3 * 4 * sum(prod(shape) for shape in shapes.values())


def _nothing_goes(case: Case) -> str | None:
    method = case.settings.method
    return f"method.rank={method.rank} is no less" if method.initial_rank <= method.rank else None


def _no_time(case: Case) -> str | None:
    method = case.settings.method
    whole = method.initial_phase + method.final_phase >= 1
    return f"method.final_phase={method.final_phase:g} takes the rest of the run" if whole else None


RULES = (*TARGET_RULES, Rule("adalora-rank", _nothing_goes), Rule("adalora-phases", _no_time))
