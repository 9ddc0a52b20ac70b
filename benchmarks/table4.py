"""The paper's Table 4 on this machine, beside the paper's own figures: `benchmarks/table4.py [key=value …]`.

With a GPU it is `factory recipe=table4` as it stands (give model=…). Without one, in small: the embedded model and the
built-in texts, some 9,000 tokens in steps of 512, one epoch at a learning rate of 1e-4, as there are few steps (the
paper's is 1e-5); in float32 where the CPU has no bfloat16. `--read FOLDER` shows what was run before.

Exit code: 1 where a run did not finish, a perplexity is not below the untouched model's, or another method than
full takes the most memory.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from factory.compare.columns import PEAK, PERPLEXITY, columns
from factory.compare.found import of_folder
from factory.compare.runs import Run
from factory.plan.inspect import cpu

PAPER = Path(__file__).with_name("paper_table4.yaml")
SMALL = ("data=demo", "hardware=cpu", "stage.learning_rate=1e-4", "stage.logging_steps=1", "tracking=none")
WIDE = "precision=fp32"  # a CPU without bfloat16 instructions takes hours to pretend that it had them
GB, BILLION = 1e9, 1e9
Figures = tuple[float | None, ...]  # trainable parameters in billions, memory in GB, tokens a second, perplexity
TITLES = ("trainable", "memory", "tokens/s", "perplexity")
WRITTEN: tuple[Callable[[float], str], ...] = (
    lambda value: f"{value:.3f} B",
    lambda value: f"{value:.2f} GB",
    lambda value: f"{value:,.0f}",
    lambda value: f"{value:.2f}",
)
LOW_FIRST = {"memory": True, "tokens/s": False, "perplexity": True}  # how an ordering is read


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--read", type=Path)
    reader.add_argument("overrides", nargs="*")
    asked = reader.parse_args()
    folder = asked.read or Path(datetime.now().strftime("multirun_sweeps/table4-%Y-%m-%d-%H-%M-%S"))
    small = () if has_gpu() else (*SMALL, *([] if cpu.has_bf16() else [WIDE]))
    code = 0
    if asked.read is None:
        given = [*small, *asked.overrides, f"hydra.sweep.dir={folder}"]
        code = subprocess.run([sys.executable, "-m", "factory", "recipe=table4", *given], check=False).returncode
        if code == 130 or not folder.is_dir():  # interrupted, or refused before anything ran
            return code
    runs = {run.name: run for run in of_folder(folder)}
    ours = {name: figures(run) for name, run in runs.items()}
    show({f"here ({next(iter(runs.values())).options.get('model', 'model')})": ours, **paper()})
    wrong = unlike_the_paper(ours)
    for text in wrong:
        print(f"WRONG: {text}")
    return 1 if wrong or code else 0


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def paper() -> dict[str, dict[str, Figures]]:
    tables = yaml.safe_load(PAPER.read_text(encoding="utf-8"))
    return {model: {name: tuple(row) for name, row in rows.items()} for model, rows in tables.items()}


def figures(run: Run) -> Figures:
    """Of a run that measured only, the perplexity alone, as in the paper."""
    by_key = {column.key: column for column in columns([run])}
    value = {key: column.value(run) for key, column in by_key.items()}
    trained = value.get("tokens_per_second") is not None
    trainable, memory = value.get("trainable"), value.get(PEAK.key)
    return (
        trainable / BILLION if trained and trainable is not None else None,
        memory / GB if trained and memory is not None else None,
        value.get("tokens_per_second"),
        value.get(PERPLEXITY.key),
    )


def show(tables: dict[str, dict[str, Figures]]) -> None:
    """The same columns for each model, then the orderings."""
    console = Console(width=max(100, Console().width))
    for model, rows in tables.items():
        table = Table(title=model, title_justify="left")
        table.add_column("method")
        for title in TITLES:
            table.add_column(title, justify="right")
        for name, row in rows.items():
            told = [write(value) if value is not None else "-" for write, value in zip(WRITTEN, row, strict=True)]
            table.add_row(name, *told)
        console.print(table)
    table = Table(title="orderings, the best first", title_justify="left")
    for title in ("", *LOW_FIRST):
        table.add_column(title)
    for model, rows in tables.items():
        table.add_row(model, *(", ".join(ordering(rows, title)) for title in LOW_FIRST))
    console.print(table)


def ordering(rows: dict[str, Figures], title: str) -> list[str]:
    """The methods by a column, the lowest memory or perplexity or the highest speed first."""
    at = TITLES.index(title)
    known = {name: value for name, row in rows.items() if name != "baseline" and (value := row[at]) is not None}
    return sorted(known, key=known.__getitem__, reverse=not LOW_FIRST[title])


def unlike_the_paper(rows: dict[str, Figures]) -> list[str]:
    """What must hold at any size: each method improves on the untouched model, and full takes the most memory."""
    untouched = rows["baseline"][3]
    if untouched is None:
        return ["the untouched model has no perplexity"]
    lost = [name for name, row in rows.items() if row[3] is None and name != "full"]
    worse = [name for name, row in rows.items() if name != "baseline" and row[3] is not None and row[3] >= untouched]
    found = [f"{name} has no perplexity" for name in lost]
    found += [f"{name} is not below the untouched model's perplexity of {untouched:.3f}" for name in worse]
    largest = ordering(rows, "memory")[-1:]
    if rows["full"][1] is not None and largest != ["full"]:
        found.append(f"{largest[0]} takes more memory than full")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
