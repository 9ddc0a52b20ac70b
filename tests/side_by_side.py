"""Folders of runs as they are after a run, without one: a real plan, and a report, rows and curves of our own."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from conftest import compiled

from factory.config.settings import Tracking
from factory.evaluation import rows
from factory.execute.report import as_json, blank
from factory.plan.plan import Plan, to_yaml
from factory.run.folder import RunFolder

SHARED = ("hardware=cpu", "tracking=none", "evaluate.samples=0", "stage.max_steps=4")


def tracking(uri: str | None, **changes: Any) -> Tracking:
    """Where the plans that are made here would be logged, by default to MLflow."""
    tool = "none" if uri is None else "mlflow"
    values = {"uri": uri, "tool": tool, "experiment": "factory", "parent_run": None, "mode": "online"}
    return Tracking(**{**values, "system_metrics": False, "system_metrics_seconds": 10.0, **changes})


@cache
def plan(*overrides: str) -> Plan:
    return compiled(*SHARED, *overrides, training=False)


def run(
    folder: Path,
    *overrides: str,
    evaluate: dict[str, Any] | None = None,
    losses: Sequence[float | None] = (4.0, 3.5, 3.0, 2.5),
    status: str = "finished",
    scores: dict[str, Sequence[float]] | None = None,
    nats: Sequence[tuple[float, int]] = (),
    tokenizer: str | None = "words",
    **more: Any,
) -> Path:
    """`scores` are per row of generated answers, `nats` (sum, tokens) per held-out row."""
    made, where = plan(*overrides), RunFolder(folder)
    where.path.mkdir(parents=True)
    where.plan.write_text(to_yaml(made))
    report = blank(made, status)
    report["memory"]["peak_bytes"] = 3 * 2**30
    train = {"steps": len(losses), "tokens": 400, "seconds": 8.0, "tokens_per_second": 50.0, "final_loss": losses[-1]}
    report |= {"train": train, "evaluate": evaluate or {}, "checks": {}, **more}
    where.report.write_text(as_json(report))
    lines = [
        {"step": at, "loss": loss, "learning_rate": 1e-3 / at, "tokens": 100 * at, "seconds": 2.0 * at, "memory": 2**30}
        | {"time": 1.7e9 + 2.0 * at}
        for at, loss in enumerate(losses, start=1)
    ]
    where.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    if tokenizer is not None:
        where.model.mkdir()
        (where.model / "tokenizer.json").write_text(json.dumps({"model": tokenizer}))
    if scores:
        names = list(scores)
        rows.write(
            where.evaluation / "generation.jsonl",
            [
                {"id": f"demo:{at}", "scores": dict(zip(names, each, strict=True))}
                for at, each in enumerate(zip(*scores.values(), strict=True))
            ],
        )
    if nats:
        measured = [
            {"id": f"demo:{at}", "scores": {"nats": sum_, "tokens": size}} for at, (sum_, size) in enumerate(nats)
        ]
        rows.write(where.evaluation / "perplexity.jsonl", measured)
    return folder
