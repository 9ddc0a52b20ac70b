"""A plan, as a person reads it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.panel import Panel

from factory.config import registry
from factory.config.values import to_tree
from factory.config.words import between, counted, duration, rate, size
from factory.execute.checks import LEVELS
from factory.plan.plan import (
    MEMORY_PARTS,
    VALIDATION_ROWS,
    DataSource,
    Estimate,
    Memory,
    Plan,
    micro_batches,
    stage_keys,
    use_of,
)
from factory.quantizers.checkpoint import checkpoint_quantizer
from factory.run.advice import Change
from factory.run.screen import WHOSE, grid
from factory.stages.rows import samples_answers, unit

_NAMED = 8  # modules that a plan names
_TOLD = {"name", "learning_rate", "quantization", "target_modules"}  # of a method's settings, in lines of their own
_SAMPLES = {"pairs": "pairs"}  # of a step, by the kind of the rows
_ALL_TEXT = ("parts", ["language"])  # what a model that sees nothing has
_RECOMPUTED = {
    False: "",
    True: ", activations{} recomputed",
    "selective": ", activations{} recomputed but for products",
}
_REFERENCES = {
    "base": "the base without an adapter",
    "adapter": "the base with the saved adapter",
    "weights": "the weights as they are read",
}
# of `plan.Memory`, as a person reads them
_INSTANTS = {
    "reading": "reading the weights",
    "forward": "the forward pass",
    "backward": "the backward pass",
    "step": "the optimizer's step",
    "saving": "saving",
}


def plan_panel(plan: Plan) -> Panel:
    table = grid()
    for name, text in (
        *(_of_run(plan) if plan.export is None else _of_export(plan)),
        *(("note", f"[dim]{escape(note)}[/dim]") for note in plan.notes),
        *(("warning", f"[yellow]{escape(warning)}[/yellow]") for warning in plan.warnings),
    ):
        table.add_row(name, text)
    return Panel(table, title=f"plan {plan.digest()}", title_align="left", expand=False)


def _of_run(plan: Plan) -> Iterator[tuple[str, str]]:
    yield from _model(plan)
    yield from _rows(plan)
    if plan.verb == "train":
        yield from _training(plan)
    yield from _evaluation(plan)
    yield from _memory(plan.estimate.memory)
    if plan.verb == "train":
        yield "time", _time(plan.estimate)
        yield "checks", f"{plan.settings.checks}: [dim]{LEVELS[plan.settings.checks]}[/dim]"


def _model(plan: Plan) -> Iterator[tuple[str, str]]:
    patch, attach, parameters = plan.steps.patch, plan.steps.attach, plan.estimate.parameters
    yield "load", _loaded(plan)
    rope = plan.settings.model.rope_scaling
    scaled = f", rope {rope} x {patch.rope_factor:g}" if rope != "none" else ""
    few = f" of the first {patch.recomputed_layers} layers" if patch.recomputed_layers else ""
    recompute = _RECOMPUTED[patch.activation_checkpointing].format(few)
    groups = f" in groups of {patch.group_size:,} tokens" if patch.group_size else ""
    kernels = "" if patch.kernels == "none" else f", kernels {patch.kernels}"
    yield "patch", f"attention {patch.attention}{groups}{kernels}{scaled}{recompute}"
    yield "quantize", _quantization(plan)
    if plan.verb == "train":
        share = 100 * parameters.trainable / parameters.total
        yield "attach", f"{plan.method}  {parameters.trainable:,} trained ({share:.2f} %), {attach.dtype}"
        yield "", f"[dim]in {', '.join(_short(parameters.trainable_by_module))}[/dim]"
        shown = registry.hook(registry.spec("methods", plan.settings.method.name), "shown", dict)
        own = {key: value for key, value in shown(to_tree(plan.settings.method)).items() if key not in _TOLD}
        if told := _settings({key: value for key, value in own.items() if (key, value) != _ALL_TEXT}):
            yield "", f"[dim]{told}[/dim]"
    elif plan.steps.load.adapter:
        yield "attach", f"the adapter {escape(plan.steps.load.adapter)}"


def _loaded(plan: Plan) -> str:
    load, model = plan.steps.load, escape(plan.options.get("model", ""))
    return f"{model}  {plan.estimate.parameters.total:,} parameters, {load.dtype} on {load.device}"


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    for name, source in plan.sources.items():
        file, told = escape(Path(source.path).name), use_of(plan.settings.data, name)
        yield "align", f"{name}  {file}, format {source.format}, {_extent(source)}{told}"
    pack = plan.steps.pack
    unpacked = "a row each, nothing padded" if pack.padding_free else "a row each"
    packed = f"packed{', documents isolated' if pack.isolate_documents else ''}" if pack.packing else unpacked
    yield "pack", f"up to {pack.max_length:,} tokens, {packed}"


def _extent(source: DataSource) -> str:
    return "of the hub, its size is not known yet" if source.asked.origin == "hub" else f"{source.bytes:,} bytes"


def _memory(memory: Memory) -> Iterator[tuple[str, str]]:
    fits = "fits" if memory.fits else "[bold]does not fit[/bold]"
    room = f" of {size(memory.capacity)}: {fits}" if memory.capacity is not None else ""
    yield "memory", f"about {size(memory.total)}{room}; most in {_peak(memory)}"
    if memory.capacity is None:
        yield "", "[dim]no such card is here: hardware.memory=80GB, or what it has, tells whether that fits[/dim]"
    parts = ", ".join(f"{name} {size(getattr(memory, name))}" for name in MEMORY_PARTS if getattr(memory, name))
    yield "", f"[dim]{parts}[/dim]"
    if memory.uncalibrated:
        yield "", f"[dim]rough: never measured with {', '.join(memory.uncalibrated)}[/dim]"


def _of_export(plan: Plan) -> Iterator[tuple[str, str]]:
    steps, export = plan.steps, plan.settings.export
    whole = export.format != "adapter"
    yield "load", _loaded(plan)
    if whole:
        yield "quantize", _quantization(plan)
    if (own := steps.load.own_base) is not None:
        yield "base", {"rebuilt": "the run's own, made again", "published": "as published, not the run's own"}[own]
    if steps.load.adapter:
        yield "merge" if whole else "adapter", escape(steps.load.adapter)
    types = ", ".join(filter(None, (export.format, export.quantization or plan.exported.dtype)))
    yield "write", f"{types}, about {size(plan.exported.bytes)} to {escape(str(export.dir))}"
    if export.register:
        yield "register", f"{escape(export.register)} in {plan.settings.tracking.uri}"
    if export.push:
        kind = "private" if export.private else "public"
        yield "push", f"{export.push}, {kind}{'; nothing is uploaded (export.dry_run)' if export.dry_run else ''}"
    if whole:
        memory = plan.estimate.memory
        yield "memory", f"{size(memory.weights)} of weights, {size(memory.capacity)} are free"


def _training(plan: Plan) -> Iterator[tuple[str, str]]:
    train, stage, hardware, steps = plan.steps.train, plan.settings.stage, plan.settings.hardware, plan.estimate.steps
    count = counted(steps.low, "step") if steps.low == steps.high else f"{steps} steps"
    own = stage_keys(plan)
    rows = own.get("rollout_batch_size", stage.batch_size * micro_batches(plan.settings))
    kind = registry.spec("stages", stage.name).KIND
    what = "sampled answers" if samples_answers(plan) else _SAMPLES.get(kind, "sequences")
    yield (
        "train",
        f"{stage.name}  {count} of {rows} {what}, {stage.optimizer}, "
        f"learning rate {stage.learning_rate:g} ({stage.lr_scheduler})",
    )
    if hardware.num_processes > 1:
        where = f" on {hardware.num_nodes} nodes" if hardware.num_nodes > 1 else ""
        yield "", f"{hardware.num_processes} processes{where} by {hardware.strategy}"
    if told := _settings(own):
        yield "", f"[dim]{told}[/dim]"
    if train.reference:
        yield "", f"[dim]reference: {_REFERENCES[train.reference]}, before the first step[/dim]"


def _evaluation(plan: Plan) -> Iterator[tuple[str, str]]:
    stage, usual = plan.settings.stage, "perplexity" if unit(plan) == "tokens" else "loss and rewards"
    measured = registry.hook(registry.spec("stages", stage.name), "MEASURES", usual)
    if not plan.settings.evaluate.perplexity:
        yield "evaluate", f"no {measured}"
    elif plan.verb == "evaluate":
        yield "evaluate", f"{measured} of the {_measured_rows(plan)}"
    else:
        every = f", and every {counted(stage.eval_steps, 'step')}" if stage.eval_steps else ""
        of = f" of the {WHOSE['train']}" if plan.settings.evaluate.rows == "train" else ""
        yield "evaluate", f"{measured}{of} before and after{every}"
    for text in _scoring(plan):
        yield "", text
    if plan.verb == "train" and stage.load_best_model_at_end:
        yield "", f"the checkpoint of the best {stage.metric_for_best_model} is saved"


def _measured_rows(plan: Plan) -> str:
    """Which rows of the sets `evaluate` measures, and of a part how all are."""
    data, rows = plan.settings.data, plan.settings.evaluate.rows
    if rows == "train":
        return WHOSE[rows]
    if data.validation is not None:
        return f"rows of {data.validation}, all of them"
    share = f"{100 * data.validation_fraction:g} %, at most {VALIDATION_ROWS:,} rows"
    return f"{WHOSE[rows]}: {share}; data.validation={next(iter(data.sources))} measures the whole set"


def _scoring(plan: Plan) -> Iterator[str]:
    asked = plan.settings.evaluate
    after = f"at most {asked.max_samples:,} " if asked.max_samples else ""
    if asked.generation:
        how = "greedy" if asked.temperature == 0 else f"drawn at temperature {asked.temperature:g}"
        yield f"{after}answers to held-out prompts, {how}, by {', '.join(asked.metrics)}"
    for name, each in plan.steps.evaluate.benchmarks.items():
        count = "questions" if each.questions is None else f"{each.questions:,} questions"
        kind = ", as a conversation" if asked.chat else ""
        yield f"{name} {asked.shots}-shot{kind}, {count} from {each.path or 'the hub'}"
    if asked.harness:
        each = "each with its own shots" if asked.harness_shots is None else f"{asked.harness_shots}-shot"
        kind = ", as a conversation" if asked.chat else ""
        yield f"{', '.join(asked.harness)} of lm-evaluation-harness, {each}{kind}"


def _settings(own: dict[str, Any]) -> str:
    """Those that are not off."""
    return ", ".join(name if value is True else f"{name} {_value(value)}" for name, value in own.items() if value)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return escape(f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value))


def _time(estimate: Estimate) -> str:
    speed, seconds = estimate.speed, estimate.seconds
    if speed is None:
        return "not known until a run of this kind of device and precision was measured here"
    speeds = f"{rate(speed.low)} to {rate(speed.high)} tokens/s"
    if seconds is None:
        return f"{speeds}; how long it takes is known after pack"
    return f"{between(duration(seconds.low), duration(seconds.high))} of training, at {speeds}"


def _peak(memory: Memory) -> str:
    return _INSTANTS[max(memory.instants, key=lambda name: memory.instants[name])]


def changes_text(changes: list[Change]) -> str:
    """What to add to the command line, a change a line."""
    lines = [f"  {change}" for change in changes]
    return "\n".join(["It would need less with", *lines]) if lines else "No change that is known brings it down."


def _quantization(plan: Plan) -> str:
    asked = plan.settings.method.quantization
    if asked.bits is None:
        name = checkpoint_quantizer(plan.steps.load.config)
        return f"as the checkpoint is, by {name}" if name else "no"
    if asked.method != "bitsandbytes" or asked.bits == 8:
        return f"{asked.bits} bits by {asked.method}"
    return f"4-bit {asked.type}{', double quantization' if asked.double_quantization else ''}"


def _short(modules: Iterable[str]) -> list[str]:
    """The modules' last names, each once, and no more than a few."""
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in modules))
    return names if len(names) <= _NAMED else [*names[:_NAMED], f"{len(names) - _NAMED} more"]
