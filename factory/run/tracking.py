"""MLflow, from the parent and in a thread of its own: neither a slow nor a lost server can touch the run."""

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from factory import registry
from factory.plan import Plan
from factory.run.folder import RunFolder, read_json, write_whole
from factory.schema import Tracking
from factory.stages.loss import Unit
from factory.typed import plain, to_tree

_NO_METRICS = ("step", "time", "seconds")  # of a line in metrics.jsonl: its place, not what was measured
_PATIENCE = 120  # seconds to wait for the server when the run is over
_LONGEST_PARAMETER = 6000


class Tracker:
    """Collects while the run goes on and sends in batches. `problem` says what went wrong, if anything did."""

    def __init__(self, plan: Plan, folder: RunFolder):
        self.problem: str | None = None
        self._plan, self._folder = plan, folder
        self._queue: queue.Queue[Callable[[Session], None] | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def metrics(self, lines: list[dict[str, Any]]) -> None:
        if lines:
            self._send(lambda session: session.metrics(lines))

    def finish(self, report: dict[str, Any]) -> None:
        """Sends the result and waits until all is delivered or the patience ends."""
        self._send(lambda session: session.finish(report))
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                self.problem = f"no answer from {self._plan.tracking.uri} within {_PATIENCE} s"

    def _send(self, action: "Callable[[Session], None]") -> None:
        if self._plan.tracking.uri is None:
            return
        self._queue.put(action)
        if self._thread is None:  # MLflow is imported when there is something to send, not while the run is starting
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def _work(self) -> None:
        try:
            session = Session(self._plan, self._folder)
            while (action := self._queue.get()) is not None:
                action(session)
        except Exception as error:  # whatever a server or its database may raise: told, never fatal
            self.problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


class Session:
    """One MLflow run. A resumed run continues the one whose id its folder keeps."""

    def __init__(self, plan: Plan, folder: RunFolder):
        self._plan, self._folder = plan, folder
        self._client, experiment = connect(plan.tracking)
        known = (read_json(folder.tracking) or {}).get("run_id")
        self._run_id: str = known or self._create(experiment)
        self._sent = self._last_step() if known else 0
        if known:
            self._client.update_run(self._run_id, status="RUNNING")

    def _create(self, experiment: str) -> str:
        plan = self._plan
        tags = {
            "model": plan.options.get("model", ""),
            "method": plan.steps.attach.method,
            "stage": plan.steps.train.stage,
            "digest": plan.digest(),
            "folder": str(self._folder.path),
        }
        if plan.tracking.parent_run:
            tags["mlflow.parentRunId"] = plan.tracking.parent_run
        name = f"{tags['model']} {tags['method']} {tags['stage']}"
        run_id = self._client.create_run(experiment, tags=tags, run_name=name).info.run_id
        write_whole(self._folder.tracking, f'{{"run_id": "{run_id}"}}\n')
        from mlflow.entities import Param

        params = [Param(name, value[:_LONGEST_PARAMETER]) for name, value in flattened(plan).items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(run_id, params=params[start : start + 100])
        self._client.log_artifact(run_id, str(self._folder.plan))
        return run_id

    def _last_step(self) -> int:
        history = self._client.get_metric_history(self._run_id, "loss")
        return max((metric.step for metric in history), default=0)

    def metrics(self, lines: list[dict[str, Any]]) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [line for line in lines if line["step"] > self._sent]
        metrics = [
            Metric(name, value, now, line["step"])
            for line in new
            for name, value in line.items()
            if name not in _NO_METRICS and value is not None
        ]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + 1000])
        self._sent = max((line["step"] for line in new), default=self._sent)

    def finish(self, report: dict[str, Any]) -> None:
        told = report.get("evaluate", {})
        measured = {name: value for name, value in told.items() if isinstance(value, int | float)}
        # what a curve of training is called, too, is told apart
        watched = {name.removesuffix("_before") for name in measured} - {"perplexity"}
        values = {f"{name}_after" if name in watched else name: value for name, value in measured.items()}
        values |= dict(_of_benchmarks(told.get("benchmarks", {})))
        if (peak := report["memory"]["peak_bytes"]) is not None:
            values["peak_bytes"] = peak
        for name in ("memory_error", "time_error"):
            if (off := report.get("estimate", {}).get(name)) is not None:
                values[f"estimate/{name}"] = off
        for name, value in values.items():
            self._client.log_metric(self._run_id, name, value)
        if "perplexity" in values:
            row = {name: [round(value, 4)] for name, value in values.items() if name.startswith("perplexity")}
            method = self._plan.steps.attach.method
            self._client.log_table(self._run_id, {"method": [method], **row}, "perplexity.json")
        if self._folder.metrics.is_file():
            unit = registry.hook(registry.spec("stages", self._plan.steps.train.stage), "UNIT", "tokens")
            self._client.log_figure(self._run_id, loss_figure(self._folder, unit), "loss.png")
        self._client.log_artifact(self._run_id, str(self._folder.report))
        status = {"finished": "FINISHED", "interrupted": "KILLED"}.get(report["status"], "FAILED")
        self._client.set_terminated(self._run_id, status)


def _of_benchmarks(found: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, each in found.items():
        yield f"evaluate/{name}", each["accuracy"]
        for category, mean in each["categories"].items():
            yield f"evaluate/{name}/{category}", mean[each["average"]]


def connect(tracking: Tracking) -> tuple[Any, str]:
    """A client and the experiment's id; artifacts of a local database lie beside it."""
    import logging

    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    assert tracking.uri is not None
    client = MlflowClient(tracking.uri)
    found = client.get_experiment_by_name(tracking.experiment)
    if found is not None:
        return client, found.experiment_id
    location = None
    kind = {"mlflow.experimentKind": "custom_model_development"}  # else the UI opens on pages for agents' traces
    if tracking.uri.startswith("sqlite:///"):
        location = (Path(tracking.uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
    try:
        return client, client.create_experiment(tracking.experiment, artifact_location=location, tags=kind)
    except MlflowException:  # another process was first
        found = client.get_experiment_by_name(tracking.experiment)
        if found is None:
            raise
        return client, found.experiment_id


def flattened(plan: Plan) -> dict[str, str]:
    """The plan as `train.batch_size: 4`, without the model's own config, which stands in plan.yaml."""
    flat: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                walk(item, f"{path}.{name}" if path else name)
        else:
            flat[path] = plain(value)

    walk({"option": plan.options, "seed": plan.seed, **to_tree(plan.steps), "estimate": to_tree(plan.estimate)}, "")
    return {name: value for name, value in flat.items() if not name.startswith("load.config.")}


def loss_figure(folder: RunFolder, unit: Unit) -> Any:
    """The loss by step, with the learning rate under it. `unit` is what the loss is the mean over."""
    import json

    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(8, 5), layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    losses = [float("nan") if line["loss"] is None else line["loss"] for line in lines]
    loss.plot(steps, losses, marker="o", markersize=3, label="trained rows")
    held_out = [(line["step"], line["eval_loss"]) for line in lines if line.get("eval_loss") is not None]
    if held_out:
        loss.plot(*zip(*held_out, strict=True), marker="s", markersize=4, label="held-out rows")
        loss.legend()
    loss.set_ylabel(f"loss ({'nats per trained token' if unit == 'tokens' else 'mean over the rows'})")
    loss.grid(alpha=0.3)
    rate.plot(steps, [line["learning_rate"] for line in lines], color="tab:gray")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("optimizer step")
    rate.grid(alpha=0.3)
    return figure
