"""The chunked losses are the plain ones: against torch, against the models' own loss, against NumPy in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from factory import chunks, losses
from factory.losses import LinearCrossEntropy, causal_lm, row_losses


def _problem(tokens: int, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(13, 8, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, 13, (tokens,))


@pytest.mark.parametrize("tokens", [1, 7, 8, 20])
@pytest.mark.parametrize("trains_head", [True, False])
@pytest.mark.parametrize("words", [5, 13, 4096])
def test_equals_torchs_cross_entropy(
    tokens: int, trains_head: bool, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 8)
    monkeypatch.setattr(chunks, "WORDS", words)
    hidden, weight, target = _problem(tokens)
    weight.requires_grad_(trains_head)
    wanted = [hidden, weight] if trains_head else [hidden]
    plain = functional.cross_entropy(hidden @ weight.T, target, reduction="sum") / 3
    chunked = LinearCrossEntropy.apply(hidden, weight, target, torch.float64) / 3
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(chunked, wanted), torch.autograd.grad(plain, wanted), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 8, 20])
def test_counts_multiply_a_tokens_loss_and_gradient(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 8)
    hidden, weight, target = _problem(tokens)
    counts = torch.rand(tokens)
    plain = (functional.cross_entropy(hidden @ weight.T, target, reduction="none") * counts).sum() / 3
    chunked = LinearCrossEntropy.apply(hidden, weight, target, torch.float64, None, 1.0, None, counts) / 3
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-12)
    both = [hidden, weight]
    for mine, theirs in zip(torch.autograd.grad(chunked, both), torch.autograd.grad(plain, both), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("cap", [None, 0.5, 30.0])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    "trained", [(True, True, True), (True, False, False), (False, True, True), (False, False, True)]
)
def test_what_a_head_does_to_its_logits(
    scale: float, cap: float | None, biased: bool, trained: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bias, scale and cap against autograd through the formula, whichever of the tensors are trained."""
    monkeypatch.setattr(chunks, "CHUNK", 8)
    hidden, weight, target = _problem(20)
    bias = torch.randn(13, dtype=torch.float64, requires_grad=True) if biased else None
    given = [
        tensor.requires_grad_(wanted)
        for tensor, wanted in zip((hidden, weight, bias), trained, strict=True)
        if tensor is not None
    ]
    wanted = [tensor for tensor in given if tensor.requires_grad]
    logits = scale * functional.linear(hidden, weight, bias)
    plain = (
        functional.cross_entropy(logits if cap is None else cap * torch.tanh(logits / cap), target, reduction="sum") / 3
    )
    chunked = LinearCrossEntropy.apply(hidden, weight, target, torch.float64, bias, scale, cap) / 3
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-12)
    if not wanted:
        return
    for mine, theirs in zip(torch.autograd.grad(chunked, wanted), torch.autograd.grad(plain, wanted), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_are_the_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 2)
    hidden, weight, target = _problem(5)

    def loss(hidden: Any, weight: Any) -> Any:
        return LinearCrossEntropy.apply(hidden, weight, target, torch.float64)

    loss(hidden, weight).backward()
    for value in (hidden, weight):
        slopes = torch.empty_like(value)
        for index in np.ndindex(*value.shape):
            step = torch.zeros_like(value)
            step[index] = 1e-6
            up = [other + step if other is value else other for other in (hidden, weight)]
            down = [other - step if other is value else other for other in (hidden, weight)]
            slopes[index] = (loss(*up) - loss(*down)).detach() / 2e-6
        torch.testing.assert_close(value.grad, slopes, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", [losses.LinearCrossEntropy, losses.LinearLogProbs])
def test_how_many_logits_are_wide_at_a_time_changes_no_gradient(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some tokens after the others they are what they are of all, to the last bit."""
    found = []
    for rows in (4096, 7):
        monkeypatch.setattr(chunks, "WIDE", rows)
        hidden, weight, target = _problem(70, torch.float32)
        bias = torch.linspace(-1, 1, 13, requires_grad=True)
        values = function.apply(hidden, weight, target, torch.bfloat16, bias, 0.5, 3.0)
        found.append([values, *torch.autograd.grad(values.sum(), (hidden, weight, bias))])
    one, other = found
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one[1:3], other[1:3], strict=True))
    for mine, theirs in zip(one, other, strict=True):  # sums of tokens in another order
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_bfloat16_logits_keep_the_gradients_types() -> None:
    hidden, weight, target = _problem(20, torch.float32)
    chunked = LinearCrossEntropy.apply(hidden, weight, target, torch.bfloat16)
    chunked.backward()
    assert chunked.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    exact = functional.cross_entropy(hidden @ weight.T, target, reduction="sum")
    torch.testing.assert_close(chunked, exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize(("function", "units"), [(losses.LinearCrossEntropy, 3), (losses.LinearLogProbs, -4)])
def test_a_bfloat16_heads_gradient_is_rounded_once(function: Any, units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of zeros has slopes of 1/8 and -7/8, exact in bfloat16: only the sum over 100 chunks can lose digits."""
    monkeypatch.setattr(chunks, "CHUNK", 8)
    torch.manual_seed(0)
    hidden = torch.randn(1600, 32, dtype=torch.bfloat16)
    weight = torch.zeros(8, 32, dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(0, 8, (1600,))
    (function.apply(hidden, weight, target, torch.bfloat16).sum() / units).backward()
    exact = (1 / 8 - functional.one_hot(target, 8).double()).T @ hidden.double() / abs(units)
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(weight.grad.double(), exact, rtol=1.001 * 2**-8, atol=1e-5)


def test_bfloat16_caps_in_float32() -> None:
    hidden, weight, target = _problem(20, torch.float32)
    bias = torch.randn(13, dtype=torch.float32, requires_grad=True)
    chunked = LinearCrossEntropy.apply(hidden, weight, target, torch.bfloat16, bias, 2.0, 1.5)
    chunked.backward()
    assert bias.grad is not None
    exact = functional.cross_entropy(1.5 * torch.tanh((hidden @ weight.T + bias) * 2 / 1.5), target, reduction="sum")
    torch.testing.assert_close(chunked, exact, rtol=1e-2, atol=0)
    (slope,) = torch.autograd.grad(exact, [bias])
    torch.testing.assert_close(bias.grad, slope, rtol=0.05, atol=0.02)


def _batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, 512, (3, 16))
    labels = ids.clone()
    labels[:, :4] = -100
    labels[0, 8:] = -100  # padding
    labels[1, 6:9] = -100
    ids[0, 8:] = 0
    return {"input_ids": ids, "labels": labels}


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def _trained(labels: Any) -> int:
    return int((labels[:, 1:] != -100).sum())


def test_causal_lm_equals_the_models_own_loss(model: Any) -> None:
    batch = _batch()
    own = model(**batch).loss * _trained(batch["labels"])
    mine = causal_lm(model, batch)
    torch.testing.assert_close(mine, own, rtol=1e-6, atol=1e-5)
    parameters = list(model.parameters())
    for left, right in zip(torch.autograd.grad(mine, parameters), torch.autograd.grad(own, parameters), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_causal_lm_reads_through_peft(model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    batch = _batch()
    own = wrapped(**batch).loss * _trained(batch["labels"])
    mine = causal_lm(wrapped, batch)
    torch.testing.assert_close(mine, own, rtol=1e-6, atol=1e-5)
    adapters = [value for value in wrapped.parameters() if value.requires_grad]
    for left, right in zip(torch.autograd.grad(mine, adapters), torch.autograd.grad(own, adapters), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_causal_lm_counts_a_token_as_its_weight_says(model: Any) -> None:
    ids = torch.randint(0, model.config.vocab_size, (2, 9))
    weights = torch.tensor([[1.0] * 9, [0.25] * 9])
    each = [causal_lm(model, {"input_ids": row[None], "labels": row[None]}) for row in ids]
    both = causal_lm(model, {"input_ids": ids, "labels": ids, "weights": weights})
    torch.testing.assert_close(both, each[0] + 0.25 * each[1], rtol=1e-5, atol=1e-5)


def test_causal_lm_is_the_sum_of_surprises(model: Any) -> None:
    """Sum over trained tokens of -log softmax, said in NumPy."""
    batch = _batch()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits.double().numpy()
        mine = float(causal_lm(model, batch))
    total = 0.0
    for row, labels in zip(logits, batch["labels"].numpy(), strict=True):
        for position, label in enumerate(labels[1:]):
            if label != -100:
                total -= row[position, label] - np.log(np.exp(row[position]).sum())
    assert mine == pytest.approx(total, rel=1e-6)


def test_rows_add_up_to_the_loss(model: Any) -> None:
    """Each row's own loss, alone; weights included, and a row of which nothing is trained."""
    batch = _batch()
    batch["labels"][2] = -100
    batch["weights"] = torch.rand(batch["labels"].shape)
    alone = [causal_lm(model, {name: values[row : row + 1] for name, values in batch.items()}) for row in range(2)]
    found = row_losses(model, batch)
    torch.testing.assert_close(found[:2], torch.stack(alone), rtol=1e-5, atol=1e-5)
    assert found[2] == 0
    torch.testing.assert_close(found.sum(), causal_lm(model, batch), rtol=1e-6, atol=1e-5)


def test_evaluation_computes_no_gradients(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained head costs nothing more when its perplexity is measured."""
    add, calls = losses._Gradients.add, []
    monkeypatch.setattr(losses._Gradients, "add", lambda *args: (calls.append(1), add(*args))[1])
    causal_lm(model, _batch())
    assert calls
    calls.clear()
    with torch.no_grad():
        causal_lm(model, _batch())
    assert not calls
