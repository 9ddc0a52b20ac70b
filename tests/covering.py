"""A covering array: every pair of options that can run on a CPU, in as few combinations as a greedy search finds.

`make golden` writes it; `make compat` executes all of it on a 2-layer model, in one process, and tells what failed.
"""

import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import compatibility
import pretended
import rolling
from test_methods import FITTING

FILE = Path(__file__).parent / "golden" / "covering.txt"
_TRIES = 12  # completions of a pair, before it is taken for one that nothing legal holds
_ONLY = {"quantization": ("none", "bitsandbytes 4", "bitsandbytes 8")}  # whose library a default install has
_WITHOUT = {"device": "cpu", "strategy": "none", "kernels": "none"}  # what has one value here
Row = dict[str, str]


def verdict(row: Row) -> tuple[str, ...]:
    """The rules that refuse it on a CPU."""
    return compatibility.verdict(tuple((row | _WITHOUT).items()))


@cache
def factors() -> dict[str, tuple[str, ...]]:
    """Those of the compatibility page that have a choice on a CPU, in one process."""
    return {
        name: tuple(value for value in _ONLY.get(name, values) if not verdict({name: value}))
        for name, values in compatibility.FACTORS.items()
        if name not in _WITHOUT
    }


@cache
def legal() -> frozenset[compatibility.Combination]:
    """Pairs."""
    values = factors()
    every = (
        ((one, a), (other, b)) for one, other in combinations(values, 2) for a in values[one] for b in values[other]
    )
    return frozenset(pair for pair in every if not verdict(dict(pair)))


def pairs_of(row: Row) -> set[compatibility.Combination]:
    return set(combinations([(name, row[name]) for name in compatibility.FACTORS if name in row], 2))


@cache
def array() -> tuple[Row, ...]:
    """The same rows each time. Each is legal; a pair that no legal row was found for is in none (see `write`)."""
    draws, left, rows = random.Random(0), set(legal()), list[Row]()
    while left:
        wanted = min(left)
        tried = (_completed(dict(wanted), left, draws) for _ in range(_TRIES))
        found = next((row for row in tried if pairs_of(row) <= legal() and not verdict(row)), None)
        left -= {wanted} if found is None else pairs_of(found)
        rows += [] if found is None else [{name: found[name] for name in factors()}]
    return tuple(rows)


def _completed(row: Row, left: set[compatibility.Combination], draws: random.Random) -> Row:
    """With a value for each factor: one that goes with each of those there, and covers most of what is left."""
    values = factors()
    names = [name for name in values if name not in row]
    draws.shuffle(names)
    for name in names:
        ways = [row | {name: value} for value in draws.sample(values[name], len(values[name]))]
        row = max(ways, key=lambda way: (len(pairs_of(way) & legal()), len(pairs_of(way) & left)))
    return row


# --- as command lines

_SAMPLED = ("stage.reward=letters_scoring:letters", "stage.max_new_tokens=3", "stage.rollout_batch_size=4")
_NEEDS: dict[str, tuple[str, ...]] = {
    "kto": pretended.NEEDS["kto"],
    "rm": ("evaluate.samples=0",),  # it answers nothing
    "ppo": _SAMPLED,
    "grpo": (*_SAMPLED, "stage.group_size=2"),
}
SHORT = (
    "hardware=cpu",
    "tracking=none",
    "stage.max_steps=2",
    "stage.batch_size=2",
    "stage.gradient_accumulation_steps=1",
    "stage.max_grad_norm=1",
    "data.max_samples=8",
    "data.validation_fraction=0.2",
    "evaluate.samples=1",
    "evaluate.max_new_tokens=3",
)


def overrides(row: Row) -> tuple[str, ...]:
    library, _, bits = row["quantization"].partition(" ")
    own = f"method.quantization.bits={bits or 'null'}"
    quantized = (f"method.quantization.method={library}", own) if bits else (own,)
    return (
        f"method={row['method']}",
        *FITTING[row["method"]],
        *(quantized if row["quantization"] != compatibility.usual("quantization", row["method"]) else ()),
        f"stage={row['stage']}",
        *SHORT,
        *_NEEDS.get(row["stage"], ()),
        *(("data.truncation=right",) if (row["stage"], row["packing"]) == ("pt", "false") else ()),
        f"precision={row['precision']}",
        f"compute.attention={row['attention']}",
        *(("compute.group_size=16",) if row["attention"] == "s2" else ()),
        f"compute.activation_checkpointing={row['checkpointing']}",
        f"data.packing={row['packing']}",
    )


# --- executed


@dataclass
class Outcome:
    row: Row
    wrong: str | None
    seconds: float


def outcome(row: Row, folder: Path, model: Path) -> Outcome:
    """Runs it in this process: what went wrong, in a line, or None. A red check is wrong too."""
    from known_warnings import unknown

    from factory import cli
    from factory.config import compose
    from factory.config.refusal import UserError
    from factory.execute import executor
    from factory.execute.context import Run
    from factory.execute.heard import hearing
    from factory.plan.plan import to_yaml
    from factory.run.folder import RunFolder

    start = time.monotonic()
    wrong, run = None, None
    try:
        composed = compose.compose(compose.parse([*overrides(row), f"model.path={model}"]))
        plan = cli._compiled(composed, training=True)
        where = RunFolder(folder)
        where.path.mkdir(parents=True)
        where.plan.write_text(to_yaml(plan))
        run = Run(plan=plan, folder=where, resume_from=None)
        with warnings.catch_warnings(), hearing(run.heard):
            warnings.simplefilter("always")
            executor.walk(run)
        red = [f"{name} is red: {check['detail']}" for name, check in run.checks.items() if not check["passed"]]
        wrong = red[0] if red else None
    except UserError as error:
        wrong = f"refused: {' '.join(refusal.rule for refusal in error.refusals)}"
    except Exception as error:  # whatever it is, a legal combination must not end so
        frame = next(
            (each for each in reversed(traceback.extract_tb(error.__traceback__)) if "factory" in each.filename), None
        )
        at = f" ({Path(frame.filename).name}:{frame.lineno})" if frame else ""
        wrong = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}{at}"
    warned = [] if run is None else unknown(run.heard.first)
    if wrong is None and warned:
        wrong = f"warned: {warned[0]}"
    return Outcome(row, wrong, time.monotonic() - start)


@contextmanager
def prepared(root: Path) -> Iterator[Path]:
    """The tiny model's folder; `root` is the working folder here, with what the runs need in it."""
    import tiny

    before = Path.cwd()
    os.chdir(root)
    sys.path.insert(0, str(root))
    (root / "letters_scoring.py").write_text(rolling.LETTERS, encoding="utf-8")
    try:
        yield tiny.save(root / "model")
    finally:
        sys.path.remove(str(root))
        os.chdir(before)


def write() -> None:
    """The array as a table of words, a combination a line. It must hold every legal pair."""
    without = legal() - {pair for row in array() for pair in pairs_of(row)}
    assert not without, f"no legal row was found within {_TRIES} tries for {sorted(without)}"
    lines = [" ".join(factors()), *(said(row) for row in array())]
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read() -> tuple[Row, ...]:
    """The array as it was written."""
    names, *rows = (line.split() for line in FILE.read_text(encoding="utf-8").splitlines())
    return tuple(dict(zip(names, (value.replace("-", " ") for value in row), strict=True)) for row in rows)


def said(row: Row) -> str:
    return " ".join(value.replace(" ", "-") for value in row.values())


def main() -> int:
    rows = read()
    print(f"{len(rows)} combinations hold every legal pair of {', '.join(rows[0])}", flush=True)

    failed = list[Outcome]()
    with tempfile.TemporaryDirectory() as folder, prepared(Path(folder)) as model:
        for number, row in enumerate(rows, start=1):
            found = outcome(row, Path(folder) / f"run-{number}", model)
            failed += [found] if found.wrong else []
            said_of = "ok" if found.wrong is None else f"FAILED  {found.wrong}"
            print(f"{number:>4}/{len(rows)}  {found.seconds:5.1f} s  {said(row)}  {said_of}"[:400], flush=True)
    print(f"{len(failed)} of {len(rows)} failed")
    by_words: dict[str, list[Any]] = {}
    for found in failed:
        by_words.setdefault(found.wrong or "", []).append(said(found.row))
    for words, group in by_words.items():
        print(f"  {words}\n    {len(group)}: {'; '.join(group[:3])}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(write() if sys.argv[1:] == ["write"] else main())
