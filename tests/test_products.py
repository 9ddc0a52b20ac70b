"""Products of bfloat16 by way of float32, against float64 and against torch's own."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from factory import chunks, fused, losses, products
from factory.fused.adapted import Adapted, low_rank
from factory.fused.functions import Linear
from factory.look import cpu

ROWS, IN, OUT = 96, 40, 300
NARROW = torch.bfloat16


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of a weight not all rows are wide at a time."""
    monkeypatch.setattr(chunks, "PIECE", 128)
    products.use(True)
    yield
    products.use(False)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(NARROW)


X, WEIGHT, BIAS, SLOPE = drawn(ROWS, IN), drawn(OUT, IN), drawn(OUT), drawn(ROWS, OUT)


def exact(function: Callable[..., Tensor], *given: Tensor) -> Tensor:
    return function(*(each.double() for each in given))


def near(made: Tensor, exactly: Tensor, dtype: torch.dtype) -> None:
    """Half of the last digit of `dtype` away, or a little more where float32's sum is."""
    assert made.dtype == dtype
    digits = {NARROW: 2**-8, torch.float32: 2**-20}[dtype]
    torch.testing.assert_close(made.double(), exactly, rtol=1.001 * digits, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_each_product_is_float64s(autocast: bool) -> None:
    onto = torch.ones(ROWS, OUT), torch.ones(ROWS, IN)
    with torch.autocast("cpu", NARROW, enabled=autocast):
        forwards = products.linear(X, WEIGHT, None), products.linear(X, WEIGHT, BIAS)
        read = products.logits(X, WEIGHT, torch.empty(ROWS, OUT, dtype=NARROW))
        back, by_weight = products.back(SLOPE, WEIGHT), products.by_weight(SLOPE, X)
        products.add(onto[0], X.float(), WEIGHT)
        products.add_back(onto[1], SLOPE.float(), WEIGHT)
    made = exact(lambda x, w: x @ w.T, X, WEIGHT)
    near(forwards[0], made, NARROW)
    near(forwards[1], made + BIAS.double(), NARROW)
    near(read, made, NARROW)
    near(onto[0], made + 1, torch.float32)
    returned = exact(torch.matmul, SLOPE, WEIGHT)
    near(back, returned, torch.float32)
    near(onto[1], returned + 1, torch.float32)
    near(by_weight, exact(lambda s, x: s.T @ x, SLOPE, X), torch.float32)


@pytest.mark.parametrize(("has", "least"), [(True, chunks.LEAST), (False, chunks.LEAST_EMULATED)])
def test_few_rows_another_type_and_what_is_not_asked_for_stay_as_they_are(
    has: bool, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is emulated is slow with fewer rows too."""
    monkeypatch.setattr(cpu, "has_bf16", lambda: has)
    products.use(True)
    few, wide = X[: least - 1], torch.float32
    assert products.through(NARROW, X[:least]) == wide
    assert products.through(NARROW, X) == products.through(NARROW, X.view(2, -1, IN)) == wide
    assert products.through(NARROW, few) == NARROW
    assert products.through(torch.float16, X.half()) == torch.float16
    assert products.through(NARROW, X.to("meta")) == NARROW
    assert torch.equal(products.linear(few, WEIGHT, BIAS), torch.nn.functional.linear(few, WEIGHT, BIAS))
    products.use(False)
    assert torch.equal(products.linear(X, WEIGHT, BIAS), torch.nn.functional.linear(X, WEIGHT, BIAS))
    assert torch.equal(products.back(SLOPE, WEIGHT), SLOPE @ WEIGHT)
    assert torch.equal(products.by_weight(SLOPE, X), SLOPE.T @ X)


@pytest.mark.parametrize("trained", [True, False])
def test_a_linear_layers_slopes_are_float64s(trained: bool) -> None:
    """A weight that trains is float32, and is not rounded."""
    x = X.view(2, -1, IN).clone().requires_grad_()
    weight = (WEIGHT.float() * 1.001 if trained else WEIGHT).clone().requires_grad_(trained)
    made = Linear.apply(x, weight, None, NARROW)
    near(made, exact(lambda x, w: x @ w.T, x, weight), NARROW)
    made.backward(SLOPE.view(2, -1, OUT))
    assert x.grad is not None
    near(x.grad, exact(lambda s, w: s @ w, SLOPE, weight).view_as(x), NARROW)
    if trained:
        assert weight.grad is not None
        near(weight.grad, exact(lambda s, x: s.T @ x, SLOPE, X), torch.float32)


def test_layers_with_a_low_rank_are_float64s() -> None:
    """Two that read the same."""
    x = X.clone().requires_grad_()
    pairs = [(torch.randn(4, IN).requires_grad_(), torch.randn(rows, 4).requires_grad_()) for rows in (OUT, 24)]
    weights = WEIGHT, drawn(24, IN)
    layers = [
        Adapted(*pair, 0.5, lambda weight=weight: weight, None) for pair, weight in zip(pairs, weights, strict=True)
    ]
    made = low_rank(x, layers, NARROW)
    slopes = SLOPE, drawn(ROWS, 24)
    torch.autograd.backward(made, slopes)
    wide_x = X.double().requires_grad_()
    wide_pairs = [[each.detach().double().requires_grad_() for each in pair] for pair in pairs]
    truth = [wide_x @ (w.double() + 0.5 * b @ a).T for (a, b), w in zip(wide_pairs, weights, strict=True)]
    torch.autograd.backward(truth, [each.double() for each in slopes])
    for one, other in zip(made, truth, strict=True):
        near(one, other, NARROW)
    assert x.grad is not None and wide_x.grad is not None
    near(x.grad, wide_x.grad, NARROW)
    for pair, wide_pair in zip(pairs, wide_pairs, strict=True):
        for one, other in zip(pair, wide_pair, strict=True):  # x A' is kept in bfloat16 for B's
            assert one.grad is not None and other.grad is not None and one.grad.dtype == torch.float32
            torch.testing.assert_close(
                one.grad.double(), other.grad, rtol=2**-7, atol=2**-7 * float(other.grad.abs().max())
            )


def test_an_adapter_that_is_read_computes_as_it_did_when_it_trained() -> None:
    """Layers that PEFT calls by itself, and copies of the base's: all of them are frozen once they are read."""
    from peft import LoraConfig, get_peft_model
    from test_fused import model_of

    more: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["up_proj"], "use_dora": True}
    trains: Any = get_peft_model(model_of("llama"), LoraConfig(r=4, init_lora_weights=False, **more))
    read = copy.deepcopy(trains).requires_grad_(False)
    for each in (trains, read):
        fused.fuse_linears(each)
    plain = [layer for layer in read.modules() if isinstance(layer, torch.nn.Linear)]
    assert sum(type(layer) is not torch.nn.Linear for layer in plain) == 2 * 7  # the base's own, and no other
    with torch.no_grad(), torch.autocast("cpu", NARROW):
        one, other = (each(input_ids=torch.arange(2 * ROWS).view(2, ROWS) % 64).logits for each in (trains, read))
    assert torch.equal(one, other)


def test_a_weight_of_another_librarys_kind_is_left_to_it() -> None:
    from test_fused import model_of

    model = model_of("llama")
    theirs, ours = model.model.layers[0].mlp.up_proj, model.model.layers[1].mlp.up_proj
    theirs.weight.__tensor_flatten__ = None
    fused.fuse_linears(model)
    assert type(theirs) is torch.nn.Linear is not type(ours)


@pytest.mark.parametrize("attention", ["blocks", "sdpa"])
def test_a_models_gradients_are_nearer_to_float64s_than_without(attention: str, tiny_model: Path) -> None:
    """The loss of 200 tokens and what adapters learn of it, their rounding beside that of torch's own products."""
    errors = {asked: _error(asked, attention, tiny_model) for asked in (True, False)}
    assert errors[True] < errors[False]


def _error(wanted: bool, attention: str, folder: Path) -> float:
    """How far its gradients are from those in float64, of the length of these."""
    products.use(wanted)
    found = _gradients(folder, attention, torch.bfloat16)
    products.use(False)
    truth = _gradients(folder, "eager", torch.float64)
    return float((found - truth).norm() / truth.norm())


def _gradients(folder: Path, attention: str, dtype: torch.dtype) -> Tensor:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from factory import attention as ours

    ours.register(attention, None)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=NARROW, attn_implementation=attention)
    model.to(dtype)
    fused.fuse(model)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    fused.fuse_linears(model)
    trained = [each for each in model.parameters() if each.requires_grad]
    for each in trained:
        each.data = each.data.to(torch.promote_types(dtype, torch.float32))
    ids = (torch.arange(200) ** 2 % 500)[None]
    with torch.autocast("cpu", dtype, enabled=dtype == NARROW):
        losses.causal_lm(model, {"input_ids": ids, "labels": ids}).backward()
    return torch.cat([each.grad.flatten().double() for each in trained])
