"""What runs can be logged to, and what is wrong with where. Needs none of the tools."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from glob import escape, glob
from importlib.metadata import PackageNotFoundError, version
from netrc import NetrcParseError, netrc
from pathlib import Path

from factory.config.settings import Tracking
from factory.config.words import program
from factory.inference.asked import name_of
from factory.plan.choices import WRITES
from factory.plan.plan import Plan
from factory.plan.rule import Broken, Case, rule
from factory.run.folder import sqlite_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """`package` is what it needs, `extra` what installs that; `sink` the class that writes, as module:class."""

    package: str
    extra: str
    sink: str


TOOLS: dict[str, Tool] = {
    "mlflow": Tool(package="mlflow", extra="", sink="factory.tracking.to_mlflow:MlflowSink"),
    "tensorboard": Tool(
        package="tensorboardX", extra="tensorboard", sink="factory.tracking.to_tensorboard:TensorboardSink"
    ),
    "wandb": Tool(package="wandb", extra="wandb", sink="factory.tracking.to_wandb:WandbSink"),
}
_DATABASE_OR_SERVER = re.compile(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://|https?://|databricks")
_JOINS = (0, 30)  # of wandb
_PROJECT, _NO_LETTERS = 128, "/\\#?%:"  # of a name in wandb: how long it may be, what it may not have


@rule(
    "tracking",
    keys=("tracking.uri", "tracking.tool", "tracking.experiment"),
    reason="the run would train and then have nowhere to be logged",
    fix="set another tracking.uri, or tracking=none",
)
def tracking_place(case: Case) -> Iterator[Broken]:
    """Leave a verb that tracks nothing to what was asked for."""
    tracks = case.settings.verb not in WRITES
    return (each for each in problems(case.settings.tracking) if tracks or case.asked(each.key or ""))


@rule(
    "tracking-login",
    keys=("tracking.mode", "tracking.tool", "tracking.uri"),
    reason="the server of wandb takes only runs of its users",
    fix="run `wandb login`, set WANDB_API_KEY, or set tracking.mode=offline and send with `wandb sync` later",
    machine=True,
)
def tracking_login(case: Case) -> str | None:
    return no_login(case.settings.tracking, case.facts.machine.packages)


def no_login(tracking: Tracking, packages: Mapping[str, str]) -> str | None:
    online = tracking.tool == "wandb" and tracking.mode == "online" and TOOLS["wandb"].package in packages
    return "there is no key of wandb here" if online and not has_wandb_key(tracking.uri) else None


def problems(tracking: Tracking) -> Iterator[Broken]:
    """Yield what is wrong with where runs are logged to."""
    tool, uri = tracking.tool, tracking.uri
    if tool == "mlflow" and uri is not None and not _DATABASE_OR_SERVER.match(uri):
        scheme, there, _ = uri.partition("://")
        yield Broken(
            key="tracking.uri",
            message=f"MLflow knows no store of the kind {scheme}://"
            if there and scheme != "file"
            else "MLflow no longer keeps runs in plain folders",
            fix=(
                "set sqlite:///mlflow.db, a server's http address (its login in MLFLOW_TRACKING_USERNAME and "
                "_PASSWORD), or null"
            ),
        )
    if tool == "mlflow" and (wrong := _not_stored(uri or "")):
        fix = "set tracking.uri=sqlite:////FOLDER/mlflow.db to one where it can lie, or tracking=none"
        yield Broken(key="tracking.uri", message=wrong, fix=fix)
    if tool == "tensorboard" and (uri is None or "://" in uri):
        fix = "set a path, as in tracking.uri=tensorboard"
        yield Broken(key="tracking.uri", message="TensorBoard's files lie in a folder", fix=fix)
    if tool == "wandb" and uri is not None and not re.match(r"https?://", uri):
        fix = "set the http address of a server of your own, or null for wandb's own"
        yield Broken(key="tracking.uri", message="it is no http address", fix=fix)
    if tool == "wandb" and (wrong := _no_project(tracking.experiment or "")):
        fix = "set another tracking.experiment; a team is named by WANDB_ENTITY"
        yield Broken(key="tracking.experiment", message=wrong, fix=fix)


def database(uri: str) -> Path | None:
    """The file of an sqlite store; None of others."""
    found = sqlite_file(uri)
    return None if found is None else found.absolute()


def _not_stored(uri: str) -> str | None:
    """Why nothing can be written there, if it is a file; MLflow itself would try for minutes."""
    file = database(uri)
    if file is None:
        return None
    if not file.parent.is_dir():
        return f"there is no folder {file.parent}"
    forbidden = (place for place in (file.parent, file) if place.exists() and not os.access(place, os.W_OK))
    return next((f"{place} cannot be written" for place in forbidden), None)


def _no_project(name: str) -> str | None:
    """Why wandb takes no project of this name (`validate_project` of its settings): it says so when a run has begun."""
    if len(name) > _PROJECT:
        return f"it has {len(name)} letters, and a project's name {_PROJECT} at most"
    found = [letter for letter in _NO_LETTERS if letter in name]
    return f"a project's name cannot have {' or '.join(found)} in it" if found else None


def title(plan: Plan) -> str:
    """What a tool lists the run as. One that trains nothing is called by what it is of: its method says nothing."""
    model = plan.options.get("model", "")
    if plan.verb == "train":
        return f"{model} {plan.method} {plan.settings.stage.name}"
    load, export = plan.steps.load, plan.settings.export if plan.export else None
    of = (export and export.run) or load.adapter or (load.path if load.source == "folder" else None)
    return f"{plan.verb} {name_of(of) or model}"


def shows(tracking: Tracking, folder: Path) -> str | None:
    """The command that shows what is logged, or the address; None where nothing is."""
    if tracking.tool == "tensorboard":
        return f"{program('tensorboard')} --logdir {shlex.quote(tracking.uri or '')}"
    if tracking.tool == "wandb":
        return _sync(folder) if tracking.mode == "offline" else None
    if tracking.mlflow is None or tracking.mlflow.startswith("http"):
        return tracking.mlflow
    return mlflow_ui(tracking.mlflow)


def _sync(folder: Path) -> str:
    """A run that went on lies in parts, of which the last would replace the others before wandb 0.30, which joins them.

    That knows no --append, which makes those before it do so, and a run that is sent twice be there twice.
    """
    place = "*".join(map(escape, str(folder).split("*")))
    found = glob(f"{place}/wandb/offline-run-*")  # noqa: PTH207  Path has none of a whole path
    parts = [Path(part).parent for part in found]
    append = " --append" if len(parts) > len(set(parts)) and not _joins() else ""
    return f"{program('wandb')} sync{append} {_pattern(folder)}/wandb/offline-run-*"


def _joins() -> bool:
    with suppress(PackageNotFoundError):
        return tuple(int(part) for part in re.findall(r"\d+", version("wandb"))[:2]) >= _JOINS
    return True  # what will send it is installed later, or elsewhere


def _pattern(folder: Path) -> str:
    """As a shell reads it, which is to see the stars in it."""
    return "*".join(part and shlex.quote(part) for part in str(folder).split("*"))


def mlflow_ui(uri: str) -> str:
    """The command that shows what a local store has."""
    return f"{program('mlflow')} ui --backend-store-uri {shlex.quote(uri)}"


def mlflow_page(uri: str, run_id: str) -> str | None:
    """The address of a run's page; None of a store that no server of its own shows."""
    return f"{uri.rstrip('/')}/#/runs/{run_id}" if re.match(r"https?://", uri) else None


def has_wandb_key(server: str | None) -> bool:
    """Where wandb looks for one: the environment, or the file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    address = server or os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    host = re.sub(r"^https?://|[/:].*", "", address)
    file = Path(os.environ.get("NETRC") or "~/.netrc")
    try:
        return netrc(os.path.expanduser(file)).authenticators(host) is not None  # noqa: PTH111  as in wandb
    except (OSError, NetrcParseError):
        return False
