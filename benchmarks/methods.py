"""What each method's training takes, beside what its plan says: prints a table, writes OUT/results.jsonl.

A random llama (63.5 M parameters unless told otherwise, 512 tokens, a tokenizer of bytes) is trained for a few steps of
16 tokens, batch 1, one thread, each run a `python -m factory train` of its own. All figures are MiB:

    before       the peak of resident memory before training: of reading, quantizing and starting an adapter from the
                 weights, and of a forward pass over at most 64 tokens
    peak         that of training; saving the checkpoint and the model belongs to it
    planned      the plan's estimate of that
    above        the peak of training less that of the forward pass before it
    formula      the plan's gradients, optimizer states and copies that are stepped in place of the weights
    activations  the plan's; they come on top of the formula

With --precision=bf16, the forward pass before training holds weights of float32 in bfloat16 as well: there `above` is
too low for methods that train all weights at once.

`step_s`: the fastest step's wall seconds, but the first's, in which galore and apollo make their projections.
glibc is told to give freed memory back at once, so that what a run held before does not hide in its start.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from memory import random_model

from factory.config import registry

# what to set; {rank} is an eighth of the model's width
METHODS = {
    "full": "method=full",
    "full, layerwise": "method=full method.layerwise=true stage.max_grad_norm=null",
    "full, adamw_8bit": "method=full stage.optimizer=adamw_8bit",
    "full, adafactor": "method=full stage.optimizer=adafactor",
    "galore": "method=galore method.rank={rank}",
    "galore, layerwise": "method=galore method.rank={rank} method.layerwise=true stage.max_grad_norm=null",
    "galore, adamw_8bit": "method=galore method.rank={rank} stage.optimizer=adamw_8bit",
    "apollo": "method=apollo method.rank={rank}",
    "apollo, layerwise": "method=apollo method.rank={rank} method.layerwise=true stage.max_grad_norm=null",
    "apollo_mini": "method=apollo_mini",
    "apollo_mini, layerwise": "method=apollo_mini method.layerwise=true stage.max_grad_norm=null",
    "badam": "method=badam method.switch_interval=2",
    "badam_ratio": "method=badam_ratio method.switch_interval=2",
    "freeze, 3 layers": "method=freeze",
    "llama_pro, 2 layers": "method=llama_pro",
    "lora": "method=lora",
    "dora": "method=dora",
    "pissa": "method=pissa",
    "olora": "method=olora",
    "adalora": "method=adalora",
    "loha": "method=loha",
    "lokr": "method=lokr",
    "oft": "method=oft",
    "vera": "method=vera",
    "ia3": "method=ia3",
    "qlora": "method=qlora",
    "lora, int8": "method=lora method.quantization.bits=8",
    "loftq": "method=loftq",
    "pissa, 4 bits": "method=pissa method.quantization.bits=4",
}
COMMON = (
    "hardware=cpu hardware.threads=1 tracking=none evaluate.perplexity=false evaluate.samples=0 stage=pt "
    "data.max_length=16 data.max_samples=8 data.validation_fraction=0 stage.batch_size=1 stage.warmup_ratio=0 "
    "stage.logging_steps=1 stage.save_steps=null"
)
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "HF_HUB_OFFLINE": "1",
}
COLUMNS = ("method", "trained", "before", "peak", "planned", "above", "formula", "activations", "step_s")


def planned(words: list[str]) -> tuple[dict[str, int], int]:
    """The plan's memory in bytes, with what is stepped in place of the weights as `copies`; the trained parameters."""
    command = [sys.executable, "-m", "factory", "plan", *words, "plan.format=json"]
    plan = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    steps, counted = {step["name"]: step for step in plan["steps"]}, plan["estimate"]["parameters"]
    memory, number = plan["estimate"]["memory"], {"float32": 4, "bfloat16": 2}[steps["load"]["dtype"]]
    copies = registry.hook(registry.spec("methods", steps["attach"]["method"]), "copied") is not None
    memory["copies"] = memory["weights"] - number * counted["total"] if copies else 0
    return memory, counted["trainable"]


def measured(words: list[str], folder: Path) -> dict[str, Any]:
    """The report's peaks by step in bytes, and the seconds of the fastest step but the first."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "factory", "train", *words, f"hydra.run.dir={folder}"]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout.decode()}")
    report = json.loads((folder / "report.json").read_text())
    lines = [json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for weights in ("model", "checkpoints"):
        shutil.rmtree(folder / weights)
    return {**report["memory"]["by_step"], "step_s": min(later - earlier for earlier, later in pairwise(lines))}


def row(name: str, words: list[str], folder: Path, repeat: int) -> dict[str, Any]:
    """Of several turns, each figure's lowest."""
    plan, trained = planned(words)
    turns = [measured(words, folder) for _ in range(repeat)]
    formula = plan["gradients"] + plan["optimizer"] + plan["copies"]
    above = min(turn["train"] - turn["baseline"] for turn in turns)
    before = min(max(turn["attach"], turn["baseline"]) for turn in turns)
    peak = min(turn["train"] for turn in turns)
    sizes = [round(value / 2**20) for value in (before, peak, plan["total"], above, formula, plan["activations"])]
    return dict(zip(COLUMNS, (name, trained, *sizes, round(min(turn["step_s"] for turn in turns), 3)), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/methods"), help="results and runs (outputs/methods)")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help="these rows")
    parser.add_argument("--precision", choices=("fp32", "bf16", "pure_bf16"), default="fp32", help="(fp32)")
    parser.add_argument("--hidden", type=int, default=512, help="width of the model, a multiple of 128 (512)")
    parser.add_argument("--layers", type=int, default=20, help="layers of the model (20)")
    parser.add_argument("--steps", type=int, default=6, help="steps of each run (6)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each row, of which the lowest figures count (1)")
    options = parser.parse_args()
    runs, width = options.out.resolve() / "runs", options.hidden
    runs.mkdir(parents=True, exist_ok=True)
    print("| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), sep="\n")
    with tempfile.TemporaryDirectory() as model:
        # heads of 64, and two of them to one of keys
        numbers = {"hidden": width, "mlp": 3 * width, "layers": options.layers, "heads": width // 64}
        random_model({**numbers, "keys": width // 128, "vocabulary": 512}, Path(model))
        shared = f"{COMMON} precision={options.precision} stage.max_steps={options.steps} model.path={model}".split()
        for name in options.only:
            words = [*shared, *METHODS[name].format(rank=width // 8).split()]
            result = row(name, words, runs / name.replace(", ", "-").replace(" ", "_"), options.repeat)
            with (options.out / "results.jsonl").open("a") as file:
                file.write(json.dumps({**result, "precision": options.precision}) + "\n")
            print("| " + " | ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in result.values()), "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())
