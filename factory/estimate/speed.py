"""How long a run's steps will take, between two bounds: from its FLOPs, and from what runs before it reached.

Nothing is said of a device, of numbers of a type, or of an optimizer that multiplies matrices, that no run was ever
measured with.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from factory.config.settings import Settings
from factory.optimizers.spec import MULTIPLIES, STATES
from factory.plan.facts import Machine, Measured
from factory.plan.plan import Compiled, Estimate, Span, Speed, micro_batches
from factory.quantizers.checkpoint import checkpoint_quantizer
from factory.stages.rows import samples_answers

# how many times slower or faster than what was measured a run may be (docs/measurements.md): the same model and method
# again, another model with the same kind of step, another kind
SAME, SAME_KIND, OTHER_KIND = 1.3, 1.6, 2.0
_FARTHER, _LIKE = 0.25, 2.0  # and from so many times apart on, this power of it more
_COUNTED = "with its products"  # of an optimizer: records from before they were in a run's FLOPs do not have it
_EQUAL = 1.01  # times the work of a token: the same model and method


def device(machine: Machine, plan: Compiled, card: str | None = None) -> str:
    """What computes, as a run there would name it. `card` is one that is planned for, whether it is here or not."""
    processes = f"{plan.settings.hardware.num_processes} x " if plan.settings.hardware.num_processes > 1 else ""
    if plan.steps.load.device == "cpu":
        return f"{processes}{machine.cpu}, threads: {plan.steps.train.threads}"
    here = [gpu.name for gpu in machine.gpus]
    named = [name for name in here if card and card.lower() in name.lower()] or ([card] if card else here)
    return f"{processes}{named[0] if named else 'no GPU'}"


def precision(plan: Compiled) -> str:
    """What products are computed in."""
    return plan.steps.train.autocast or plan.steps.load.dtype


def kind(plan: Compiled) -> str:
    """What two runs share whose FLOPs a second are alike: the stage, the method, how its base is held and computed, and
    the optimizer, last. What is recomputed is in the FLOPs, how many processes compute in the device."""
    return ", ".join((*_computed(plan), _optimized(plan.settings)))


def _computed(plan: Compiled) -> Iterator[str]:
    settings, patch, asked = plan.settings, plan.steps.patch, plan.settings.method.quantization
    quantizer = checkpoint_quantizer(plan.steps.load.config)
    yield settings.stage.name
    yield settings.method.name.removeprefix("q")
    yield f"{asked.bits} bits of {asked.method}" if asked.bits else quantizer or "whole"
    table = (  # what differs from the usual
        (settings.compute.compile, "compiled"),
        (patch.kernels != "none", f"{patch.kernels} kernels"),
        (patch.attention != "sdpa", f"{patch.attention} attention"),
        (settings.hardware.strategy != "none", settings.hardware.strategy),
        (settings.hardware.offload, "offloaded"),
    )
    yield from (name for differs, name in table if differs)


def _optimized(settings: Settings) -> str:
    """The optimizer; of one that multiplies matrices, how many micro-batches share a step of it."""
    name, shared = settings.stage.optimizer, micro_batches(settings)
    if name not in MULTIPLIES:
        return name
    return f"{name} {_COUNTED}{f' after {shared} micro-batches' if shared > 1 else ''}"


def _optimizer(kind: str) -> str | None:
    """Of a kind; None where it is unknown: an older record names none."""
    name = kind.rpartition(", ")[2].partition(" ")[0]
    return name if name in STATES else None


def work(estimate: Estimate) -> float:
    """FLOPs of a token."""
    return estimate.flops_per_step / estimate.tokens_per_step


def micro_batch(estimate: Estimate, settings: Settings) -> float:
    """Tokens in a micro-batch."""
    return estimate.tokens_per_step / micro_batches(settings)


def speed(estimate: Estimate, plan: Compiled, where: str, measured: tuple[Measured, ...]) -> Speed | None:
    """Tokens a second, from what was measured there that is nearest; None where nothing was."""
    if estimate.tokens_per_step == 0 or samples_answers(plan):
        return None  # answers are sampled, as long as they come
    like = Like(kind=kind(plan), work=work(estimate), micro_batch=micro_batch(estimate, plan.settings))
    there = [found for found in measured if (found.device, found.precision) == (where, precision(plan))]
    there = _alike(there, like.kind)
    if not there:
        return None
    nearest = max(_LIKE, min(_apart(found, like) for found in there))  # what is farther tells nothing more
    spans = [bounds(found, like) for found in there if _apart(found, like) <= nearest]
    return Speed(
        low=min(span.low for span in spans) / like.work,
        high=max(span.high for span in spans) / like.work,
        start_seconds=max(found.start_seconds for found in there),
    )


def _alike(there: list[Measured], kind: str) -> list[Measured]:
    """Those of the kind; without any, those with an optimizer that is like its own; at last, those with an unknown one.

    The products of an optimizer may take most of a run's time, at another speed than those of its tokens.
    """
    own = _optimizer(kind)
    known = [(found, _optimizer(found.kind)) for found in there]
    known = [(found, name) for found, name in known if name not in MULTIPLIES or _COUNTED in found.kind]
    same = [found for found, _ in known if found.kind == kind]
    if own in MULTIPLIES:
        return same or [found for found, name in known if name == own]
    like = [found for found, name in known if name is not None and name not in MULTIPLIES]
    return same or like or [found for found, name in known if name is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Like:
    """What of a run its FLOPs a second follow from."""

    kind: str
    work: float
    micro_batch: float


def bounds(found: Measured, like: Like) -> Span:
    """FLOPs a second of such a run, from one that was measured."""
    again = max(found.work, like.work) / min(found.work, like.work) < _EQUAL
    wide = OTHER_KIND if found.kind != like.kind else SAME if again else SAME_KIND
    wide *= max(1.0, _apart(found, like) / _LIKE) ** _FARTHER
    return Span(low=found.flops_per_second / wide, high=found.flops_per_second * wide)


def _apart(found: Measured, like: Like) -> float:
    """How many times the work of a token and the tokens of a micro-batch are those of the other, or its theirs."""
    pairs = ((found.work, like.work), (found.micro_batch, like.micro_batch))
    return prod(max(pair) / min(pair) for pair in pairs)


def seconds(estimate: Estimate) -> Span | None:
    """Of all steps; None where their speed, or how many tokens they have, is not known."""
    found, tokens = estimate.speed, estimate.tokens
    if found is None or tokens is None or tokens.high is None:
        return None
    return Span(low=tokens.low / found.high, high=tokens.high / found.low + found.start_seconds)
