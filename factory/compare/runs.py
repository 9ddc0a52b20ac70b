"""One run as it is compared: what its folder says, whatever state it is in."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from factory.config.refusal import UserError
from factory.config.words import pasted
from factory.execute.report import ADVICE, blank
from factory.plan.plan import Plan, read_plan
from factory.run.folder import RunFolder, is_held, read_json, step_of

Status = Literal[
    "finished", "red check", "failed", "interrupted", "running", "cut short", "refused", "not run", "missing"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """`said` is what a reader must know of it beside its numbers. `folder` is None where there is none here.

    `told_by_name`: a recipe gave it its name, which says what it is.
    """

    name: str
    where: str
    status: Status
    said: str | None = None
    overrides: tuple[str, ...] = ()
    options: dict[str, str]
    report: dict[str, Any]
    plan: Plan | None = None
    lines: tuple[dict[str, Any], ...] = ()
    folder: Path | None = None
    told_by_name: bool = False
    tokenizer: str | None = None  # the saved one's vocabulary and rules
    loaded: str | None = None  # those of the tokenizer beside the weights that it read from a folder
    base: str | None = None  # the weights and the tokens that are added to them, from which it follows too


def absent(name: str, where: str, status: Status, said: str | None, overrides: tuple[str, ...] = ()) -> Run:
    """A run of which there is nothing but its name."""
    return Run(name=name, where=where, status=status, said=said, overrides=overrides, options={}, report={})


def of_folder(path: Path) -> Run:
    """The run in this folder. Nothing is raised for what is missing, broken or forbidden: it is said."""
    name = path.name or str(path)
    if not os.path.isdir(path):  # noqa: PTH112  of a name that is too long, Path raises
        return absent(name, str(path), "missing", "there is no such folder")
    try:
        return _of_folder(name, path)
    except OSError as error:
        return absent(name, str(path), "missing", f"{error.filename or 'it'} cannot be read ({error.strerror})")


def _of_folder(name: str, path: Path) -> Run:
    folder = RunFolder(path)
    if not folder.plan.is_file() and not folder.report.is_file():
        return absent(name, str(path), "missing", "there is no run in this folder (no plan.yaml, no report.json)")
    plan, said = _plan(folder)
    lines, unread = _lines(folder.metrics)
    said += [unread] if unread else []
    report = read_json(folder.report)
    if report is None:
        status, more = _unreported(folder, plan, lines)
        said += [more] if more else []
        report = _so_far(plan, lines)
    else:
        status = of_report(report)
        said += [*_error(report), *(f"{name} is red" for name in red(report))]
    told = plan.overrides if plan else report.get("overrides", ())
    return Run(
        name=name,
        where=str(path),
        status=status,
        said="; ".join(said) or None,
        overrides=tuple(map(str, told)),
        options=plan.options if plan else report.get("options", {}),
        report=report,
        plan=plan,
        lines=lines,
        folder=path,
        tokenizer=_tokenizer(folder.model),
        loaded=_loaded(plan),
        base=_base(plan),
    )


def of_mlflow(
    run_id: str, status: Status, report: dict[str, Any], plan: Plan | None, lines: list[dict[str, Any]]
) -> Run:
    """A run whose folder is elsewhere, from what MLflow was sent of it."""
    said = ["its folder is not here: from MLflow, without rows"]
    said += [*_error(report), *(f"{name} is red" for name in red(report))]
    return Run(
        name=run_id,
        where=run_id,
        status=status,
        said="; ".join(said),
        overrides=tuple(plan.overrides if plan else report.get("overrides", ())),
        options=plan.options if plan else report.get("options", {}),
        report=report or _so_far(plan, tuple(lines)),
        plan=plan,
        lines=tuple(lines),
    )


def _error(report: dict[str, Any]) -> list[str]:
    return [str(report["error"]).splitlines()[0].rstrip(".")] if report.get("error") else []


def of_report(report: dict[str, Any]) -> Status:
    status = report.get("status", "failed")
    return "red check" if status == "finished" and red(report) else status


def red(report: dict[str, Any]) -> list[str]:
    """The checks that say the run is not what it should be."""
    checks = report.get("checks", {}).items()
    return [name for name, check in checks if not check["passed"] and name not in ADVICE]


def _plan(folder: RunFolder) -> tuple[Plan | None, list[str]]:
    try:
        return read_plan(folder.plan), []
    except UserError as error:
        problem = error.refusals[0]
        return None, [f"its plan cannot be used: {problem.wrong.partition(' (')[0]}"]


def _lines(path: Path) -> tuple[tuple[dict[str, Any], ...], str | None]:
    """What was logged, and what of it cannot be read; the last line may be half written."""
    if not path.is_file():
        return (), None
    try:
        *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        return (), f"{path.name} cannot be read ({error.strerror})"
    found, broken = list[dict[str, Any]](), 0
    for text in whole:
        try:
            line = json.loads(text)
            found.append({"step": line["step"], **line})
        except (ValueError, KeyError, TypeError):
            broken += 1
    return tuple(found), f"{broken} lines of {path.name} cannot be read" if broken else None


def _unreported(folder: RunFolder, plan: Plan | None, lines: tuple[dict[str, Any], ...]) -> tuple[Status, str | None]:
    if folder.report.is_file():
        return "failed", "its report.json cannot be read"
    saved, logged = folder.checkpoint(), lines[-1]["step"] if lines else 0
    at = f"{max(logged, step_of(saved) if saved else 0):,}"
    total = f" of {plan.estimate.steps}" if plan and plan.verb == "train" else ""
    if is_held(folder.lock):
        return "running", f"it is at step {at}{total}"
    resumed = "" if saved is None else f"; to continue: {pasted('resume', folder.path)}"
    return "cut short", f"it ended at step {at}{total} without a report{resumed}"


def _so_far(plan: Plan | None, lines: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """What a report would hold by now."""
    report = blank(plan, "running") if plan else {}
    if not lines:
        return report
    last = lines[-1]
    seconds, tokens = last.get("seconds"), last.get("tokens")
    train = {
        "steps": last["step"],
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
        "final_loss": last.get("loss"),
    }
    peak = max((line["memory"] for line in lines if line.get("memory")), default=None)
    return {**report, "memory": {**report.get("memory", {}), "peak_bytes": peak}, "train": train}


def _loaded(plan: Plan | None) -> str | None:
    """Not where the run adds tokens to it, nor where an adapter was saved with a tokenizer of its own."""
    if plan is None or plan.steps.load.source != "folder" or plan.steps.load.adapter or plan.settings.model.new_tokens:
        return None
    return _tokenizer(Path(plan.steps.load.path))


def _tokenizer(model: Path) -> str | None:
    """What tells the tokenizer in a model's folder from another. A run that only measures saves none."""
    saved = read_json(model / "tokenizer.json")
    if saved is None:
        return None
    rules = {name: value for name, value in saved.items() if name not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]


def _base(plan: Plan | None) -> str | None:
    return None if plan is None else f"{plan.steps.load.fingerprint} {' '.join(plan.settings.model.new_tokens)}".strip()
