"""report.json: what happened, with what was planned beside it."""

import json
from typing import Any

from factory.execute.context import Run
from factory.run.folder import write_whole

MEMORY_TOLERANCE = 0.10


def write_report(run: Run, status: str, result: dict[str, Any], error: str | None) -> None:
    plan = run.plan
    peak = run.memory_by_step.get("train")
    report: dict[str, Any] = {
        "status": status,
        "plan_digest": plan.digest(),
        "options": plan.options,
        "overrides": plan.overrides,
        "parameters": {
            "total": plan.estimate.parameters.total,
            "trainable": plan.estimate.parameters.trainable,
        },
        "memory": {
            "peak_bytes": peak,
            "device": plan.steps.load.device,
            "estimated_bytes": plan.estimate.memory.total,
            "by_step": run.memory_by_step,
        },
        **result,
        "checks": run.checks,
        "versions": plan.packages,
    }
    if error is not None:
        report["error"] = error
    write_whole(run.folder.report, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
