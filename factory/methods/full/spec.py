"""Every weight is trained."""

from math import prod

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.config.settings import Method
from factory.methods.parts import nothing_trains, of_parts
from factory.optimizers.spec import state_bytes
from factory.plan.choices import precision
from factory.plan.rule import Case, Rule


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


def _accumulated(case: Case) -> str | None:
    steps = case.settings.stage.gradient_accumulation_steps
    together = case.settings.method.layerwise and steps > 1
    return f"gradients of {steps} micro-steps would have to be kept" if together else None


def _clipped_together(case: Case) -> str | None:
    together = case.settings.method.layerwise and case.settings.stage.max_grad_norm is not None
    return "the norm of all gradients is known only when all are there" if together else None


def _scaled_loss(case: Case) -> str | None:
    scaled = case.settings.method.layerwise and precision(case)[0] == "fp16"
    return "float16 gradients may be stepped only when all are known to be finite" if scaled else None


def _clipped_apart(case: Case) -> str | None:
    method = case.settings.method
    unread = method.max_grad_norm_per_tensor is not None and not method.layerwise
    return "it is read with method.layerwise=true only" if unread else None


def _skipped(case: Case) -> str | None:
    late = case.settings.method.layerwise and case.settings.stage.on_bad_update != "stop"
    return "what has moved weights already cannot be skipped" if late else None


LAYERWISE = (
    Rule("layerwise-accumulation", _accumulated),
    Rule("layerwise-clipping", _clipped_together),
    Rule("layerwise-fp16", _scaled_loss),
    Rule("layerwise-skip", _skipped),
    Rule("clipping-per-tensor", _clipped_apart),
)
RULES = (Rule("nothing-trains", nothing_trains(trainable)), *LAYERWISE)
