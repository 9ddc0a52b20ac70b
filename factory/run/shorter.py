"""A finished run beside the estimate for the rows that came: a plan knows no more than how long they may be."""

from dataclasses import replace
from typing import Any

from factory.config.refusal import UserError
from factory.execute.report import errors, memory_as_estimated, rows_told
from factory.plan.plan import Plan
from factory.run.advice import Anew
from factory.stages.rows import sequences


def for_the_rows(plan: Plan, report: dict[str, Any], anew: Anew | None) -> dict[str, Any]:
    """The report, held against the same plan of rows that are no longer than the longest batch was.

    As it was where sequences are filled, a row was as long as may be, or the overrides give another plan now.
    """
    longest, memory, pack = report.get("train", {}).get("longest_row"), report["memory"], plan.steps.pack
    if anew is None or not (memory["peak_bytes"] and longest) or pack.packing or longest >= pack.max_length:
        return report
    try:
        made = anew((*plan.overrides, f"data.max_length={longest}"))
    except UserError:
        return report
    if not _as_long(made, plan).takes_as(plan):
        return report
    estimate = made.estimate
    rows = {"longest_row": longest, "bytes": estimate.memory.total}
    if pack.padding_free:  # `longest` is no row's length then, but a mean
        rows["batch_tokens"] = longest * plan.settings.stage.batch_size * sequences(plan)
    checks = memory_as_estimated(memory, estimate.memory.total, rows_told(rows))
    memory_error = errors(estimate, memory, None)
    return {
        **report,
        "memory": {**memory, "estimated_for": rows},
        "checks": {**report.get("checks", {}), **checks},
        "estimate": {**report.get("estimate", {}), **memory_error},
    }


def _as_long(made: Plan, plan: Plan) -> Plan:
    """With what follows from the length as `plan` has it."""
    pack = replace(made.steps.pack, max_length=plan.steps.pack.max_length)
    evaluate = replace(made.steps.evaluate, stride=plan.steps.evaluate.stride)
    return replace(made, steps=replace(made.steps, pack=pack, evaluate=evaluate))
