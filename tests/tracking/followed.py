"""Runs as the parent follows them, without one that trains; and a tool that keeps what it gets in memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import side_by_side

from factory.execute.report import as_json
from factory.plan.plan import Plan, to_yaml
from factory.run.folder import RunFolder
from factory.tracking import delivery
from factory.tracking.ledger import Ledger, whole_lines
from factory.tracking.spec import TOOLS, Tool

LOSSES = (4.0, 3.5, 3.0, 2.5)


def run(folder: Path, uri: str | None, *overrides: str, **changes: Any) -> tuple[Plan, RunFolder, dict[str, Any]]:
    """A finished run with its plan as it would be logged there, and its report."""
    kept = {name: changes.pop(name) for name in ("losses", "status", "evaluate", "samples") if name in changes}
    measured = {"evaluate": {"perplexity_before": 9.0, "perplexity": 7.5}, "losses": LOSSES}
    where = RunFolder(side_by_side.run(folder, *overrides, **{**measured, **kept}))
    plan = side_by_side.plan(*overrides).with_settings(tracking=side_by_side.tracking(uri, **changes))
    where.plan.write_text(to_yaml(plan))
    report = json.loads(where.report.read_text())
    report["train"]["first_loss"] = LOSSES[0]
    where.report.write_text(as_json(report))
    return plan, where, report


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    return whole_lines(folder.metrics)


def more(folder: RunFolder, *steps: int) -> None:
    """Lines as a run that goes on writes them."""
    template = lines(folder)[-1]
    with folder.metrics.open("a") as file:
        file.writelines(json.dumps({**template, "step": step}) + "\n" for step in steps)


class Memory:
    """A sink. `lost` is what its server raises; after `accepts` flushes it does so by itself."""

    lost: ClassVar[Exception | None] = None
    accepts: ClassVar[int | None] = None
    got: ClassVar[list[tuple[int, float, dict[str, float]]]] = []
    described: ClassVar[int] = 0
    reports: ClassVar[list[dict[str, Any] | None]] = []

    def __init__(self, plan: Plan, folder: RunFolder, ledger: Ledger):
        self._waiting: list[tuple[int, float, dict[str, float]]] = []
        self._answer()
        ledger.run_id = ledger.run_id or "a run"

    @classmethod
    def _answer(cls) -> None:
        if cls.lost is not None:
            raise cls.lost

    def last_step(self) -> int:
        return max((step for step, _, values in self.got if "loss" in values), default=0)

    def describe(self) -> None:
        self._answer()
        type(self).described += 1

    def log(self, step: int, when: float, values: dict[str, float]) -> None:
        self._waiting.append((step, when, values))

    def flush(self) -> None:
        kind = type(self)
        self._answer()
        if kind.accepts is not None:
            kind.accepts -= 1
            if kind.accepts < 0:
                kind.lost = ConnectionError("gone")
                self._answer()
        kind.got += self._waiting
        self._waiting = []

    def finish(self, report: dict[str, Any] | None) -> Iterator[None]:
        self._answer()
        type(self).reports.append(report)
        yield


def in_memory(monkeypatch: Any) -> type[Memory]:
    """MLflow's sink is a new one in memory."""
    fresh = type("Memory", (Memory,), {"got": [], "reports": [], "described": 0, "lost": None, "accepts": None})
    monkeypatch.setitem(globals(), "Fresh", fresh)
    monkeypatch.setitem(TOOLS, "mlflow", Tool(package="mlflow", extra="", sink=f"{__name__}:Fresh"))
    assert delivery.TOOLS is TOOLS
    return fresh
