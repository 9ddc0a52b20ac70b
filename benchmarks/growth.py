"""How cost grows: with the sequence, the rows, the model, the processes and the jobs of a sweep; a plot each.

    python benchmarks/growth.py                      # measures what is not measured yet; plots to docs/images
    python benchmarks/growth.py --only length model  # those curves

What theory says is drawn beside, through the first point: of a sequence the products of weights and, growing with its
length, attention's; of rows and of jobs a straight line; of a model its weights; of processes, the same work each, and
what as many runs take that share nothing.
Results are kept in --out, a line a point; a point that is there is not measured again.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from embedded import embedded_model
from memory import read

from factory.execute.memory import peak_of

COMMON = (
    "hardware=cpu tracking=none evaluate.perplexity=false evaluate.samples=0 data.validation_fraction=0 "
    "stage.save_steps=null stage.warmup_ratio=0 stage.logging_steps=1 stage.batch_size=1 "
    "stage.gradient_accumulation_steps=1 method=lora method.rank=8 stage=pt"
)
LENGTHS = (512, 1024, 2048, 4096, 8192)
ROWS = (1_000, 10_000, 100_000, 1_000_000)
# width, width of the MLP, layers: the embedded model's proportions
MODELS = {"135M": (576, 1536, 30), "360M": (960, 2560, 32), "1B": (1536, 4096, 34)}
PROCESSES = (1, 2)
JOBS = (1, 5, 10, 20)


def run(words: str, folder: Path, *, out: Path) -> dict[str, Any]:
    """The report, and what was measured of the command: seconds, and the parent's largest resident memory."""
    start = time.monotonic()
    command = [sys.executable, "-m", "factory", *words.split(), f"hydra.run.dir={folder}"]
    parent = psutil.Popen(command, cwd=out, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said, _ = parent.communicate()
    if parent.returncode:
        raise RuntimeError(said[-2000:])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    spent = [after["seconds"] - before["seconds"] for before, after in pairwise(lines)]
    report = json.loads((folder / "report.json").read_text())
    tokens = (lines[-1]["tokens"] - lines[0]["tokens"]) / max(1, len(spent))
    seconds = time.monotonic() - start
    return {"step": median(spent) if spent else None, "tokens": tokens, "report": report, "seconds": seconds}


def text(out: Path, rows: int, words: int) -> Path:
    file = out / f"{rows}-{words}.jsonl"
    if not file.is_file():
        with file.open("w") as lines:
            for number in range(rows):
                said = " ".join(f"word{(7 * number + place) % 997}" for place in range(words))
                lines.write(json.dumps({"text": said}) + "\n")
    return file


def of_length(length: int, out: Path) -> dict[str, float]:
    """Microseconds a token of the embedded model, on one thread."""
    rows = f"data=file data.path={text(out, 40, 5000)} data.max_length={length}"
    found = run(f"{COMMON} hardware.threads=1 stage.max_steps=4 {rows}", out / f"length-{length}", out=out)
    return {"x": length, "y": each_token(found)}


def of_rows(rows: int, out: Path) -> dict[str, float]:
    """Seconds in which rows of 20 words are read, tokenized and packed."""
    words = f"data=file data.path={text(out, rows, 20)} data.max_length=64 stage.max_steps=1"
    folder = out / f"rows-{rows}"
    run(f"{COMMON} {words}", folder, out=out)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    spent = [each["seconds"] for each in events if each["event"] == "end" and each["name"] in ("align", "pack")]
    return {"x": rows, "y": sum(spent)}


def of_model(name: str, out: Path) -> dict[str, float]:
    """Microseconds a token of 512, of random weights, on one thread."""
    folder = out / "models" / name
    if not (folder / "tokenizer.json").is_file():
        made(MODELS[name], folder)
    rows = f"data=file data.path={text(out, 40, 5000)} data.max_length=512"
    words = f"{COMMON} hardware.threads=1 stage.max_steps=4 {rows} model.path={folder} precision=pure_bf16"
    found = run(words, out / f"model-{name}", out=out)
    return {"x": found["report"]["parameters"]["total"], "y": each_token(found)}


def made(sizes: tuple[int, int, int], folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    width, mlp, layers = sizes
    embedded = embedded_model()
    numbers = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": max(1, width // 192), "vocab_size": 49152}
    torch.set_default_dtype(torch.bfloat16)
    config = AutoConfig.for_model("llama", **numbers, **heads, tie_word_embeddings=True, max_position_embeddings=8192)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (embedded / name).is_file():
            (folder / name).write_bytes((embedded / name).read_bytes())


def of_processes(count: int, out: Path) -> dict[str, float]:
    """Microseconds a token of the whole, each process on one thread with a batch of its own.

    Of several also `apart`: as many runs beside each other that share nothing, the slowest of them (who shares
    gradients waits for it). What is above it, sharing costs; what it is above the theory, the machine."""
    rows = f"data=file data.path={text(out, 40, 5000)} data.max_length=512"
    alone = f"{COMMON} hardware.threads=1 stage.max_steps=10 {rows}"
    if count == 1:
        return {"x": 1, "y": each_token(run(alone, out / "ranks-1", out=out))}
    shared = run(f"{alone} hardware.num_processes={count} hardware.strategy=ddp", out / f"ranks-{count}", out=out)
    with ThreadPoolExecutor(count) as beside:
        runs = [beside.submit(run, alone, out / f"apart-{count}-{rank}", out=out) for rank in range(count)]
        slowest = max(each_token(each.result()) for each in runs)
    return {"x": count, "y": each_token(shared), "apart": slowest / count}


def each_token(found: dict[str, Any]) -> float:
    return 1e6 * found["step"] / found["tokens"]


def of_jobs(count: int, out: Path) -> dict[str, float]:
    """Seconds in which a sweep's jobs are planned; and the planning process's largest memory, MiB."""
    command = [sys.executable, "-m", "factory", "plan", "-m", *COMMON.split(), f"seed=range({count})"]
    start, most = time.monotonic(), 0
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while child.poll() is None:  # rusage has what this process held as it started the child
        most = max(most, peak_of(child.pid))
        time.sleep(0.02)
    return {"x": count, "y": time.monotonic() - start, "memory": most / 2**20}


Point = Callable[[Any, Path], dict[str, float]]
CURVES: dict[str, tuple[Point, tuple[Any, ...], str, str]] = {
    "length": (of_length, LENGTHS, "tokens of a sequence", "µs a token"),
    "rows": (of_rows, ROWS, "rows", "seconds to prepare"),
    "model": (of_model, tuple(MODELS), "parameters", "µs a token"),
    "processes": (of_processes, PROCESSES, "processes", "µs a token"),
    "jobs": (of_jobs, JOBS, "jobs of a sweep", "seconds to plan"),
}


def theory(curve: str, x: float, points: list[dict[str, float]]) -> float:
    """What a point would cost if it cost what theory says, the first as measured; of rows, the last but one."""
    first = points[max(0, len(points) - 2)] if curve == "rows" else points[0]  # few rows are workers that start
    if (
        curve == "length"
    ):  # 2 x 2 x 576 MACs a key of each layer's attention, half seen, beside 4 x 106 M of its weights
        return first["y"] * (4 * 106.2e6 + 30 * 7 * 576 * x) / (4 * 106.2e6 + 30 * 7 * 576 * first["x"])
    if curve == "processes":
        return first["y"] / x
    if curve == "jobs":  # the first has the imports
        slope = (points[1]["y"] - first["y"]) / (points[1]["x"] - first["x"])
        return first["y"] + slope * (x - first["x"])
    return first["y"] * x / first["x"]


def plot(found: dict[str, list[dict[str, float]]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(3.6 * len(found), 3.2), squeeze=False)
    for axis, (name, points) in zip(axes[0], found.items(), strict=True):
        _, _, along, up = CURVES[name]
        x = [point["x"] for point in points]
        axis.plot(x, [point["y"] for point in points], "o-", color="#1f5fd6", label="measured")
        axis.plot(x, [theory(name, each, points) for each in x], "--", color="#888888", label="theory")
        if name == "processes":
            apart = [point.get("apart", point["y"]) for point in points]
            axis.plot(x, apart, "x:", color="#d67a1f", label="nothing shared")
            axis.legend()
        axis.set(xlabel=along, ylabel=up)
        if name in ("processes", "jobs"):
            axis.set_xticks(x)
        if name in ("length", "rows"):
            axis.set_xscale("log", base=2 if name == "length" else 10)
        if name == "rows":
            axis.set_yscale("log")
        else:
            axis.set_ylim(0)
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/growth"))
    parser.add_argument("--only", nargs="+", default=list(CURVES), choices=list(CURVES))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/growth.png"))
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results, found = out / "results.jsonl", dict[str, list[dict[str, float]]]()
    for curve in options.only:
        measure, wanted, along, up = CURVES[curve]
        done, points = read(results), list[dict[str, float]]()
        for each in wanted:
            name = f"{curve} {each}"
            if name not in done:
                point = measure(each, out)
                with results.open("a") as file:
                    file.write(json.dumps({"name": name, **point}) + "\n")
                done[name] = point
            points.append(done[name])
        found[curve] = points
        print(f"\n| {along} | {up} | by theory |", "|---:|---:|---:|", sep="\n")
        for point in points:
            more = f" ({point['memory']:.0f} MiB)" if "memory" in point else ""
            more += f" ({point['apart']:,.4g} if nothing is shared)" if "apart" in point else ""
            print(f"| {point['x']:,.0f} | {point['y']:,.4g}{more} | {theory(curve, point['x'], points):,.4g} |")
    plot(found, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
