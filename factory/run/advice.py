"""What would have needed less memory: changed settings, compiled anew, cheapest for the run first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from factory.config.refusal import UserError
from factory.config.words import size
from factory.plan.plan import Plan

Anew = Callable[[tuple[str, ...]], Plan]  # the plan of these overrides; raises UserError
PURE = "precision=pure_bf16"  # all numbers in 16 bits, those that train too
_SHOWN = 3
_HALVINGS = 4  # of data.max_length that are tried
_SHORTEST = 64  # tokens
CLEARLY_LESS = 0.98  # of what a plan needs: a change that brings less is none
_MARGIN = 0.9  # of what was there, where the estimate was too low once


@dataclass(frozen=True, slots=True)
class Change:
    """Overrides to add, what the plan is estimated to need with them, and whether that fits."""

    overrides: tuple[str, ...]
    estimated_bytes: int
    fits: bool

    def __str__(self) -> str:
        """As it is pasted behind a command line."""
        fits = "fits" if self.fits else "less, and still too much"
        return f"{' '.join(self.overrides)}  # estimated {size(self.estimated_bytes)}, {fits}"


def cheapest(plan: Plan, reached: int | None, anew: Anew) -> list[Change]:
    """At most three changes that fit, or bring the estimate down most; none where the overrides give another plan.

    `reached` is what the run had when it ended.
    """
    if not _is_made_again(plan, anew):
        return []
    fitting, others = list[Change](), list[Change]()
    for kind in _kinds(plan):
        change = _first_that_fits(plan, kind, reached, anew)
        if change is not None and change not in fitting + others:
            (fitting if change.fits else others).append(change)
        if len(fitting) == _SHOWN:
            break
    others.sort(key=lambda change: change.estimated_bytes)
    return [*fitting, *others][:_SHOWN]


def _is_made_again(plan: Plan, anew: Anew) -> bool:
    """By its own overrides, here and now."""
    try:
        return anew(plan.overrides).takes_as(plan)
    except UserError:
        return False


def _first_that_fits(plan: Plan, variants: Iterator[tuple[str, ...]], reached: int | None, anew: Anew) -> Change | None:
    """The mildest variant that fits, else the strongest that compiles and needs less than the plan."""
    last = None
    for overrides in variants:
        try:
            made = anew((*plan.overrides, *overrides))
        except UserError:
            continue
        needed = made.estimate.memory.total
        if needed > CLEARLY_LESS * plan.estimate.memory.total:
            continue
        last = Change(overrides, needed, _fits(plan, needed, reached))
        if last.fits:
            return last
    return last


def _fits(plan: Plan, needed: int, reached: int | None) -> bool:
    """Where the estimate was below what was there, and the run ended all the same, it is as much too low again."""
    memory = plan.estimate.memory
    there = min((each for each in (memory.capacity, reached) if each is not None), default=None)
    if there is not None and memory.total > there:
        return needed <= there
    return needed <= _MARGIN * memory.total


def _kinds(plan: Plan) -> list[Iterator[tuple[str, ...]]]:
    """Kinds of changes, those that leave the result as it is first; of each kind the variants, mildest first."""
    return [
        smaller_batches(plan),
        _recomputed(plan),
        smaller_batches(plan, tuple(next(_recomputed(plan), ()))),
        _quantized(plan),
        _shorter(plan),
        _all_of_it(plan),
    ]


def smaller_batches(plan: Plan, more: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The same sequences a step, in more and smaller micro-batches; fewer where they cannot be accumulated."""
    stage = plan.settings.stage
    size, accumulation = stage.batch_size, stage.gradient_accumulation_steps
    for parts in (parts for parts in range(2, size + 1) if size % parts == 0):
        smaller = f"stage.batch_size={size // parts}"
        yield smaller, f"stage.gradient_accumulation_steps={accumulation * parts}", *more
    if getattr(plan.settings.method, "layerwise", False):
        yield f"stage.batch_size={max(1, size // 2)}", *more


def _recomputed(plan: Plan) -> Iterator[tuple[str, ...]]:
    patch = plan.steps.patch
    if patch.activation_checkpointing is not True or patch.recomputed_layers is not None:
        named = any(text.startswith("compute.recomputed_layers=") for text in plan.overrides)
        yield "compute.activation_checkpointing=true", *(("compute.recomputed_layers=auto",) if named else ())


def _quantized(plan: Plan) -> Iterator[tuple[str, ...]]:
    """A base in 4 bits, where an adapter stands on it; else an adapter. Then with all that stays in 16 bits as well."""
    named = plan.options.get("method")
    own = [("method.quantization.bits=4",)] if plan.settings.method.quantization.bits is None else []
    others = [(f"method={name}",) for name in ("lora", "qlora") if named not in (name, "qlora")]
    yield from (*own, *others)
    in_4_bits = [*own, *others[-1:]] or [()]
    yield from ((*way, *pure) for pure in _pure(plan) for way in in_4_bits)


def _pure(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Trained tensors in 16 bits, and the rest of the model that is not quantized."""
    if plan.steps.attach.dtype != "bfloat16" and takes_bfloat16(plan):
        yield (PURE,)


def takes_bfloat16(plan: Plan) -> bool:
    """`auto` takes float16 where the card has no bfloat16, or the weights are AWQ's, which compute in nothing else."""
    return plan.steps.train.autocast != "float16"


def _shorter(plan: Plan, more: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Rows that are longer are dropped, or cut as data.truncation says."""
    length = plan.steps.pack.max_length
    for halved in (length // 2**number for number in range(1, _HALVINGS + 1)):
        if halved >= _SHORTEST:
            yield *more, f"data.max_length={halved}"


def _all_of_it(plan: Plan) -> Iterator[tuple[str, ...]]:
    """What is not so yet of one sequence at once, recomputed, over a base in 4 bits; then in 16 bits; then shorter."""
    stage = plan.settings.stage
    rows = stage.batch_size * stage.gradient_accumulation_steps
    one = ("stage.batch_size=1", f"stage.gradient_accumulation_steps={rows}") if stage.batch_size > 1 else ()
    lean = ("method=qlora",) if plan.options.get("method") != "qlora" else ()
    together = (*one, *next(_recomputed(plan), ()), *lean)
    ways = [together, *((*together, *pure) for pure in _pure(plan))]
    yield from ways
    for way in ways:
        yield from _shorter(plan, way)
