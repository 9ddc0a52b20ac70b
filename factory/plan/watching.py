"""Rules of what is measured and watched while a run trains."""

from factory.config import registry
from factory.plan.evaluating import nothing_measured
from factory.plan.rule import Broken, Case, rule


@rule(
    "eval-unmeasured",
    keys=(
        "stage.eval_steps",
        "stage.load_best_model_at_end",
        "stage.early_stopping_patience",
        "evaluate.perplexity",
        "evaluate.rows",
        "data.validation",
        "data.validation_fraction",
    ),
    reason="an evaluation while training measures the held-out rows",
    fix="set evaluate.perplexity=true and a data.validation_fraction above 0, or stage.eval_steps=null",
)
def eval_unmeasured(case: Case) -> str | Broken | None:
    stage = case.settings.stage
    if stage.eval_steps is not None:
        if not case.settings.evaluate.perplexity:
            return "evaluate.perplexity=false measures nothing on the held-out rows"
        return "data.validation_fraction=0 holds no rows out" if nothing_measured(case.settings) else None
    if not stage.load_best_model_at_end and stage.early_stopping_patience is None:
        return None
    return Broken(
        key=f"stage.{'load_best_model_at_end' if stage.load_best_model_at_end else 'early_stopping_patience'}",
        message="stage.eval_steps=null measures nothing while training",
        reason="the best of one is the last",
        fix="set stage.eval_steps, as to a tenth of the steps",
    )


def _measured(case: Case) -> tuple[str, ...]:
    """What of the held-out rows can be compared; the first is the default. Answers that are sampled have no loss."""
    spec = case.stage_spec
    return (*(() if registry.hook(spec, "MEASURES") else ("loss",)), *registry.hook(spec, "METRICS", ()))


@rule(
    "metric-of-stage",
    keys=("stage.metric_for_best_model", "stage.name"),
    reason="only what a stage measures can be compared",
    fix="set stage.metric_for_best_model to one of these",
)
def metric_of_stage(case: Case) -> str | None:
    stage, there = case.settings.stage, _measured(case)
    return None if stage.metric_for_best_model in there else f"stage={stage.name} has {', '.join(there)}"


def notes(case: Case) -> list[str]:
    """What the plan says where a model of an earlier step than the last may be saved, which is not what it becomes."""
    stage, at_end = case.settings.stage, registry.hook(case.method_spec, "at_end")
    keys = ("early_stopping_patience", "load_best_model_at_end")
    asked = [f"stage.{key}" for key in keys if getattr(stage, key)]
    told = at_end(case.settings.method) if at_end and asked and case.settings.verb == "train" else None
    return [f"{', '.join(asked)}: a model of an earlier step may be saved; {told}"] if told else []
