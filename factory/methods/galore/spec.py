"""Full-parameter training whose gradients of matrices are projected to a low rank (GaLore, Zhao et al. 2024)."""

from math import prod

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.methods.full import spec as full
from factory.methods.full.spec import gradients, trainable
from factory.optimizers.spec import HIDDEN, state_bytes
from factory.plan.plan import Compiled
from factory.plan.rule import Case, rule

__all__ = ["RANKS", "Settings", "gradients", "kept", "optimizer_bytes", "projected", "trainable", "unfit"]


class Settings(full.Settings):
    rank: int = Field(description="rank of the projected gradient", ge=1)
    update_interval: int = Field(description="optimizer steps between two singular value decompositions", ge=1)
    scale: float = Field(description="the projected update is multiplied by this", gt=0)


def projected(arch: Architecture) -> set[str]:
    """The tensors whose gradients are projected: matrices of the decoder's linear layers, and stacks of experts'."""
    return {f"{name}.weight" for name in arch.linears()} | set(arch.experts())


def optimizer_bytes(method: Settings, optimizer: str, shapes: dict[str, Shape], arch: Architecture, size: int) -> int:
    """The state at the projected size and the projector, of the shorter side (paper, section 4.1); others whole.

    What is projected is stepped in float32.
    """
    wanted, projectors, low, whole = projected(arch), 0, dict[str, Shape](), dict[str, Shape]()
    for name, shape in shapes.items():
        if name not in wanted:
            whole[name] = shape
            continue
        low[name] = _low(method, shape)
        projectors += 4 * prod(shape[:-2]) * min(shape[-2:]) * method.rank
    return projectors + state_bytes(optimizer, low, arch, 4) + state_bytes(optimizer, whole, arch, size)


def in_the_pass(method: Settings, plan: Compiled) -> bool:
    """Whether gradients are projected as soon as they are whole: in one process, each is so after one backward pass.

    Those of float16 are multiplied until all are known to be finite.
    """
    whole = plan.settings.stage.gradient_accumulation_steps == 1 and plan.settings.hardware.strategy == "none"
    return whole and plan.steps.train.autocast != "float16" and not method.layerwise


def kept(method: Settings, shapes: dict[str, Shape], arch: Architecture, plan: Compiled) -> dict[str, int]:
    wanted = projected(arch) if in_the_pass(method, plan) else ()
    return {name: 4 * prod(_low(method, shape)) for name, shape in shapes.items() if name in wanted}


def _low(method: Settings, shape: Shape) -> Shape:
    """Of the projected gradient."""
    *stack, rows, columns = shape
    return (*stack, method.rank, columns) if rows <= columns else (*stack, rows, method.rank)


@rule(
    "projection-rank",
    keys=("method.rank", "model.path"),
    reason="a projection to a rank above the matrix's own saves nothing",
    fix="set a lower method.rank",
)
def projection_rank(case: Case) -> str | None:
    method, wanted = case.settings.method, projected(case.arch)
    shortest = [min(shape[-2:]) for name, shape in trainable(method, case.arch).items() if name in wanted]
    if not shortest or method.rank <= min(shortest):
        return None
    return f"the narrowest matrix of the model has {min(shortest)} rows"


RANKS = "whole"


def unfit(optimizer: str) -> str | None:
    """Return why the method cannot step with an optimizer."""
    return f"{optimizer} makes an update of a whole matrix orthogonal" if optimizer in HIDDEN else None
