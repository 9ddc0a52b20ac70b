"""A sweep: Hydra hands out the jobs, each is compiled and launched like a single run, and a table closes it."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from factory import compose
from factory.execute.context import STARTED, append
from factory.run.folder import RunFolder, read_json, unwritable, write_whole
from factory.run.screen import Screen, markdown, runs_table
from factory.run.tracking import connect
from factory.schema import Tracking
from factory.words import program, size

Job = Callable[[compose.Composed], int]
_INTERRUPTED = 130
_OUTCOMES = "jobs.jsonl"  # a line a job, whichever process ran it
_STATUS = {0: "finished", 1: "failed", 2: "refused", 130: "interrupted"}


class _Stopped(Exception):
    """Ctrl-C ended a job, and with it the sweep."""


def sweep(line: compose.CommandLine, job: Job, screen: Screen) -> int:
    """Runs every job and returns the exit code: 0 when all finished, 130 when interrupted, else 1."""
    ready = compose.prepared(line)
    folder, shared = compose.sweep_folder(line, ready)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(Path(folder), error) from None
    tracking = Tracking(**{field.name: shared.tree["tracking"].get(field.name) for field in fields(Tracking)})
    parent = _parent_run(tracking, folder, line)
    nested = [f"++tracking.parent_run={parent}"] if parent else []
    arguments = [*ready.overrides, *nested, f"hydra.sweep.dir={Path(folder).as_posix()}", "--multirun"]

    def task(config: Any) -> float:
        composed = compose.of_job(config)
        words = " ".join(composed.overrides) or "(defaults)"
        screen.print(f"\njob {composed.run_dir}: {words}", style="bold", soft_wrap=True)
        os.environ[STARTED] = str(time.time())
        code = job(composed)
        append(Path(folder) / _OUTCOMES, {"job": Path(composed.run_dir).name, "code": code})
        if code == _INTERRUPTED:
            raise _Stopped
        evaluate = (read_json(RunFolder(composed.run_dir).report) or {}).get("evaluate", {})
        return float(evaluate.get(_measure(evaluate), "nan"))  # what an optimizing sweeper minimizes

    stopped = False
    try:
        compose.hydra_main(task, arguments)
    except _Stopped:
        stopped = True
    rows = summary(Path(folder))
    screen.print(runs_table(rows))
    table = Path(folder) / "compare.md"
    write_whole(table, markdown(rows))
    screen.print(f"Written to {table}", soft_wrap=True)
    if tracking.uri:
        screen.print(f"Next: {program('mlflow')} ui --backend-store-uri {tracking.uri}", soft_wrap=True)
    done = all(row["status"] == "finished" for row in rows) and bool(rows)
    _close_parent(tracking, parent, table, done)
    return _INTERRUPTED if stopped else 0 if done else 1


def summary(folder: Path) -> list[dict[str, Any]]:
    """A row a job: what it ended with, and what its report says where it got as far as that."""
    lines = (folder / _OUTCOMES).read_text(encoding="utf-8").splitlines() if (folder / _OUTCOMES).exists() else []
    jobs = {line["job"]: line["code"] for line in map(json.loads, lines)}
    reports = {name: read_json(folder / name / "report.json") if code != 2 else None for name, code in jobs.items()}
    common = set.intersection(*[set(report["overrides"]) for report in reports.values() if report] or [set()])
    measures = {_measure(report.get("evaluate", {})) for report in reports.values() if report} or {"perplexity"}
    measured = f"{measures.pop()} " if len(measures) == 1 else ""
    rows = []
    for name in sorted(reports, key=lambda name: (len(name), name)):
        report = reports[name] or {"overrides": []}
        swept = [text for text in report["overrides"] if text not in common and not text.startswith("method=")]
        options = report.get("options", {})
        train, evaluate = report.get("train", {}), report.get("evaluate", {})
        rows.append(
            {
                "job": name,
                "method": options.get("method", "-"),
                "set": " ".join(swept),
                "trainable": f"{report['parameters']['trainable']:,}" if "parameters" in report else "-",
                "memory": size(report.get("memory", {}).get("peak_bytes")),
                "tokens/s": _number(train.get("tokens_per_second"), 0),
                f"{measured}before": _told(evaluate, "_before", alone=bool(measured)),
                "after": _told(evaluate, "", alone=bool(measured)),
                "status": _STATUS[jobs[name]] + (f", see {name}/run.log" if jobs[name] in (1, 2) else ""),
            }
        )
    unused = all(not row["set"] for row in rows)
    return [{name: value for name, value in row.items() if name != "set" or not unused} for row in rows]


def _measure(evaluate: dict[str, Any]) -> str:
    """What of the held-out rows a job is compared by: the loss where whole answers are judged."""
    return "loss" if "loss" in evaluate else "perplexity"


def _told(evaluate: dict[str, Any], when: str, *, alone: bool) -> str:
    """The measure's value; with its name where the jobs have several."""
    name = _measure(evaluate)
    number = _number(evaluate.get(f"{name}{when}"), 3)
    return number if alone or number == "-" else f"{name} {number}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _parent_run(tracking: Tracking, folder: str, line: compose.CommandLine) -> str | None:
    if tracking.uri is None:
        return None
    try:
        client, experiment = connect(tracking)
        run = client.create_run(experiment, run_name=f"sweep {folder}", tags={"overrides": " ".join(line.overrides)})
    except Exception as error:  # whatever a server may raise: the jobs run all the same
        print(f"MLflow cannot be reached ({type(error).__name__}); the sweep's folder has it all.", file=sys.stderr)
        return None
    return run.info.run_id


def _close_parent(tracking: Tracking, parent: str | None, table: Path, done: bool) -> None:
    if parent is None:
        return
    try:
        client, _ = connect(tracking)
        client.log_artifact(parent, str(table))
        client.set_terminated(parent, "FINISHED" if done else "FAILED")
    except Exception as error:  # as above
        print(f"MLflow did not get the table ({type(error).__name__}): {table}", file=sys.stderr)
