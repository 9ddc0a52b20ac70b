"""How many sequences the data of a plan made when they were prepared: then a plan's steps are exact."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import replace
from functools import cache
from math import ceil
from pathlib import Path

import factory
from factory import cache as cache_folder
from factory.config.values import to_tree
from factory.estimate import speed
from factory.plan.plan import Plan, Range
from factory.schedules import total_steps
from factory.stages.rows import rows_per_step


@cache
def code() -> str:
    """A hash of the files of this room, and of the templates and their tools: what a cache of theirs depends on."""
    found = hashlib.sha256()
    package = Path(factory.__file__).parent
    for folder in (package / "data", package / "templates"):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".yaml", ".jinja"):
                found.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def remember(plan: Plan, sequences: int, tokens: int) -> None:
    """Written whole or not at all; a cache that cannot be written is no loss here."""
    path = _path(plan)
    if path is None:
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps([sequences, tokens]))
        aside.rename(path)
    with suppress(OSError):
        aside.unlink(missing_ok=True)


def exact(plan: Plan) -> Plan:
    """The plan with its number of steps, and of whole passes their tokens, where its data were prepared before."""
    path, stage, estimate = _path(plan), plan.settings.stage, plan.estimate
    if path is None:
        return plan
    try:
        sequences, tokens = (int(count) for count in json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return plan
    each = rows_per_step(plan)
    steps = total_steps(sequences, each, 1, stage.num_epochs, stage.max_steps)
    estimate = replace(estimate, steps=Range(low=steps, high=steps))
    if estimate.tokens is not None:
        passes = stage.num_epochs if stage.max_steps is None else steps * each / sequences
        found = Range(low=int(passes) * tokens, high=ceil(passes) * tokens)
        estimate = replace(estimate, tokens=_narrower(estimate.tokens, found))
        estimate = replace(estimate, seconds=speed.seconds(estimate))
    return replace(plan, estimate=estimate)


def _narrower(guessed: Range, found: Range) -> Range:
    """`found` holds; where it is a range, the guess may narrow it."""
    assert guessed.high is not None and found.high is not None
    low, high = max(guessed.low, found.low), min(guessed.high, found.high)
    return Range(low=low, high=high) if low <= high and found.low < found.high else found


def _path(plan: Plan) -> Path | None:
    """None where the content of the data or of the tokenizer is not known."""
    steps, decisive = plan.steps, plan.decisive()
    unknown = any(source.sha256 is None or source.asked.origin == "function" for source in plan.sources.values())
    if plan.settings.data.streaming or unknown:  # of many rows that a function gives the plan knows the code alone
        return None
    parts = [
        plan.settings.seed,
        decisive["settings"]["data"],
        decisive["steps"]["align"],
        to_tree(steps.pack),
        plan.settings.model.template,
        # the same bytes are other rows under another suffix
        [Path(source.path).suffixes[-2:] for source in plan.sources.values()],
        plan.settings.stage.name,
        [steps.load.source, steps.load.fingerprint, steps.load.revision, list(plan.settings.model.new_tokens)],
        plan.packages.get("transformers"),
        plan.own,
        code(),
    ]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder.folder() / "data" / "sequences" / f"{key}.json"
