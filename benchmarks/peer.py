"""Factory beside LLaMA-Factory on this machine: prints a table, writes OUT/results.jsonl and OUT/runs/*.log.

Both train the embedded model on the demo data with the same numbers: batch 1, constant learning rate, bf16 with trained
tensors in float32, fused AdamW, 2 threads, no evaluation, no checkpoints, the model saved once at the end. On a CPU
without instructions for bfloat16, which takes hours to pretend that it had them, and with --precision fp32 all of it is
in float32, as Factory is there by itself; the peer takes the type of the model's files, so it reads a copy in float32.
They take turns at each job, so that a busy machine hits both. The jobs:

    refusal   a misspelt key: what it costs to be told
    start     one step of 32 tokens: what a run costs besides training, and until that step's loss is written
    pt_full   20 steps of 512 packed tokens, every weight (Factory keeps the short last sequence, the peer drops it)
    pt_lora, pt_freeze, pt_qlora, pt_galore
              the same: LoRA of rank 128, the last 3 layers, LoRA over 4 bits (nf4), GaLore of rank 128
    sft_lora  the 160 demo instructions once, LoRA of rank 8 (each system has its own order of rows)
    sft_packed
              the same in sequences of 1,024 tokens whose documents do not see each other (the peer's neat_packing)
    dpo_lora  20 pairs of the demo, each side a sequence of its own for the peer, LoRA of rank 8. Factory measures the
              reference before the first step, the peer within each: those seconds are counted for both

CPU seconds and peak memory are the system's count for the whole command, all its processes included (wait4). On a GPU
(--device cuda) gpu_mib is the most that the card holds more than before, looked at ten times a second by nvidia-smi.
LLaMA-Factory recomputes activations by default, Factory where it must: here neither does, with --checkpointing both do,
with --as-it-comes the peer alone, as each does by itself, and with --within SHARE Factory recomputes what it must to be
planned with that share of the memory that the peer took before it.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from embedded import embedded_model

import factory
from factory import cache
from factory.plan.inspect import cpu

DEMO = Path(factory.__file__).parent / "demo"
PACKAGES = ("llamafactory==0.9.5", "gguf", "bitsandbytes", "galore-torch")
# each waits as it does by itself; the peer was installed with its bytecode, ours is kept from the first run on
SAME = {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": ""}
CARDS = {"cpu": "", "cuda": "0"}  # that a run sees, by --device
# what to set, in Factory's words and in the peer's
COMMON = (
    "tracking.uri=null evaluate.perplexity=false evaluate.samples=0 "
    "data.validation_fraction=0 stage.batch_size=1 stage.lr_scheduler=constant stage.warmup_ratio=0 "
    "stage.logging_steps=1 stage.save_steps=null model.template=chatml",
    "report_to=none include_num_input_tokens_seen=non_padding do_train=true "
    "per_device_train_batch_size=1 gradient_accumulation_steps=1 lr_scheduler_type=constant template=chatml "
    'logging_steps=1 save_strategy="no" optim=adamw_torch_fused seed=42',
)
PRECISION = {"bf16": ("precision=bf16", "bf16=true"), "fp32": ("precision=fp32", "bf16=false")}
DEVICE = {"cpu": ("hardware=cpu", "use_cpu=true"), "cuda": ("hardware=single_gpu", "use_cpu=false")}
PT = ("stage=pt stage.learning_rate=1e-5", "stage=pt dataset=text packing=true learning_rate=1.0e-5")
SFT = (
    "stage=sft stage.learning_rate=1e-4 data.max_length=1024",
    "stage=sft dataset=messages learning_rate=1.0e-4 cutoff_len=1024 num_train_epochs=1.0",
)
TINY = ("data.max_length=32 stage.max_steps=1", "cutoff_len=33 max_steps=1")  # when packing, the peer takes one less
BLOCKS = ("data.max_length=512 stage.max_steps=20", "cutoff_len=513 max_steps=20")
FULL = ("method=full", "finetuning_type=full")
LORA_8 = ("method=lora method.rank=8 method.alpha=16", "finetuning_type=lora lora_rank=8 lora_alpha=16")
LORA_128 = ("method=lora method.rank=128 method.alpha=256", "finetuning_type=lora lora_rank=128 lora_alpha=256")
DPO = (
    "stage=dpo stage.beta=0.1 stage.learning_rate=5e-6 data.max_length=1024 stage.max_steps=20",
    "stage=dpo dataset=pairs pref_loss=sigmoid pref_beta=0.1 learning_rate=5.0e-6 cutoff_len=1024 max_steps=20",
)
PACKED = ("data.packing=true", "packing=true neat_packing=true")
FREEZE = ("method=freeze method.num_layers=3", "finetuning_type=freeze freeze_trainable_layers=3")
QLORA = (
    "method=qlora method.rank=128 method.alpha=256 method.quantization.double_quantization=false",
    "finetuning_type=lora lora_rank=128 lora_alpha=256 quantization_bit=4 quantization_method=bnb "
    "double_quantization=false",
)
GALORE = (
    "method=galore method.rank=128 method.scale=2",
    "finetuning_type=full use_galore=true galore_rank=128 galore_target=all galore_scale=2.0 "
    "galore_update_interval=200 optim=adamw_torch",  # it knows no fused one with GaLore
)
RECOMPUTE = {  # by who does
    "none": ("compute.activation_checkpointing=false", "disable_gradient_checkpointing=true"),
    "peer": ("compute.activation_checkpointing=false", "disable_gradient_checkpointing=false"),
    "within": ("compute.activation_checkpointing=auto", "disable_gradient_checkpointing=false"),
    "both": ("compute.activation_checkpointing=true", "disable_gradient_checkpointing=false"),
}
WRONG = ("method=lora method.rnak=8", "finetuning_type=lora lora_rnak=8")
JOBS = {
    "refusal": (SFT, WRONG),
    "start": (PT, TINY, LORA_8),
    "pt_full": (PT, BLOCKS, FULL),
    "pt_lora": (PT, BLOCKS, LORA_128),
    "pt_freeze": (PT, BLOCKS, FREEZE),
    "pt_qlora": (PT, BLOCKS, QLORA),
    "pt_galore": (PT, BLOCKS, GALORE),
    "sft_lora": (SFT, LORA_8),
    "sft_packed": (SFT, PACKED, LORA_8),
    "dpo_lora": (DPO, LORA_8),
}
MEASURED = ["load", "exit", "output_lines", "wall_s", "cpu_s", "peak_mib", "gpu_mib", "training_peak_mib"]
FIRST = ["first_loss_wall_s", "first_loss_cpu_s"]  # until the first step's loss is on the disk
OF_TRAINING = ["trained", "steps", "tokens", "train_s", "tokens_per_s", "loss_first", "last", "mean"]
COLUMNS = ["job", "system", *MEASURED, *FIRST, *OF_TRAINING]


def peer_python(venv: Path) -> Path:
    """The peer's Python, in an environment of its own that is made once."""
    if not (venv / "bin" / "llamafactory-cli").exists():
        print(f"Installing {PACKAGES[0]} into {venv} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run([venv / "bin" / "pip", "install", "--quiet", *PACKAGES], check=True)
    # torchaudio's extension is built for CUDA: beside a CPU build of torch it cannot load, which stops LLaMA-Factory at
    # import. Without these files torchaudio imports; no audio is used here.
    for extension in venv.glob("lib/python*/site-packages/torchaudio/lib/*.so"):
        extension.unlink()
    return venv / "bin" / "python"


def in_float32(python: Path, model: Path, runs: Path) -> Path:
    """A copy of it."""
    folder = runs / "float32"
    if not (folder / "config.json").is_file():
        code = "import sys, torch; from transformers import AutoModelForCausalLM as Model, AutoTokenizer as Tokenizer; "
        code += "Model.from_pretrained(sys.argv[1], dtype=torch.float32).save_pretrained(sys.argv[2]); "
        code += "Tokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
        subprocess.run([python, "-c", code, model, folder], check=True, stdout=sys.stderr)
    return folder


def spent(process: psutil.Process) -> float:
    """CPU seconds so far of a process, of those below it, and of those that they have waited for."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(each.cpu_times()[:4])
    return total


def watch(process: psutil.Process, losses: Path, found: dict[str, Any], start: float) -> None:
    """Waits for the first line of a file, as long as the process lives."""
    while process.is_running():
        if losses.is_file() and losses.stat().st_size:
            found |= dict(zip(FIRST, (round(time.monotonic() - start, 1), round(spent(process), 1)), strict=True))
            return
        time.sleep(0.02)


def held() -> int:
    """MiB that the first card holds, whoever's they are."""
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)


def watch_card(process: psutil.Process, found: dict[str, Any], before: int) -> None:
    """The most that the card holds more than before, as long as the process lives."""
    while process.is_running():
        found["gpu_mib"] = max(found["gpu_mib"], held() - before)
        time.sleep(0.1)


def measure(command: list[Any], folder: Path, losses: str, device: str) -> dict[str, Any]:
    """Runs a command to its end and says what it took. HF_HOME: no data cached by a run before."""
    load, start, log = os.getloadavg()[0], time.monotonic(), folder.with_suffix(".log")
    environment = {**os.environ, **SAME, "CUDA_VISIBLE_DEVICES": CARDS[device], "HF_HOME": str(folder / "hf")}
    first: dict[str, Any] = {} if device == "cpu" else {"gpu_mib": 0}
    before = 0 if device == "cpu" else held()
    with log.open("wb") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, env=environment)
        seen = psutil.Process(process.pid)
        threading.Thread(target=watch, args=(seen, folder / losses, first, start), daemon=True).start()
        if device == "cuda":
            threading.Thread(target=watch_card, args=(seen, first, before), daemon=True).start()
        _, status, used = os.wait4(process.pid, 0)
    wall, process.returncode = time.monotonic() - start, os.waitstatus_to_exitcode(status)
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    lines = len(log.read_text(errors="replace").splitlines())
    values = (round(load, 1), process.returncode, lines, round(wall, 1), round(cpu, 1), round(peak))
    named = (name for name in MEASURED if name not in ("gpu_mib", "training_peak_mib"))
    return dict(zip(named, values, strict=True)) | first


def run_factory(words: str, model: Path, folder: Path, device: str) -> dict[str, Any]:
    paths = [f"model.path={model}", f"hydra.run.dir={folder}"]
    result = measure([sys.executable, "-m", "factory", *words.split(), *paths], folder, "metrics.jsonl", device)
    if result["exit"] == 0:
        report = json.loads((folder / "report.json").read_text())
        result["training_peak_mib"] = round(report["memory"]["peak_bytes"] / 2**20)
        if device == "cpu":
            # Factory resets the system's mark of peak memory at each of its steps, which hides earlier ones from wait4
            marks = [round(peak / 2**20) for peak in report["memory"]["by_step"].values()]
            result["peak_mib"] = max(result["peak_mib"], *marks)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        ends = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        before = sum(each["seconds"] for each in ends if each["event"] == "end" and each["name"] == "reference")
        train = {**report["train"], "seconds": report["train"]["seconds"] + before}
        result |= training(report["parameters"]["trainable"], lines, train)
    return result


def run_peer(python: Path, words: str, model: Path, folder: Path, device: str) -> dict[str, Any]:
    config, data = folder.with_suffix(".yaml"), folder.parent.parent
    lines = [f"{key}: {value}" for key, value in dict(word.split("=", 1) for word in words.split()).items()]
    lines += [f'model_name_or_path: "{model}"', f'dataset_dir: "{data}"', f'output_dir: "{folder}"']
    config.write_text("\n".join(lines) + "\n")
    result = measure([python.with_name("llamafactory-cli"), "train", config], folder, "trainer_log.jsonl", device)
    if result["exit"] == 0:
        *steps, end = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        count = re.search(r"trainable params: ([\d,]+)", folder.with_suffix(".log").read_text(errors="replace"))
        train = {"tokens": end["num_input_tokens_seen"], "seconds": end["train_runtime"]}
        result |= training(int(count[1].replace(",", "")) if count else None, steps, train)
    return result


def training(trained: int | None, lines: list[dict[str, Any]], train: dict[str, Any]) -> dict[str, Any]:
    losses = [line["loss"] for line in lines]
    tokens, rate, mean = train["tokens"], round(train["tokens"] / train["seconds"]), sum(losses) / len(losses)
    if tokens < 0:  # the peer's own count of packed rows
        tokens, rate = "overflowed", ""
    counted = (len(losses), tokens, round(train["seconds"], 1), rate)
    values = (trained, *counted, *(round(loss, 4) for loss in (losses[0], losses[-1], mean)))
    return dict(zip(OF_TRAINING, values, strict=True))


def row(result: dict[str, Any]) -> str:
    cells = (result.get(name, "") for name in COLUMNS)
    return "| " + " | ".join(f"{cell:,}" if isinstance(cell, int | float) else str(cell) for cell in cells) + " |"


def versions(python: Path | str) -> str:
    code = "from importlib.metadata import distributions as d; print(*sorted({f'{x.name} {x.version}' for x in d() if "
    code += "x.name in ('factory', 'llamafactory', 'torch', 'transformers', 'peft')}), sep=', ')"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--venv", type=Path, default=cache.folder() / "peer-venv", help="the peer's environment, made once"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/peer"), help="results and logs (outputs/peer)")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), metavar="NAME", help="these jobs")
    parser.add_argument("--device", choices=DEVICE, default="cpu", help="where both train (cpu)")
    parser.add_argument("--precision", choices=PRECISION, help="of both (bf16, or fp32: see above)")
    parser.add_argument("--repeat", type=int, default=1, help="turns of each system at each job (1)")
    recomputes = parser.add_mutually_exclusive_group()
    recomputes.add_argument("--checkpointing", action="store_true", help="both recompute activations")
    recomputes.add_argument("--as-it-comes", action="store_true", help="each recomputes as it does by itself")
    recomputes.add_argument("--within", type=float, metavar="SHARE", help="the peer's memory that Factory may take")
    options = parser.parse_args()
    precision = options.precision or ("bf16" if options.device != "cpu" or cpu.has_bf16() else "fp32")
    runs = options.out.resolve() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    python, model = peer_python(options.venv.absolute()), embedded_model()
    their_model = in_float32(python, model, runs) if precision == "fp32" else model
    data: dict[str, Any] = {"messages": {"file_name": str(DEMO / "messages.jsonl")}}
    data["text"] = {"file_name": str(DEMO / "text.jsonl"), "columns": {"prompt": "text"}}
    data["pairs"] = {"file_name": str(DEMO / "pairs.jsonl"), "ranking": True, "columns": {"prompt": "prompt"}}
    data["pairs"]["columns"] |= {"chosen": "chosen", "rejected": "rejected"}
    (runs.parent / "dataset_info.json").write_text(json.dumps(data, indent=1))
    asked = {"peer": options.as_it_comes, "both": options.checkpointing, "within": options.within}
    who = next((who for who, said in asked.items() if said), "none")
    results = []
    for job, turn in ((job, turn) for job in options.only for turn in range(options.repeat)):
        general = (DEVICE[options.device], PRECISION[precision], COMMON, RECOMPUTE[who])
        ours, theirs = map(" ".join, zip(*general, *JOBS[job], strict=True))
        for system in ("factory", "llamafactory") if who != "within" else ("llamafactory", "factory"):
            folder = runs / f"{job}-{system}-{turn}"
            shutil.rmtree(folder, ignore_errors=True)
            print(f"{job}: {system} …", file=sys.stderr)
            if system == "factory":
                if who == "within":
                    ours += f" hardware.memory={round(options.within * results[-1]['peak_mib'])}MiB"
                result = run_factory(ours, model, folder, options.device)
            else:
                result = run_peer(python, theirs, their_model, folder, options.device)
            results.append({"job": job, "system": system, "precision": precision, "recomputes": who, **result})
            with (runs.parent / "results.jsonl").open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
            for weights in folder.rglob("*.safetensors"):
                weights.unlink()
    print("| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *map(row, results), sep="\n")
    print(f"\n- factory: {versions(sys.executable)}\n- llamafactory: {versions(python)}")
    return int(any((result["exit"] == 0) == (result["job"] == "refusal") for result in results))


if __name__ == "__main__":
    sys.exit(main())
