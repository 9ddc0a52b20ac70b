"""What a person sees, in the terminal and in run.log alike."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from factory import registry
from factory.execute.report import ADVICE
from factory.models import Row
from factory.plan import Estimate, Evaluate, Export, Memory, Plan
from factory.quantizers.spec import checkpoint_quantizer
from factory.redact import redacted, redacting
from factory.run.advice import Change
from factory.words import between, duration, size

_LOG_WIDTH = 120
_NAMED = 8  # modules that a plan names
_WIDE = 110  # columns from which a table shows what can be left out


class Screen:
    """Prints to the terminal and, once a run's folder is claimed, to its log."""

    def __init__(self) -> None:
        self.console = Console(file=redacting(sys.stdout), highlight=False, soft_wrap=False)
        self.log: Console | None = None
        self._progress: Progress | None = None
        self._tasks: dict[str, Any] = {}

    def write_to(self, log: Path | None) -> None:
        if self.log is not None:
            with suppress(OSError):  # what a full disk did not take
                self.log.file.close()
        file = log.open("a", encoding="utf-8", buffering=1) if log else None
        self.log = Console(file=redacting(file), width=_LOG_WIDTH, no_color=True, highlight=False) if file else None

    def print(self, what: Any, *, style: str | None = None, soft_wrap: bool = False) -> None:
        """`soft_wrap` leaves long lines to the terminal, so that a command can be copied whole."""
        markup = not isinstance(what, str)  # a refusal's [rule-id] is no markup
        what = redacted(what) if isinstance(what, str) else what  # before its lines are broken
        self.console.print(what, style=style, soft_wrap=soft_wrap, markup=markup)
        if self.log is not None:
            with suppress(OSError):  # a full disk must not hide the message from the terminal
                self.log.print(what, soft_wrap=soft_wrap, markup=markup)

    def progress(self, name: str, done: int, total: int) -> None:
        """A bar for each stretch of work; in a file or a pipe, only its end."""
        if not self.console.is_terminal:
            return
        if self._progress is None:
            columns = (
                TextColumn("{task.description:>9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
            self._progress.start()
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note="")
        self._progress.update(self._tasks[name], completed=done, total=total)

    def note(self, name: str, text: str) -> None:
        if self._progress is not None and name in self._tasks:
            self._progress.update(self._tasks[name], note=text)

    def stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}


_WHOSE = {"held_out": "held-out rows", "train": "rows that train"}
_REFERENCES = {
    "base": "the base without an adapter",
    "adapter": "the base with the saved adapter",
    "weights": "the weights as they are read",
}


def plan_panel(plan: Plan) -> Panel:
    steps, estimate = plan.steps, plan.estimate
    counted, memory = estimate.parameters, estimate.memory
    share = 100 * counted.trainable / counted.total
    table = _grid()
    add = table.add_row
    if plan.export is not None:
        return _export_panel(plan, plan.export)
    add(
        "load",
        f"{plan.options.get('model', '')}  {counted.total:,} parameters, {steps.load.dtype} on {steps.load.device}",
    )
    rope = (
        f", rope {steps.patch.rope_scaling} x {steps.patch.rope_factor:g}" if steps.patch.rope_scaling != "none" else ""
    )
    recompute = ", activations recomputed" if steps.patch.activation_checkpointing else ""
    groups = f" in groups of {steps.patch.group_size:,} tokens" if steps.patch.group_size else ""
    kernels = "" if steps.patch.kernels == "none" else f", kernels {steps.patch.kernels}"
    add("patch", f"attention {steps.patch.attention}{groups}{kernels}{rope}{recompute}")
    add("quantize", _quantization(plan))
    if plan.verb == "train":
        named = steps.attach.method in plan.own
        method = steps.attach.method if named else plan.options.get("method", steps.attach.method)
        trained = ", ".join(_short(counted.trainable_by_module))
        add("attach", f"{method}  {counted.trainable:,} trained ({share:.2f} %), {steps.attach.dtype}")
        add("", f"[dim]in {trained}[/dim]")
    elif steps.load.adapter:
        add("attach", f"the adapter {steps.load.adapter}")
    for name, source in steps.align.sources.items():
        add("align", f"{name}  {Path(source.path).name}, format {source.format}, {source.bytes:,} bytes")
    isolated = ", documents isolated" if steps.pack.isolate_documents else ""
    add(
        "pack", f"up to {steps.pack.max_length:,} tokens, {'packed' + isolated if steps.pack.packing else 'a row each'}"
    )
    if plan.verb == "train":
        for name, text in _training(plan):
            add(name, text)
    for name, text in _evaluation(plan):
        add(name, text)
    fits = "fits" if memory.fits else "[bold]does not fit[/bold]"
    add("memory", f"about {size(memory.total)} of {size(memory.capacity)}: {fits}; most in {_peak(memory)}")
    parts = ", ".join(f"{name} {size(getattr(memory, name))}" for name in _PARTS if getattr(memory, name))
    add("", f"[dim]{parts}[/dim]")
    if memory.uncalibrated:
        add("", f"[dim]rough: never measured with {', '.join(memory.uncalibrated)}[/dim]")
    if plan.verb == "train":
        add("time", _time(estimate))
    for note in plan.notes:
        add("note", f"[dim]{note}[/dim]")
    for warning in plan.warnings:
        add("warning", f"[yellow]{_plain(warning)}[/yellow]")
    return Panel(table, title=f"plan {plan.digest()}", title_align="left", expand=False)


def _export_panel(plan: Plan, export: Export) -> Panel:
    steps, table = plan.steps, _grid()
    add, total = table.add_row, plan.estimate.parameters.total
    add("load", f"{plan.options.get('model', '')}  {total:,} parameters, {steps.load.dtype} on {steps.load.device}")
    if export.format != "adapter":
        add("quantize", _quantization(plan))
    if (own := steps.load.own_base) is not None:
        add("base", {"rebuilt": "the run's own, made again", "published": "as published, not the run's own"}[own])
    if steps.load.adapter:
        add("adapter" if export.format == "adapter" else "merge", _plain(steps.load.adapter))
    types = export.quantization or export.dtype
    add("write", f"{export.format}{f', {types}' if types else ''}, about {size(export.bytes)} to {_plain(export.dir)}")
    if export.register:
        add("register", f"{_plain(export.register)} in {plan.tracking.uri}")
    if export.push:
        kind = "private" if export.private else "public"
        add("push", f"{export.push}, {kind}{'; nothing is uploaded (export.dry_run)' if export.dry_run else ''}")
    if export.format != "adapter":
        add(
            "memory", f"{size(plan.estimate.memory.weights)} of weights, {size(plan.estimate.memory.capacity)} are free"
        )
    for note in plan.notes:
        add("note", f"[dim]{_plain(note)}[/dim]")
    for warning in plan.warnings:
        add("warning", f"[yellow]{_plain(warning)}[/yellow]")
    return Panel(table, title=f"plan {plan.digest()}", title_align="left", expand=False)


def _exported(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was written, and where it went."""
    files = told["files"]
    yield "written", f"[bold]{_plain(told['dir'])}[/bold]  {len(files):,} files, {size(sum(files.values()))}"
    if "mean_nats" in told:
        yield "", f"[dim]the type moves losses by {told['mean_nats']:.2g} nats a token on average[/dim]"
    for name, found in told.get("apart", {}).items():
        yield "", f"[dim]on published weights {name} {found['mean_nats']:.2g} nats a token off the run on average[/dim]"
    if found := told.get("registered"):
        yield "registered", f"{_plain(found['name'])} version {found['version']}"
    if found := told.get("push"):
        done = "would be uploaded" if found["dry_run"] else "uploaded"
        yield (
            "push",
            f"{len(found['files']):,} files, {size(sum(found['files'].values()))} {done} to {found['repository']}",
        )


def _training(plan: Plan) -> Iterator[tuple[str, str]]:
    train = plan.steps.train
    rows = train.own.get("rollout_batch_size", train.batch_size * train.micro_batches)
    what = "sampled answers" if "rollout_batch_size" in train.own else "sequences"
    yield (
        "train",
        f"{train.stage}  {plan.estimate.steps} steps of {rows} {what}, {train.optimizer}, "
        f"learning rate {train.learning_rate:g} ({train.lr_scheduler})",
    )
    if train.ranks.processes > 1:
        where = f" on {train.ranks.nodes} nodes" if train.ranks.nodes > 1 else ""
        yield "", f"{train.ranks.processes} processes{where} by {train.ranks.strategy}"
    if told := [f"{name} {_number(value)}" for name, value in train.own.items() if value]:
        yield "", f"[dim]{', '.join(told)}[/dim]"
    if train.reference:
        yield "", f"[dim]reference: {_REFERENCES[train.reference]}, before the first step[/dim]"


def _evaluation(plan: Plan) -> Iterator[tuple[str, str]]:
    train, stage = plan.steps.train, registry.spec("stages", plan.steps.train.stage)
    whole = registry.hook(stage, "UNIT", "tokens") == "samples"
    measured = registry.hook(stage, "MEASURES", "loss and rewards" if whole else "perplexity")
    whose = _WHOSE[plan.steps.evaluate.rows]
    if not plan.steps.evaluate.perplexity:
        yield "evaluate", f"no {measured}"
    elif plan.verb == "evaluate":
        yield "evaluate", f"{measured} of the {whose}"
    else:
        every = f", and every {train.eval_steps:,} steps" if train.eval_steps else ""
        of = f" of the {whose}" if plan.steps.evaluate.rows == "train" else ""
        yield "evaluate", f"{measured}{of} before and after{every}"
    for text in _scoring(plan.steps.evaluate):
        yield "", text
    if plan.verb == "train" and train.load_best_model_at_end:
        yield "", f"the checkpoint of the best {train.metric_for_best_model} is saved"


def _scoring(asked: Evaluate) -> Iterator[str]:
    after = f"at most {asked.max_samples:,} " if asked.max_samples else ""
    if asked.generation:
        how = "greedy" if asked.temperature == 0 else f"drawn at temperature {asked.temperature:g}"
        yield f"{after}answers to held-out prompts, {how}, by {', '.join(asked.metrics)}"
    for name, each in asked.benchmarks.items():
        count = "questions" if each.questions is None else f"{each.questions:,} questions"
        kind = ", as a conversation" if asked.chat else ""
        yield f"{name} {asked.shots}-shot{kind}, {count} from {each.path or 'the hub'}"
    if asked.harness is not None:
        each = "each with its own shots" if asked.harness.shots is None else f"{asked.harness.shots}-shot"
        kind = ", as a conversation" if asked.chat else ""
        yield f"{', '.join(asked.harness.tasks)} of lm-evaluation-harness, {each}{kind}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


_FITS = {True: "fits", False: "less, and still too much"}
# of `plan.Memory`, as a person reads them
_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "slack", "runtime")
_INSTANTS = {
    "reading": "reading the weights",
    "forward": "the forward pass",
    "backward": "the backward pass",
    "step": "the optimizer's step",
    "saving": "saving",
}


def _time(estimate: Estimate) -> str:
    speed, seconds = estimate.speed, estimate.seconds
    if speed is None:
        return "not known until a run of this kind of device and precision was measured here"
    rate = f"{speed.low:,.0f} to {speed.high:,.0f} tokens/s"
    if seconds is None:
        return f"{rate}; how long it takes is known after pack"
    return f"{between(duration(seconds.low), duration(seconds.high))} of training, at {rate}"


def _peak(memory: Memory) -> str:
    return _INSTANTS[max(memory.instants, key=lambda name: memory.instants[name])]


def changes_text(changes: list[Change]) -> str:
    """What to add to the command line, a change a line."""
    lines = [
        f"  {' '.join(change.overrides)}  # estimated {size(change.estimated_bytes)}, {_FITS[change.fits]}"
        for change in changes
    ]
    return "\n".join(["It would need less with", *lines]) if lines else "No change that is known brings it down."


def _quantization(plan: Plan) -> str:
    asked = plan.steps.quantize
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


def report_panel(report: dict[str, Any], folder: Path) -> Panel:
    table = _grid()
    add, train = table.add_row, report.get("train", {})
    parameters, memory = report["parameters"], report["memory"]
    trained = f"{parameters['trainable']:,} trained of " if train else ""
    add("parameters", f"{trained}{parameters['total']:,}")
    rows = memory.get("estimated_for", {})
    expected = rows.get("bytes", memory["estimated_bytes"])
    if expected is None:
        add("memory", f"peak {size(memory['peak_bytes'])}")
    else:
        when = "while training" if train else "while measuring"
        where = f" for rows of up to {rows['longest_row']:,} tokens" if rows else ""
        off = 100 * (expected / memory["peak_bytes"] - 1)
        estimated = f"estimated {size(expected)}{where}, {round(off):+d} %"
        add("memory", f"peak {size(memory['peak_bytes'])} {when} ({estimated})")
    for name, text in _exported(report["export"]) if "export" in report else ():
        add(name, text)
    if train:
        add(
            "training",
            f"{train['steps']:,} steps, {train['tokens']:,} tokens in {train['seconds']:.0f} s: "
            f"{train['tokens_per_second'] or 0:,.0f} tokens/s; "
            f"loss {_decimals(train['first_loss'])} -> {_decimals(train['final_loss'])}",
        )
    if told := _estimates(report.get("estimate", {}), train):
        add("estimate", told)
    if best := train.get("best"):
        kept = "the model that is saved" if best["saved_model"] else "not the one that is saved"
        step = f"step {best['step']:,}: {best['metric']} {_decimals(best['value'])} on the held-out rows, {kept}"
        add("best", "no evaluation was finite" if best["step"] is None else step)
    if train.get("stopped_early"):
        add("", "stopped early: no better evaluation within stage.early_stopping_patience")
    if bad := report.get("bad_updates"):
        add(
            "bad updates",
            f"[yellow]{bad['count']:,}, {bad['skipped']:,} of them skipped (bad_updates in report.json)[/yellow]",
        )
    if warned := report.get("warnings", {}).get("count"):
        add("warnings", f"{warned:,} of libraries, in {_plain(str(folder / 'run.log'))}")
    data = report.get("data", {})
    if data:
        dropped = sum(data["dropped"].values())
        skipped = f"{data['not_sampled']:,} not sampled, " if data.get("not_sampled") else ""
        add(
            "data",
            f"{data['used']:,} rows {'trained' if train else 'not looked at'}, {data['validation']:,} held out, "
            f"{skipped}{dropped:,} dropped of {data['rows']:,}",
        )
        for reason, count in data["dropped"].items():
            add("", f"dropped: {_plain(reason)} ({count:,})")
    evaluate = report.get("evaluate", {})
    # without a held-out row there is a figure of those that train alone
    whose = _WHOSE["held_out" if data.get("validation", 1) else "train"]
    if "perplexity" in evaluate:
        add("perplexity", f"[bold]{_change(evaluate, 'perplexity')}[/bold] on the {whose}")
    for name in ("loss", "rewards/accuracy", "rewards/margin", "reward", "kl", "response_length"):
        if name in evaluate:
            add(name, f"{_change(evaluate, name)} on the {whose}")
    for name, text in _scored(evaluate):
        add(name, text)
    for sample in report.get("samples", []):
        add("prompt", _plain(sample["prompt"].strip()[-600:]))
        if "before" in sample:
            add("before", f"[dim]{_plain(sample['before'].strip())}[/dim]")
        add("after" if "before" in sample else "answer", _plain(sample["after"].strip()))
    for name, check in report.get("checks", {}).items():
        red = "[yellow]off[/yellow]" if name in ADVICE else "[red]RED[/red]"
        verdict = "[green]ok[/green] " if check["passed"] else red
        add("check", f"{verdict} {name}: {_plain(check['detail'])}")
    return Panel(table, title=f"report {folder}", title_align="left", expand=False)


def _estimates(errors: dict[str, Any], train: dict[str, Any]) -> str:
    """How far what was estimated is from what came."""
    told = []
    if "memory_error" in errors:
        told.append(f"memory {round(100 * errors['memory_error']):+d} %")
    if "time_error" in errors:
        low, high = errors["seconds"]["low"], errors["seconds"]["high"]
        place = "within" if low <= train["seconds"] <= high else "not within"
        told.append(f"time {round(100 * errors['time_error']):+d} %, {place} {between(duration(low), duration(high))}")
    return ", ".join(told)


def _scored(evaluate: dict[str, Any]) -> Iterator[tuple[str, str | Table]]:
    """Answers' scores, and a table of each benchmark's categories."""
    if how := evaluate.get("generation"):
        scores = ", ".join(f"{name} {evaluate[name]:.2f}" for name in how["signatures"])
        yield (
            "answers",
            f"[bold]{_plain(scores)}[/bold] of {how['rows']:,} held-out rows, counted by {how['counted_by']}",
        )
    for each in evaluate.get("benchmarks", {}).values():
        average = each["average"]
        yield each["title"], f"[bold]{each['accuracy']:.2f} %[/bold] [dim]{_plain(each['signature'])}[/dim]"
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column in ("category", "subjects", "questions", f"{average} %", "± error"):
            table.add_column(column, justify="left" if column == "category" else "right", no_wrap=True)
        for category, mean in {**each["categories"], "all": each["overall"]}.items():
            numbers = (
                f"{mean['subjects']}",
                f"{mean['count']:,}",
                f"{mean[average]:.2f}",
                f"{mean[f'{average}_error']:.2f}",
            )
            table.add_row(_plain(category), *numbers)
        yield "", table
    if tasks := evaluate.get("harness"):
        yield "lm-eval", _of_tasks(tasks)


def _of_tasks(tasks: dict[str, Any]) -> Table:
    """Of lm-evaluation-harness, in its own units."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("task", "metric", "value", "± error", "shots", "questions"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right", no_wrap=True)
    for name, each in tasks.items():
        of = "" if each["questions"] == each["of"] else f" of {each['of']:,}"
        shots = each["shots"] if isinstance(each["shots"], int) else " or ".join(map(str, each["shots"]))
        indent = "  " if each["group"] else ""
        for metric, figure in each["metrics"].items():
            error = "" if figure["error"] is None else f"{figure['error']:.4f}"
            counts = (f"{shots}", f"{each['questions']:,}{of}")
            table.add_row(indent + _plain(name), _plain(metric), f"{figure['value']:.4f}", error, *counts)
    return table


def _change(evaluate: dict[str, Any], name: str) -> str:
    before = evaluate.get(f"{name}_before")
    return f"{evaluate[name]:.3f}" if before is None else f"{before:.3f} -> {evaluate[name]:.3f}"


def _decimals(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _plain(text: str) -> str:
    """Text that may hold square brackets, for rich."""
    from rich.markup import escape

    return escape(text)


def models_table(rows: list[Row], *, width: int) -> Table:
    """The model options, a line each; the hub's paths where there is room for them."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model=", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("context", justify="right", no_wrap=True)
    table.add_column("template", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    if width >= _WIDE:
        table.add_column("hub", no_wrap=True, overflow="ellipsis")
    for row in rows:
        count = f"{row.parameters / 1e9:,.2f} B" if row.parameters else "?"
        marks = "".join(f" {word}" for word, there in (("vision", row.vision), ("gated", row.gated)) if there)
        hub = (row.path,) if width >= _WIDE else ()
        context = f"{row.context_length:,}" if row.context_length else "?"
        table.add_row(row.option, count, context, row.template, f"{row.license}[dim]{marks}[/dim]", *hub)
    table.caption = f"{len(rows)} options, {len({row.family for row in rows})} families"
    return table
