"""Exports within the test's own process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from factory import cli
from factory.config import compose
from factory.execute import executor
from factory.execute.context import Run
from factory.plan.plan import Plan
from factory.plan.untrained import exported as of_export
from factory.run.folder import RunFolder

HERE = ("hardware=cpu", "tracking=none")
SHORT = (
    "stage.max_steps=3",
    "stage.learning_rate=1e-2",
    "data.max_length=256",
    "data.max_samples=24",
    "precision=fp32",
    "stage.save_steps=null",
    "evaluate.perplexity=false",
)


def planned(*words: str) -> Plan:
    """The plan of `factory export WORDS`. Raises UserError."""
    composed = of_export(compose.parse([*HERE, *words], "export"))
    return cli._compiled(replace(composed, run_dir="export-run"), training=True, verb="export")


def exported(*words: str) -> dict[str, Any]:
    """What the report says of it, with its checks."""
    where = RunFolder("export-run")
    where.path.mkdir(exist_ok=True)
    run = Run(plan=planned(*words), folder=where, resume_from=None)
    result = executor.walk(run)
    return {**result["export"], "checks": run.checks}


def losses(model: Any, ids: list[int]) -> Any:
    """(length - 1,) nats of each token but the first."""
    import torch

    from factory.attention.segments import with_masks
    from factory.logits import text_model

    tokens = torch.tensor([ids])
    with torch.no_grad(), with_masks(text_model(model)):
        logits = model.eval()(input_ids=tokens).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")


def files(folder: Path | str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
