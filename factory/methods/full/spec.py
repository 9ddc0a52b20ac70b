"""Every weight is trained."""

from collections.abc import Iterator
from math import prod

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.config.settings import Method
from factory.methods.parts import of_parts
from factory.optimizers.spec import state_bytes
from factory.plan.choices import precision
from factory.plan.rule import Broken, Case, rule


class Settings(Method):
    layerwise: bool = Field(
        description="step each tensor within the backward pass and free its gradient: hardly any gradient memory"
    )
    max_grad_norm_per_tensor: float | None = Field(
        description="with layerwise: clip each tensor's gradient norm to this; null: no clipping", gt=0
    )


def trainable(method: Method, arch: Architecture) -> dict[str, Shape]:
    return of_parts(dict(arch.tensors()), method.parts, arch)


def optimizer_bytes(method: Method, optimizer: str, shapes: dict[str, Shape], arch: Architecture, size: int) -> int:
    return state_bytes(optimizer, shapes, arch, size)


def attaches_to_shares(method: Settings) -> bool:
    """Return whether a rank that holds its share of the weights only can attach the method."""
    return not method.layerwise


def gradients(method: Settings, shapes: dict[str, Shape], arch: Architecture) -> int:
    """Elements of the gradients that are there at the same time."""
    sizes = [prod(shape) for shape in shapes.values()]
    return max(sizes, default=0) if method.layerwise else sum(sizes)


@rule(
    "layerwise",
    keys=(
        "method.layerwise",
        "stage.gradient_accumulation_steps",
        "stage.max_grad_norm",
        "stage.on_bad_update",
        "precision.name",
        "hardware.device",
    ),
    reason="each tensor is stepped within the backward pass, before the others have a gradient, and its own is freed",
    fix="set method.layerwise=false",
)
def layerwise(case: Case) -> Iterator[Broken]:
    stage = case.settings.stage
    if not case.settings.method.layerwise:
        return
    if stage.gradient_accumulation_steps > 1:
        yield Broken(
            key="stage.gradient_accumulation_steps",
            message=f"gradients of {stage.gradient_accumulation_steps} micro-steps would have to be kept",
            fix="set stage.gradient_accumulation_steps=1 and a larger stage.batch_size",
        )
    if stage.max_grad_norm is not None:
        yield Broken(
            key="stage.max_grad_norm",
            message="the norm of all gradients is known only when all are there",
            fix="set stage.max_grad_norm=null, and method.max_grad_norm_per_tensor to clip each tensor by itself",
        )
    if precision(case)[0] == "fp16":
        yield Broken(
            key="precision.name",
            message="float16 gradients may be stepped only when all are known to be finite",
            fix="set precision=bf16",
        )
    if stage.on_bad_update != "stop":
        yield Broken(
            key="stage.on_bad_update",
            message="what has moved weights already cannot be skipped",
            fix="set stage.on_bad_update=stop, which keeps the last checkpoint, or method.layerwise=false",
        )
