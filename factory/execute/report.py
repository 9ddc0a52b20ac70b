"""report.json: what happened, with what was planned beside it."""

import json
from collections.abc import Mapping
from math import sqrt
from typing import Any

from factory.config.redact import without_secrets
from factory.config.values import to_tree
from factory.config.words import size
from factory.estimate.memory import READING
from factory.estimate.runtime import LIBRARY_PAGES
from factory.execute.context import Run
from factory.execute.memory import library_pages
from factory.plan.plan import Estimate, Plan
from factory.run.folder import write_whole

ADVICE = ("memory_as_estimated",)  # checks that tell how far to trust an estimate: no run fails by them
_NEAR = 0.1  # of the estimate: what memory_as_estimated allows


def memory_as_estimated(memory: dict[str, Any], planned: int, rows: str = "") -> dict[str, dict[str, Any]]:
    """A report's memory while training and what was planned (`rows`: for which); nothing where nothing was measured."""
    if (reached := comparable(memory)) is None:
        return {}
    off = (reached - planned) / planned
    apart = f"{abs(round(100 * off))} % {'more' if off > 0 else 'less'} than" if round(100 * off) else "about"
    beside = memory["peak_bytes"] - reached
    pages = f", beside {size(beside)} that the libraries' files take more here than usual" if beside else ""
    detail = f"{size(reached)} were reached, {apart} the {size(planned)} estimated{rows}{pages}"
    return {"memory_as_estimated": {"passed": abs(off) <= _NEAR, "detail": detail}}


def comparable(memory: dict[str, Any]) -> int | None:
    """Of a report's memory what an estimate can tell: the peak less the pages of libraries' files beyond the usual.

    How many those are is the system's cache's doing (docs/measurements.md).
    """
    peak = memory["peak_bytes"]
    return peak and peak - max(0, (memory.get("library_pages_bytes") or LIBRARY_PAGES) - LIBRARY_PAGES)


def rows_told(estimated_for: dict[str, Any]) -> str:
    """Of a report's memory, where it was estimated again: for which rows, or batches where nothing is padded."""
    if batch := estimated_for.get("batch_tokens"):
        return f" for batches of up to {batch:,} tokens"
    return f" for rows of up to {estimated_for['longest_row']:,} tokens" if estimated_for else ""


def errors(estimate: Estimate, memory: dict[str, Any], train: dict[str, Any] | None) -> dict[str, Any]:
    """Shares by which the estimates were above what came (below: negative): of time, by the geometric
    mean of its range.

    A run that stopped early has no time to compare.
    """
    found: dict[str, Any] = {}
    if reached := comparable(memory):
        found["memory_error"] = round(estimate.memory.total / reached - 1, 4)
    seconds = estimate.seconds
    if seconds is not None and train is not None and train["seconds"] and not train.get("stopped_early"):
        middle = sqrt(seconds.low * seconds.high)
        found |= {"seconds": to_tree(seconds), "time_error": round(middle / train["seconds"] - 1, 4)}
    return found


def mostly_dropped(data: Mapping[str, Any]) -> str | None:
    """Of a report's data, where more than half of the rows that were to be used are dropped: it is another set then."""
    dropped, rows = sum(data["dropped"].values()), data["rows"] - data.get("not_sampled", 0)
    if 2 * dropped <= rows:
        return None
    reason, most = max(data["dropped"].items(), key=lambda entry: entry[1])
    why = reason if most == dropped else f"{most:,} of them: {reason}"
    return f"More than half of the rows are dropped, {dropped:,} of {rows:,} ({why})."


OUT_OF_MEMORY = "out_of_memory"


def blank(plan: Plan, status: str) -> dict[str, Any]:
    """What a report holds however the run went."""
    counted = plan.estimate.parameters
    return {
        "status": status,
        "plan_digest": plan.digest(),
        "options": plan.options,
        "overrides": plan.overrides,
        "parameters": {"total": counted.total, "trainable": counted.trainable},
        "memory": {
            "peak_bytes": None,
            "device": plan.steps.load.device,
            "estimated_bytes": plan.estimate.memory.total if _is_estimated(plan) else None,
        },
        "versions": plan.packages,
    }


def spent(step: str, said: str, reached: int | None) -> dict[str, Any]:
    """The report's `out_of_memory`, as far as the process that ran out knows."""
    return {"step": step, "said": said, "reached_bytes": reached}


def _is_estimated(plan: Plan) -> bool:
    """Whether the estimate is of what is done: steps of training or the perplexity's forward passes."""
    return plan.verb == "train" or (plan.verb == "evaluate" and plan.settings.evaluate.perplexity)


def _peak(run: Run) -> int | None:
    """Of the steps whose memory is estimated; None where there was none."""
    estimated = (run.plan.verb, *(("attach",) if READING in run.plan.estimate.memory.instants else ()))
    return max((run.memory_by_step[name] for name in estimated if name in run.memory_by_step), default=None)


def _pages(run: Run) -> int | None:
    """Of this process; None on a GPU, and with a torch built for CUDA, whose libraries the estimate counts apart."""
    counted = run.plan.steps.load.device == "cpu" and "cuda" not in run.plan.packages
    return library_pages() if counted else None


def write_report(run: Run, status: str, result: dict[str, Any], error: str | None) -> None:
    report = blank(run.plan, status)
    estimated = _is_estimated(run.plan)
    peak = _peak(run) if estimated else max(run.memory_by_step.values(), default=None)
    report["memory"] |= {"peak_bytes": peak, "by_step": run.memory_by_step, "library_pages_bytes": _pages(run)}
    advice = memory_as_estimated(report["memory"], run.plan.estimate.memory.total) if estimated else {}
    report |= {**result, "checks": {**run.checks, **advice}}
    if run.plan.verb == "train":
        report["checks_level"] = run.plan.settings.checks
    if status == "finished" and estimated:
        report["estimate"] = errors(run.plan.estimate, report["memory"], result.get("train"))
    report["warnings"] = run.heard.summary()
    if run.bad_updates is not None:
        report["bad_updates"] = run.bad_updates
    if error is not None:
        report["error"] = error
    write_whole(run.folder.report, as_json(report))


def as_json(report: dict[str, Any]) -> str:
    return json.dumps(without_secrets(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
