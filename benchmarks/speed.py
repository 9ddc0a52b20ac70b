"""How far apart the FLOPs a second of runs lie: what the range of a plan's time guess rests on (docs/measurements.md).

    python benchmarks/speed.py                     # measures what is not measured yet, then prints the table
    python benchmarks/speed.py --only deep lora    # cases whose names hold one of these words

Each run is a process of its own on one thread, of a few steps of rows cut to data.max_length. Times depend on what else the
machine does: that is part of what is measured.
"""

import argparse
import json
import sys
from pathlib import Path

from memory import Case, finished, planned, read, words

STEPS = 5


def cases() -> list[Case]:
    """Sizes of models and of batches, methods, numbers; the first is there once more, last."""
    more = f"stage.max_steps={STEPS}"
    found = [Case("deep", "pt", "lora", length, batch, more) for length, batch in ((512, 2), (128, 4), (2048, 1))]
    found += [Case("smol", "pt", method, 512, 1, more) for method in ("lora", "full")]
    found += [
        Case(model, "pt", method, 512, 2, more) for method in ("lora", "full", "qlora") for model in ("wide", "big")
    ]
    found += [Case("deep", "pt", "full", 512, 2, more), Case("smol", "pt", "lora", 1024, 1, more)]
    found += [Case("deep", stage, "lora", 512, 2, more) for stage in ("sft", "dpo")]
    found += [
        Case("deep", "pt", "lora", 512, 2, f"{more} {word}")
        for word in ("precision=fp32", "compute.activation_checkpointing=true", "seed=7")
    ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/memory"), help="results and models (outputs/memory)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="cases whose names hold one of these")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = out / "times.jsonl"
    chosen = [case for case in cases() if any(word in case.name for word in options.only)]
    done = read(results)
    for case in chosen:
        if case.name in done:
            continue
        line = words(case, out)
        try:
            train = finished(line, out / "run")["train"]
        except RuntimeError as error:
            print(f"{case.name}: {error}", file=sys.stderr, flush=True)
            continue
        estimate = planned(line)
        work = estimate["flops_per_step"] / estimate["tokens_per_step"] * train["tokens"]
        with results.open("a") as file:
            rate = work / train["seconds"]
            file.write(json.dumps({"name": case.name, "seconds": train["seconds"], "rate": rate}) + "\n")
    print("| model, stage, method, tokens, batch | seconds | GFLOP/s |", "|---|---|---|", sep="\n")
    for name, line in read(results).items():
        print(f"| {name} | {line['seconds']:.1f} | {line['rate'] / 1e9:,.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
