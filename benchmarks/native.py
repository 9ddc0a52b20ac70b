"""The kernels in C beside what they stand in for: each alone, and steps of the embedded model, turn by turn.

    python benchmarks/native.py                            # 512 tokens, one thread
    python benchmarks/native.py --tokens 104 --threads 2

Both are computed in one process, one after the other, so that a machine that changes its speed changes it for both.
Times are medians, of steps the median of the pairs' ratios too; a step is the loss and its gradients, without the
optimizer. `rank 0`: all weights train, in float32 under autocast. Products are as `compute.products=auto` has them.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from embedded import embedded_model

from factory import fused, losses, products
from factory.attention import blocks
from factory.fused import functions
from factory.fused.adapted import Adapted
from factory.look import cpu
from factory.native import kernels


def both(work: Callable[[], Any], turns: int, use: Callable[[bool], None]) -> list[list[float]]:
    """Seconds of the work without and with what is to be used, turn by turn."""
    found: list[list[float]] = [[], []]
    for turn in range(-2, turns):  # the first two are not counted
        for way in (0, 1) if turn % 2 else (1, 0):
            use(bool(way))
            start = time.perf_counter()
            work()
            if turn >= 0:
                found[way].append(time.perf_counter() - start)
    return found


def alone(tokens: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each function with the embedded model's sizes, in bfloat16, forwards and backwards."""

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.bfloat16)

    x, gate, up = drawn(tokens, 576).requires_grad_(), drawn(tokens, 1536), drawn(tokens, 1536)
    weight, head, hidden = drawn(576), drawn(49152, 576), drawn(tokens, 576).requires_grad_()
    gate, up = gate.requires_grad_(), up.requires_grad_()
    target = torch.randint(0, 49152, (tokens,))
    query, key = (drawn(1, tokens, heads, 64).transpose(1, 2).requires_grad_() for heads in (9, 3))
    angles = drawn(2, 1, tokens, 64)
    turn = fused._Turned(_turned_by_torch)

    def backwards(made: torch.Tensor | tuple[torch.Tensor, ...], *given: torch.Tensor) -> None:
        whole = made if isinstance(made, tuple) else (made,)
        torch.autograd.grad(whole, given, [torch.ones_like(each) for each in whole])

    yield "RMS norm of 576", lambda: backwards(functions.rms_norm(x, weight, 1e-5, False), x)
    yield "silu(gate) up of 1,536", lambda: backwards(functions.gated_silu(gate, up), gate, up)
    yield "positions of 9 and 3 heads", lambda: backwards(turn(query, key, *angles), query, key)
    for name, outs in (("query, key and value", (576, 192, 192)), ("gate and up", (1536, 1536))):
        layers = [
            Adapted(torch.randn(8, 576).requires_grad_(), torch.randn(out, 8).requires_grad_(), 2, lambda w=w: w, None)
            for out, w in ((out, drawn(out, 576)) for out in outs)
        ]
        pairs = [each for layer in layers for each in (layer.a, layer.b)]
        low_rank = partial(fused.low_rank, x, layers, torch.bfloat16)
        yield f"{name}, rank 8", lambda low_rank=low_rank, pairs=pairs: backwards(low_rank(), x, *pairs)
    entropy = losses.LinearCrossEntropy.apply
    yield "a frozen head and its loss", lambda: backwards(entropy(hidden, head, target, torch.bfloat16), hidden)


def _turned_by_torch(query: torch.Tensor, key: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> Any:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    return getattr(apply_rotary_pos_emb, "usual", apply_rotary_pos_emb)(query, key, cosine, sine)


def step(rank: int, tokens: int) -> Callable[[], float]:
    """The loss of a step, its gradients made."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    blocks.register("native")
    kernels.use(True)
    folder = embedded_model()
    kind = torch.bfloat16 if rank else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, attn_implementation="native")
    fused.fuse(model)
    if rank:
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
        for weight in model.parameters():
            weight.data = weight.data.float() if weight.requires_grad else weight.data
    fused.fuse_linears(model)
    torch.manual_seed(0)
    ids = torch.randint(0, 49152, (1, tokens))

    def work() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = losses.causal_lm(model, {"input_ids": ids, "labels": ids})
        loss.backward()
        model.zero_grad()
        return float(loss.detach()) / (tokens - 1)

    return work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ranks", type=int, nargs="*", default=[8, 128, 0])
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    products.use(cpu.multiplies_wide())
    print(f"{options.tokens} tokens, {options.threads} threads\n")
    print("| | torch, ms | C, ms | of torch's |", "|---|---:|---:|---:|", sep="\n")
    works = [*alone(options.tokens), *((f"a step, rank {rank}", step(rank, options.tokens)) for rank in options.ranks)]
    for name, work in works:
        by_torch, in_c = both(work, options.turns, kernels.use)
        ratio = statistics.median(one / other for one, other in zip(in_c, by_torch, strict=True))
        times = (f"{1000 * statistics.median(each):.2f}" for each in (by_torch, in_c))
        print(f"| {name} | {' | '.join(times)} | {ratio:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
