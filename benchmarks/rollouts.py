"""Answers sampled side by side, as ppo and grpo do, against the same prompts one after the other: tokens a second.

    python benchmarks/rollouts.py                  # 32 prompts of the demo, 48 new tokens each, greedy, one thread

The model is the embedded one with an untrained LoRA adapter, patched as a run's is, in bfloat16, or in float32 on a CPU
without bfloat16; both ways have a cache. The answers are compared: in float32 they are the same tokens, in bfloat16 a
tie may go the other way.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from embedded import embedded_model

import factory
from factory.plan.inspect import cpu
from factory.rollouts.sample import Sampling, sample


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32], help="answers side by side")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--threads", type=int, default=1)
    own = "bfloat16" if cpu.has_bf16() else "float32"
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default=own, help=f"({own})")
    options = parser.parse_args()
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(options.threads)
    folder = embedded_model()
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.dtype))
    base.generation_config.eos_token_id = None  # each answer is as long as the next: they are compared token by token
    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear")).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    file = Path(factory.__file__).parent / "demo" / "messages.jsonl"
    said = [json.loads(line)["instruction"] for line in file.read_text().splitlines()[: options.prompts]]
    rows = [[{"role": "user", "content": text}] for text in said]
    asked = [tokenizer.apply_chat_template(row, add_generation_prompt=True, tokenize=True) for row in rows]
    prompts = [list(each["input_ids"]) if not isinstance(each, list) else each for each in asked]
    sampling = Sampling(max_new_tokens=options.new, greedy=True)
    first: list[list[int]] | None = None
    print("| answers side by side | tokens/s | times one by one | same tokens |", "|---:|---:|---:|---:|", sep="\n")
    alone = 0.0
    for together in options.rows:
        for warm in (prompts[:together], prompts):
            start = time.perf_counter()
            answers = [
                each
                for at in range(0, len(warm), together)
                for each in sample(model, warm[at : at + together], sampling, pad=0, stops=(), device="cpu")
            ]
            seconds = time.perf_counter() - start
        ids = [answer.ids for answer in answers]
        speed = sum(map(len, ids)) / seconds
        first, alone = first or ids, alone or speed
        same = sum(a == b for one, other in zip(ids, first, strict=True) for a, b in zip(one, other, strict=True))
        share = same / sum(map(len, ids))
        print(f"| {together} | {speed:,.0f} | {speed / alone:.1f} | {100 * share:.0f} % |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
