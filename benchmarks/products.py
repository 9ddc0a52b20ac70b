"""Products of bfloat16 in their own type beside those by way of float32 (factory.products), on this CPU.

    python benchmarks/products.py                            # one thread
    python benchmarks/products.py --threads 2 --tokens 512

First the products of a layer of the embedded model, for some numbers of tokens, then steps of the model: the loss and
its gradients, without the optimizer. Both ways in one process, one after the other, so that a machine that changes its
speed changes it for both. Times are medians, a ratio is the median of the pairs'. `rank 0`: all weights train.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from native import both, step

from factory import chunks, products

SHAPES = ((576, 576), (576, 1536), (1536, 576), (576, 49152))  # inputs and outputs
ROWS = (16, 32, 64, 104, 256, 512)


def alone() -> Iterator[tuple[str, float, Callable[[], Any]]]:
    """Each product, with its GFLOPs; made wide for however few rows."""
    for inputs, outputs in SHAPES:
        weight = torch.randn(outputs, inputs, dtype=torch.bfloat16)
        for rows in ROWS:
            x = torch.randn(rows, inputs, dtype=torch.bfloat16)
            slope = torch.randn(rows, outputs, dtype=torch.bfloat16)
            flops, room = 2e-9 * rows * inputs * outputs, torch.empty_like(slope)
            yield f"{rows} x {inputs} by {outputs}", flops, lambda x=x, w=weight, o=room: products.logits(x, w, o)
            yield f"{rows} x {outputs} by {inputs}, back", flops, lambda s=slope, w=weight: products.back(s, w)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="*", default=[104, 512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ranks", type=int, nargs="*", default=[8, 128, 0])
    parser.add_argument("--turns", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| | own, ms | GFLOP/s | by float32, ms | GFLOP/s | of own |", "|---|---:|---:|---:|---:|---:|", sep="\n")
    steps = [(rank, tokens) for tokens in options.tokens for rank in options.ranks]
    least, chunks.LEAST = chunks.LEAST, 1
    for name, flops, work in alone():
        row(name, flops, both(work, options.turns, products.use))
    chunks.LEAST = least
    for rank, tokens in steps:
        row(f"a step of {tokens} tokens, rank {rank}", None, both(step(rank, tokens), options.turns, products.use))
    return 0


def row(name: str, flops: float | None, found: list[list[float]]) -> None:
    ratio = statistics.median(one / other for one, other in zip(*reversed(found), strict=True))
    medians = [statistics.median(each) for each in found]
    cells = (f"{1000 * each:.2f} | {'' if flops is None else round(flops / each)}" for each in medians)
    print(f"| {name} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
