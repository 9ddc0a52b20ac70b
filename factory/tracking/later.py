"""`factory track FOLDER`: what of a run, or of a sweep's runs, did not reach its tracking is sent now."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from factory.config.redact import secret_in
from factory.config.refusal import Refusal, UserError, refuse
from factory.config.settings import Tracking
from factory.config.values import to_tree
from factory.config.words import counted
from factory.execute.report import as_json
from factory.plan import packages, rules
from factory.plan.plan import Plan, read_plan
from factory.plan.rule import Broken
from factory.run.folder import RunFolder, read_json, write_whole
from factory.run.swept import SweepFolder
from factory.tracking import ledger, spec
from factory.tracking.delivery import Delivery
from factory.tracking.tracker import said

_track_what = partial(
    refuse,
    "track-what",
    because="what a run's or a sweep's folder holds is sent",
    fix="as in: factory track outputs/DATE/TIME [tracking.uri=ADDRESS] [tracking.experiment=NAME]",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Of one run's folder: records that arrived now, those that the tool has, those that are missing and why."""

    folder: Path
    where: str
    new: int
    sent: int
    unsent: int
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem:
            return f"{self.folder}: {counted(self.unsent, 'record')} did not reach {self.where} ({self.problem})"
        if not self.new:
            return f"{self.folder}: {self.where} has all {counted(self.sent, 'record')} already"
        return f"{self.folder}: {counted(self.new, 'record')} sent to {self.where}, which now has all {self.sent:,}"


def of_run(folder: RunFolder, chosen: dict[str, Any], parent: str | None = None) -> Sent:
    """Sends what is missing; `chosen` are keys of tracking that are not the plan's. Raises UserError."""
    if not folder.plan.is_file():
        raise _track_what(str(folder.path), "there is no plan.yaml in it")
    made = elsewhere(read_plan(folder.plan, setting=f"track {folder.path}"), chosen, parent)
    with folder.claimed():
        return _sent(made, folder)


def elsewhere(made: Plan, chosen: dict[str, Any], parent: str | None) -> Plan:
    """A run that was tracked by nothing goes to MLflow where an address is given."""
    if "uri" in chosen and not made.settings.tracking.on:
        chosen = {"tool": "mlflow", **chosen}
    nested = {"parent_run": parent} if parent else {"parent_run": None} if chosen else {}
    tracking = made.settings.tracking.model_copy(update={**chosen, **nested})
    if not tracking.on:
        raise refuse(
            "track-nowhere",
            f"tracking.tool={tracking.tool}",
            "the run was not to be tracked",
            because="what is in the folder must go somewhere",
            fix="name a server: factory track FOLDER tracking.uri=http://HOST:PORT",
        )
    return made.with_settings(tracking=tracking)


def _sent(made: Plan, folder: RunFolder) -> Sent:
    book = ledger.of(made.settings.tracking, folder)
    before, missing = ledger.counts(book, folder)
    where, problem = made.settings.tracking.uri or made.settings.tracking.tool, None
    if missing:
        report = read_json(folder.report)
        book.ended = _ended(book, folder)
        try:
            Delivery(made, folder, book).finish(report)
        except Exception as error:  # whatever a server may raise
            problem = said(error)
    sent, unsent = ledger.counts(book, folder)
    report = read_json(folder.report)
    if report is not None and (missing or report.get("tracking", {}).get("unsent")):
        told = ledger.told(book, sent, unsent, problem)
        with suppress(UserError):  # the screen says it all the same
            write_whole(folder.report, as_json({**report, "tracking": told}))
    return Sent(folder=folder.path, where=where, new=sent - before, sent=sent, unsent=unsent, problem=problem)


def unreached(folder: RunFolder, tracking: Tracking, problem: str) -> Sent:
    """Nothing was sent of it."""
    sent, unsent = ledger.counts(ledger.of(tracking, folder), folder)
    where = tracking.uri or tracking.tool
    return Sent(folder=folder.path, where=where, new=0, sent=sent, unsent=unsent, problem=problem)


def _ended(book: ledger.Ledger, folder: RunFolder) -> float:
    """When the run did: it may have gone on since that was noted, with nobody who followed it."""
    lines = ledger.whole_lines(folder.metrics)
    if book.ended is not None and book.ended >= max((line["time"] for line in lines), default=0):
        return book.ended
    files = [path for path in (folder.metrics, folder.report, folder.plan) if path.is_file()]
    return max(path.stat().st_mtime for path in files)


def is_sweep(folder: str) -> bool:
    return SweepFolder(folder).read() is not None


def runs_of(folder: str) -> list[RunFolder]:
    """Those of a sweep that were started."""
    sweep = SweepFolder(folder)
    places = [RunFolder(sweep.path / name) for name in sweep.names()]
    return [place for place in places if place.plan.is_file()]


def unusable_in(folder: str, chosen: dict[str, Any], packages: dict[str, str]) -> list[Refusal]:
    """The refusals of where the first run there is to be sent. Raises UserError where there is none."""
    found = runs_of(folder) if is_sweep(folder) else [RunFolder(folder)]
    if not found or not found[0].plan.is_file():
        raise _track_what(folder, "there is no run in it")
    made = read_plan(found[0].plan, setting=f"track {folder}")
    return unusable(elsewhere(made, chosen, None).settings.tracking, packages)


def unusable(tracking: Tracking, there: dict[str, str]) -> list[Refusal]:
    """The refusals of an address that a plan was not compiled with."""
    found = [(spec.tracking_place, each) for each in spec.problems(tracking)]
    if (wrong := spec.no_login(tracking, there)) is not None:
        found.append((spec.tracking_login, Broken(key="tracking.mode", message=wrong)))
    if (key := secret_in({"tracking": to_tree(tracking)})) is not None:
        wrong = "a password or a token in it would be written to the run's folder and shown"
        found.append((rules.secret_in_settings, Broken(key=key, message=wrong)))
    refused = packages.missing_of_tool(tracking.tool, there)
    for rule, each in found:
        key = each.key or ""
        refused.append(rule.refusal(f"{key}={getattr(tracking, key.removeprefix('tracking.'))}", each))
    return refused
