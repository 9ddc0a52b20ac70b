"""Rules of what is measured and watched while a run trains."""

from factory.config import registry
from factory.plan.evaluating import nothing_measured
from factory.plan.rule import Case, Rule


def _unmeasured(case: Case) -> str | None:
    if case.settings.stage.eval_steps is None:
        return None
    if not case.settings.evaluate.perplexity:
        return "evaluate.perplexity=false measures nothing on the held-out rows"
    return "data.validation_fraction=0 holds no rows out" if nothing_measured(case.settings) else None


def _unevaluated(case: Case) -> str | tuple[str, str] | None:
    stage, wrong = case.settings.stage, "stage.eval_steps=null measures nothing while training"
    if stage.eval_steps is not None:
        return None
    if stage.load_best_model_at_end:
        return wrong
    return None if stage.early_stopping_patience is None else ("stage.early_stopping_patience", wrong)


def _measured(case: Case) -> tuple[str, ...]:
    """What of the held-out rows can be compared; the first is the default. Answers that are sampled have no loss."""
    spec = case.stage_spec
    return (*(() if registry.hook(spec, "MEASURES") else ("loss",)), *registry.hook(spec, "METRICS", ()))


def _metric_of_stage(case: Case) -> str | None:
    stage, there = case.settings.stage, _measured(case)
    return None if stage.metric_for_best_model in there else f"stage={stage.name} has {', '.join(there)}"


def _metric_unread(case: Case) -> str | None:
    stage = case.settings.stage
    unread = stage.metric_for_best_model != _measured(case)[0] and stage.eval_steps is None
    return "no evaluation compares it" if unread else None


def _threshold_unread(case: Case) -> str | None:
    stage = case.settings.stage
    unread = stage.early_stopping_threshold and stage.early_stopping_patience is None
    return "no early stopping reads it" if unread else None


def _skips_unread(case: Case) -> str | None:
    unread = case.asked("stage.max_skipped_updates") and case.settings.stage.on_bad_update == "stop"
    return "nothing is skipped" if unread else None


def notes(case: Case) -> list[str]:
    """What the plan says where a model of an earlier step than the last may be saved, which is not what it becomes."""
    stage, at_end = case.settings.stage, registry.hook(case.method_spec, "at_end")
    keys = ("early_stopping_patience", "load_best_model_at_end")
    asked = [f"stage.{key}" for key in keys if getattr(stage, key)]
    told = at_end(case.settings.method) if at_end and asked and case.settings.verb == "train" else None
    return [f"{', '.join(asked)}: a model of an earlier step may be saved; {told}"] if told else []


RULES = (
    Rule("eval-unmeasured", _unmeasured),
    Rule("best-unevaluated", _unevaluated),
    Rule("metric-of-stage", _metric_of_stage),
    Rule("metric-unread", _metric_unread),
    Rule("threshold-unread", _threshold_unread),
    Rule("skips-unread", _skips_unread),
)
