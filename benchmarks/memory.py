"""Peak memory as the plan estimates it and as a run has it, case by case, each through the command line.

    python benchmarks/memory.py                       # measures what is not measured yet, then prints the table
    python benchmarks/memory.py --only smol llama.dpo  # cases whose names hold one of these words
    python benchmarks/memory.py --table               # the table alone: estimates are made anew

Every run is a process of its own on one thread: three steps of rows that are cut to data.max_length, so that the
batch is as large as it was estimated; or 14 of short rows, packed, each step of another length. Models beside the
embedded one are random, made from their numbers. Measured is `memory.peak_bytes` of the report: the largest resident
memory of the train step. It does not depend on what else the machine does. Results are kept in --out, a line a case; a
case that is there is not run again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

COMMON = (
    "hardware=cpu hardware.threads=1 tracking=none evaluate.perplexity=false evaluate.samples=0 "
    "data.validation_fraction=0 stage.save_steps=null stage.warmup_ratio=0"
)
PACKED = "data.packing=true"
TABLE4 = "precision=pure_bf16 stage.optimizer=adamw_8bit compute.activation_checkpointing=true"  # the recipe's words
# width, width of the MLP, layers, heads, heads of keys, vocabulary, and what else a config needs
RANDOM: dict[str, dict[str, Any]] = {
    "wide": {"hidden": 1024, "mlp": 2816, "layers": 4, "heads": 16, "keys": 4, "vocabulary": 1024},
    "deep": {"hidden": 384, "mlp": 1024, "layers": 24, "heads": 6, "keys": 2, "vocabulary": 1024},
    "lexical": {"hidden": 512, "mlp": 1408, "layers": 4, "heads": 8, "keys": 8, "vocabulary": 65536},
    "big": {"hidden": 1536, "mlp": 4096, "layers": 12, "heads": 12, "keys": 4, "vocabulary": 16384},
    "billion": {"hidden": 1536, "mlp": 4096, "layers": 34, "heads": 24, "keys": 8, "vocabulary": 49152, "tied": True},
    "qwen2": {"kind": "qwen2", "hidden": 768, "mlp": 2048, "layers": 6, "heads": 12, "keys": 2, "vocabulary": 8192},
    "qwen3": {"kind": "qwen3", "hidden": 768, "mlp": 2048, "layers": 6, "heads": 6, "keys": 2, "vocabulary": 8192},
    "gemma2": {"kind": "gemma2", "hidden": 768, "mlp": 3072, "layers": 6, "heads": 6, "keys": 2, "vocabulary": 16384},
    "gemma3": {"kind": "gemma3_text", "hidden": 768, "mlp": 3072, "layers": 6, "heads": 6, "keys": 2,
               "vocabulary": 16384},
    "phi": {"kind": "phi", "hidden": 768, "mlp": 3072, "layers": 6, "heads": 12, "keys": 12, "vocabulary": 8192},
    "phi3": {"kind": "phi3", "hidden": 768, "mlp": 2048, "layers": 6, "heads": 12, "keys": 12, "vocabulary": 8192},
    "neox": {"kind": "gpt_neox", "hidden": 768, "mlp": 3072, "layers": 6, "heads": 12, "keys": 12, "vocabulary": 8192},
    "falcon": {"kind": "falcon", "hidden": 768, "mlp": 3072, "layers": 6, "heads": 12, "keys": 12, "vocabulary": 8192},
    "bloom": {"kind": "bloom", "hidden": 768, "mlp": 3072, "layers": 6, "heads": 12, "keys": 12, "vocabulary": 8192},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """`model` is of RANDOM, or smol, the embedded one."""

    model: str
    stage: str
    method: str  # the option
    length: int
    batch: int
    more: str = ""

    @property
    def name(self) -> str:
        words = self.more.replace("compute.", "").replace("method.", "").replace("stage.", "").replace("data.", "")
        parts = [self.model, self.stage, self.method, str(self.length), str(self.batch), *words.split()]
        return " ".join(parts)


def cases() -> list[Case]:
    found: list[Case] = []
    for method in ("lora", "full", "qlora", "galore", "freeze", "dora"):
        found.append(Case("smol", "pt", method, 512, 1))
        found += [Case("deep", stage, method, 512, 2) for stage in ("pt", "sft", "dpo", "kto", "orpo", "rm")]
    found += [
        Case("smol", "sft", "lora", 1024, 1),
        Case("smol", "sft", "lora", 256, 4, "precision=fp32"),
        Case("smol", "sft", "full", 512, 1, "precision=pure_bf16"),
        Case("smol", "sft", "full", 256, 2, "precision=fp32"),
        Case("smol", "dpo", "lora", 256, 2),
        Case("smol", "dpo", "qlora", 512, 1),
        Case("smol", "rm", "lora", 256, 2),
        Case("smol", "kto", "lora", 256, 2),
        Case("smol", "orpo", "lora", 256, 2),
        Case("smol", "pt", "lora", 2048, 1, "compute.activation_checkpointing=true"),
        Case("smol", "pt", "lora", 1024, 1, "compute.activation_checkpointing=selective"),
        *(Case("smol", "pt", "lora", 1024, 2, f"compute.recomputed_layers={few}") for few in (6, 12, 24)),
        *(Case("smol", "pt", "full", 1024, 2, f"compute.recomputed_layers={few}") for few in (8, 24)),
        Case("smol", "pt", "lora", 1024, 1, "compute.attention=eager"),
        Case("smol", "pt", "lora", 1024, 1, "compute.attention=s2"),
        Case("smol", "pt", "full", 512, 1, "stage.optimizer=adamw_8bit"),
        *(Case("smol", "pt", method, 512, 1, TABLE4) for method in ("full", "galore", "lora")),
        *(
            Case("smol", "sft", "lora", 1024, 1, f"{PACKED} compute.activation_checkpointing={recomputed}")
            for recomputed in ("false", "true")
        ),
        Case("wide", "pt", "lora", 128, 8),
        Case("wide", "pt", "lora", 4096, 1),
        Case("wide", "pt", "lora", 1024, 4, "compute.activation_checkpointing=true"),
        Case("wide", "pt", "lora", 1024, 2, "method.dropout=0.1"),
        Case("wide", "pt", "lora", 1024, 2, "compute.attention=eager"),
        Case("wide", "pt", "full", 1024, 2),
        Case("wide", "pt", "full", 1024, 2, "precision=pure_bf16"),
        Case("wide", "pt", "full", 1024, 2, "precision=fp32"),
        Case("wide", "pt", "full", 512, 8, "compute.activation_checkpointing=true"),
        Case("wide", "pt", "galore", 1024, 2, "precision=fp32"),
        Case("wide", "sft", "freeze", 1024, 2),
        Case("wide", "dpo", "full", 512, 2),
        Case("lexical", "pt", "lora", 512, 4),
        Case("lexical", "pt", "full", 512, 2),
        Case("lexical", "dpo", "lora", 512, 2),
        Case("lexical", "rm", "full", 512, 2),
        Case("big", "pt", "lora", 512, 2),
        Case("big", "pt", "qlora", 512, 2),
        Case("big", "pt", "full", 256, 1),
        Case("big", "sft", "galore", 256, 1, "precision=pure_bf16"),
        Case("big", "dpo", "qlora", 256, 2),
        Case("big", "pt", "freeze", 512, 2),
        *(
            Case("billion", "pt", method, length, 1, "precision=pure_bf16")
            for length in (256, 512)
            for method in ("lora", "qlora")
        ),
    ]
    kinds = ("qwen2", "qwen3", "gemma2", "gemma3", "phi", "phi3", "neox", "falcon", "bloom")
    found += [Case(kind, "pt", method, 512, 2) for kind in kinds for method in ("lora", "full")]
    for method in ("oft", "ia3", "vera", "adalora", "loha", "lokr", "pissa", "badam", "apollo", "llama_pro"):
        # of blocks that train in turn, the first layer's keeps the most activations
        found.append(Case("deep", "pt", method, 512, 2, "method.order=ascending" if method == "badam" else ""))
    return found


def random_model(numbers: dict[str, Any], folder: Path) -> None:
    """In float32; each byte is a token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from factory import templates

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        numbers.get("kind", "llama"),
        hidden_size=numbers["hidden"],
        intermediate_size=numbers["mlp"],
        num_hidden_layers=numbers["layers"],
        num_attention_heads=numbers["heads"],
        num_key_value_heads=numbers["keys"],
        **({} if numbers.get("kind") == "falcon" else {"head_dim": numbers["hidden"] // numbers["heads"]}),
        **({"tie_word_embeddings": True} if "tied" in numbers else {}),
        vocab_size=numbers["vocabulary"],
        max_position_embeddings=4096,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    ends = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
    tokens = [*ends, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend: Any = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=ends[0], eos_token=ends[1], additional_special_tokens=ends[2:]
    )
    made.chat_template = templates.read("chatml")
    made.save_pretrained(folder)


def rows(stage: str, length: int, *, short: bool) -> Iterator[dict[str, Any]]:
    """More than every tokenizer here needs for `length` tokens, or up to a third of it."""
    for number in range(200 if short else 40):
        words = 10 + 37 * number % (length // 9) if short else 2 * length
        text = " ".join(f"word{(7 * number + place) % 97}" for place in range(words))
        asked = f"Count on from {number}."
        yield {
            "pt": {"text": text},
            "sft": {"instruction": asked, "input": "", "output": text},
            "kto": {"prompt": asked, "completion": text, "label": number % 2 == 0},
        }.get(stage, {"prompt": asked, "chosen": text, "rejected": text[::-1]})


def words(case: Case, out: Path) -> list[str]:
    """The command line; the model and the rows are made where they are not there yet."""
    short = PACKED in case.more
    file = out / "rows" / f"{case.stage}-{case.length}{'-short' if short else ''}.jsonl"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows(case.stage, case.length, short=short)))
    model = []
    if case.model != "smol":
        folder = out / "models" / case.model
        if not (folder / "tokenizer.json").is_file():
            random_model(RANDOM[case.model], folder)
        model = [f"model.path={folder}"]
    return [
        *COMMON.split(),
        *model,
        f"stage={case.stage}",
        f"method={case.method}",
        "data=file",
        f"data.path={file}",
        f"data.max_length={case.length}",
        f"stage.batch_size={case.batch}",
        f"stage.max_steps={14 if short else 3}",
        *([] if case.stage == "pt" or short else ["data.truncation=right"]),  # packed text has no ends to cut
        *case.more.split(),
    ]


def planned(line: list[str]) -> dict[str, Any]:
    """The plan's estimate."""
    command = [sys.executable, "-m", "factory", "plan", *line, "plan.format=json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)["estimate"]


def finished(line: list[str], folder: Path) -> dict[str, Any]:
    """The run's report. Raises RuntimeError with the command's words where it did not finish."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "factory", "train", *line, f"hydra.run.dir={folder}"]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    report = folder / "report.json"
    try:
        found: dict[str, Any] = json.loads(report.read_text()) if report.is_file() else {"status": "refused"}
        if found["status"] != "finished":
            raise RuntimeError(done.stderr[-2000:] + done.stdout[-2000:])
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read(results: Path) -> dict[str, dict[str, Any]]:
    lines = results.read_text().splitlines() if results.is_file() else []
    return {line["name"]: line for line in map(json.loads, lines)}


def table(done: dict[str, dict[str, Any]], chosen: list[Case], out: Path) -> None:
    errors: list[float] = []
    print("| model, stage, method, length, batch | estimated | measured | error |", "|---|---|---|---|", sep="\n")
    for case in chosen:
        if "train" not in done.get(case.name, {}):
            continue
        total, peak = planned(words(case, out))["memory"]["total"], done[case.name]["train"]
        errors.append(100 * (total / peak - 1))
        print(f"| {case.name} | {total / 2**20:,.0f} | {peak / 2**20:,.0f} | {errors[-1]:+.1f} % |")
    if errors:
        within = sum(abs(error) <= 10 for error in errors)
        print(
            f"\n{len(errors)} cases: median error {median(map(abs, errors)):.1f} %, {within} within 10 %, "
            f"lowest {min(errors):+.1f} %, highest {max(errors):+.1f} %"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/memory"), help="results and models (outputs/memory)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="cases whose names hold one of these")
    parser.add_argument("--without", nargs="+", default=[], metavar="WORD", help="none whose names hold one of these")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    chosen = [case for case in cases() if any(word in case.name for word in options.only)]
    chosen = [case for case in chosen if not any(word in case.name for word in options.without)]
    done = read(results)
    for case in [] if options.table else chosen:
        if case.name in done:
            continue
        try:
            found = finished(words(case, out), out / "run")["memory"]["by_step"]
        except RuntimeError as error:
            print(f"{case.name}: {error}", file=sys.stderr, flush=True)
            continue
        with results.open("a") as file:
            file.write(json.dumps({"name": case.name, **found}) + "\n")
        print(f"{case.name}: {found['train'] / 2**20:,.0f} MiB", file=sys.stderr, flush=True)
    table(read(results), chosen, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
