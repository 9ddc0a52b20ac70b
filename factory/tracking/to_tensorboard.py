"""A run in TensorBoard's files: curves, hyperparameters, the plan and the report as text. Written without torch."""

import logging
import time
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
from tensorboardX.summary import hparams  # pyright: ignore[reportMissingImports]

from factory.execute.report import as_json
from factory.plan import Plan
from factory.redact import redacted, without_secrets
from factory.run.folder import RunFolder
from factory.tracking.ledger import Ledger
from factory.tracking.to_mlflow import hyperparameters, measured


class TensorboardSink:
    """The run's own folder under tracking.uri. A resumed run goes on in another file of it."""

    def __init__(self, plan: Plan, folder: RunFolder, ledger: Ledger):
        self._plan, self._folder, self._ledger = plan, folder, ledger
        ledger.run_id = ledger.run_id or str(_place(plan, folder, ledger))
        # what TensorBoard has of later steps is of an attempt that was cut short before it could be noted
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)  # a loss that is not finite is shown as such
        self._writer = SummaryWriter(
            ledger.run_id,
            purge_step=ledger.step + 1 if ledger.step else None,
            filename_suffix=f".{time.time_ns()}",  # two files of a second would be one
        )

    def last_step(self) -> int:
        return self._ledger.step

    def describe(self) -> None:
        plan = redacted(self._folder.plan.read_text(encoding="utf-8"))
        self._writer.add_text("plan", _block(plan), 0)
        self.flush()

    def log(self, step: int, when: float, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step, walltime=when)

    def flush(self) -> None:
        self._writer.flush()

    def finish(self, report: dict[str, Any] | None) -> None:
        if report is not None:
            told = without_secrets(report)
            values = measured(told)
            self.log(self._ledger.step, self._ledger.ended or self._ledger.started, values)
            self._writer.add_text("report", _block(as_json(told)), 0)
            file = self._writer.file_writer
            assert file is not None
            for summary in hparams(hyperparameters(self._plan), values):
                file.add_summary(summary)
        self._writer.close()


def _place(plan: Plan, folder: RunFolder, ledger: Ledger) -> Path:
    """Named as the run's folder is, so that a person finds it; and by the key, so that no two share it."""
    assert plan.tracking.uri is not None
    name = "_".join(folder.path.absolute().parts[-2:])
    group = [plan.tracking.parent_run] if plan.tracking.parent_run else []
    return Path(plan.tracking.uri, plan.tracking.experiment, *group, f"{name}_{ledger.key[:4]}").absolute()


def _block(text: str) -> str:
    """As Markdown shows it verbatim."""
    return "".join(f"    {line}\n" for line in text.splitlines())
