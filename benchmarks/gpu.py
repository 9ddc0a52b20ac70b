"""On one GPU: the paper's methods (Table 4) on a model of Llama-2-7B's shapes, and its kernels against none.

    python benchmarks/gpu.py                       # 7B; 14 GB of random weights are written to --out
    python benchmarks/gpu.py --only lora           # cases whose names hold one of these words
    python benchmarks/gpu.py --size tiny --device cpu    # the same cases on a small model, to see that all runs

The settings are the recipe's (rank 128, 8-bit AdamW, batches of 512 tokens, bfloat16, recomputed activations). MFU is
the plan's FLOPs of a step over its median time and the card's dense bfloat16 peak. What a plan refuses here, or what
fails, stands in the table with its reason.
"""

import argparse
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from memory import RANDOM, random_model, rows

COMMON = (
    "stage=pt tracking=none evaluate.perplexity=false evaluate.samples=0 data.validation_fraction=0 data=file "
    "data.max_length=512 precision=pure_bf16 stage.optimizer=adamw_8bit stage.learning_rate=1e-5 stage.batch_size=1 "
    "stage.gradient_accumulation_steps=1 stage.max_steps=8 stage.save_steps=null stage.warmup_ratio=0 "
    "stage.logging_steps=1"
)
METHODS = {
    "full": "method=full",
    "freeze": "method=freeze method.num_layers=3",
    "galore": "method=galore method.rank=128 method.scale=2",
    "lora": "method=lora method.rank=128 method.alpha=256",
    "qlora": "method=qlora method.rank=128 method.alpha=256",
}
KERNELS = {
    "sdpa": "compute.attention=sdpa",
    "flash": "compute.attention=flash_attention_2",
    "liger": "compute.attention=sdpa compute.kernels=liger",
    "compile": "compute.attention=sdpa compute.compile=true",
}
CHECKPOINTING = "compute.activation_checkpointing=true"
SIZES: dict[str, dict[str, Any]] = {
    "7b": {"hidden": 4096, "mlp": 11008, "layers": 32, "heads": 32, "keys": 32, "vocabulary": 32000},
    "tiny": RANDOM["wide"],
}
# dense bfloat16 FLOP/s by the maker's data sheets, by words of the card's name; the first that fits
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def cases() -> dict[str, str]:
    found = {f"{method} sdpa": f"{METHODS[method]} {KERNELS['sdpa']} {CHECKPOINTING}" for method in METHODS}
    for method in ("lora", "full"):
        for name, words in KERNELS.items():
            found[f"{method} {name}"] = f"{METHODS[method]} {words} {CHECKPOINTING}"
        found[f"{method} sdpa, all kept"] = (
            f"{METHODS[method]} {KERNELS['sdpa']} compute.activation_checkpointing=false"
        )
    return found


def measured(words: str, folder: Path, peak: float | None) -> str:
    command = [sys.executable, "-m", "factory", "train", *words.split(), f"hydra.run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("[")]
        return f"{said[0] if said else 'failed: ' + str(folder / 'run.log')} | | |"
    report = json.loads((folder / "report.json").read_text())
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    step = median(after["seconds"] - before["seconds"] for before, after in pairwise(lines[1:]))
    memory = report["memory"]
    off = 100 * (memory["estimated_bytes"] / memory["peak_bytes"] - 1)
    used = f"{100 * plan['estimate']['flops_per_step'] / step / peak:.0f} %" if peak else ""
    return f"{memory['peak_bytes'] / 2**30:.2f} ({off:+.0f} %) | {512 / step:,.0f} | {used} |"


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--size", choices=list(SIZES), default="7b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here; --size tiny --device cpu shows that the cases run.", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    peak = next((value for word, value in PEAKS.items() if all(part in card for part in word.split())), None)
    out = options.out.resolve() / options.size
    if not (out / "model" / "tokenizer.json").is_file():
        torch.set_default_dtype(torch.bfloat16)
        random_model(SIZES[options.size], out / "model")
        torch.set_default_dtype(torch.float32)
    file = out / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows("pt", 512, short=False)))
    print(
        f"{card}, {options.size}\n\n| case | memory, GiB (estimate) | tokens/s | MFU |\n|---|---:|---:|---:|",
        flush=True,
    )
    for number, (name, words) in enumerate(cases().items()):
        if any(word in name for word in options.only):
            line = f"{COMMON} hardware.device={options.device} model.path={out / 'model'} data.path={file} {words}"
            folder = out / "runs" / f"{number:02}-{card.replace(' ', '-')}"
            print(f"| {name} | {measured(line, folder, peak)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
