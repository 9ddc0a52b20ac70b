"""How far apart the FLOPs a second of runs lie: what the range of a plan's time rests on (docs/measurements.md).

    python benchmarks/speed.py                     # measures what is not measured yet, then prints the tables
    python benchmarks/speed.py --only deep lora    # cases whose names hold one of these words

Each run is a process of its own on one thread, of a few steps of rows cut to data.max_length. Its clock is the
process's CPU time, so that other work on the machine counts as little as it can. The second table has, of each pair of
cases, the time of one as it is planned from the other alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import Any

from memory import Case, read, words

from factory.estimate import speed
from factory.plan.facts import Measured
from factory.plan.inspect import calibration

STEPS = 5
CLOCK = """
import sys, time
if sys.orig_argv[1:3] == ["-m", "factory.execute"]:
    time.monotonic = time.process_time
"""


def cases() -> list[Case]:
    """Sizes of models and of batches, methods, stages, numbers; the first is there once more, last."""
    more = f"stage.max_steps={STEPS}"
    found = [Case("deep", "pt", "lora", length, batch, more) for length, batch in ((512, 2), (128, 4), (2048, 1))]
    found += [Case("smol", "pt", method, 512, 1, more) for method in ("lora", "full")]
    found += [Case(model, "pt", method, 512, 2, more) for method in ("lora", "full") for model in ("wide", "big")]
    found += [Case("wide", "pt", "qlora", 512, 2, more), Case("deep", "pt", "full", 512, 2, more)]
    found += [Case("deep", stage, "lora", 512, 2, more) for stage in ("sft", "dpo")]
    found += [
        Case("deep", "pt", "lora", 512, 2, f"{more} {word}")
        for word in ("precision=fp32", "compute.activation_checkpointing=true", "seed=7")
    ]
    return found


def measured(line: list[str], out: Path) -> Measured:
    """What the run itself writes of its speed. Raises RuntimeError with its words where it did not finish."""
    folder, clock = out / "one", out / "clock"
    shutil.rmtree(folder, ignore_errors=True)
    for made in (folder, clock):
        made.mkdir(parents=True, exist_ok=True)
    (clock / "sitecustomize.py").write_text(CLOCK)
    path = os.pathsep.join(filter(None, (str(clock), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "factory", "train", *line]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    found, _ = calibration.read(folder / calibration.FILE)
    if done.returncode or not found:
        raise RuntimeError(done.stderr[-2000:] + done.stdout[-500:])
    return found[0]


def tables(done: dict[str, dict[str, Any]]) -> None:
    found = {name: Measured(**line["measured"]) for name, line in done.items()}
    print(
        "| model, stage, method, tokens, batch | MFLOP a token | GFLOP/s | first step, s more |",
        "|---|---|---|---|",
        sep="\n",
    )
    for name, run in found.items():
        print(f"| {name} | {run.work / 1e6:,.0f} | {run.flops_per_second / 1e9:.1f} | {run.start_seconds:.1f} |")
    held: dict[str, list[bool]] = {"the same kind": [], "another kind": []}
    for one, other in permutations(found.values(), 2):
        if one.precision == other.precision:
            span = speed.bounds(one, speed.Like(kind=other.kind, work=other.work, micro_batch=other.micro_batch))
            held["the same kind" if one.kind == other.kind else "another kind"].append(
                span.low <= other.flops_per_second <= span.high
            )
    for name, within in held.items():
        print(f"\nplanned from one run of {name}: {sum(within)} of {len(within)} within the range")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/memory"), help="results and models (outputs/memory)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="cases whose names hold one of these")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = out / "speeds.jsonl"
    done = read(results)
    for case in cases():
        if case.name in done or not any(word in case.name for word in options.only):
            continue
        try:
            run = measured(words(case, out), out)
        except RuntimeError as error:
            print(f"{case.name}: {error}", file=sys.stderr, flush=True)
            continue
        with results.open("a") as file:
            file.write(json.dumps({"name": case.name, "measured": asdict(run)}) + "\n")
    tables(read(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
