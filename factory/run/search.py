"""The best legal settings for a memory budget: changed settings, compiled anew, of which those that fit are ranked.

A way to hold the model is tried with each recomputation, from what was asked to what changes more of the run. The
micro-batch and the rank of the best are raised as long as they fit.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log, sqrt
from typing import Any

from factory.config.refusal import UserError
from factory.config.values import to_tree
from factory.config.words import rate, size
from factory.estimate.speed import work
from factory.plan.plan import Patch, Plan, micro_batches
from factory.run.advice import CLEARLY_LESS, PURE, Anew, smaller_batches, takes_bfloat16

Overrides = tuple[str, ...]

# ways to hold the model, those that change less of the run first; then others than the asked method, for want of it
_HELD: tuple[Overrides, ...] = (
    (),
    ("stage.optimizer=adamw_8bit",),
    ("method.quantization.bits=8",),
    ("method.quantization.bits=4",),
    (PURE,),
    (PURE, "stage.optimizer=adamw_8bit"),
    ("method.quantization.bits=4", PURE),  # what is not quantized is much of a small model, and of one on a CPU
)
_OTHERS: tuple[Overrides, ...] = (("method=lora",), ("method=qlora",), ("method=qlora", PURE))
_RECOMPUTED = (False, "selective", True)  # what costs less time first
_WORDS = ("compute.activation_checkpointing=", "compute.recomputed_layers=")
_KEPT = f"{_WORDS[0]}false"  # of every plan that says no other: what `auto` means is tried here
_LARGEST_BATCH, _LARGEST_RANK = 64, 256
_RAISED = 3  # rows whose micro-batch is raised; the rank is raised of the best alone
_APART = 1.1  # times the work of a token that is told apart
_VAGUE = 10  # times from the lowest to the highest speed: a guess that wide tells no rows apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Overrides to add to the command line, and their plan. `way` is how much they change of how the model is held."""

    overrides: Overrides
    plan: Plan
    way: int

    @property
    def flops_per_token(self) -> float:
        return work(self.plan.estimate)

    @property
    def cost(self) -> float | None:
        """Seconds of a token, by the middle of what is expected; None where no run like it was measured."""
        speed = self.plan.estimate.speed
        return None if speed is None or speed.high > _VAGUE * speed.low else 1 / sqrt(speed.low * speed.high)

    @property
    def sequences(self) -> int:
        return self.plan.settings.stage.batch_size * micro_batches(self.plan.settings)

    @property
    def rank(self) -> int | None:
        return getattr(self.plan.settings.method, "rank", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Rows, the best first. `budget` is in bytes; `refused` counts those of the tried plans that a rule forbids."""

    asked: Plan
    rows: tuple[Row, ...]
    timed: bool  # whether all rows are compared by their time
    budget: int
    tried: int
    refused: int


def search(plan: Plan, anew: Anew) -> Found:
    """`plan` is that of the command line without changes, `anew` makes plans of other overrides."""
    tried = _Tried(plan, anew)
    rows = list(_ways(tried, _HELD, 0)) or list(_ways(tried, _OTHERS, len(_HELD)))
    _sort(rows, plan)
    raised = [*(_larger_batch(tried, row) for row in rows[:_RAISED]), *(_higher_rank(tried, row) for row in rows[:1])]
    rows += [row for found in raised for row in found]
    _sort(rows, plan)
    rows = [_as_short(row, plan, anew) for row in rows]
    return Found(
        asked=plan, rows=tuple(rows), timed=_timed(rows), budget=tried.budget, tried=tried.count, refused=tried.refused
    )


def _as_short(row: Row, asked: Plan, anew: Anew) -> Row:
    """Without the words for what is recomputed, where the command line says the same."""
    overrides = tuple(text for text in row.overrides if not text.startswith(_WORDS))
    if anew((*asked.overrides, *overrides)).takes_as(row.plan):
        return replace(row, overrides=overrides)
    kept, *more = _beneath(asked)
    return replace(row, overrides=(*((kept,) if overrides == row.overrides else ()), *more, *row.overrides))


def _beneath(asked: Plan) -> Overrides:
    """What stands before the changes: which layers are recomputed is tried here, whatever was asked."""
    named = any(text.startswith(_WORDS[1]) for text in asked.overrides)
    return (_KEPT, f"{_WORDS[1]}auto") if named else (_KEPT,)


class _Tried:
    """The plans of changes, each compiled once."""

    def __init__(self, plan: Plan, anew: Anew):
        assert plan.estimate.memory.capacity is not None, "nothing is searched for a card that nobody knows"
        self.plan, self.budget = plan, plan.estimate.memory.capacity
        self._anew = anew
        self._made: dict[Overrides, Plan] = {}
        self.refused = 0

    @property
    def count(self) -> int:
        return len(self._made) + self.refused

    def __call__(self, overrides: Overrides) -> Plan | None:
        """None where it is not legal."""
        if overrides not in self._made:
            try:
                self._made[overrides] = self._anew((*self.plan.overrides, *_beneath(self.plan), *overrides))
            except UserError:
                self.refused += 1
                return None
        return self._made[overrides]

    def fitting(self, overrides: Overrides) -> Plan | None:
        made = self(overrides)
        return made if made is not None and made.estimate.memory.fits else None


def _sort(rows: list[Row], asked: Plan) -> None:
    """Less time or work a token; then what changes less of the run; then larger micro-batches and ranks."""
    was = Row(overrides=(), plan=asked, way=0)
    timed = _timed(rows)
    costs = {row.overrides: (row.cost if timed else None) or row.flops_per_token for row in rows}
    least = min(costs.values(), default=1.0)

    def order(row: Row) -> tuple[float, ...]:
        return (
            round(log(costs[row.overrides] / least) / log(_APART)),
            row.way,
            row.sequences != was.sequences,
            row.rank != was.rank,
            _RECOMPUTED.index(row.plan.steps.patch.activation_checkpointing),
            -row.plan.settings.stage.batch_size,
            -(row.rank or 0),
        )

    rows.sort(key=order)


def _timed(rows: list[Row]) -> bool:
    return bool(rows) and all(row.cost is not None for row in rows)


def _ways(tried: _Tried, ways: tuple[Overrides, ...], first: int) -> Iterator[Row]:
    """Each way that takes clearly less than those before it, or is the first that fits."""
    least = float("inf")
    for number, own in enumerate(ways, start=first):
        if PURE in own and not takes_bfloat16(tried.plan):
            continue
        plain = tried(own)
        if plain is None or plain.estimate.memory.total > CLEARLY_LESS * least:
            continue
        least = plain.estimate.memory.total
        if _held(plain) <= tried.budget:
            yield from _recomputed(tried, own, plain, number)


def _recomputed(tried: _Tried, own: Overrides, plain: Plan, way: int) -> Iterator[Row]:
    """With each recomputation the largest micro-batch that fits, up to the one that fits as it was asked for."""
    seen = list[Plan]()
    for kind in _RECOMPUTED:
        said = f"{_WORDS[0]}{str(kind).lower()}"
        same = plain.steps.patch.activation_checkpointing == kind
        overrides = own if same else (*own, said)
        made = tried(overrides)
        if made is None:
            continue
        found = _up_to_asked(tried, overrides, made)
        if found is not None:
            smaller, fitting = _of_fewest_layers(tried, *found) if kind else found
            if not any(fitting.takes_as(each) for each in seen):
                yield Row(overrides=smaller, plan=fitting, way=way)
            seen.append(fitting)
            if found[0] == overrides:
                return


def _of_fewest_layers(tried: _Tried, overrides: Overrides, made: Plan) -> tuple[Overrides, Plan]:
    """What `auto` says where it fits too: as little as needs be."""
    least = tuple(f"{_WORDS[0]}auto" if text.startswith(_WORDS[0]) else text for text in overrides)
    found = tried.fitting(least)
    return (overrides, made) if found is None else (least, found)


def _up_to_asked(tried: _Tried, overrides: Overrides, made: Plan) -> tuple[Overrides, Plan] | None:
    if made.estimate.memory.fits:
        return overrides, made
    size = made.settings.stage.batch_size
    for change in smaller_batches(made):
        smaller = (*overrides, *change)
        if _at_least(made, _batch(change), size) <= tried.budget and (found := tried.fitting(smaller)):
            return smaller, found
    return None


def _at_least(made: Plan, batch: int, size: int) -> float:
    """Bytes below which no smaller micro-batch brings a plan: what grows with it is at most all but what is held."""
    held = _held(made)
    return held + (made.estimate.memory.total - held) * batch / size


def _held(made: Plan) -> int:
    """Bytes that are there whatever is recomputed, and however small the micro-batches are."""
    memory = made.estimate.memory
    return memory.weights + memory.optimizer + memory.runtime


def _batch(change: Overrides) -> int:
    return next(int(text.partition("=")[2]) for text in change if text.startswith("stage.batch_size="))


def _larger_batch(tried: _Tried, row: Row) -> Iterator[Row]:
    """More sequences a step, in one micro-batch."""
    stage = row.plan.settings.stage
    if stage.gradient_accumulation_steps > 1:
        return
    yield from _largest(tried, row, "stage.batch_size", stage.batch_size, _LARGEST_BATCH)


def _higher_rank(tried: _Tried, row: Row) -> Iterator[Row]:
    if row.rank:
        yield from _largest(tried, row, "method.rank", row.rank, _LARGEST_RANK)


def _largest(tried: _Tried, row: Row, key: str, now: int, most: int) -> Iterator[Row]:
    """The row with the largest of the key's doubled numbers that fits. What two plans take tells where to look."""
    numbers, needed = list[int](), row.plan.estimate.memory.total
    while now * 2 ** (len(numbers) + 1) <= most:
        numbers.append(now * 2 ** (len(numbers) + 1))
    first = tried((*row.overrides, f"{key}={numbers[0]}")) if numbers else None
    if first is None or not first.estimate.memory.fits:
        return
    each = max(1, first.estimate.memory.total - needed) / now
    for number in reversed(numbers):
        guessed = needed + each * (number - now)
        overrides = (*row.overrides, f"{key}={number}")
        if CLEARLY_LESS * guessed <= tried.budget and (made := tried.fitting(overrides)):
            yield Row(overrides=overrides, plan=made, way=row.way)
            return


_THEN = "then what changes less of the run, then the larger micro-batch and rank"
_ORDER = {
    True: f"by tokens a second, as runs here suggest, {_THEN}",
    False: f"by FLOPs a token, as no run was measured on this device, {_THEN}",
}


def as_text(found: Found, width: int) -> str:
    """A row a line, what to add to the command line at its end; below it, unbroken, where the width does not do."""
    tried = f"{found.tried} plans tried" + (f", {found.refused} of them refused" if found.refused else "")
    if not found.rows:
        return f"Nothing fits {size(found.budget)} ({tried}): a smaller model, or a shorter data.max_length."
    rough = found.asked.estimate.memory.uncalibrated
    told = [
        f"Settings that fit {size(found.budget)}, the best first; {tried}.",
        f"Ranked {_ORDER[found.timed]}.",
        *([f"Rough: memory was never measured with {', '.join(rough)}."] if rough else []),
    ]
    return "\n".join([*(line for text in told for line in textwrap.wrap(text, width)), "", *_table(found, width)])


_BELOW = "    add  "


def _table(found: Found, width: int) -> list[str]:
    head = ("memory", "batch", "a step", "rank", "recomputed", "tokens/s" if found.timed else "GFLOP/token", "add")
    cells = [head, *(_cells(row, timed=found.timed) for row in found.rows)]
    rooms = [max(len(line[column]) for line in cells) for column in range(len(cells[0]) - 1)]
    numbers = ["  ".join(f"{text:>{room}}" for text, room in zip(line[:-1], rooms, strict=True)) for line in cells]
    beside = [f"{right}  {line[-1]}" for right, line in zip(numbers, cells, strict=True)]
    if max(map(len, beside)) <= width:
        return beside
    rows = zip(numbers[1:], cells[1:], strict=True)
    return [numbers[0], *(line for right, cell in rows for line in (right, f"{_BELOW}{cell[-1]}"))]


def _cells(row: Row, *, timed: bool) -> tuple[str, ...]:
    stage, speed = row.plan.settings.stage, row.plan.estimate.speed
    return (
        size(row.plan.estimate.memory.total),
        str(stage.batch_size),
        str(row.sequences),
        str(row.rank or "-"),
        _recomputes(row.plan.steps.patch),
        f"{rate(speed.low)} to {rate(speed.high)}" if timed and speed else f"{row.flops_per_token / 1e9:.3g}",
        " ".join(row.overrides) or "(nothing: as it is)",
    )


def _recomputes(patch: Patch) -> str:
    """Of which layers, the first ones."""
    if not patch.activation_checkpointing:
        return "-"
    few = str(patch.recomputed_layers or "all")
    return few if patch.activation_checkpointing is True else f"selective {few}"


def as_json(found: Found) -> dict[str, Any]:
    return {
        "budget_bytes": found.budget,
        "order": _ORDER[found.timed],
        "tried": found.tried,
        "refused": found.refused,
        "rows": [_tree(row) for row in found.rows],
    }


def _tree(row: Row) -> dict[str, Any]:
    settings, steps, estimate = row.plan.settings, row.plan.steps, row.plan.estimate
    return {
        "overrides": list(row.overrides),
        "digest": row.plan.digest(),
        "method": row.plan.options.get("method"),
        "quantization_bits": settings.method.quantization.bits,
        "activation_checkpointing": steps.patch.activation_checkpointing,
        "recomputed_layers": steps.patch.recomputed_layers,
        "batch_size": settings.stage.batch_size,
        "gradient_accumulation_steps": settings.stage.gradient_accumulation_steps,
        "sequences_per_step": row.sequences,
        "rank": row.rank,
        "estimated_bytes": estimate.memory.total,
        "flops_per_token": round(row.flops_per_token),
        "tokens_per_second": estimate.speed and {"low": estimate.speed.low, "high": estimate.speed.high},
        "seconds": to_tree(estimate.seconds),
    }
