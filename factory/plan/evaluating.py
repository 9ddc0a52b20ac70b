"""Rules of what is measured once a model is trained, or of one that is evaluated: windows, answers, benchmarks."""

from collections import Counter
from typing import Any

from factory import templates
from factory.config.settings import Evaluate, Settings
from factory.evaluation import spec
from factory.plan import choices, heads
from factory.plan.facts import Machine
from factory.plan.rule import Case, Rule


def stride(asked: Evaluate, length: int) -> int:
    """Tokens of a window after the first that count; unless told otherwise two windows share one token."""
    return length - 1 if asked.stride is None else asked.stride


def nothing_measured(settings: Settings) -> bool:
    """Whether there is no row to measure: none is held out, and those that train are not asked for."""
    data = settings.data
    return data.validation is None and data.validation_fraction == 0 and settings.evaluate.rows == "held_out"


def _trained_rows(case: Case) -> str | None:
    data = case.settings.data
    if case.settings.evaluate.rows == "held_out":
        return None
    if data.streaming:
        return "a stream keeps no row that it has trained"
    if data.validation is not None:
        return f"data.validation={data.validation} holds rows out that nothing would measure"
    held = data.validation_fraction
    return f"data.validation_fraction={held} holds rows out that nothing would measure" if held else None


def _stride_unread(case: Case) -> str | None:
    """Only packed texts are not held to data.max_length."""
    if case.settings.evaluate.stride is None:
        return None
    if not case.settings.evaluate.perplexity:
        return "no perplexity is measured"
    text = case.stage_spec.KIND == "text"
    return None if text and choices.packing(case) else "no held-out row is longer than data.max_length"


def _stride_too_long(case: Case) -> str | None:
    context, asked = choices.context_length(case), case.settings.evaluate.stride
    if context is None or asked is None:
        return None
    length = choices.max_length(case, context)
    return f"windows of {length:,} tokens would leave tokens out" if asked > length - 1 else None


def _first(said: dict[str, Any], wrong: str) -> tuple[str, str] | None:
    """The first of these keys that says something, and what is wrong with it."""
    return next(((f"evaluate.{name}", wrong) for name, there in said.items() if there), None)


def _benchmark_keys_unread(case: Case) -> tuple[str, str] | None:
    asked = case.settings.evaluate
    said = {
        "path": asked.path is not None,
        "shots": case.asked("evaluate.shots"),
        "chat": asked.chat and not asked.harness,
    }
    found = None if asked.benchmarks else _first(said, "no benchmark is asked for")
    if found is None or not asked.harness:
        return found
    key, wrong = found
    return key, f"{wrong}; of evaluate.harness it is {key.replace('.', '.harness_')}"


def _harness_keys_unread(case: Case) -> tuple[str, str] | None:
    asked = case.settings.evaluate
    said = {"harness_path": asked.harness_path is not None, "harness_shots": asked.harness_shots is not None}
    return None if asked.harness else _first(said, "no task is asked for")


def _harness_package(case: Case) -> str | None:
    return without_harness(case.facts.machine) if case.settings.evaluate.harness else None


def without_harness(machine: Machine) -> str | None:
    """What is wrong with tasks of lm-evaluation-harness on this machine, if anything."""
    missing = "lm-eval" not in machine.packages
    return "the package lm-eval, which has these tasks, is not installed" if missing else None


def _harness_twice(case: Case) -> str | None:
    return _twice(case.settings.evaluate.harness)


def _generation_keys_unread(case: Case) -> tuple[str, str] | None:
    asked = case.settings.evaluate
    said = {"metrics": case.asked("evaluate.metrics"), "temperature": asked.temperature != 0}
    return None if asked.generation else _first(said, "no answers are scored")


def _max_samples_unread(case: Case) -> str | None:
    asked = case.settings.evaluate
    read = asked.benchmarks or asked.harness or asked.generation
    unread = asked.max_samples is not None and not read
    return "no benchmark or task is asked for and no answers are scored" if unread else None


def _benchmark_twice(case: Case) -> str | None:
    return _twice(case.settings.evaluate.benchmarks)


def _twice(names: tuple[str, ...]) -> str | None:
    found = [name for name, count in Counter(names).items() if count > 1]
    return f"{found[0]} stands there more than once" if found else None


def _benchmark_path(case: Case) -> str | None:
    """A folder may hold several, each in a folder of its own."""
    asked, found = case.settings.evaluate, case.facts.benchmarks.values()
    on_hub = asked.path is not None and any(each.sha256 is None for each in found)
    return "one set on the hub holds one benchmark" if on_hub and len(asked.benchmarks) > 1 else None


def _benchmark_template(case: Case) -> str | None:
    missing = case.settings.model.template == "auto" and case.model.chat_template is False
    asked = case.settings.evaluate
    conversations = asked.chat and (asked.benchmarks or asked.harness)
    return templates.MISSING if conversations and missing else None


def _nothing_written(case: Case) -> tuple[str, str] | None:
    asked, stage = case.settings.evaluate, case.settings.stage.name
    if heads.writes(stage):
        return None
    said = {"benchmarks": asked.benchmarks, "harness": asked.harness, "generation": asked.generation}
    return _first(said, f"a model of stage={stage} gives scores")


def _nothing_to_answer(case: Case) -> str | None:
    stage = case.settings.stage.name
    if not case.settings.evaluate.generation or not heads.writes(stage):
        return None
    if case.stage_spec.KIND == "text":
        return f"the plain text of stage={stage} holds no answers"
    if nothing_measured(case.settings):
        return "data.validation_fraction=0 holds no rows out"
    held, sets = case.settings.data.validation, case.facts.data
    asked = [name for name in ([held] if held in sets else sets) if name and sets[name].unanswered]
    return f"{asked[0]} holds prompts alone, and no answers to score by" if asked else None


def _no_room(case: Case) -> str | None:
    asked, context = case.settings.evaluate, choices.context_length(case)
    if not asked.generation or context is None:
        return None
    length = choices.max_length(case, context)
    beyond = length + asked.max_new_tokens > context
    return f"with prompts of up to {length:,} tokens it is beyond the context of {context:,}" if beyond else None


def _metrics(case: Case) -> str | None:
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


RULES = (
    Rule("trained-rows", _trained_rows),
    Rule("stride-unread", _stride_unread),
    Rule("stride-too-long", _stride_too_long),
    Rule("benchmark-keys-unread", _benchmark_keys_unread),
    Rule("benchmark-twice", _benchmark_twice),
    Rule("harness-keys-unread", _harness_keys_unread),
    Rule("harness-package", _harness_package),
    Rule("harness-twice", _harness_twice),
    Rule("benchmark-path", _benchmark_path),
    Rule("benchmark-chat", _benchmark_template),
    Rule("generation-keys-unread", _generation_keys_unread),
    Rule("max-samples-unread", _max_samples_unread),
    Rule("nothing-written", _nothing_written),
    Rule("nothing-to-answer", _nothing_to_answer),
    Rule("generation-room", _no_room),
    Rule("generation-metrics", _metrics),
)
