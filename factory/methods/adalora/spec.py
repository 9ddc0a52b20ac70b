"""LoRA as P Λ Q whose least important singular values are set to zero (AdaLoRA, Zhang et al. 2023).

arXiv 2303.10512, algorithm 1: so all adapters share a budget of ranks, which falls along a cubic to what they keep.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.methods.lora.targets import PREFIX, Adapter, as_saved, over_bitsandbytes, targets
from factory.optimizers.spec import state_bytes
from factory.plan.rule import Broken, Case, rule

trains_over = over_bitsandbytes


class Settings(Adapter):
    rank: int = Field(description="rank that the adapters keep, on average", ge=1)
    initial_rank: int = Field(description="rank that each adapter starts with", ge=2)
    alpha: float = Field(description="scale: the adapter adds alpha / initial_rank times P Λ Q", gt=0)
    dropout: float = Field(description="dropout on the adapter's input", ge=0, le=0.99)
    initial_phase: float = Field(description="share of the steps before the rank begins to fall", ge=0, le=1)
    final_phase: float = Field(description="share of the steps at the end, when what is kept stays so", ge=0, le=1)
    update_interval: int = Field(description="steps between two choices of what is kept", ge=1)
    orthogonality: float = Field(description="weight of the penalty that holds P and Q near orthogonal matrices", ge=0)
    ranks: dict[str, int] | None = Field(
        description="each layer's rank where a pruned model.adapter goes on, which says them itself; null in every "
        "other run"
    )


def phases(method: Settings, total: int) -> tuple[int, int]:
    """The last step (from 1) of full rank, and the one that chooses for the last time."""
    return int(method.initial_phase * total), total - int(method.final_phase * total)


def ranks_kept(method: Settings, adapter: dict[str, Any]) -> dict[str, int] | None:
    """By layer, of a saved adapter's adapter_config.json; None where it was not pruned, or does not say it in full."""
    pattern = adapter.get("rank_pattern")
    if not isinstance(pattern, dict) or not pattern:
        return None
    whole = all(isinstance(kept, list) and len(kept) == method.initial_rank for kept in pattern.values())
    return {name.removesuffix(".lora_E"): kept.count(True) for name, kept in pattern.items()} if whole else None


def going_on(method: Settings, adapter: dict[str, Any]) -> Settings:
    """The settings of a run that goes on from it: what was pruned is not in its file, so what was kept stays."""
    return method if method.ranks is not None else method.model_copy(update={"ranks": ranks_kept(method, adapter)})


def peft(method: Settings, arch: Architecture) -> dict[str, Any]:
    return {
        "peft_type": "ADALORA",
        "init_r": method.initial_rank,
        "target_r": method.rank,
        "lora_alpha": method.alpha,
    }


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """Q is PEFT's A, P its B and Λ its E. What is set to zero is kept in these shapes until the adapter is saved."""
    return {name: shape for name, shape in _shapes(method, arch).items() if 0 not in shape}


def saved(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """With the empty tensors of layers that kept nothing."""
    return as_saved(_shapes(method, arch))


def _shapes(method: Settings, arch: Architecture) -> dict[str, Shape]:
    shapes, ranks = dict[str, Shape](), method.ranks or {}
    for name, (outputs, inputs) in targets(method, arch).items():
        rank = ranks.get(name, method.initial_rank)
        own = {"A": (rank, inputs), "E": (rank, 1), "B": (outputs, rank)}
        shapes |= {f"{PREFIX}{name}.lora_{side}.default": shape for side, shape in own.items()}
    return shapes


def optimizer_bytes(method: Settings, optimizer: str, shapes: dict[str, Shape], arch: Architecture, size: int) -> int:
    """With each element's importance, and the means of it and of its deviation (equations 8 to 10), to choose by."""
    importance = 0 if method.ranks else 3 * size * sum(prod(shape) for shape in shapes.values())
    return state_bytes(optimizer, shapes, arch, size) + importance


def notes(method: Settings, arch: Architecture) -> tuple[str, ...]:
    """What a plan says where the ranks are those of a saved adapter."""
    if not method.ranks:
        return ()
    kept, whole = sum(method.ranks.values()), method.initial_rank * len(method.ranks)
    return (
        f"model.adapter was pruned to {kept:,} of {whole:,} singular values: its file has no others, so these train on "
        "and none is pruned any more; method.initial_phase, final_phase and update_interval have no part",
    )


def at_end(method: Settings) -> str | None:
    ends = f"its adapters have method.rank={method.rank} only in the last steps"
    return None if method.ranks else f"{ends}, and up to method.initial_rank={method.initial_rank} before"


RANKS = "whole"
BY_STEP = "it chooses ranks"


@rule(
    "adalora-ranks",
    keys=(
        "method.initial_rank",
        "method.rank",
        "method.initial_phase",
        "method.final_phase",
        "method.ranks",
        "model.adapter",
        "model.path",
    ),
    reason="the adapters start with more than they may keep, and the least important part goes between two phases",
    fix="set method.initial_rank above method.rank, and phases that leave some of the run between them",
)
def adalora_ranks(case: Case) -> Iterator[Broken]:
    method, adapter = case.settings.method, case.model.adapter
    if method.initial_rank <= method.rank:
        yield Broken(message=f"method.rank={method.rank} is no less")
    if method.initial_phase + method.final_phase >= 1:
        wrong = f"method.final_phase={method.final_phase:g} takes the rest of the run"
        yield Broken(key="method.initial_phase", message=wrong)
    if method.ranks is not None and (adapter is None or method.ranks != ranks_kept(method, adapter.config)):
        yield Broken(
            key="method.ranks",
            message="model.adapter has other ranks" if adapter else "there is no model.adapter that was pruned so",
            reason="a run chooses the ranks itself, and one from a pruned adapter has those of its file",
            fix="set method.ranks=null",
        )
