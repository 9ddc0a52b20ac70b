"""A report, as a person reads it."""

from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from factory.config.words import between, counted, duration, rate, size
from factory.execute.checks import LEVELS
from factory.execute.report import ADVICE, mostly_dropped, rows_told
from factory.run.screen import WHOSE, grid


def report_panel(report: dict[str, Any], folder: Path) -> Panel:
    table, evaluate = grid(), report.get("evaluate", {})
    whose = _whose(report)
    for name, text in (
        *_sizes(report),
        *(_exported(report["export"]) if "export" in report else ()),
        *_training(report),
        *_trouble(report, folder),
        *_rows(report),
        *_quality(evaluate, whose),
        *_scored(evaluate, whose),
        *_samples(report.get("samples", [])),
        *_checks(report.get("checks", {}), report.get("checks_level")),
    ):
        table.add_row(name, text)
    return Panel(table, title=f"report {folder}", title_align="left", expand=False)


def _whose(report: dict[str, Any]) -> str:
    if name := report.get("measured_rows", {}).get("set"):
        return f"rows of {escape(name)}"
    # without a held-out row there is a figure of those that train alone
    return WHOSE["held_out" if report.get("data", {}).get("validation", 1) else "train"]


def _sizes(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    parameters, memory, trains = report["parameters"], report["memory"], bool(report.get("train"))
    trained = f"{parameters['trainable']:,} trained of " if trains else ""
    yield "parameters", f"{trained}{parameters['total']:,}"
    rows, peak = memory.get("estimated_for", {}), f"peak {size(memory['peak_bytes'])}"
    expected = rows.get("bytes", memory["estimated_bytes"])
    if expected is None:
        yield "memory", peak
        return
    when = "while training" if trains else "while measuring"
    yield "memory", f"{peak} {when} (estimated {size(expected)}{rows_told(rows)})"


def _training(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    train = report.get("train", {})
    if train:
        yield (
            "training",
            f"{counted(train['steps'], 'step')}, {train['tokens']:,} tokens in {train['seconds']:.0f} s: "
            f"{rate(train['tokens_per_second'] or 0)} tokens/s; "
            f"loss {_decimals(train['first_loss'])} -> {_decimals(train['final_loss'])}",
        )
    if overflows := train.get("overflows"):
        yield "", f"{counted(overflows, 'update')} overflowed in float16 and moved nothing"
    if told := _estimates(report.get("estimate", {}), train):
        yield "estimate", told
    if best := train.get("best"):
        yield "best", _best(best)
    if train.get("stopped_early"):
        yield "", "stopped early: no better evaluation within stage.early_stopping_patience"


def _best(best: dict[str, Any]) -> str:
    if best["step"] is None:
        return "no evaluation was finite"
    kept = "the model that is saved" if best["saved_model"] else "not the one that is saved"
    return f"step {best['step']:,}: {best['metric']} {_decimals(best['value'])} on the held-out rows, {kept}"


def _trouble(report: dict[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    if bad := report.get("bad_updates"):
        told = f"{bad['count']:,}, {bad['skipped']:,} of them skipped (bad_updates in report.json)"
        yield "bad updates", f"[yellow]{told}[/yellow]"
    if warned := report.get("warnings", {}).get("count"):
        yield "warnings", f"{warned:,} of libraries, in {escape(str(folder / 'run.log'))}"


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    measured = _measured(report)
    if not (data := report.get("data")):
        if measured is not None:
            yield "data", f"{counted(measured, 'row')} measured of a stream"
        return
    skipped = f"{data['not_sampled']:,} not sampled, " if data.get("not_sampled") else ""
    dropped = f"{skipped}{sum(data['dropped'].values()):,} dropped"
    if measured is None:
        used = _trained(data, report["train"]) if report.get("train") else f"{data['used']:,} rows not looked at"
        yield "data", f"{used}, {data['validation']:,} held out, {dropped} of {data['rows']:,}"
    else:
        rest = data["used"] + data["validation"] - measured
        yield "data", f"{measured:,} of {data['rows']:,} rows measured, {rest:,} not looked at, {dropped}"
        if measured and rest and report["measured_rows"]["set"] is None:
            yield "", "[dim]data.validation=NAME measures the set of that name whole[/dim]"
    for reason, count in data["dropped"].items():
        yield "", f"dropped: {escape(reason)} ({count:,})"
    if told := mostly_dropped(data):
        yield "", f"[yellow]{escape(told)}[/yellow]"


def _measured(report: dict[str, Any]) -> int | None:
    """How many rows a model was measured on that is not trained here; None of one that is.

    Where no perplexity is asked for these are the prompts that were answered.
    """
    if "measured_rows" not in report:
        return None
    return report["measured_rows"]["count"] or report["evaluate"].get("generation", {}).get("rows", 0)


def _trained(data: dict[str, Any], train: dict[str, Any]) -> str:
    """Fewer than there are, where the last step came before the first pass was over."""
    seen, there = train.get("sequences"), data.get("sequences")
    if seen is None or there is None or seen >= there:
        return f"{data['used']:,} rows trained"
    if there == data["used"]:
        return f"{seen:,} of {there:,} rows trained"
    return f"{seen:,} of {there:,} sequences trained, of {data['used']:,} rows"  # packed, or some more than once


def _quality(evaluate: dict[str, Any], whose: str) -> Iterator[tuple[str, str]]:
    if "perplexity" in evaluate:
        yield "perplexity", f"[bold]{_change(evaluate, 'perplexity')}[/bold] on the {whose}"
    for name in ("loss", "rewards/accuracy", "rewards/margin", "reward", "kl", "response_length"):
        if name in evaluate:
            yield name, f"{_change(evaluate, name)} on the {whose}"


def _samples(samples: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    for sample in samples:
        yield "prompt", escape(sample["prompt"].strip()[-600:])
        if "before" in sample:
            yield "before", f"[dim]{escape(sample['before'].strip())}[/dim]"
        yield "after" if "before" in sample else "answer", escape(sample["after"].strip())


def _checks(checks: dict[str, Any], level: str | None) -> Iterator[tuple[str, str]]:
    if level is not None:
        yield "checks", f"{level}: [dim]{LEVELS[level]}[/dim]"
    for name, check in checks.items():
        red = "[yellow]note[/yellow]" if name in ADVICE else "[red]RED[/red]"
        verdict = "[green]ok[/green] " if check["passed"] else red
        yield "check", f"{verdict} {name}: {escape(check['detail'])}"


def _exported(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was written, and where it went."""
    files = told["files"]
    yield "written", f"[bold]{escape(told['dir'])}[/bold]  {len(files):,} files, {size(sum(files.values()))}"
    if "mean_nats" in told:
        yield "", f"[dim]the type moves losses by {told['mean_nats']:.2g} nats a token on average[/dim]"
    for name, found in told.get("apart", {}).items():
        yield "", f"[dim]on published weights {name} {found['mean_nats']:.2g} nats a token off the run on average[/dim]"
    if found := told.get("registered"):
        yield "registered", f"{escape(found['name'])} version {found['version']}"
    if found := told.get("push"):
        done = "would be uploaded" if found["dry_run"] else "uploaded"
        yield (
            "push",
            f"{len(found['files']):,} files, {size(sum(found['files'].values()))} {done} to {found['repository']}",
        )


def _estimates(errors: dict[str, Any], train: dict[str, Any]) -> str:
    """How far the time that was estimated is from what came; of memory the checks tell."""
    if "time_error" not in errors:
        return ""
    low, high, off = errors["seconds"]["low"], errors["seconds"]["high"], round(100 * errors["time_error"])
    place = "within" if low <= train["seconds"] <= high else "not within"
    # the middle of factors is no half of a sum: it is named, so that nobody reckons another
    middle = f"geometric mean of {duration(sqrt(low * high))}"
    above = f", whose {middle} is {abs(off)} % {'more' if off > 0 else 'less'}" if off else ""
    return f"{duration(train['seconds'])} of training, {place} {between(duration(low), duration(high))}{above}"


def _scored(evaluate: dict[str, Any], whose: str = WHOSE["held_out"]) -> Iterator[tuple[str, str | Table]]:
    """Answers' scores, and a table of each benchmark's categories."""
    if how := evaluate.get("generation"):
        scores = ", ".join(f"{name} {evaluate[name]:.2f}" for name in how["signatures"])
        yield (
            "answers",
            f"[bold]{escape(scores)}[/bold] of {how['rows']:,} {whose}, counted by {how['counted_by']}",
        )
    for each in evaluate.get("benchmarks", {}).values():
        average = each["average"]
        yield each["title"], f"[bold]{each['accuracy']:.2f} %[/bold] [dim]{escape(each['signature'])}[/dim]"
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
            table.add_row(escape(category), *numbers)
        yield "", table
    if tasks := evaluate.get("harness"):
        yield "lm-eval", _of_tasks(tasks)


def _of_tasks(tasks: dict[str, Any]) -> Table:
    """Of lm-evaluation-harness, in its own units."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("task", "metric"):
        table.add_column(column, overflow="fold")  # in lines where there is no room: a number that is cut is another
    for column in ("value", "± error", "shots", "questions"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, each in tasks.items():
        of = "" if each["questions"] == each["of"] else f" of {each['of']:,}"
        shots = each["shots"] if isinstance(each["shots"], int) else " or ".join(map(str, each["shots"]))
        indent = "  " if each["group"] else ""
        for metric, figure in each["metrics"].items():
            error = "" if figure["error"] is None else f"{figure['error']:.4f}"
            counts = (f"{shots}", f"{each['questions']:,}{of}")
            table.add_row(indent + escape(name), escape(metric), f"{figure['value']:.4f}", error, *counts)
    return table


def _change(evaluate: dict[str, Any], name: str) -> str:
    before = evaluate.get(f"{name}_before")
    return f"{evaluate[name]:.3f}" if before is None else f"{before:.3f} -> {evaluate[name]:.3f}"


def _decimals(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"
