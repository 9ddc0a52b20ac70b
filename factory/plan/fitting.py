"""The memory that a run may take: how much there is, whether a plan fits, and what is recomputed so that it does."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import ceil, inf

from factory.config.refusal import Refusal, refusal
from factory.config.values import plain
from factory.config.words import size
from factory.estimate.memory import READING
from factory.plan import choices, plan
from factory.plan.facts import Machine
from factory.plan.rule import Case

_memory = partial(
    refusal,
    "memory",
    because="the process would be killed while loading or at the first step",
    fix=(
        "take a base in 4 bits (method=qlora) and precision=pure_bf16, whichever is not set yet; else a "
        "smaller model or fewer trained parameters"
    ),
    machine=True,
)

_MARGIN = 0.95  # of a machine's memory: others have some
_FILLED = 0.95  # of what a run may take: estimates were up to 8 % too low, most by less than 5 (docs/measurements.md)


def capacity(case: Case, *, training: bool) -> int | None:
    """Bytes for one process: of its card, or its share of a node's memory. What is set is no more than a budget.

    None of a card that is not here: this machine's own memory says nothing of it.

    `training`: there is no more than is free, whatever was set.
    """
    budget, free = _budget(case), _here(case, free=True)
    if free is None or not budget:
        return budget or free
    return min(budget, free) if training else budget


def against_memory(made: plan.Plan) -> list[Refusal]:
    """Refuses what cannot fit whatever the activations are: the estimate's exact part alone is too large."""
    memory = made.estimate.memory
    needed, what = _without_activations(made), "weights, gradients and optimizer take"
    # on a CPU they lie in mapped files, whose pages give way
    read = memory.instants.get(READING, 0) if made.steps.load.device == "cuda" else 0
    if read > needed:
        needed, what = read, "reading the weights takes"
    if memory.capacity is None or needed <= memory.capacity:
        return []
    wrong = f"{what} {size(needed)}, {size(memory.capacity)} are for a run"
    return [_memory(f"method={made.options.get('method')}", wrong)]


def against_host(case: Case, setting: str, moved: int) -> list[Refusal]:
    """Refuses what the host cannot hold of what a setting has `moved` to it, in bytes, off each GPU.

    Of a GPU that is not here nobody knows the host.
    """
    machine = case.facts.machine
    there = machine.available_bytes // choices.processes(case)
    if not machine.gpus or moved <= there:
        return []
    wrong = f"of each process {size(moved)} would be in the host's memory, which has {size(there)} for it"
    return [_memory(setting, wrong)]


def as_little_recomputed(case: Case, make: Callable[[Case], plan.Plan], *, training: bool) -> plan.Plan:
    """The plan with the least recomputation with which it fits; where none does, with the most.

    Recomputation spares activations alone: a plan whose other tensors do not fit keeps all of them.
    Into what there is, free just now or not: else the same command would give another plan an hour later. `training`:
    no more than that, whatever was set.
    """
    first, *others = choices.recomputations(case)
    tried = [made := make(_recomputing(case, first))]
    budget, here = _budget(case), _here(case, free=False)
    there = min(budget, here) if training and budget and here else budget or here
    kept = made.estimate.memory.total

    def fits(made: plan.Plan, share: float = _FILLED) -> bool:
        return there is None or made.estimate.memory.total <= share * there

    if there is not None and _without_activations(made) > there:
        return made
    for kind in others:
        if fits(made):
            break
        tried.append(made := make(_recomputing(case, kind)))
    if not fits(made):  # what is left to recompute may be more work for no less memory
        least = min(tried, key=lambda each: each.estimate.memory.total)
        made = next((each for each in tried if fits(each, 1)), least)
    if (chosen := made.steps.patch.activation_checkpointing) == first:
        return made
    if not case.traits.remote_code:  # which may know all layers or none
        limit = inf if there is None else _FILLED * there
        made = _of_fewest_layers(
            made,
            choices.layers(case),
            kept=kept,
            limit=limit,
            make=lambda few: make(_recomputing(case, chosen, few)),
        )
    few = made.steps.patch.recomputed_layers
    said = f"{plain(chosen)} for the first {few} of {choices.layers(case)} layers" if few else plain(chosen)
    there = there or 0
    why = f"with all activations kept it is estimated at {size(kept)}, {size(there)} are for a run"
    why += ", less a twentieth as estimates are not exact" if kept <= there else ""
    return replace(made, notes=(*made.notes, f"compute.activation_checkpointing=auto: {said}, as {why}"))


def _of_fewest_layers(
    most: plan.Plan,
    layers: int,
    *,
    kept: int,
    limit: float,
    make: Callable[[int], plan.Plan],
) -> plan.Plan:
    """Return the plan that recomputes the fewest layers and fits into `limit` bytes, else `most`, which recomputes all.

    `kept` are the bytes without recomputation. Each layer spares about as much as another, so the number to try
    next is interpolated between the bounds.
    """
    low, high, found = (0, kept), (layers, most.estimate.memory.total), most
    if high[1] > limit:
        return most
    while high[0] - low[0] > 1:
        share = (low[1] - limit) / max(1, low[1] - high[1])
        few = min(high[0] - 1, max(low[0] + 1, low[0] + ceil(share * (high[0] - low[0]))))
        made = make(few)
        if made.estimate.memory.total <= limit:
            high, found = (few, made.estimate.memory.total), made
        else:
            low = (few, made.estimate.memory.total)
    return found


def _without_activations(made: plan.Plan) -> int:
    """Bytes of weights, gradients and the optimizer's state."""
    memory = made.estimate.memory
    return memory.weights + memory.gradients + memory.optimizer


def _recomputing(case: Case, kind: plan.Recomputed, layers: int | None = None) -> Case:
    changes = {"activation_checkpointing": kind} | ({} if layers is None else {"recomputed_layers": layers})
    compute = case.settings.compute.model_copy(update=changes)
    return replace(case, settings=case.settings.model_copy(update={"compute": compute}))


def _budget(case: Case) -> int | None:
    asked = case.settings.hardware.memory
    return asked and (asked if case.device == "cuda" else asked // choices.processes(case))


def _here(case: Case, *, free: bool) -> int | None:
    return there_is(case.facts.machine, case.device, choices.processes(case), free=free)


def there_is(machine: Machine, device: str, each: int, *, free: bool) -> int | None:
    """Bytes of this machine for one of `each` processes: of the cards that they take the fullest's, or its share."""
    if device == "cuda":
        cards = machine.gpus[:each]
        return min((card.usable_bytes if free else int(_MARGIN * card.memory_bytes) for card in cards), default=None)
    if free or machine.memory_bytes is None:
        return machine.available_bytes // each
    return int(_MARGIN * machine.memory_bytes) // each
