"""NEFTune: uniform noise on the embeddings, of the paper's size, in training alone."""

from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from factory.stages.sft.run import prepare

PLAIN = ("stage.max_steps=2", "stage.logging_steps=1", "precision=fp32", "evaluate.perplexity=true")


@pytest.mark.parametrize("alpha", [5.0, 15.0])
def test_the_noise_is_the_papers(alpha: float) -> None:
    model = AutoModelForCausalLM.from_config(tiny.config(num_hidden_layers=1))
    embedding, ids = model.get_input_embeddings(), torch.arange(400).reshape(2, 200)
    clean = embedding(ids).detach()
    prepare(model, {"neftune_alpha": alpha})
    noise = (embedding.train()(ids) - clean).detach()
    bound = alpha / sqrt(200 * clean.shape[-1])
    assert noise.abs().max() <= bound * (1 + 1e-4)
    assert noise.abs().max() > 0.99 * bound
    assert noise.mean().abs() < 0.02 * bound
    assert noise.std().item() == pytest.approx(bound / sqrt(3), rel=0.02)  # of a uniform distribution
    assert not torch.equal(embedding(ids), embedding(ids))
    assert torch.equal(embedding.eval()(ids), clean)


def test_no_noise_unless_asked() -> None:
    model = AutoModelForCausalLM.from_config(tiny.config(num_hidden_layers=1)).train()
    ids = torch.arange(40).reshape(2, 20)
    clean = model.get_input_embeddings()(ids)
    prepare(model, {"neftune_alpha": None})
    assert torch.equal(model.get_input_embeddings()(ids), clean)


@pytest.mark.parametrize("method", [("method=lora", "method.rank=4"), ("method=full",)], ids=["lora", "full"])
def test_training_has_the_noise_and_evaluation_has_not(method: tuple[str, ...], execute: Callable[..., Any]) -> None:
    quiet = execute(*PLAIN, *method, "stage.learning_rate=1e-30", folder="quiet")
    noisy = execute(*PLAIN, *method, "stage.learning_rate=1e-30", "stage.neftune_alpha=15", folder="noisy")
    assert noisy.losses[0] != quiet.losses[0]
    assert noisy.losses[0] == pytest.approx(quiet.losses[0], rel=0.1)
    assert noisy.result["evaluate"] == quiet.result["evaluate"]
