"""Train: the one loop, for every stage and method."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from math import ceil, isfinite, nan
from typing import Any, NamedTuple

from factory import schedules
from factory.ahead import arrival, runs_ahead, sent
from factory.architecture import Architecture
from factory.config import registry
from factory.config.refusal import UserError, refuse
from factory.config.settings import Stage
from factory.data import batches
from factory.execute import checkpoint, memory
from factory.execute.context import Interrupted, Run, age_of_command
from factory.plan.plan import stage_keys
from factory.stages.loss import Watched
from factory.stages.rows import rows_per_step, sequences
from factory.steps.accounts import check_tokens
from factory.steps.best import Best
from factory.steps.engine import Engine
from factory.steps.engine import engine as engine_of
from factory.steps.evaluate import held_out
from factory.steps.feed import Turn, total_steps, turns
from factory.steps.pack import Dataset
from factory.steps.reference import Reference
from factory.steps.save import save_model, settle
from factory.steps.watch import Alive, Losses, to_be_skipped


@dataclass(slots=True)
class State:
    """What is carried over a resume."""

    best: Best
    step: int = 0
    tokens: int = 0
    # tokens of a row of a batch, with what pads it; where nothing is padded, their mean in the fullest
    longest: int = 0
    seconds: float = 0.0  # without those of evaluations
    peak_bytes: int = 0  # of memory
    first_loss: float | None = None
    last_loss: float | None = None
    seconds_to_first_step: float | None = None
    before: dict[str, Any] | None = None  # what was measured before training
    rows: str | None = None  # a digest of what is trained on
    position: dict[str, Any] | None = None  # where the source of the batches goes on
    line: dict[str, Any] | None = None  # of metrics.jsonl: it waits for the evaluation of its step
    stopped_early: bool = False
    alive: Alive = field(default_factory=Alive)
    losses: Losses = field(default_factory=Losses)
    checks: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "State":
        parts = {"best": Best(**tree["best"]), "alive": Alive(**tree["alive"]), "losses": Losses(**tree["losses"])}
        return cls(**{**tree, **parts})


@dataclass(slots=True)
class Loop:
    """What every step works with. `clock` is when it began on the monotonic clock, had no evaluation taken any time.

    `logged` are the seconds and the tokens of the line before. `untold` tells what came of the last step, where that
    waits until the next one was asked of a GPU.
    """

    run: Run
    model: Any
    engine: Engine
    dataset: Dataset
    reference: Reference | None
    reward: Any
    state: State
    total: int
    clock: float
    logged: tuple[float, int]
    untold: Callable[[], None] | None = None

    @property
    def stage(self) -> Stage:
        return self.run.plan.settings.stage

    def due(self, steps: int | None, *, last: bool = False) -> bool:
        """Whether now: every so many steps, and after the last; where it is None, `last` says."""
        ended = self.state.step == self.total and (last or steps is not None)
        return ended or (steps is not None and self.state.step % steps == 0)

    def tell(self) -> None:
        """What came of the last step, unless it was told."""
        if self.untold is not None:
            untold, self.untold = self.untold, None
            untold()


class Numbers(NamedTuple):
    """Of a step's updates: means of losses and of what is watched, the last norm. No loss where none is finite.

    `watched` tells its means when it is called, which all ranks do together.
    """

    loss: float | None
    watched: Callable[[], dict[str, float]]
    norm: float


def train(
    run: Run,
    model: Any,
    arch: Architecture,
    tokenizer: Any,
    processor: dict[str, bytes],
    dataset: Dataset,
    reference: Reference | None,
    reward: Any,
    before: dict[str, Any],
) -> dict[str, Any]:
    stage, engine = run.plan.settings.stage, engine_of(run, model, arch)
    saved = engine.restore()
    state = State.from_json(saved) if saved else State(best=Best(stage.metric_for_best_model), before=before)
    if state.rows not in (None, dataset.digest):  # a function's rows, or a hub's branch, that no plan knows beforehand
        wrong = "the rows are others by now than those that it was trained on"
        raise refuse(
            "resume-other-rows",
            f"stage.resume={run.resume_from}",
            wrong,
            because=(
                "half of the steps would be on the ones and half on the others, and some rows would come twice or never"
            ),
            fix=(
                "give it the rows as they were (of the hub, data.sources.NAME.revision), or start another run "
                "without stage.resume"
            ),
        )
    state.rows, run.peak_before = dataset.digest, state.peak_bytes
    run.checks = {**state.checks, **run.checks}
    run.bad_updates = state.losses.summary() if state.losses.bad else None
    total = total_steps(run.plan, dataset)
    run.emit("training", steps=total, done=state.step, counts=dataset.counts)
    if prepare := registry.hook(registry.run("stages", stage.name), "prepare"):
        prepare(model, stage_keys(run.plan))  # what a stage changes for training alone
    model.train()
    clock, logged = time.monotonic() - state.seconds, (state.seconds, state.tokens)
    _steps(Loop(run, model, engine, dataset, reference, reward, state, total, clock, logged))
    state.losses.check(run)
    engine.finish()
    if stage.load_best_model_at_end and state.best.step not in (None, state.step):
        best = checkpoint.of_step(run.folder, state.best.step)
        checkpoint.refuse_damaged(best, f"hydra.run.dir={run.folder.path}")
        engine.go_back(best)
    model.eval()
    settle(run, model, arch)
    save_model(run, model, arch, tokenizer, processor)
    counts = _counts(state, dataset)
    check_tokens(run, dataset, counts, state.step, state.tokens)
    return {"trained": {"summary": _summary(run, state, dataset), "data": counts}}


def _steps(loop: Loop) -> None:
    """Up to the last, or until the evaluations say enough. Raises Interrupted once what was asked to stop is saved."""
    run, state = loop.run, loop.state
    if state.line is not None:  # the evaluation that was interrupted
        _measure_and_save(loop, measured=True, stopping=False, due=False)
    if (state.step == loop.total or state.stopped_early) and checkpoint.lies_elsewhere(run):
        _save(loop)  # no step will
    of = None if loop.reference is None else loop.reference.of
    began = state.step
    made = turns(run, loop.model, loop.dataset, of, loop.reward, began, loop.total, state.position)
    with made as source, run.world.waiting(long=False):
        while state.step < loop.total and not state.stopped_early:
            _step(loop, _next(loop, source, began))


def _next(loop: Loop, source: Iterator[Turn], began: int) -> Turn:
    """The next of the source. Where that cannot be had, or is asked for no more, the last step is saved as it ended."""
    kept = checkpoint.random_state(loop.run.plan.steps.load.device)
    try:
        return next(source)
    except (Interrupted, UserError):
        if loop.state.step > began and loop.run.world.size == 1:  # others do not know of it
            checkpoint.set_random_state(kept)
            loop.tell()
            _save(loop)
        raise


def _step(loop: Loop, turn: Turn) -> None:
    run, stage, state = loop.run, loop.stage, loop.state
    rate = stage.learning_rate * schedules.factor(stage.lr_scheduler, state.step, loop.total, stage.warmup_ratio)
    late = _reads_late(loop, turn)
    numbers = (_asked if late else _updates)(run, loop, turn, rate)
    loop.tell()
    _add(loop, turn)
    run.progress("train", state.step, loop.total)
    stopping, measured = run.asked_to_stop(), loop.due(stage.eval_steps)
    shown = measured or stopping or state.step == 1 or loop.due(stage.logging_steps)
    loop.untold = partial(_tell, loop, numbers, rate, shown=shown, held=measured)
    if not late or measured or stopping or loop.due(stage.save_steps, last=True):
        loop.tell()
    _measure_and_save(loop, measured=measured, stopping=stopping, due=loop.due(stage.save_steps, last=True))


def _measure_and_save(loop: Loop, *, measured: bool, stopping: bool, due: bool) -> None:
    """What follows a step, or a resume in the middle of it. Raises Interrupted once what was asked to stop is saved.

    The best is saved where it is found, which may be another folder than that of the checkpoint that goes on.
    """
    run, stage, state = loop.run, loop.stage, loop.state
    best_before = state.best.step
    if measured and not stopping:
        _evaluate(loop)
        stopping = run.asked_to_stop()
    is_best = stage.load_best_model_at_end and state.best.step != best_before
    if is_best or stopping or state.stopped_early or due:
        _save(loop)
        stopping = run.asked_to_stop()
    if stopping:
        raise Interrupted


def _save(loop: Loop) -> None:
    state = loop.state
    state.checks, state.peak_bytes = loop.run.checks, loop.run.peak("train")
    loop.engine.save(asdict(state), keep=state.best.step if loop.stage.load_best_model_at_end else None)


def _save_alone(loop: Loop) -> None:
    """Where a run ends by what went wrong between two steps: of several processes it may have in one only."""
    if loop.run.world.size == 1:
        _save(loop)


def _reads_late(loop: Loop, turn: Turn) -> bool:
    """Whether a step's numbers are read when the next was asked of the GPU, which so need not wait for us.

    What is not finite the optimizer leaves out by itself then; whether a step is a spike must be known before it.
    """
    stage, watching = loop.stage, loop.state.alive.watching
    spikes = stage.spike_factor is not None or stage.spike_norm is not None
    one = len(turn.updates) == 1 and not watching
    return runs_ahead(loop.run.plan.steps.load.device) and loop.engine.leaves_out and one and not spikes


def _tell(loop: Loop, numbers: Callable[[], Numbers], rate: float, *, shown: bool, held: bool) -> None:
    """Reads the numbers of the last step. Those that are shown are a line; one that is held waits for an evaluation."""
    state, (loss, watched, norm) = loop.state, numbers()
    state.seconds = time.monotonic() - loop.clock
    state.last_loss = state.last_loss if loss is None else loss
    if state.first_loss is None:
        state.first_loss, state.seconds_to_first_step = loss, age_of_command()
    if not shown:
        return
    line = _line(loop, {"loss": loss, **watched()}, rate, norm)
    loop.logged = (state.seconds, state.tokens)
    if held:
        state.line = line
    else:
        loop.run.log(line)


def _add(loop: Loop, turn: Turn) -> None:
    """A step that was made, or asked for."""
    state = loop.state
    state.step += 1
    state.tokens += turn.tokens
    shapes = (batches.read(batch).shape for update in turn.updates for batch in update.batches)
    # that share what is one row then
    rows = loop.stage.batch_size * sequences(loop.run.plan) if loop.run.plan.steps.pack.padding_free else 1
    state.longest = max(state.longest, *(ceil(length / rows) for _, length in shapes), 0)
    state.position = turn.position


def _evaluate(loop: Loop) -> None:
    """Measures the held-out rows and writes the line that waits for them.

    Where it is interrupted, or fails, the line goes on waiting, and the step is evaluated after the resume.
    """
    run, stage, state, start = loop.run, loop.stage, loop.state, time.monotonic()
    assert state.line is not None
    if run.asked_to_stop():
        return
    loop.model.eval()
    try:
        found = held_out(run, loop.model, loop.dataset, loop.reference, loop.reward, "held out")
    except Interrupted:
        return
    except UserError:
        _save_alone(loop)
        raise
    finally:
        loop.model.train()
        loop.clock += time.monotonic() - start
    state.best.add(state.step, found.get(state.best.metric, nan), stage.early_stopping_threshold)
    patience = stage.early_stopping_patience
    state.stopped_early = patience is not None and state.best.stale >= patience
    if state.stopped_early:
        run.emit("note", text=f"Stopped early: {_patience(state)}.")
    run.log({**state.line, **{f"eval_{name}": _finite(value) for name, value in found.items()}})
    state.line = None


def _patience(state: State) -> str:
    best = f"the best is {state.best.value:.4f} of step {state.best.step}" if state.best.value is not None else "none"
    return f"{state.best.stale} evaluations up to step {state.step} brought no better {state.best.metric}, {best}"


def _finite(value: float | None) -> float | None:
    """As JSON has no other numbers."""
    return value if value is not None and isfinite(value) else None


def _epoch(run: Run, state: State, dataset: Dataset) -> float:
    """Passes over the data so far; of a stream, the whole ones."""
    if dataset.stream is not None:
        return float(state.position["epoch"]) if state.position else 0.0
    return round(state.step / schedules.steps_per_epoch(len(dataset.train), rows_per_step(run.plan), 1), 4)


def _counts(state: State, dataset: Dataset) -> dict[str, Any]:
    """The report's `data`: of a stream, of the blocks that were read."""
    if dataset.stream is None or state.position is None:
        return {**dataset.counts, "sequences": len(dataset.train)}
    counts = dict(state.position["read"])
    dropped = {reason: entry["count"] for reason, entry in counts["dropped"].items()}
    return {**counts, "dropped": dropped, "not_sampled": 0, "packing_efficiency": None}


def _asked(run: Run, loop: Loop, turn: Turn, rate: float) -> Callable[[], Numbers]:
    """The one update of a step, of which nothing is read: returns what does, and waits for no more than this step."""
    engine, state, step, (update,) = loop.engine, loop.state, loop.state.step + 1, turn.updates
    engine.begin(state.step, loop.total, rate)
    loss, watched = engine.accumulate(update)
    norm = engine.clip()
    engine.apply(unless=~(loss.isfinite() & norm.isfinite()))
    loss, norm, watched, there = sent(loss), sent(norm), watched.sent(), arrival(run.plan.steps.load.device)

    def read() -> Numbers:
        there()
        mean, largest = loss.item(), norm.item()
        to_be_skipped(run, state.losses, loop.dataset, step, update, mean, largest, fp16=False)
        return Numbers(mean if isfinite(mean) else None, partial(_means, engine, [watched], turn), largest)

    return read


def _means(engine: Engine, watched: list[Watched], turn: Turn) -> dict[str, float]:
    """Return the means over a step's updates of what was watched in each, without those that are not finite."""
    means = Watched()
    for each in watched:
        means.add({name: (value, 1) for name, value in engine.means(each).items() if isfinite(value)})
    return {**means.means(), **turn.watched}


def _updates(run: Run, loop: Loop, turn: Turn, rate: float) -> Callable[[], Numbers]:
    """The optimizer updates of a step, most often one, each made when it is known to be a good one."""
    loop.tell()
    engine, state, step = loop.engine, loop.state, loop.state.step + 1
    losses, watched, norm = list[float](), list[Watched](), 0.0
    for number, update in enumerate(turn.updates, start=1):
        engine.begin(state.step, loop.total, rate)
        made, found = engine.accumulate(update)
        loss, norm = made.item(), engine.clip().item()
        losses += [loss] if isfinite(loss) else []
        watched.append(found)
        if to_be_skipped(run, state.losses, loop.dataset, step, update, loss, norm, fp16=engine.skips_overflows):
            engine.drop()
            continue
        # an update that overflows in float16 moves nothing, and shows nothing
        if state.alive.watching and update.tells and isfinite(norm):
            last = step == loop.total and number == len(turn.updates)
            state.alive.look(run, engine, update=update, last=last)
        engine.apply()
    numbers = Numbers(sum(losses) / len(losses) if losses else None, partial(_means, engine, watched, turn), norm)
    return lambda: numbers


def _line(loop: Loop, watched: Mapping[str, float | None], rate: float, norm: float) -> dict[str, Any]:
    """Of metrics.jsonl."""
    run, state = loop.run, loop.state
    seconds, tokens = state.seconds - loop.logged[0], state.tokens - loop.logged[1]
    return {
        "step": state.step,
        "epoch": _epoch(run, state, loop.dataset),
        **{name: _finite(value) for name, value in watched.items()},
        "learning_rate": rate,
        "grad_norm": _finite(norm),
        "tokens": state.tokens,
        "tokens_per_second": round(tokens / seconds, 2) if seconds else None,
        "memory": run.world.most(memory.current(run.plan.steps.load.device)),
        "seconds": round(state.seconds, 3),
        "time": round(time.time(), 3),
    }


def _summary(run: Run, state: State, dataset: Dataset) -> dict[str, Any]:
    return {
        "steps": state.step,
        "epochs": _epoch(run, state, dataset),
        "tokens": state.tokens,
        "sequences": _seen(run, state, dataset),
        "longest_row": state.longest,
        "seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.tokens / state.seconds, 2) if state.seconds else None,
        "first_loss": state.first_loss,
        "final_loss": state.last_loss,
        "seconds_to_first_step": round(state.seconds_to_first_step or 0, 3),
        **({"overflows": state.losses.overflows} if state.losses.overflows else {}),
        **_measured(run, state),
    }


def _seen(run: Run, state: State, dataset: Dataset) -> int:
    """Sequences of the data that a step has trained: all, once the first pass is over."""
    return min(state.step * rows_per_step(run.plan), _counts(state, dataset).get("sequences", 0))


def _measured(run: Run, state: State) -> dict[str, Any]:
    """What the evaluations while training led to; nothing where there were none."""
    stage, best = run.plan.settings.stage, state.best
    if stage.eval_steps is None:
        return {}
    kept = best.step is not None and (stage.load_best_model_at_end or best.step == state.step)
    found = {"metric": best.metric, "step": best.step, "value": best.value, "saved_model": kept}
    early = {} if stage.early_stopping_patience is None else {"stopped_early": state.stopped_early}
    return {"best": found, **early}
