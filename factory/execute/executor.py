"""Walks a plan: each step runs when what it takes is there, cheapest first; what nobody will read is dropped."""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from factory.execute.context import Run
from factory.plan.plan import Plan, Verb


@dataclass(frozen=True, slots=True)
class Step:
    """`module:function` of factory.steps, called as function(run, **takes); it returns the values that it gives.

    `after` are values that it waits for and does not take: a mistake in them costs no weights.
    """

    name: str
    function: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    after: tuple[str, ...] = ()


# cheapest first: a mistake in the data is found before a weight is read
STEPS: tuple[Step, ...] = (
    Step("load", "load:load", (), ("config", "tokenizer", "processor")),
    Step("align", "align:align", ("tokenizer", "processor"), ("aligned",)),
    Step("pack", "pack:pack", ("aligned", "tokenizer"), ("dataset",)),
    Step("questions", "score:questions", ("tokenizer", "dataset"), ("asked",)),
    Step("reward", "reward:reward", ("tokenizer",), ("reward",)),
    Step("patch", "patch:patch", ("config",), ("patched",)),
    Step("quantize", "quantize:quantize", (), ("quantization",)),
    Step("attach", "attach:attach", ("patched", "quantization"), ("model", "arch"), after=("dataset",)),
    Step("witness", "proofs:witness", ("model", "dataset"), ("seen",)),
    Step("reference", "reference:reference", ("model", "dataset"), ("reference",)),
    Step("baseline", "evaluate:before", ("model", "tokenizer", "dataset", "reference", "reward"), ("before",)),
    Step(
        "train",
        "train:train",
        ("model", "arch", "tokenizer", "processor", "dataset", "reference", "reward", "before"),
        ("trained",),
    ),
    Step("prove", "proofs:prove", ("model", "arch", "dataset", "reference", "seen", "trained"), ("expected",)),
    Step(
        "evaluate",
        "evaluate:after",
        ("model", "tokenizer", "dataset", "reference", "reward", "before", "trained"),
        ("measured",),
    ),
    Step("score", "score:score", ("model", "tokenizer", "dataset", "asked", "measured"), ("result",)),
    Step("reload", "proofs:reload", ("expected", "result"), ("proven",)),
)


_TRAINING = ("witness", "reward", "reference", "baseline", "train", "prove", "evaluate", "reload")
# the same without training: what is measured is the model as it was read
EVALUATION = (
    *(step for step in STEPS if step.name not in _TRAINING),
    Step("evaluate", "evaluate:only", ("model", "tokenizer", "dataset"), ("measured",)),
)
# a model is read as it is evaluated, and written in another form; what can be refused is, before its weights are read
EXPORT = (
    *(step for step in STEPS if step.name in ("load", "patch", "quantize")),
    Step("ready", "export:ready", ("config", "tokenizer"), ("ready",)),
    Step("attach", "attach:attach", ("patched", "quantization"), ("model", "arch"), after=("ready",)),
    Step("merge", "export:merge", ("model", "tokenizer"), ("merged",)),
    Step("write", "export:write", ("merged", "tokenizer", "processor", "ready"), ("written",)),
    Step("publish", "export:publish", ("written",), ("result",)),
)
# an adapter is written without its base
ADAPTER = (
    *(step for step in EXPORT if step.name in ("load", "ready")),
    Step("write", "export:copy", ("tokenizer",), ("written",), after=("ready",)),
    Step("publish", "export:publish", ("written",), ("result",)),
)
# but where no base that people have is the one that it was trained over: how far each is from it is measured
MEASURED_ADAPTER = (
    *(step for step in EXPORT if step.name in ("load", "patch", "quantize", "ready")),
    Step("measure", "apart:adapter", ("patched", "quantization"), ("apart",), after=("ready",)),
    Step("write", "export:copy", ("tokenizer", "apart"), ("written",)),
    Step("publish", "export:publish", ("written",), ("result",)),
)
_TABLES: dict[Verb, tuple[Step, ...]] = {"train": STEPS, "evaluate": EVALUATION, "export": EXPORT}


def of_plan(plan: Plan) -> tuple[Step, ...]:
    """The steps that the plan's verb takes."""
    if plan.export is not None and plan.settings.export.format == "adapter":
        return ADAPTER if plan.steps.load.own_base is None else MEASURED_ADAPTER
    return _TABLES[plan.verb]


def order(steps: tuple[Step, ...]) -> list[Step]:
    """The steps so that each comes after those whose values it takes or waits for; ties keep the table's order."""
    waiting, known, ordered = list(steps), set[str](), list[Step]()
    while waiting:
        ready = next((step for step in waiting if known.issuperset(step.takes + step.after)), None)
        assert ready is not None, f"no step gives what {[step.name for step in waiting]} take"
        waiting.remove(ready)
        ordered.append(ready)
        known.update(ready.gives)
    return ordered


def walk(run: Run, steps: tuple[Step, ...] | None = None) -> Any:
    """Runs the steps, of the plan's verb unless told which, and returns what the last one gives."""
    values: dict[str, Any] = {}
    ordered = order(steps or of_plan(run.plan))
    for number, step in enumerate(ordered):
        with run.step(step.name):
            call = resolve_name(f"factory.steps.{step.function}")
            given = call(run, **{name: values[name] for name in step.takes})
        assert given.keys() == set(step.gives), f"{step.name} gave {sorted(given)}"
        values |= given
        later = {name for other in ordered[number + 1 :] for name in other.takes} | set(ordered[-1].gives)
        values = {name: value for name, value in values.items() if name in later}
    (result,) = values.values()
    return result
