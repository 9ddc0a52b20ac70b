"""A run in TensorBoard's files: curves, hyperparameters, the plan and the report as text. Written without torch."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
from tensorboardX.summary import hparams  # pyright: ignore[reportMissingImports]

from factory.config.redact import redacted, without_secrets
from factory.execute.report import as_json
from factory.plan.plan import Plan
from factory.run.folder import RunFolder
from factory.tracking.ledger import Ledger
from factory.tracking.to_mlflow import hyperparameters, measured


class TensorboardSink:
    """The run's own folder under tracking.uri. A resumed run goes on in another file of it.

    From which TensorBoard forgets all that the folder has of later steps, whatever they are of: an attempt may be cut
    short before it could be noted. The machine's samples, whose steps are their numbers, so have a folder of their own.
    """

    def __init__(self, plan: Plan, folder: RunFolder, ledger: Ledger):
        self._plan, self._folder, self._ledger = plan, folder, ledger
        known = ledger.run_id is not None
        ledger.run_id = ledger.run_id or str(_place(plan, folder, ledger))
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)  # a loss that is not finite is shown as such
        self._writer = _writer(Path(ledger.run_id), ledger.step + 1 if known else None)
        self._samples: SummaryWriter | None = None

    def last_step(self) -> int:
        return self._ledger.step

    def describe(self) -> None:
        plan = redacted(self._folder.plan.read_text(encoding="utf-8"))
        self._writer.add_text("plan", _block(plan), 0)
        self.flush()

    def log(self, step: int, when: float, values: dict[str, float]) -> None:
        writer = self._of_machine() if any(name.startswith("system/") for name in values) else self._writer
        for name, value in values.items():
            writer.add_scalar(name, value, step, walltime=when)

    def _of_machine(self) -> SummaryWriter:
        if self._samples is None:
            assert self._ledger.run_id is not None
            self._samples = _writer(Path(self._ledger.run_id, "system"), self._ledger.samples or None)
        return self._samples

    def flush(self) -> None:
        for writer in (self._writer, self._samples):
            if writer is not None:
                writer.flush()

    def finish(self, report: dict[str, Any] | None) -> Iterator[None]:
        if report is not None:
            told = without_secrets(report)
            values = measured(told)
            self.log(self._ledger.step, self._ledger.ended or self._ledger.started, values)
            self._writer.add_text("report", _block(as_json(told)), 0)
            file = self._writer.file_writer
            assert file is not None
            for summary in hparams(hyperparameters(self._plan), values):
                file.add_summary(summary)
        for writer in (self._writer, self._samples):
            if writer is not None:
                writer.close()
        yield


def _writer(folder: Path, purge_step: int | None) -> SummaryWriter:
    suffix = f".{time.time_ns()}"  # two files of a second would be one
    return SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=suffix)


def _place(plan: Plan, folder: RunFolder, ledger: Ledger) -> Path:
    """Named as the run's folder is, so that a person finds it; and by the key, so that no two share it."""
    assert plan.settings.tracking.uri is not None
    name = "_".join(folder.path.absolute().parts[-2:])
    group = [plan.settings.tracking.parent_run] if plan.settings.tracking.parent_run else []
    return Path(
        plan.settings.tracking.uri, plan.settings.tracking.experiment, *group, f"{name}_{ledger.key[:4]}"
    ).absolute()


def _block(text: str) -> str:
    """As Markdown shows it verbatim."""
    return "".join(f"    {line}\n" for line in text.splitlines())
