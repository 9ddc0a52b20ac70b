"""Rules of what is measured once a model is trained, or of one that is evaluated: windows, answers, benchmarks."""

from collections import Counter

from factory.config.settings import Evaluate, Settings
from factory.evaluation import spec
from factory.plan import choices, heads
from factory.plan.rule import Broken, Case, rule


def stride(asked: Evaluate, length: int) -> int:
    """Tokens of a window after the first that count; unless told otherwise two windows share one token."""
    return length - 1 if asked.stride is None else asked.stride


def nothing_measured(settings: Settings) -> bool:
    """Whether there is no row to measure: none is held out, and those that train are not asked for."""
    data = settings.data
    return data.validation is None and data.validation_fraction == 0 and settings.evaluate.rows == "held_out"


@rule(
    "trained-rows",
    keys=("evaluate.rows", "data.validation", "data.validation_fraction", "data.streaming"),
    reason="evaluate.rows=train measures the rows that train, each once",
    fix="set data.validation=null data.validation_fraction=0 data.streaming=false, or evaluate.rows=held_out",
)
def trained_rows(case: Case) -> str | None:
    data = case.settings.data
    if case.settings.evaluate.rows == "held_out":
        return None
    if data.streaming:
        return "a stream keeps no row that it has trained"
    if data.validation is not None:
        return f"data.validation={data.validation} holds rows out that nothing would measure"
    held = data.validation_fraction
    return f"data.validation_fraction={held} holds rows out that nothing would measure" if held else None


@rule(
    "stride-too-long",
    keys=("evaluate.stride", "data.max_length", "model.context_length", "model.path"),
    reason="every token after a text's first is counted once, and a window's first has nothing before it",
    fix="lower evaluate.stride below data.max_length, or leave it out",
)
def stride_too_long(case: Case) -> str | None:
    context, asked = choices.context_length(case), case.settings.evaluate.stride
    if context is None or asked is None:
        return None
    length = choices.max_length(case, context)
    return f"windows of {length:,} tokens would leave tokens out" if asked > length - 1 else None


def _twice(names: tuple[str, ...]) -> str | None:
    found = [name for name, count in Counter(names).items() if count > 1]
    return f"{found[0]} stands there more than once" if found else None


@rule(
    "benchmark-path",
    keys=("evaluate.path", "evaluate.benchmarks"),
    reason="each has its own columns and subjects",
    fix=(
        "ask for one benchmark, or put them into a folder that holds a folder of each name, or leave evaluate.path out"
    ),
)
def benchmark_path(case: Case) -> str | None:
    """A folder may hold several, each in a folder of its own."""
    asked, found = case.settings.evaluate, case.facts.benchmarks.values()
    on_hub = asked.path is not None and any(each.sha256 is None for each in found)
    return "one set on the hub holds one benchmark" if on_hub and len(asked.benchmarks) > 1 else None


@rule(
    "nothing-written",
    keys=("evaluate.benchmarks", "evaluate.harness", "evaluate.generation", "evaluate.samples", "stage.name"),
    reason="training changes a head that scores answers, not the language model's head that writes them",
    fix="remove it; evaluate.perplexity=true measures loss and accuracy on the held-out pairs",
)
def nothing_written(case: Case) -> Broken | None:
    evaluate, stage = case.settings.evaluate, case.settings.stage.name
    if heads.writes(stage):
        return None
    message = f"a model of stage={stage} gives scores"
    if case.settings.verb == "chat":
        fix = "`factory serve` has /v1/score for it; for a conversation name the run that it judges, or the base"
        return Broken(key="stage.name", message=message, fix=fix)
    values = {name: getattr(evaluate, name) for name in ("benchmarks", "harness", "generation")}
    values["samples"] = evaluate.samples if case.asked("evaluate.samples") else 0
    key = next((name for name, value in values.items() if value), None)
    return Broken(key=f"evaluate.{key}", message=message) if key else None


@rule(
    "nothing-to-answer",
    keys=(
        "evaluate.generation",
        "evaluate.rows",
        "stage.name",
        "data.sources",
        "data.validation",
        "data.validation_fraction",
    ),
    reason="the prompts of held-out rows are answered, and the answers compared with the rows' own",
    fix="set evaluate.generation=false, or hold out rows of conversations in text",
)
def nothing_to_answer(case: Case) -> str | None:
    stage = case.settings.stage.name
    if not case.settings.evaluate.generation or not heads.writes(stage):
        return None
    if case.stage_spec.KIND == "text":
        return f"the plain text of stage={stage} holds no answers"
    if nothing_measured(case.settings):
        return "data.validation_fraction=0 holds no rows out"
    held, sets = case.settings.data.validation, case.facts.data
    asked = [name for name in ([held] if held in sets else sets) if name and sets[name].unanswered]
    return f"{asked[0]} holds only prompts, and no answers to score by" if asked else None


@rule(
    "generation-room",
    keys=("evaluate.max_new_tokens", "evaluate.generation", "data.max_length", "model.context_length", "model.path"),
    reason="an answer follows its prompt, and positions that the model never saw come out as noise",
    fix="lower evaluate.max_new_tokens or data.max_length (which holds the prompts, with the rows' own answers)",
)
def generation_room(case: Case) -> str | None:
    asked, context = case.settings.evaluate, choices.context_length(case)
    if not asked.generation or context is None:
        return None
    length = choices.max_length(case, context)
    beyond = length + asked.max_new_tokens > context
    return f"with prompts of up to {length:,} tokens it is beyond the context of {context:,}" if beyond else None


@rule(
    "generation-metrics",
    keys=("evaluate.metrics", "evaluate.generation"),
    reason="each is a figure of its own in the report",
    fix="name each metric once, as [bleu4,rougeL] or [my_metrics:overlap]",
)
def generation_metrics(case: Case) -> str | None:
    asked = case.settings.evaluate.metrics
    if not case.settings.evaluate.generation:
        return None
    if not asked:
        return "nothing is left to score by"
    unknown = [name for name in asked if spec.kind(name) is None]
    if unknown:
        return f"{unknown[0]} is none of {', '.join(spec.METRICS)}, and no module:function"
    if known := [name for name in asked if spec.taken(name)]:
        return f"{known[0]} would be called {spec.shown(known[0])}, as another figure is"
    return _twice(tuple(spec.shown(name) for name in asked))
