"""What of a run has reached its tracking: remembered in the run's folder, so that what is missing can be sent later."""

import json
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from factory.run.folder import RunFolder, read_json, write_whole
from factory.schema import Tracking


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
        """Raises UserError where it cannot."""
        write_whole(folder.tracking, json.dumps(asdict(self), indent=1) + "\n")


def of(tracking: Tracking, folder: RunFolder) -> Ledger:
    """The folder's, or a new one where the run was never logged to this address."""
    place = {"tool": tracking.tool, "uri": tracking.uri, "experiment": tracking.experiment}
    there = known(folder)
    if there is None or any(getattr(there, name) != value for name, value in place.items()):
        return Ledger(**place)
    return there


def known(folder: RunFolder) -> Ledger | None:
    """Where the run was logged to; None where it was nowhere."""
    found = read_json(folder.tracking) or {}
    names = {each.name for each in fields(Ledger)}
    return Ledger(**{name: value for name, value in found.items() if name in names}) if "tool" in found else None


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
