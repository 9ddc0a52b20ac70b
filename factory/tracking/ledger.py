"""What of a run has reached its tracking: remembered in the run's folder, so that what is missing can be sent later."""

import json
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from factory.config.settings import Tracking
from factory.run.folder import RunFolder, read_json, write_whole

_OTHERS = "elsewhere"  # in tracking.json: the ledgers of other addresses


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Of one run at one address.

    `key` is known before the tracking gives a `run_id`, `asked` says that it was asked for one; `step` is the last step
    and `samples` the lines of system.jsonl that were delivered; `described` says so of the parameters, tags and plan,
    `result` of the report with its figure and tables. Times are seconds since the epoch.
    """

    tool: str
    uri: str | None
    experiment: str
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    asked: bool = False
    run_id: str | None = None
    started: float = field(default_factory=time.time)
    ended: float | None = None
    described: bool = False
    step: int = 0
    samples: int = 0
    result: bool = False

    def write(self, folder: RunFolder) -> None:
        """With what reached other addresses, which stays known. Raises UserError where it cannot."""
        others = [asdict(each) for each in everywhere(folder) if place(each) != place(self)]
        tree = asdict(self) | ({_OTHERS: others} if others else {})
        write_whole(folder.tracking, json.dumps(tree, indent=1) + "\n")


def place(where: Ledger | Tracking) -> tuple[str, str | None, str]:
    return where.tool, where.uri, where.experiment


def of(tracking: Tracking, folder: RunFolder) -> Ledger:
    """The folder's, or a new one where the run was never logged to this address: it began and ended when it did."""
    there = everywhere(folder)
    if (found := next((each for each in there if place(each) == place(tracking)), None)) is not None:
        return found
    started, ended = (there[0].started, there[0].ended) if there else (_began(folder), None)
    return Ledger(tool=tracking.tool, uri=tracking.uri, experiment=tracking.experiment, started=started, ended=ended)


def _began(folder: RunFolder) -> float:
    """When its plan was written, or, as that of a run that goes on is written again, when its first step began."""
    found = [line["time"] - line.get("seconds", 0) for line in whole_lines(folder.metrics)[:1]]
    with suppress(OSError):
        found.append(folder.plan.stat().st_mtime)
    return min(found, default=time.time())


def known(folder: RunFolder) -> Ledger | None:
    """Where the run was logged to last; None where it was nowhere."""
    return next(iter(everywhere(folder)), None)


def everywhere(folder: RunFolder) -> list[Ledger]:
    """Of each address that the run was logged to, the last first."""
    names = {each.name for each in fields(Ledger)}
    trees = (tree for tree in _trees(folder) if "tool" in tree)
    return [Ledger(**{name: value for name, value in tree.items() if name in names}) for tree in trees]


def reopen(folder: RunFolder) -> None:
    """Of a run that goes on: what each address has of its end is of the attempt before. Raises UserError."""
    for book in reversed(everywhere(folder)):  # what is written last is first
        replace(book, result=False, ended=None).write(folder)


def run_ids(folder: RunFolder) -> list[str]:
    """That the run has, at whatever address."""
    return [run_id for tree in _trees(folder) if (run_id := tree.get("run_id"))]


def _trees(folder: RunFolder) -> list[dict[str, Any]]:
    found = read_json(folder.tracking) or {}
    return [found, *found.get(_OTHERS, [])]


def whole_lines(path: Any) -> list[dict[str, Any]]:
    """A file's lines of JSON, without one that is being written or was cut short; none where there is no file."""
    try:
        return parsed(path.read_bytes().rpartition(b"\n")[0])
    except OSError:
        return []


def parsed(content: bytes) -> list[dict[str, Any]]:
    """Its lines of JSON, without one that a full disk cut short, which the next was joined to."""
    found = list[dict[str, Any]]()
    for line in filter(None, content.split(b"\n")):
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def counts(ledger: Ledger, folder: RunFolder) -> tuple[int, int]:
    """Records sent and not sent: the run's description, each line of metrics.jsonl and system.jsonl, the result."""
    steps = [line["step"] for line in whole_lines(folder.metrics)]
    lines = sum(step <= ledger.step for step in steps)
    samples = len(whole_lines(folder.system))
    sent = lines + min(ledger.samples, samples) + ledger.described + ledger.result
    return sent, len(steps) + samples + 2 - sent


def told(ledger: Ledger, sent: int, unsent: int, problem: str | None = None) -> dict[str, Any]:
    """The report's `tracking`."""
    found = {"tool": ledger.tool, "uri": ledger.uri, "run_id": ledger.run_id, "sent": sent, "unsent": unsent}
    return {**found, "problem": problem} if problem else found
