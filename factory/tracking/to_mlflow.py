"""A run in MLflow: parameters, tags, data sets, metrics, and at the end report, figure, tables and model card."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOENT
from pathlib import Path
from typing import Any

from factory import locks
from factory.config.redact import redacted, without_secrets
from factory.config.settings import Tracking
from factory.config.values import whole
from factory.execute.report import as_json
from factory.plan.plan import Plan, tree_of
from factory.run.folder import RunFolder, is_no_store
from factory.stages.loss import Unit
from factory.stages.rows import unit
from factory.tracking.from_mlflow import client_of
from factory.tracking.ledger import Ledger, whole_lines
from factory.tracking.spec import database, title

_LONGEST_PARAMETER = 6000
_NO_NAME = re.compile(r"[^\w\-. /]")  # what no name of a parameter or a metric may hold
PARENT = "mlflow.parentRunId"
_KEY = "factory.key"  # the tag by which a run is found that was created when nobody heard the answer
_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MlflowSink:
    """A resumed run continues the one whose id its folder keeps."""

    def __init__(self, plan: Plan, folder: RunFolder, ledger: Ledger):
        self._plan, self._folder, self._ledger = plan, folder, ledger
        _refuse_gone(ledger)
        self._client, experiment = connect(plan.settings.tracking)
        self._metrics: list[Any] = []
        if ledger.run_id is None:
            ledger.run_id = self._known(experiment) or self._create(experiment)
        elif ledger.ended is None:
            self._client.update_run(ledger.run_id, status="RUNNING")
        self._run_id = ledger.run_id

    def _known(self, experiment: str) -> str | None:
        """The run that was asked for before, if the server made it after all."""
        if not self._ledger.asked:
            self._ledger.asked = True
            self._ledger.write(self._folder)
            return None
        found = self._client.search_runs([experiment], f"tags.`{_KEY}` = '{self._ledger.key}'")
        return found[0].info.run_id if found else None

    def _create(self, experiment: str) -> str:
        tags = {_KEY: self._ledger.key, **_tags(self._plan, self._folder)}
        parent = self._plan.settings.tracking.parent_run or outer_run(self._client)
        if parent is not None:
            tags[PARENT] = parent
        started = round(1000 * self._ledger.started)
        return self._client.create_run(experiment, started, tags=tags, run_name=redacted(title(self._plan))).info.run_id

    def last_step(self) -> int:
        history = self._client.get_metric_history(self._run_id, "learning_rate")
        return max((metric.step for metric in history), default=0)

    def describe(self) -> None:
        from mlflow.entities import Param

        params = [Param(_name(name), _shortened(value)) for name, value in flattened(self._plan).items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(self._run_id, params=params[start : start + 100])
        self._client.log_inputs(self._run_id, list(_data_sets(self._plan)))
        plan = redacted(self._folder.plan.read_text(encoding="utf-8"))  # of --from-plan: another may have written it
        self._client.log_text(self._run_id, plan, self._folder.plan.name)

    def log(self, step: int, when: float, values: dict[str, float]) -> None:
        """With the time of measuring: MLflow keeps a value once that comes twice with the same step and time."""
        from mlflow.entities import Metric

        self._metrics += [Metric(_name(name), value, round(1000 * when), step) for name, value in values.items()]

    def flush(self) -> None:
        if self._metrics:
            self._client.log_batch(self._run_id, metrics=self._metrics)
        self._metrics = []

    def finish(self, report: dict[str, Any] | None) -> Iterator[None]:
        try:
            yield from self._ended_with(report)
        finally:  # a run whose files are not taken is over all the same
            status = "KILLED" if report is None else _STATUS.get(report["status"], "FAILED")
            ended = self._ledger.ended
            self._client.set_terminated(self._run_id, status, None if ended is None else round(1000 * ended))

    def _ended_with(self, report: dict[str, Any] | None) -> Iterator[None]:
        if report is not None:
            yield from self._result(without_secrets(report))
        if lines := whole_lines(self._folder.metrics):
            self._client.log_figure(self._run_id, loss_figure(lines, unit(self._plan)), "loss.png")
            yield
        for path, where in ((self._folder.log, ""), (self._folder.model / "README.md", "model_card")):
            if path.is_file():
                self._client.log_text(
                    self._run_id, redacted(path.read_text("utf-8", "replace")), f"{where}/{path.name}".lstrip("/")
                )
                yield

    def _result(self, report: dict[str, Any]) -> Iterator[None]:
        when = self._ledger.ended or self._ledger.started
        values = measured(report)
        self.log(0, when, values)
        self.flush()
        yield
        if "perplexity" in values:
            row = {name: round(value, 4) for name, value in values.items() if name.startswith("perplexity")}
            rows = [{"method": self._plan.method, **row}]
            log_table(self._client, self._run_id, "perplexity.json", rows)
            yield
        if answers := report.get("samples"):
            log_table(self._client, self._run_id, "samples.json", answers)
            yield
        self._client.log_text(self._run_id, as_json(report), self._folder.report.name)
        yield


def _refuse_gone(ledger: Ledger) -> None:
    """A file that has the run and is not there is not made anew: the command may be given in another folder."""
    if ledger.run_id is not None and is_no_store(ledger.uri or ""):
        raise FileNotFoundError(ENOENT, f"{database(ledger.uri or '')} is not there, and it had the run")


def log_table(client: Any, run_id: str, name: str, rows: list[dict[str, Any]]) -> None:
    """Whole each time, as MLflow shows a table: its own log_table adds rows to those of the attempt before."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    data = [[row.get(column) for column in columns] for row in rows]
    client.log_dict(run_id, {"columns": columns, "data": data}, name)
    known = json.loads(client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
    if (table := {"path": name, "type": "table"}) not in known:
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*known, table]))


def measured(report: dict[str, Any]) -> dict[str, float]:
    """The numbers of a report by the names that they are logged under."""
    found = report.get("evaluate", {})
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    # what a curve of training is called, too, is told apart
    watched = {name.removesuffix("_before") for name in numbers} - {"perplexity"}
    values: dict[str, float] = {f"{name}_after" if name in watched else name: value for name, value in numbers.items()}
    values |= dict(_of_benchmarks(found.get("benchmarks", {})))
    values |= dict(_of_harness(found.get("harness", {})))
    if (peak := report["memory"]["peak_bytes"]) is not None:
        values["peak_bytes"] = peak
    for name in ("memory_error", "time_error"):
        if (off := report.get("estimate", {}).get(name)) is not None:
            values[f"estimate/{name}"] = off
    return values


def _of_benchmarks(found: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, each in found.items():
        yield f"evaluate/{name}", each["accuracy"]
        for category, mean in each["categories"].items():
            yield f"evaluate/{name}/{category}", mean[each["average"]]


def _of_harness(found: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """By the library's own names, but for what MLflow takes in none."""
    for task, each in found.items():
        for metric, figure in each["metrics"].items():
            name = _name(f"evaluate/{task}/{metric}")
            yield name, figure["value"]
            if figure["error"] is not None:
                yield f"{name}_stderr", figure["error"]


def _name(text: str) -> str:
    """As MLflow takes it: one that it does not take loses all that is sent beside it. Users name data sets and what
    stages of their own watch.
    """
    return _NO_NAME.sub("_", text)


def _shortened(value: str) -> str:
    """A parameter's value, which MLflow limits; one that is longer says so."""
    if len(value) <= _LONGEST_PARAMETER:
        return value
    said = f" … ({len(value):,} characters; plan.yaml has all)"
    return value[: _LONGEST_PARAMETER - len(said)] + said


def _tags(plan: Plan, folder: RunFolder) -> dict[str, str]:
    """Ours, and those that MLflow gives to a run of its own: user, source, the commit that is checked out."""
    from mlflow.tracking.context.registry import resolve_tags

    own = {
        "verb": plan.verb,
        "model": plan.options.get("model", ""),
        "method": plan.method,
        "stage": plan.settings.stage.name,
        "digest": plan.digest(),
        "folder": str(folder.path),
        "mlflow.source.name": "factory",
    }
    return {name: redacted(value) for name, value in resolve_tags(own).items()}


def outer_run(client: Any) -> str | None:
    """The run that MLFLOW_RUN_ID names, as `mlflow run` and others export it: ours is nested under it."""
    from mlflow.exceptions import MlflowException

    if not (named := os.environ.get("MLFLOW_RUN_ID")):
        return None
    try:
        return client.get_run(named).info.run_id
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # it is another server's
            return None
        raise


def _data_sets(plan: Plan) -> Iterator[Any]:
    """As MLflow's inputs: the sets that train and those held out whole; or what a model is measured on."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    read_for = "training" if plan.verb == "train" else "evaluation"
    for name, source in plan.sources.items():
        context = "validation" if name == plan.settings.data.validation else read_for
        asked = source.asked
        where = {"path": source.path, "subset": asked.subset, "split": asked.split, "revision": asked.revision}
        yield DatasetInput(
            Dataset(
                name=name,
                digest=(source.sha256 or asked.revision or "unknown")[:36],
                source_type={"hub": "hugging_face", "file": "local"}.get(asked.origin, "code"),
                source=redacted(json.dumps(where)),
                profile=json.dumps({"bytes": source.bytes, "format": source.format}),
            ),
            [InputTag("mlflow.data.context", context)],
        )


def connect(tracking: Tracking) -> tuple[Any, str]:
    """A client and the experiment's id; artifacts of a local database lie beside it."""
    assert tracking.mlflow is not None
    with _alone(tracking.mlflow):
        _make(database(tracking.mlflow))
        client = client_of(tracking.mlflow)
        return client, _experiment(client, tracking)


def _make(file: Path | None) -> None:
    """A new sqlite file with MLflow's tables, under its name when it is whole: one that was half made stays broken."""
    if file is None or file.exists():
        return
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        client_of(f"sqlite:///{aside}").search_experiments(max_results=1)
        aside.rename(file)
    finally:
        aside.unlink(missing_ok=True)


def _experiment(client: Any, tracking: Tracking) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(tracking.experiment)
    if found is not None and found.lifecycle_stage == "deleted":  # which MLflow keeps, and takes no run for
        again = f"`mlflow experiments restore --experiment-id {found.experiment_id}`, or another tracking.experiment"
        raise MlflowException(f"the experiment {found.name} is deleted there: {again}")
    if found is not None:
        return found.experiment_id
    file, location = database(tracking.uri or ""), None
    kind = {"mlflow.experimentKind": "custom_model_development"}  # else the UI opens on pages for agents' traces
    if file is not None:
        location = (file.parent / "mlartifacts").as_uri()
    try:
        return client.create_experiment(tracking.experiment, artifact_location=location, tags=kind)
    except MlflowException:  # another process was first
        found = client.get_experiment_by_name(tracking.experiment)
        if found is None:
            raise
        return found.experiment_id


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Processes that start at once on a new sqlite file would each make its tables: one does, the others wait."""
    file = database(uri)
    if file is None:
        yield
        return
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        locks.lock(folder)
        yield
    finally:
        os.close(folder)


def flattened(plan: Plan) -> dict[str, str]:
    """The plan as `stage.batch_size: 4`, without the model's own config, which stands in plan.yaml."""
    return {name: redacted(whole(value)) for name, value in _leaves(plan).items()}


def hyperparameters(plan: Plan) -> dict[str, str | float]:
    """The same with numbers as numbers, by which tools filter and draw; a package's version is none."""
    return {
        name: value if isinstance(value, int | float) and not isinstance(value, bool) else redacted(whole(value))
        for name, value in _leaves(plan).items()
    }


def _leaves(plan: Plan) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                walk(item, f"{path}.{name}" if path else name)
        else:
            flat[path] = value

    tree = tree_of(plan)
    walk({"option": tree["settings"].pop("options")}, "")
    for part in (tree["settings"], tree["steps"]):
        walk(part, "")
    walk({"estimate": tree["estimate"], "packages": plan.packages}, "")
    return {name: value for name, value in flat.items() if not name.startswith(("load.config.", "model.architecture."))}


def loss_figure(lines: list[dict[str, Any]], unit: Unit) -> Any:
    """The loss by step, with the learning rate under it. `unit` is what the loss is the mean over."""
    from matplotlib.figure import Figure

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
