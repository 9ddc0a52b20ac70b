"""Factory's data worker beside LLaMA-Factory's on this machine: prints tables of what preparing rows costs.

With --data FILE both prepare that alpaca file, repeated --times times with a number in each question so that no row is
known already, for the embedded model's tokenizer and the ChatML template, with all cores. They take turns, so that a
busy machine hits both. Counted is from the file to the tokenized set in the cache, without
imports and the loading of the tokenizer. `raw` is the limit: the tokenizer's own encode_batch of the rendered texts,
over all cores, with nothing around it.

With --rows N that many short instruction rows are generated in a folder that is deleted again, and prepared twice: the
second time from the cache. Peak memory is the sum of the resident memory of the command and all its processes, looked
at twenty times a second; pages that they share count in each.

The peer's Python is given by --peer, an environment made by benchmarks/peer.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from embedded import embedded_model

CORES = len(os.sched_getaffinity(0))
MAX_LENGTH = 2048
COLUMNS = ("system", "rows", "tokens", "wall_s", "cpu_s", "rows_per_s", "tokens_per_s", "of_raw", "of_raw_cpu")
MANY = ("run", "rows", "tokens", "prepare_s", "cpu_s", "mix_and_pack_s", "whole_command_s", "peak_mib", "sequences")
PEER = """
import json, os, sys, time
path, model, cores, length = sys.argv[1:]
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer

if __name__ == "__main__":
    folder, file = os.path.split(path)
    with open(os.path.join(folder, "dataset_info.json"), "w") as info:
        json.dump({"rows": {"file_name": file}}, info)
    arguments = {"model_name_or_path": model, "dataset_dir": folder, "dataset": "rows", "template": "chatml",
                 "cutoff_len": int(length), "preprocessing_num_workers": int(cores), "stage": "sft", "do_train": True,
                 "output_dir": os.path.join(folder, "out"), "use_cpu": True, "report_to": "none",
                 "overwrite_cache": True}
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(arguments)
    parts = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(parts["tokenizer"], data_args)
    cpu, start = sum(os.times()[:4]), time.monotonic()
    found = get_dataset(template, model_args, data_args, training_args, stage="sft", **parts)["train_dataset"]
    wall, cpu = time.monotonic() - start, sum(os.times()[:4]) - cpu
    print("RESULT" + json.dumps([len(found), sum(map(len, found["input_ids"])), wall, cpu]))
"""


def tokenizer(model: Path) -> Any:
    """With the template that both systems have under one name; the model's own adds a system message."""
    from transformers import AutoTokenizer

    from factory import templates

    made = AutoTokenizer.from_pretrained(model)
    made.chat_template = templates.read("chatml")
    return made


def spent() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def prepare(path: Path, model: Path, *, packing: bool) -> dict[str, Any]:
    """Factory: the file to encoded rows in the cache, mixed and packed."""
    from factory.config import compose
    from factory.data import mix, prepare
    from factory.data.dataset import dataset
    from factory.data.encoding import encoding_of, spec_of
    from factory.data.prepare import store
    from factory.plan.anew import compiled

    store.schema()  # imports pyarrow, which the peer has before its clock starts, too
    words = [f"model.path={model}", "data=file", f"data.path={path}", f"data.max_length={MAX_LENGTH}"]
    words += ["data.packing=true"] if packing else ["data.validation_fraction=0"]
    plan = compiled(compose.compose(compose.parse(words)), training=False)
    settings, pack = plan.settings.data, encoding_of(plan)
    spec = spec_of(tokenizer(model), pack, "messages")
    assert spec.encoder  # reads the tokenizer, which the peer has, too
    cpu, start = spent(), time.monotonic()
    found = prepare.prepare(settings, plan.sources, spec, 0, CORES)
    wall, cpu = time.monotonic() - start, spent() - cpu
    start = time.monotonic()
    mixed = mix.mix({name: each.digests for name, each in found.items()}, settings, 0)
    data = dataset(found, mixed.train, pack, "messages")
    assert not len(data) or data[0]
    return {
        "rows": len(found["file"]),
        "tokens": int(found["file"].lengths.sum()),
        "wall": wall,
        "cpu": cpu,
        "after": time.monotonic() - start,
        "sequences": len(data),
    }


def raw(path: Path, model: Path) -> dict[str, Any]:
    """The tokenizer alone, on the same texts."""
    from factory.data import formats, read

    own = tokenizer(model)
    records = [formats.align(row, "alpaca", {}, {}) for row in read.rows(path)]
    texts = [own.apply_chat_template([*each.prompt, *each.response], tokenize=False) for each in records]
    backend = own.backend_tokenizer
    backend.no_truncation()
    cpu, start = spent(), time.monotonic()
    tokens = 0
    for first in range(0, len(texts), 1000):
        tokens += sum(map(len, backend.encode_batch(texts[first : first + 1000], add_special_tokens=False)))
    return {"rows": len(texts), "tokens": tokens, "wall": time.monotonic() - start, "cpu": spent() - cpu}


CELLS = {
    "factory": lambda path, model: prepare(path, model, packing=False),
    "many": lambda path, model: prepare(path, model, packing=True),
    "raw": raw,
}


def measured(command: list[Any], cache: Path) -> tuple[str, float, float]:
    """What the command printed last, its seconds, and the peak of the memory of all its processes in MiB."""
    import psutil

    environment = {**os.environ, "FACTORY_CACHE": str(cache), "HF_HOME": str(cache / "hf"), "HF_HUB_OFFLINE": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    start, peak = time.monotonic(), 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(list(map(str, command)), stdout=said, stderr=said, env=environment)
        own = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, _resident(own))
            time.sleep(0.05)
        said.seek(0)
        text = said.read().decode(errors="replace")
    if process.returncode:
        raise SystemExit(f"{command[0]} failed:\n{text}")
    return text, time.monotonic() - start, peak / 2**20


def _resident(process: Any) -> int:
    import psutil

    total = 0
    try:
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    except psutil.Error:  # it ended meanwhile: the next look counts
        return 0
    return total


def cell(name: str, path: Path, model: Path, cache: Path) -> tuple[dict[str, Any], float, float]:
    command = [sys.executable, __file__, "--cell", name, path, model]
    text, seconds, peak = measured(command, cache)
    return json.loads(text.splitlines()[-1]), seconds, peak


def peer(python: Path, path: Path, model: Path, cache: Path) -> dict[str, Any]:
    script = cache / "peer.py"  # a file, as its processes import what they were started from
    script.write_text(PEER)
    text, _, _ = measured([python, script, path, model, CORES, MAX_LENGTH], cache)
    line = next(line for line in text.splitlines() if line.startswith("RESULT"))
    return dict(zip(("rows", "tokens", "wall", "cpu"), json.loads(line.removeprefix("RESULT")), strict=True))


def repeated(path: Path, times: int, folder: Path) -> Path:
    """The file's rows again and again, each question with a number of its own."""
    rows = json.loads(path.read_text())
    target = folder / "rows.json"
    many = [{**row, "instruction": f"{row['instruction']} ({part})"} for part in range(times) for row in rows]
    target.write_text(json.dumps(many))
    return target


def generated(count: int, folder: Path) -> Path:
    """Short instructions with short answers, of words that English texts are made of."""
    words = "the of and to in is you that it he was for on are as with his they at be this have from or one had by"
    target = folder / "many.jsonl"
    with target.open("w") as file:
        for row in _rows(count, np.array(words.split())):
            file.write(json.dumps(row) + "\n")
    return target


def _rows(count: int, words: Any) -> Iterator[dict[str, str]]:
    draws = np.random.default_rng(0)
    for first in range(0, count, 1000):
        sizes = draws.integers(5, 25, (1000, 2))
        chosen = words[draws.integers(0, len(words), (1000, 50))]
        for number in range(min(1000, count - first)):
            question, answer = sizes[number]
            texts = (chosen[number, :question], chosen[number, 25 : 25 + answer])
            asked, answered = (" ".join(text) for text in texts)
            yield {"instruction": f"{first + number}: {asked}?", "input": "", "output": f"{answered}."}


def table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    print("| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), sep="\n")
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        print("| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells) + " |")


def beside(options: argparse.Namespace, folder: Path) -> None:
    path = repeated(options.data, options.times, folder)
    systems = ["raw", "factory", *(["llamafactory"] if options.peer else [])]
    results = []
    for turn in range(options.repeat):
        found: dict[str, dict[str, Any]] = {}
        for system in systems:
            cache = folder / f"cache-{system}-{turn}"
            cache.mkdir()
            print(f"{system} …", file=sys.stderr)
            if system == "llamafactory":
                found[system] = peer(options.peer, path, options.model, cache)
            else:
                found[system], _, _ = cell(system, path, options.model, cache)
            rows, tokens, wall, cpu = (found[system][name] for name in ("rows", "tokens", "wall", "cpu"))
            limit = found["raw"]
            values = (system, rows, tokens, round(wall, 2), round(cpu, 2), round(rows / wall), round(tokens / wall))
            shares = (f"{limit['wall'] / wall:.0%}", f"{limit['cpu'] / cpu:.0%}")
            results.append(dict(zip(COLUMNS, (*values, *shares), strict=True)))
            print(results[-1], file=sys.stderr)
    print(f"\n{path.stat().st_size:,} bytes, {CORES} cores, load {os.getloadavg()[0]:.1f}\n")
    table(COLUMNS, results)
    if options.peer:
        for measure in ("wall_s", "cpu_s"):
            ours, theirs = (
                min(row[measure] for row in results if row["system"] == system)
                for system in ("factory", "llamafactory")
            )
            print(f"\n{measure}: {theirs / ours:.1f} times as fast as LLaMA-Factory (best of each)")


def many(options: argparse.Namespace, folder: Path) -> None:
    print(f"generating {options.rows:,} rows …", file=sys.stderr)
    path = generated(options.rows, folder)
    cache = folder / "cache-many"
    cache.mkdir()
    results = []
    for run in ("first", "second"):
        print(f"{run} …", file=sys.stderr)
        found, seconds, peak = cell("many", path, options.model, cache)
        numbers = (round(found[name], 2) for name in ("wall", "cpu", "after"))
        values = (run, found["file"], found["tokens"], *numbers, round(seconds, 1), round(peak), found["sequences"])
        results.append(dict(zip(MANY, values, strict=True)))
        print(results[-1], file=sys.stderr)
    print(f"\n{path.stat().st_size:,} bytes, {CORES} cores, load {os.getloadavg()[0]:.1f}\n")
    table(MANY, results)


def main() -> int:
    if sys.argv[1:2] == ["--cell"]:
        name, path, model = sys.argv[2:]
        print(json.dumps(CELLS[name](Path(path), Path(model))))
        return 0

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FILE", help="an alpaca json file, such as alpaca_en_demo.json")
    parser.add_argument("--times", type=int, default=20, help="how often its rows are repeated (20)")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="the peer's Python; without it, Factory alone")
    parser.add_argument("--repeat", type=int, default=1, help="turns of each system (1)")
    parser.add_argument("--rows", type=int, metavar="N", help="generate so many rows and prepare them twice")
    parser.add_argument("--model", type=Path, help="the folder of the tokenizer (the embedded model's)")
    options = parser.parse_args()
    if not options.data and not options.rows:
        parser.error("--data or --rows says what to measure")
    options.model = options.model or embedded_model()
    if not (options.model / "tokenizer.json").is_file():
        parser.error(f"{options.model} has no tokenizer")
    with tempfile.TemporaryDirectory() as folder:
        if options.data:
            beside(options, Path(folder))
        if options.rows:
            many(options, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
