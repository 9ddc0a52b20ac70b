"""What is watched in training: that every trained tensor lives, and that no bad update moves a weight."""

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from factory.config.line import again, setting
from factory.config.refusal import refuse
from factory.config.settings import Stage
from factory.config.words import counted
from factory.data import batches, stream
from factory.data.dataset import Dataset as Rows
from factory.execute.context import Run
from factory.plan.plan import Plan
from factory.ranks.spec import ZERO
from factory.run.folder import RunFolder
from factory.steps.engine import Engine
from factory.steps.pack import Dataset

_ALIVE_WITHIN = 2  # optimizer updates: a LoRA A has no gradient until its B has moved
_DECAY = 0.9  # of the running mean, which so is of about the last ten losses
_SETTLED = 10  # updates before the mean says anything (schema: stage.spike_factor)
_TOLD = 20  # bad updates that the report names; all are counted
_HALVINGS = 32  # of float16's loss scale in a row, from 2^16: what overflows still is no number
_SHOWN = 12  # rows that a message names; the report has them all
_STOPS = "stage.on_bad_update=stop ends the run before such an update moves a weight"
_STOPPED = {  # why a run stops before a bad update of each kind, and what to change
    "not-finite": ("every weight would become NaN with this update", "lower stage.learning_rate"),
    "loss-spike": (_STOPS, "raise stage.spike_factor"),
    "gradient-spike": (_STOPS, "raise stage.spike_norm"),
}


@dataclass(slots=True)
class Losses:
    """The losses so far, and the updates that were bad. It is carried over a resume."""

    mean: float = 0.0
    updates: int = 0
    in_a_row: int = 0  # skipped ones, up to now
    bad: int = 0
    skipped: int = 0
    overflows: int = 0  # in float16: updates that the scaler left out, which are no bad ones
    overflowing: int = 0  # of these in a row, up to now
    told: list[dict[str, Any]] = field(default_factory=list)

    def add(self, loss: float, norm: float = 0.0) -> None:
        """Of an update that is applied, unless the scaler leaves it out."""
        overflowed = int(not isfinite(norm))
        self.overflows, self.overflowing = self.overflows + overflowed, (self.overflowing + 1) * overflowed
        self.mean = loss if self.updates == 0 else _DECAY * self.mean + (1 - _DECAY) * loss
        self.updates, self.in_a_row = self.updates + 1, 0

    def wrong(self, stage: Stage, loss: float, norm: float, *, skips_overflows: bool) -> tuple[str, str] | None:
        """The refusal's id and what is wrong with an update; None where it is a good one.

        With float16 a gradient may overflow now and then: the scaler skips that step and lowers its scale. Of one that
        overflows whatever the scale it would do so without end.
        """
        endless = self.overflowing >= _HALVINGS
        if not isfinite(loss) or not (isfinite(norm) or (skips_overflows and not endless)):
            as_before = f", as in the {self.overflowing} updates before" if endless else ""
            return "not-finite", f"the loss is {loss:.6g}, the gradient's norm {norm:.6g}{as_before}"
        # also where losses are negative: so many times as far up as the mean is from 0
        factor = stage.spike_factor
        if factor is not None and self.updates >= _SETTLED and loss - self.mean > (factor - 1) * abs(self.mean):
            return "loss-spike", f"the loss is {loss:.6g}, its running mean {self.mean:.6g}"
        if stage.spike_norm is not None and isfinite(norm) and norm > stage.spike_norm:
            return "gradient-spike", f"the gradient's norm is {norm:.6g}, above stage.spike_norm={stage.spike_norm:g}"
        return None

    def summary(self) -> dict[str, Any]:
        """The report's `bad_updates`."""
        return {"count": self.bad, "skipped": self.skipped, "first": self.told}

    def check(self, run: Run) -> None:
        """When training is over: red where updates were tried and none moved a weight, for then nothing was trained."""
        if self.updates + self.skipped and self.updates == self.overflows:
            detail = f"none of {counted(self.updates + self.skipped, 'update')} was applied"
            detail += f": {self.overflows} overflowed in float16, {self.skipped} were skipped"
            run.check("gradients_alive", False, detail)


def to_be_skipped(
    run: Run, losses: Losses, dataset: Dataset, step: int, update: batches.Step, loss: float, norm: float, *, fp16: bool
) -> bool:
    """Whether this update must not be applied. Raises UserError where it is to stop the run.

    `step` counts from 1. An update that is not finite is never applied: it would turn every weight into NaN.
    """
    stage = run.plan.settings.stage
    found = losses.wrong(stage, loss, norm, skips_overflows=fp16)
    if found is None:
        losses.add(loss, norm)
        return False
    (rule, wrong), by_rank = found, run.world.gathered(rows_of(dataset, update))
    rows = list(dict.fromkeys(row for own in by_rank for row in own))
    skips = stage.on_bad_update == "skip" or (stage.on_bad_update == "warn" and rule == "not-finite")
    action = "stopped" if stage.on_bad_update == "stop" else "skipped" if skips else "applied"
    said = {
        "step": step,
        "what": rule,
        "action": action,
        "loss": loss if isfinite(loss) else None,
        "grad_norm": norm if isfinite(norm) else None,
        "rows": [{"source": source, "row": row + 1} for source, row in rows],
    }
    losses.bad += 1
    losses.told += [said] if len(losses.told) < _TOLD else []
    run.bad_updates = losses.summary()
    wrong = f"{wrong}; {_named(rows)}"
    if action == "stopped":
        run.emit("bad_update", text=f"step {step}: {wrong}", **said)
        if getattr(run.plan.settings.method, "layerwise", False):
            raise refuse(
                "layerwise-bad-update",
                f"step={step}",
                wrong,
                because=(
                    "method.layerwise=true steps each tensor within the backward pass, so this update has moved "
                    "weights already; the last checkpoint is from before it"
                ),
                fix=(
                    "look at these rows; in a new run, lower stage.learning_rate, raise the stage.spike_factor or "
                    "stage.spike_norm that was passed, or set method.layerwise=false, with which "
                    "stage.on_bad_update=skip leaves such an update out"
                ),
            )
        because, change = _STOPPED[rule]
        fix = f"look at these rows, {change}, or {_onward(run.plan, run.folder)}"
        raise refuse(rule, f"step={step}", wrong, because=because, fix=fix)
    run.emit("bad_update", text=f"step {step}: {wrong}; the update is {action}", **said)
    if not skips:
        losses.add(loss, norm)
        return False
    losses.skipped, losses.in_a_row = losses.skipped + 1, losses.in_a_row + 1
    run.bad_updates = losses.summary()
    if losses.in_a_row >= stage.max_skipped_updates:
        wrong = f"{losses.in_a_row} updates in a row were skipped up to step {step}; of the last, {wrong}"
        raise refuse(
            "skipped-in-a-row",
            f"stage.max_skipped_updates={stage.max_skipped_updates}",
            wrong,
            because="a run whose updates are all skipped trains nothing",
            fix="look at these rows, lower stage.learning_rate, or raise stage.max_skipped_updates",
        )
    return True


def _onward(plan: Plan, folder: RunFolder) -> str:
    """How to train on without the update: the same run, begun anew or resumed as it is, would meet it again."""
    if plan.settings.hardware.strategy in ZERO:  # rule bad-update-of-ranks
        return "start a new run with hardware.strategy=ddp or fsdp and stage.on_bad_update=skip"
    command = again(plan.verb, plan.overrides, plan.config_dirs)
    continued = f"{setting('hydra.run.dir', folder.path)} stage.resume=auto stage.on_bad_update=skip"
    where = "begin again" if folder.checkpoint() is None else "continue from the last checkpoint"
    return f"leave this update out and {where}: {command} {continued}"


def rows_of(dataset: Dataset, update: batches.Step) -> list[stream.Origin]:
    """The rows that an update was computed from, each once; none where its source made them up."""
    if isinstance(update, stream.Step):
        return list(dict.fromkeys(update.origins))
    if not isinstance(dataset.train, Rows):
        return []
    pieces = (piece for number in update.chosen for piece in dataset.train.pieces(number))
    return list(dict.fromkeys((source, row) for source, row, _ in pieces))


def _named(rows: list[stream.Origin]) -> str:
    """`rows 3, 18 of demo`, counted from 1 as a person counts the lines of a file."""
    if not rows:
        return "its rows are not those of a data set"
    by_source: dict[str, list[str]] = {}
    for source, row in rows[:_SHOWN]:
        by_source.setdefault(source, []).append(f"{row + 1:,}")
    more = f" and {len(rows) - _SHOWN:,} more (report.json)" if len(rows) > _SHOWN else ""
    return "its rows: " + "; ".join(f"{', '.join(found)} of {source}" for source, found in by_source.items()) + more


@dataclass(slots=True)
class Alive:
    """Whether each trained tensor had a gradient within its first updates: some libraries lose them without a word.

    Its first updates are those in which it requires one: a method may train other tensors in other steps, and what
    sees or hears learns nothing of text alone. `quiet` are the tensors without one so far, and the updates that should
    have had one.
    """

    quiet: dict[str, int] | None = None
    watching: bool = True

    def look(self, run: Run, engine: Engine, *, update: batches.Step, last: bool) -> None:
        trained = engine.trained
        unreached = engine.beside_text
        if unreached and run.world.any(any(map(batches.shows, update.batches))):
            unreached = frozenset[str]()
        # a new token may first occur in a later row: its row has no gradient before
        looked = {name: 0 for name in trained if ".token_adapter." not in name} if self.quiet is None else self.quiet
        self.quiet = {
            name: seen + int(trained[name].requires_grad and name not in unreached)
            for name, seen in looked.items()
            if not engine.has_gradient(name)
        }
        dead = [name for name, seen in self.quiet.items() if seen >= _ALIVE_WITHIN]
        never = [name for name, seen in self.quiet.items() if seen == 0]
        if dead or not self.quiet or (last and len(never) == len(self.quiet)):
            alive = len(trained) - len(self.quiet)
            detail = f"{alive} of {len(trained)} trained tensors had a gradient within {_ALIVE_WITHIN} updates"
            detail += f"; {len(never)} were never trained" if never else ""
            run.check("gradients_alive", not dead, detail + "".join(f"; not {name}" for name in dead[:3]))
            self.watching = False
