"""What the words of `compare` name: folders of runs and sweeps, MLflow runs, an experiment, a filter."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from factory.compare import runs
from factory.compare.runs import Run, Status
from factory.config.refusal import UserError, first_line, refuse
from factory.config.settings import Tracking
from factory.config.words import ends
from factory.execute.__main__ import REFUSED
from factory.plan.plan import read_plan
from factory.run.folder import RunFolder, is_mlflow_id, last_here, read_json
from factory.run.swept import Outcome, SweepFolder
from factory.tracking import from_mlflow

_compare_tracking = partial(
    refuse,
    "compare-tracking",
    because="the runs that are asked for are known to MLflow only",
    fix="set tracking.uri to where they were logged, or name their folders",
)

_SEARCHED = ("metrics", "metric", "params", "param", "parameters", "tags", "tag", "attributes", "attribute", "run")
_PAGE = 200  # runs, or experiments, that MLflow is asked for at a time
_STATUS: dict[str, Status] = {"RUNNING": "running", "FINISHED": "finished", "KILLED": "interrupted"}
_LOGGED = ("loss", "learning_rate", "tokens", "tokens_per_second", "memory", "eval_loss")  # the curves of a page


@dataclass(frozen=True, slots=True)
class Asked:
    """The command's words, taken apart."""

    places: tuple[str, ...]
    experiments: tuple[str, ...]
    filters: tuple[str, ...]


def asked(words: Sequence[str]) -> Asked:
    """Raises UserError for a word that names nothing."""
    places, experiments, filters = list[str](), list[str](), list[str]()
    for word in words:
        if word.startswith("experiment="):
            experiments.append(word.removeprefix("experiment="))
        elif _is_there(word) or is_mlflow_id(word):
            places.append(word)
        elif _is_filter(word):
            filters.append(word)
        elif "=" in word:
            raise _compare_what(word, "`factory compare` does not read it", hint="")
        else:
            places.append(word)  # a folder that is not there is a row of the table
    if not words or "" in experiments:
        raise _compare_what(" ".join(words) or "(nothing)", "no run is named", hint=last_here())
    if all(not _is_there(place) and not is_mlflow_id(place) for place in places) and not (experiments or filters):
        raise _compare_what(" ".join(places), "there is no such folder, and no filter in it", hint=last_here())
    return Asked(tuple(places), tuple(experiments), tuple(filters))


def _is_there(word: str | Path) -> bool:
    return os.path.exists(word)  # noqa: PTH110  of a filter longer than a name can be, Path raises


def _is_filter(word: str) -> bool:
    start, dot, _ = word.partition(".")
    return bool(dot and start.lower() in _SEARCHED) or any(sign in word for sign in (" = ", " < ", " > ", " LIKE "))


def found(asked: Asked, tracking: Tracking) -> list[Run]:
    """Every run that is meant, once. Raises UserError where there is none, or MLflow cannot be asked."""
    made = list[Run]()
    for place in asked.places:
        if not _is_there(place) and is_mlflow_id(place):
            made += _of_id(place, tracking)
        else:
            made += of_folder(Path(place))
    if asked.experiments or asked.filters:
        made += _searched(asked, tracking)
    once = dict[str, Run]()
    for run in made:
        once.setdefault(str(Path(run.where).absolute()), run)
    if not once:
        words = " ".join([*(f"experiment={name}" for name in asked.experiments), *asked.filters, *asked.places])
        raise refuse(
            "compare-found",
            words,
            "no run is there",
            because="there is nothing to compare",
            fix=f"widen the search: {words}",
        )
    return named(list(once.values()))


def of_folder(path: Path) -> list[Run]:
    """The run in the folder, or the jobs of the sweep."""
    sweep = SweepFolder(path)
    if not _is_there(path) or not sweep.is_there():
        return [runs.of_folder(path)]
    told_by_name = False
    with suppress(UserError):  # whatever became of a recipe's file
        told_by_name = sweep.is_of_a_recipe()
    return [replace(run, told_by_name=told_by_name) for run in _jobs(sweep)]


def _jobs(sweep: SweepFolder) -> Iterator[Run]:
    record, ended = sweep.read(), sweep.ended()
    planned = {job.name: job for job in record.jobs} if record else {}
    for name in sweep.names():
        job, outcome, folder = planned.get(name), ended.get(name), sweep.path / name
        overrides = job.overrides if job else outcome.overrides if outcome else ()
        if outcome is not None and outcome.reused is not None:
            same = runs.of_folder(Path(outcome.reused))
            said = "; ".join(filter(None, (f"as {outcome.reused}, whose plan is the same: not run again", same.said)))
            yield replace(same, name=name, where=str(folder), overrides=overrides or same.overrides, said=said)
        elif (outcome is not None and outcome.code == REFUSED) or (outcome is None and job and job.refused):
            why = job.refused if job and job.refused else f"see {RunFolder(folder).log}"
            yield runs.absent(name, str(folder), "refused", why, overrides)
        elif outcome is None and not _is_begun(folder):
            yield runs.absent(name, str(folder), "not run", None, overrides)
        else:
            yield _as_ended(runs.of_folder(folder), outcome)


def _is_begun(folder: Path) -> bool:
    try:
        return RunFolder(folder).plan.is_file()
    except OSError:  # nobody can say: its row tells why
        return True


def _as_ended(run: Run, outcome: Outcome | None) -> Run:
    """A job that failed without a report of it may have an older one in its folder."""
    if outcome is None or outcome.code == 0 or run.status != "finished" or run.folder is None:
        return run
    return replace(run, status="failed", said=f"see {RunFolder(run.folder).log}")


def named(made: list[Run]) -> list[Run]:
    """With the shortest names that tell them apart: the ends of their places."""
    names = ends([Path(run.where) for run in made])
    return made if names is None else [replace(run, name=name) for run, name in zip(made, names, strict=True)]


def _searched(asked: Asked, tracking: Tracking) -> Iterator[Run]:
    client = _client(tracking, " ".join([*asked.experiments, *asked.filters]))
    from mlflow.exceptions import MlflowException

    names, text = asked.experiments or (tracking.experiment,), " and ".join(asked.filters)
    chosen = [_experiment(client, name, tracking) for name in names]
    try:
        made = list(_paged(client.search_runs, chosen, text))
    except MlflowException as error:
        raise refuse(
            "compare-filter",
            text,
            first_line(error),
            because="runs are sought by MLflow's search syntax",
            fix="as in: \"metrics.perplexity < 20 and tags.method = 'lora'\"",
        ) from None
    yield from (_of_mlflow(client, each) for each in made if _is_ours(each))


def _experiment(client: Any, name: str, tracking: Tracking) -> str:
    """The id of the one that is called so. Raises UserError."""
    known = {found.name: found.experiment_id for found in _paged(client.search_experiments)}
    if name in known:
        return known[name]
    there = ", ".join(sorted(known))
    raise _compare_tracking(f"experiment={name}", f"{tracking.uri} has no such experiment (it has {there})")


def _paged(search: Callable[..., Any], *words: Any, **how: Any) -> Iterator[Any]:
    """All that MLflow finds, which it gives a part at a time."""
    token: str | None = None
    while True:
        part = search(*words, max_results=_PAGE, page_token=token, **how)
        yield from part
        if not (token := part.token):
            return


def _of_id(run_id: str, tracking: Tracking) -> Iterator[Run]:
    """An MLflow run, or where it is a sweep's, those that are nested under it."""
    client = _client(tracking, run_id)
    try:
        made = from_mlflow.run_of(client, run_id, str(tracking.uri))
    except from_mlflow.Unknown as unknown:
        raise _compare_tracking(run_id, str(unknown)) from None
    if _is_ours(made):
        yield _of_mlflow(client, made)
        return
    text = f"tags.mlflow.parentRunId = '{run_id}'"
    nested = _paged(client.search_runs, [made.info.experiment_id], text, order_by=["attributes.start_time"])
    yield from (_of_mlflow(client, each) for each in nested)


def _is_ours(made: Any) -> bool:
    """A run with a plan: a sweep's own parent has none."""
    return "digest" in made.data.tags


def _client(tracking: Tracking, setting: str) -> Any:
    try:
        return from_mlflow.reader(tracking.mlflow)
    except from_mlflow.Unknown as unknown:
        raise _compare_tracking(setting, str(unknown)) from None


def _of_mlflow(client: Any, made: Any) -> Run:
    """From its folder where that is here, else from what was logged."""
    if (folder := from_mlflow.folder_of(made)) is not None:
        return runs.of_folder(folder)
    run_id = made.info.run_id
    with tempfile.TemporaryDirectory() as aside:
        report = read_json(_artifact(client, run_id, "report.json", aside)) or {}
        try:
            plan = read_plan(_artifact(client, run_id, "plan.yaml", aside))
        except UserError:  # told by what is missing in the table
            plan = None
    status = runs.of_report(report) if report else _STATUS.get(made.info.status, "failed")
    return runs.of_mlflow(run_id, status, report, plan, _history(client, run_id))


def _artifact(client: Any, run_id: str, name: str, aside: str) -> Path:
    try:
        return from_mlflow.artifact(client, run_id, name, aside)
    except from_mlflow.Unknown:  # it was not logged, or is gone: the path then holds nothing
        return Path(aside) / f"no-{name}"


def _history(client: Any, run_id: str) -> list[dict[str, Any]]:
    """Lines as metrics.jsonl has them, null where a value was not finite; seconds are not logged, and left out."""
    lines: dict[int, dict[str, Any]] = {}
    for name in _LOGGED:
        for metric in client.get_metric_history(run_id, name):
            value = metric.value if isfinite(metric.value) else None
            lines.setdefault(metric.step, {"step": metric.step})[name] = value
    return [lines[step] for step in sorted(lines)]


def _compare_what(setting: str, wrong: str, hint: str) -> UserError:
    return refuse(
        "compare-what",
        setting,
        wrong,
        because=(
            "runs are compared by name: folders of runs, a sweep's folder, ids of MLflow runs, "
            "experiment=NAME or an MLflow filter"
        ),
        fix=(
            f"{hint}as in: factory compare multirun_sweeps/DATE/TIME; factory compare outputs/DATE/ONE "
            'outputs/DATE/TWO; factory compare experiment=factory "metrics.perplexity < 20"'
        ),
    )
