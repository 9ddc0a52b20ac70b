"""A run in Weights & Biases. What wandb took is in the run's folder at once; its own process sends it."""

from collections.abc import Iterator
from typing import Any

import wandb  # pyright: ignore[reportMissingImports]

from factory.config.redact import redacted, without_secrets
from factory.execute.report import as_json
from factory.plan.plan import Plan
from factory.run.folder import RunFolder
from factory.tracking.ledger import Ledger
from factory.tracking.spec import title
from factory.tracking.to_mlflow import hyperparameters, measured

_STARTING = 20  # seconds for its server's first answer
_TAG = 64  # letters of a tag at most: of a longer one it makes no run
_STEP, _SAMPLE = "step", "system/sample"  # the axes of two counts


class WandbSink:
    """`run_id` is ours to choose: a resumed run goes on in the same one.

    wandb has one count, and drops what comes with a lower one than before. So it gets the sum of ours, of the steps of
    training and of the machine's samples, and each of them as an axis (docs.wandb.ai, customize log axes).
    """

    def __init__(self, plan: Plan, folder: RunFolder, ledger: Ledger):
        self._plan, self._folder, self._ledger = plan, folder, ledger
        online, known = plan.settings.tracking.mode == "online", ledger.run_id is not None
        ledger.run_id = ledger.run_id or ledger.key[:12]
        if wandb.run is not None and wandb.run.id != ledger.run_id:  # which init would give us for ours
            raise ConnectionError("an earlier run is still being sent")
        server = {} if plan.settings.tracking.uri is None else {"base_url": plan.settings.tracking.uri}
        settings = wandb.Settings(
            console="off",  # run.log has it
            silent=True,
            x_disable_stats=True,  # tracking.system_metrics decides
            init_timeout=_STARTING,
            **server,
        )
        self._run = wandb.init(
            project=plan.settings.tracking.experiment,
            group=plan.settings.tracking.parent_run,
            id=ledger.run_id,
            name=title(plan),
            tags=[name[-_TAG:] for name in (plan.method, plan.settings.stage.name)],
            dir=str(folder.path),
            mode=plan.settings.tracking.mode,
            resume="allow" if online and known else None,
            settings=settings,
        )
        self._curves = set[str]()  # that have their axis
        # what an attempt has sent that was killed before it could note it
        self._unnoted = max(0, self._run.step - 1 - ledger.step - ledger.samples)
        self._run.define_metric("system/*", step_metric=_SAMPLE)

    def last_step(self) -> int:
        """Not by wandb's own count: of a run that goes on that is one beyond the last that it has."""
        return max(self._ledger.step, int(self._run.summary.get(_STEP) or 0))

    def describe(self) -> None:
        told = {**hyperparameters(self._plan), "digest": self._plan.digest(), "folder": str(self._folder.path)}
        self._run.config.update(told, allow_val_change=True)
        self._artifact("plan", self._folder.plan.name, redacted(self._folder.plan.read_text(encoding="utf-8")))

    def log(self, step: int, when: float, values: dict[str, float]) -> None:
        told, before = {**values, "_timestamp": when}, self._unnoted
        if all(name.startswith("system/") for name in values):
            self._run.log({**told, _SAMPLE: step}, step=before + self._ledger.step + step + 1)
            return
        for name in values.keys() - self._curves:
            self._run.define_metric(name, step_metric=_STEP)
        self._curves |= values.keys()
        self._run.log({**told, _STEP: step}, step=before + step + self._ledger.samples)

    def flush(self) -> None:
        """Nothing waits here: `log` hands over to wandb's own process, which keeps it in the run's folder."""

    def finish(self, report: dict[str, Any] | None) -> Iterator[None]:
        try:
            if report is not None:
                told = without_secrets(report)
                self._run.summary.update({**measured(told), "status": told["status"]})
                self._artifact("report", self._folder.report.name, as_json(told))
        finally:  # else no run after it in this process could be sent
            self._run.finish(exit_code=0 if report is not None and report["status"] == "finished" else 1)
        yield

    def _artifact(self, kind: str, name: str, text: str) -> None:
        made = wandb.Artifact(f"{kind}-{self._ledger.run_id}", type=kind)
        with made.new_file(name) as file:
            file.write(text)
        self._run.log_artifact(made)
