"""Attention of our own beside torch's (sdpa): prints a table of what a forward and backward pass costs by length.

A small random model (2 layers of width 256, 8 heads on 4 key and value heads, 512 tokens) in training mode, one
sequence, of several documents that do not see each other with --documents. Each cell is a process of its own: one pass
over a short sequence, then passes over the whole one. CPU seconds are the fastest pass's; memory is the process's peak
less what it held before the passes. With groups of a fixed size the cost per token of s2 stays flat; that of full
attention grows with the length.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import product
from typing import Any

ATTENTIONS = ("sdpa", "per_document", "s2")
COLUMNS = ("attention", "tokens", "cpu_s", "us_per_token", "peak_mib", "kib_per_token", "loss")
MODEL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 512,
}


def cell(attention: str, length: int, options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from factory.attention import register

    torch.manual_seed(0)
    register(attention, options.group_size)
    config = AutoConfig.for_model("llama", max_position_embeddings=length, **MODEL)
    config._attn_implementation = attention
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype)).train()
    ids = torch.randint(MODEL["vocab_size"], (1, length))
    places = torch.arange(length)[None] % options.documents if options.documents else None
    step(model, ids[:, :64], None, options.documents)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, losses = zip(*(step(model, ids, places, options.documents) for _ in range(options.repeat)), strict=True)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / unit
    values = (attention, length, round(min(seconds), 2), round(min(seconds) / length * 1e6), round(peak))
    return dict(zip(COLUMNS, (*values, round(peak * 2**10 / length, 1), round(losses[0], 4)), strict=True))


def step(model: Any, ids: Any, places: Any, documents: int) -> tuple[float, float]:
    """Return the CPU seconds of a pass, and its loss."""
    length, size = ids.shape[1], documents if places is not None else ids.shape[1]
    sizes = [min(size, length - start) for start in range(0, length, size)]
    start = time.process_time()
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids, position_ids=places, use_cache=False, sequence_lengths=tuple(sizes)).loss
    loss.backward()
    return time.process_time() - start, loss.item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384], metavar="TOKENS"
    )
    parser.add_argument("--group-size", type=int, default=1024, help="tokens in a group of s2 (1024)")
    parser.add_argument("--only", nargs="+", choices=ATTENTIONS, help="these kinds (all)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the model (float32)")
    parser.add_argument("--documents", type=int, default=0, metavar="TOKENS", help="isolated documents of this length")
    parser.add_argument("--repeat", type=int, default=3, help="passes, of which the fastest counts (3)")
    parser.add_argument("--cell", nargs=2, metavar=("ATTENTION", "TOKENS"), help="this cell only, in this process")
    options = parser.parse_args()
    if options.cell:
        attention, length = options.cell
        print(json.dumps(cell(attention, int(length), options)))
        return 0
    print("| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), sep="\n")
    shared = [
        f"--{name.replace('_', '-')}={getattr(options, name)}"
        for name in ("group_size", "repeat", "dtype", "documents")
    ]
    for attention, length in product(options.only or ATTENTIONS, options.lengths):
        command = [sys.executable, __file__, *shared, "--cell", attention, str(length)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        print(
            "| " + " | ".join(f"{result[name]:,}" if name == "tokens" else str(result[name]) for name in COLUMNS), "|"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
