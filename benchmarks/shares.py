"""Where a training step's time goes, and how near it is to what the machine multiplies.

    python benchmarks/shares.py                        # all stages and methods on the embedded model, one thread
    python benchmarks/shares.py --only pt.lora sft     # those whose names hold one of these words
    python benchmarks/shares.py --top 25 --only pt.lora    # and the operators that take most

Each job is a process of its own that executes a plan; torch's profiler watches a few steps after the first two. A share
is of the time on the clock: of attention, of `products` of matrices, of each other kind of operator, and of what is
between them, `Python` and the profiler itself. `limit` is the time of the
estimate's FLOPs at the speed of one product of the model's largest layer, measured in the same process, for as many
tokens as the steps had; `utilisation` is that limit over the step's time without the profiler.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from factory.run.launch import ENVIRONMENT

COMMON = (
    "hardware=cpu hardware.threads=1 tracking=none evaluate.perplexity=false evaluate.samples=0 "
    "data.validation_fraction=0 data.max_length=512 stage.save_steps=null stage.warmup_ratio=0 stage.logging_steps=1 "
    "stage.max_steps={steps}"
)
BATCH = "stage.batch_size=1 stage.gradient_accumulation_steps=1"
STAGES = {
    "pt": f"stage=pt {BATCH}",
    "sft": f"stage=sft {BATCH} data.packing=true",
    "dpo": f"stage=dpo {BATCH}",
    "ppo": "stage=ppo stage.reward=factory_shares:reward stage.rollout_batch_size=4 stage.batch_size=4 "
    "stage.gradient_accumulation_steps=1 stage.update_epochs=1 stage.max_new_tokens=32",
}
METHODS = {
    "lora": "method=lora method.rank=8 method.alpha=16",
    "full": "method=full",
    "qlora": "method=qlora method.rank=8 method.alpha=16",
    "galore": "method=galore method.rank=128",
    "freeze": "method=freeze method.num_layers=3",
}
NO_REFERENCE = (
    "stage.kl_coefficient=0 stage.kl_target=null"  # of ppo, where the base itself trains and no copy of it is kept
)
REWARD = "def reward(completions, **others):\n    return [float(len(answer)) for answer in completions]\n"
SKIPPED, WATCHED = 2, 4  # steps
# the first kind whose word is in an operator's name
KINDS = {
    "attention": ("attention",),
    "products": ("mm", "bmm", "linear", "matmul", "convolution", "dot"),
    "4-bit weights": ("dequantize", "quantize"),
    "optimizer": ("adam", "_foreach", "lerp", "svd", "qr", "linalg"),
    "copies and types": ("copy_", "to_copy", "clone", "contiguous", "cat", "fill_", "zero", "empty", "resize"),
    "softmax": ("softmax", "logsumexp", "nll"),
    "lookups": ("embedding", "index", "gather", "scatter", "select"),
}
ELSE, BETWEEN = "one by one", "Python"


def watch(folder: Path) -> dict[str, Any]:
    """Executes the plan in the folder with the profiler on in its middle; a step's seconds are those without it."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from factory.execute.__main__ import execute
    from factory.ranks.world import from_environment
    from factory.run.folder import RunFolder
    from factory.steps.engine import Engine

    real, marks, watcher = Engine.begin, dict[int, float](), profile(activities=[ProfilerActivity.CPU])

    def begin(engine: Any, step: int, *rest: Any) -> None:
        if step == SKIPPED + WATCHED:
            watcher.__enter__()
        elif step == SKIPPED + 2 * WATCHED:
            watcher.__exit__(None, None, None)
        marks[step] = time.perf_counter()
        real(engine, step, *rest)

    Engine.begin = begin  # type: ignore[method-assign]
    code = execute(RunFolder(str(folder)), None, from_environment(), printed="what is printed here")
    if code:
        raise RuntimeError(json.loads((folder / "report.json").read_text()).get("error"))
    first, last = SKIPPED + WATCHED, SKIPPED + 2 * WATCHED
    operators = {each.key: each.self_cpu_time_total / 1e6 for each in watcher.key_averages()}
    return {
        "seconds": (marks[first] - marks[SKIPPED]) / WATCHED,
        "watched": (marks[last] - marks[first]),
        "operators": operators,
        "flops_a_second": speed(torch),
    }


def speed(torch: Any) -> float:
    """Of a product of the largest layer's shape, 512 x 576 x 1,536, in the type that this CPU is faster at."""
    best = float("inf")
    for dtype in (torch.bfloat16, torch.float32):
        left, right = torch.randn(512, 576).to(dtype), torch.randn(1536, 576).to(dtype)
        for _ in range(60):
            start = time.perf_counter()
            torch.nn.functional.linear(left, right)
            best = min(best, time.perf_counter() - start)
    return 2 * 512 * 576 * 1536 / best


def shares(found: dict[str, Any]) -> dict[str, float]:
    """Of the time that was watched."""
    by_kind: Counter[str] = Counter()
    for name, seconds in found["operators"].items():
        if "::" not in name or name.startswith("autograd::"):  # a function that calls operators
            continue
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), ELSE)
        by_kind[kind] += seconds
    by_kind[BETWEEN] = max(0.0, found["watched"] - sum(by_kind.values()))
    return {kind: seconds / found["watched"] for kind, seconds in by_kind.items()}


def measured(stage: str, method: str) -> dict[str, Any]:
    alone = NO_REFERENCE if stage == "ppo" and method in ("full", "galore", "freeze") else ""
    words = f"{COMMON} {STAGES[stage]} {METHODS[method]} {alone}".format(steps=SKIPPED + 2 * WATCHED + 1).split()
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "factory_shares.py").write_text(REWARD)
        path = os.pathsep.join(filter(None, (place, os.environ.get("PYTHONPATH"))))
        environment = {**ENVIRONMENT, **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        folder = Path(place) / "run"
        folder.mkdir()
        command = [sys.executable, "-m", "factory", "plan", *words, "plan.format=yaml", f"hydra.run.dir={folder}"]
        plan = subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True, text=True).stdout
        (folder / "plan.yaml").write_text(plan)
        command = [sys.executable, __file__, "--watch", folder]
        done = subprocess.run(
            command, cwd=place, env=environment, stdin=subprocess.PIPE, capture_output=True, text=True
        )
        if not (folder / "shares.json").is_file():
            raise RuntimeError(done.stdout[-1500:] + done.stderr[-1500:])
        found = json.loads((folder / "shares.json").read_text())
        tokens = [json.loads(line)["tokens"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    estimate = yaml.safe_load(plan)["estimate"]
    measured = (tokens[SKIPPED + WATCHED - 1] - tokens[SKIPPED - 1]) / WATCHED
    return {**found, "flops": estimate["flops_per_step"] * measured / estimate["tokens_per_step"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD")
    parser.add_argument("--top", type=int, default=0, help="so many operators of each job")
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        (options.watch / "shares.json").write_text(json.dumps(watch(options.watch)))
        return 0
    kinds = [*KINDS, ELSE, BETWEEN]
    print(
        f"| job | s a step | limit | utilisation | {' | '.join(kinds)} |",
        f"|---|{'---:|' * (3 + len(kinds))}",
        sep="\n",
    )
    for stage in STAGES:
        for method in METHODS:
            if not any(word in f"{stage}.{method}" for word in options.only):
                continue
            found = measured(stage, method)
            limit, parts = found["flops"] / found["flops_a_second"], shares(found)
            cells = " | ".join(f"{100 * parts.get(kind, 0):.0f} %" for kind in kinds)
            used = f"{100 * limit / found['seconds']:.0f} %"
            print(f"| {stage} {method} | {found['seconds']:.2f} | {limit:.2f} | {used} | {cells} |", flush=True)
            for name, seconds in Counter(found["operators"]).most_common(options.top):
                print(f"    {100 * seconds / found['watched']:5.1f} %  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
