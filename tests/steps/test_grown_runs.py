"""Runs whose vocabulary grows, from the command line to what a user reads back."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import refusals
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

TRAIN = (
    "data.max_length=256",
    "stage.max_steps=2",
    "precision=fp32",
    "model.new_tokens=['<tool>','</tool>']",
    "compute.attention=sdpa",  # the tests call the model as transformers does
)
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


def test_an_adapter_goes_on_with_its_own_new_tokens(execute: Any, here: Path, tmp_path: Path) -> None:
    base = (f"model.path={tiny.save(tmp_path / 'base')}", "data.max_length=256", "stage.max_steps=2", "precision=fp32")
    execute(*base, "model.new_tokens=['<tool>','</tool>']")
    again = (*base, "hardware=cpu", "tracking=none", f"model.adapter={here / 'run/model'}")
    assert not refusals(*again, "model.new_tokens=['<tool>','</tool>']")
    (other,) = refusals(*again, "model.new_tokens=['<other>','</tool>']")
    assert (other.rule, "'<other>'" in other.wrong) == ("adapter-tokens", True)
    (turned,) = refusals(*again, "model.new_tokens=['</tool>','<tool>']")
    assert (turned.rule, "513" in turned.wrong) == ("adapter-tokens", True)
    lacking = {found.rule: found.wrong for found in refusals(*again, "model.new_tokens=['<tool>']")}
    assert lacking.keys() == {"adapter-fits", "adapter-tokens"}  # its tensors have other shapes, and why
    assert "trained '</tool>' too" in lacking["adapter-tokens"]
    assert "base.resize_token_embeddings(514)" in (here / "run/model/README.md").read_text()


def test_tokens_that_the_rows_never_hold_are_no_dead_gradients(execute: Any, tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    done = execute(f"model.path={base}", "stage.max_steps=3", "precision=fp32", "model.new_tokens=['<never>']")
    assert done.run.checks["gradients_alive"]["passed"]
