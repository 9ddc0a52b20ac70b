"""Runs whose vocabulary grows, from the command line to what a user reads back. (-> tests/steps/test_grown_runs.py)"""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

TRAIN = ("data.max_length=256", "stage.max_steps=2", "precision=fp32", "model.new_tokens=['<tool>','</tool>']")
QUANTIZED_START = "pissa method.quantization.bits=4"  # read twice: the second time from weights that have grown


@pytest.mark.parametrize("rows", [514, 576])
@pytest.mark.parametrize("method", ["lora", "full", "qlora", "pissa", QUANTIZED_START])
@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_are_planned_and_trained(
    execute: Any, here: Path, tmp_path: Path, method: str, rows: int, tied: bool
) -> None:
    base = tiny.save(tmp_path / "base", tie_word_embeddings=tied)
    padded = () if rows == 514 else ("model.pad_vocabulary_to=64",)
    done = execute(*TRAIN, *f"method={method}".split(), *padded, f"model.path={base}")
    assert done.run.checks["trainable_as_planned"]["passed"]
    assert done.model.get_input_embeddings().weight.shape[0] == rows
    tokenizer = AutoTokenizer.from_pretrained(here / "run/model")
    ids = torch.tensor([tokenizer("hi <tool> there </tool>")["input_ids"]])
    assert {512, 513} <= set(ids[0].tolist())
    if method not in ("lora", "full"):
        return
    read = AutoModelForCausalLM if method == "full" else AutoPeftModelForCausalLM
    with torch.no_grad():
        ours = read.from_pretrained(here / "run/model").eval()(input_ids=ids).logits[..., :514]
        theirs = done.model.eval()(input_ids=ids, use_cache=False).logits[..., :514]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
