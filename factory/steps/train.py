"""Train: the one loop, for every stage and method."""

import time
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from factory import registry, schedules
from factory.architecture import Architecture
from factory.execute import memory
from factory.execute.context import Interrupted, Run, age_of_command
from factory.refusal import refuse
from factory.stages.loss import Watched
from factory.steps.engine import Engine
from factory.steps.engine import engine as engine_of
from factory.steps.feed import Turn, total_steps, turns
from factory.steps.pack import Dataset
from factory.steps.reference import Reference
from factory.steps.save import save_model

_ALIVE_WITHIN = 2  # optimizer updates: a LoRA A has no gradient until its B has moved


@dataclass(slots=True)
class State:
    """What is carried over a resume."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    seconds_to_first_step: float | None = None
    quiet: dict[str, int] | None = None  # tensors without a gradient so far, and the updates that should have had one
    watching: bool = True
    before: dict[str, Any] | None = None  # what was measured before training
    position: dict[str, Any] | None = None  # where the source of the batches goes on
    checks: dict[str, Any] = field(default_factory=dict)


def train(
    run: Run,
    model: Any,
    arch: Architecture,
    tokenizer: Any,
    processor: dict[str, bytes],
    dataset: Dataset,
    reference: Reference | None,
    before: dict[str, Any],
) -> dict[str, Any]:
    plan = run.plan.steps.train
    engine = engine_of(run, model, arch)
    saved = engine.restore()
    state = State(**saved) if saved else State(before=before)
    run.checks = {**state.checks, **run.checks}
    total = total_steps(plan, dataset)
    run.emit("training", steps=total, done=state.step, counts=dataset.counts)
    _prepare_stage(run, model)
    model.train()
    clock = time.monotonic() - state.seconds
    logged = (state.seconds, state.tokens)
    with turns(run, model, dataset, state.step, total, state.position) as source:
        while state.step < total:
            turn = next(source)
            rate = plan.learning_rate * schedules.factor(plan.lr_scheduler, state.step, total, plan.warmup_ratio)
            loss, watched, norm = _updates(run, engine, turn, reference, state, rate, total)
            state.step += 1
            state.tokens += turn.tokens
            state.seconds, state.last_loss, state.position = time.monotonic() - clock, loss, turn.position
            if state.first_loss is None:
                state.first_loss, state.seconds_to_first_step = loss, age_of_command()
            run.progress("train", state.step, total)
            stopping = run.asked_to_stop()
            if state.step in (1, total) or state.step % plan.logging_steps == 0 or stopping:
                _log(run, state, dataset, {"loss": loss, **watched}, rate, norm, logged)
                logged = (state.seconds, state.tokens)
            if state.step == total or stopping or (plan.save_steps and state.step % plan.save_steps == 0):
                state.checks = run.checks
                engine.save(asdict(state))
            if stopping:
                raise Interrupted
    engine.finish()
    model.eval()
    save_model(run, model, arch, tokenizer, processor)
    counts = _counts(state, dataset)
    if dataset.stream is not None:  # of a prepared set it was checked before training
        total = counts["used"] + counts["validation"] + sum(counts["dropped"].values())
        run.check("rows_accounted", total == counts["rows"], f"{total:,} of {counts['rows']:,} rows that were read")
    return {"trained": {"summary": _summary(run, state, dataset), "data": counts}}


def _epoch(run: Run, state: State, dataset: Dataset) -> float:
    """Passes over the data so far; of a stream, the whole ones."""
    if dataset.stream is not None:
        return float(state.position["epoch"]) if state.position else 0.0
    plan = run.plan.steps.train
    shape = (len(dataset.train), plan.batch_size, plan.micro_batches)
    return round(state.step / schedules.steps_per_epoch(*shape), 4)


def _counts(state: State, dataset: Dataset) -> dict[str, Any]:
    """The report's `data`: of a stream, of the blocks that were read."""
    if dataset.stream is None or state.position is None:
        return dataset.counts
    counts = dict(state.position["read"])
    dropped = {reason: entry["count"] for reason, entry in counts["dropped"].items()}
    return {**counts, "dropped": dropped, "not_sampled": 0, "packing_efficiency": None}


def _updates(
    run: Run, engine: Engine, turn: Turn, reference: Reference | None, state: State, rate: float, total: int
) -> tuple[float, dict[str, float], float]:
    """The optimizer updates of a step, most often one: means of their losses and of what is watched, the last norm."""
    losses, means, norm = list[float](), Watched(), 0.0
    for number, update in enumerate(turn.updates, start=1):
        engine.begin(state.step, total, rate)
        loss, watched = engine.accumulate(update, reference)
        norm = engine.clip()
        _refuse_not_finite(state.step + 1, loss, norm, fp16=engine.skips_overflows)
        if state.watching and isfinite(norm):  # an update that overflows in float16 moves nothing, and shows nothing
            _watch_gradients(run, state, engine, last=state.step + 1 == total and number == len(turn.updates))
        engine.apply()
        losses.append(loss)
        means.add({name: (value, 1) for name, value in watched.items()})
    return sum(losses) / len(losses), {**means.means(), **turn.watched}, norm


def _refuse_not_finite(step: int, loss: float, norm: float, *, fp16: bool) -> None:
    # with float16 a gradient may overflow now and then: the scaler skips that step and lowers its scale
    if isfinite(loss) and (fp16 or isfinite(norm)):
        return
    raise refuse("not-finite", f"step={step}", f"the loss is {loss}, the gradient's norm {norm}")


def _prepare_stage(run: Run, model: Any) -> None:
    """What a stage changes in the model for training alone, before the first step."""
    stage = registry.run("stages", run.plan.steps.train.stage)
    if prepare := registry.hook(stage, "prepare"):
        prepare(model, run.plan.steps.train.own)


def _watch_gradients(run: Run, state: State, engine: Engine, *, last: bool) -> None:
    """Each trained tensor must have a gradient within its first updates: some libraries lose them without a word.

    Its first updates are those in which it requires one: a method may train other tensors in other steps.
    """
    trained = engine.trained
    # a new token may first occur in a later row: its row has no gradient before
    looked = {name: 0 for name in trained if ".token_adapter." not in name} if state.quiet is None else state.quiet
    state.quiet = {
        name: seen + int(trained[name].requires_grad) for name, seen in looked.items() if not engine.has_gradient(name)
    }
    dead = [name for name, seen in state.quiet.items() if seen >= _ALIVE_WITHIN]
    never = [name for name, seen in state.quiet.items() if seen == 0]
    if dead or not state.quiet or (last and len(never) == len(state.quiet)):
        alive = len(trained) - len(state.quiet)
        detail = f"{alive} of {len(trained)} trained tensors had a gradient within {_ALIVE_WITHIN} updates"
        detail += f"; {len(never)} were never trained" if never else ""
        run.check("gradients_alive", not dead, detail + "".join(f"; not {name}" for name in dead[:3]))
        state.watching = False


def _log(
    run: Run,
    state: State,
    dataset: Dataset,
    watched: dict[str, float],
    rate: float,
    norm: float,
    since: tuple[float, int],
) -> None:
    seconds, tokens = state.seconds - since[0], state.tokens - since[1]
    run.log(
        {
            "step": state.step,
            "epoch": _epoch(run, state, dataset),
            **watched,
            "learning_rate": rate,
            "grad_norm": norm if isfinite(norm) else None,
            "tokens": state.tokens,
            "tokens_per_second": round(tokens / seconds, 2) if seconds else None,
            "memory": run.world.most(memory.current(run.plan.steps.load.device)),
            "seconds": round(state.seconds, 3),
            "time": round(time.time(), 3),
        },
    )


def _summary(run: Run, state: State, dataset: Dataset) -> dict[str, Any]:
    return {
        "steps": state.step,
        "epochs": _epoch(run, state, dataset),
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.tokens / state.seconds, 2) if state.seconds else None,
        "first_loss": state.first_loss,
        "final_loss": state.last_loss,
        "seconds_to_first_step": round(state.seconds_to_first_step or 0, 3),
    }
