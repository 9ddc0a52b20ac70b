"""A sweep: Hydra hands out the jobs, each is compiled and launched like a single run, and a table closes it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factory import compose
from factory.plan import Tracking
from factory.run.folder import RunFolder, read_json, write_whole
from factory.run.screen import Screen, markdown, runs_table, size
from factory.run.tracking import connect

Job = Callable[[compose.Composed], int]
_INTERRUPTED = 130


class _Stopped(Exception):
    """Ctrl-C ended a job, and with it the sweep."""


def sweep(line: compose.CommandLine, job: Job, screen: Screen) -> int:
    """Runs every job and returns the exit code: 0 when all finished, 130 when interrupted, else 1."""
    folder, shared = compose.sweep_folder(line)
    Path(folder).mkdir(parents=True, exist_ok=True)
    tracking = Tracking(**shared.tree["tracking"])
    parent = _parent_run(tracking, folder, line)
    given = compose.prepared(line).overrides
    nested = [f"++tracking.parent_run={parent}"] if parent else []
    arguments = [*given, *nested, f"hydra.sweep.dir={Path(folder).as_posix()}", "--multirun"]

    def task(config: Any) -> float:
        composed = compose.of_job(config)
        screen.print(f"\njob {composed.run_dir}: {' '.join(composed.overrides) or '(defaults)'}", style="bold")
        code = job(composed)
        if code == _INTERRUPTED:
            raise _Stopped
        evaluate = (read_json(RunFolder(composed.run_dir).report) or {}).get("evaluate", {})
        return float(evaluate.get("perplexity", "nan"))  # what an optimizing sweeper minimizes

    stopped = False
    try:
        compose.hydra_main(task, arguments)
    except _Stopped:
        stopped = True
    rows = summary(Path(folder))
    screen.print(runs_table(rows))
    table = Path(folder) / "compare.md"
    write_whole(table, markdown(rows))
    screen.print(f"written to {table}")
    done = all(row["status"] == "finished" for row in rows) and bool(rows)
    _close_parent(tracking, parent, table, done)
    return _INTERRUPTED if stopped else 0 if done else 1


def summary(folder: Path) -> list[dict[str, Any]]:
    """A row a job, from its report; a job without one was refused, and its log says why."""
    jobs = [path for path in folder.iterdir() if path.is_dir() and (path / "run.log").is_file()]
    rows = []
    for path in sorted(jobs, key=lambda path: (len(path.name), path.name)):
        refused: dict[str, Any] = {"status": f"refused, see {path.name}/run.log"}
        report = read_json(path / "report.json") or refused
        options = report.get("options", {})
        train, evaluate = report.get("train", {}), report.get("evaluate", {})
        rows.append(
            {
                "job": path.name,
                "method": options.get("method", "-"),
                "stage": options.get("stage", "-"),
                "trainable": f"{report['parameters']['trainable']:,}" if "parameters" in report else "-",
                "memory": size(report.get("memory", {}).get("peak_bytes")),
                "tokens/s": _number(train.get("tokens_per_second"), 0),
                "perplexity before": _number(evaluate.get("perplexity_before"), 3),
                "perplexity": _number(evaluate.get("perplexity"), 3),
                "status": report["status"],
            }
        )
    return rows


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
