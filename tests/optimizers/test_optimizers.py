"""Each optimizer holds what the plan counts, steps as its paper says, and goes on from its saved state bit for bit."""

from collections.abc import Callable
from copy import deepcopy
from math import sqrt
from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import planned_train
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from factory.architecture import Architecture, architecture
from factory.config.settings import Optimizer
from factory.optimizers.run import BUILDERS, build, grouped, make_states, plain
from factory.optimizers.spec import MADE_EARLY, MULTIPLIES, NEEDS_GPU, PACKAGES, STATES, products, state_bytes

ON_CPU = sorted(set(STATES) - NEEDS_GPU)
ARCH: Architecture = architecture(
    {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 100,
        "tie_word_embeddings": False,
    }
)
SHAPES = {
    "model.embed_tokens.weight": (100, 64),
    "model.layers.0.mlp.up_proj.weight": (80, 64),  # more than 4096 elements, and not whole blocks of 256
    "model.layers.0.mlp.experts.down_proj": (3, 40, 64),
    "model.layers.0.self_attn.k_proj.weight": (16, 64),  # fewer
    "model.layers.0.input_layernorm.weight": (64,),
}
TABLES = {"step", "qmap1", "qmap2", "RMS"}  # numbers of a tensor, and the maps of 8-bit codes that all share


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(shape).to(dtype)) for name, shape in SHAPES.items()}


def give_gradients(named: dict[str, Tensor], seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    for value in named.values():
        value.grad = torch.randn(value.shape, generator=generator).to(value.dtype)
    return {name: value.grad.double().numpy() for name, value in named.items() if value.grad is not None}


def held(state: Any, name: str = "") -> int:
    """Bytes of the tensors in an optimizer's state, tables left out."""
    if isinstance(state, Tensor):
        return 0 if name in TABLES else state.nbytes
    if isinstance(state, dict):
        return sum(held(value, key if isinstance(key, str) else name) for key, value in state.items())
    return sum(held(value, name) for value in state) if isinstance(state, list) else 0


def test_what_is_planned_is_what_is_built() -> None:
    assert set(get_args(Optimizer)) == BUILDERS.keys() == STATES.keys()
    assert PACKAGES.keys() < STATES.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ON_CPU)
def test_the_state_takes_the_planned_bytes(name: str, dtype: torch.dtype) -> None:
    named = tensors(dtype)
    optimizer = build(named, planned_train(optimizer=name).settings.stage, ARCH)
    give_gradients(named, 1)
    optimizer.step()
    assert held(optimizer.state_dict()) == state_bytes(name, SHAPES, ARCH, dtype.itemsize)


@pytest.mark.parametrize("name", ON_CPU)
def test_which_state_is_there_before_the_first_step(name: str) -> None:
    optimizer = build(tensors(), planned_train(optimizer=name).settings.stage, ARCH)
    make_states(optimizer)
    whole = held(optimizer.state_dict()) == state_bytes(name, SHAPES, ARCH, 4)
    assert whole == (name in MADE_EARLY or name == "sgd")  # which keeps none


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_state_that_is_there_before_the_first_step_is_what_that_makes(name: str, dtype: torch.dtype) -> None:
    """In keys, types and bytes, and the weights are the same to the bit; of several optimizers, AdamW's is."""
    begun, own = tensors(dtype), tensors(dtype)
    early, late = (build(named, planned_train(optimizer=name).settings.stage, ARCH) for named in (begun, own))
    make_states(early)
    before = _typed(early.state_dict())
    for named, optimizer in ((begun, early), (own, late)):
        for seed in (1, 2):
            give_gradients(named, seed)
            optimizer.step()
    after = _typed(late.state_dict())
    assert before == after if name == "adamw" else before["optimizers"][1] == after["optimizers"][1]
    for key, value in begun.items():
        assert torch.equal(value, own[key]), key


def _typed(state: Any) -> Any:
    """A state with the type and the shape of each tensor in its place."""
    if isinstance(state, Tensor):
        return state.dtype, state.shape
    if isinstance(state, dict):
        return {key: _typed(value) for key, value in state.items()}
    return [_typed(value) for value in state] if isinstance(state, list) else state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ON_CPU)
def test_a_saved_state_goes_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    named = tensors(dtype)
    whole = build(named, planned_train(optimizer=name).settings.stage, ARCH)
    for seed in (1, 2):
        give_gradients(named, seed)
        whole.step()
    again: dict[str, Tensor] = {key: torch.nn.Parameter(value.detach().clone()) for key, value in named.items()}
    resumed = build(again, planned_train(optimizer=name).settings.stage, ARCH)
    resumed.load_state_dict(deepcopy(whole.state_dict()))
    for values, optimizer in ((named, whole), (again, resumed)):
        give_gradients(values, 3)
        optimizer.step()
    for key, value in named.items():
        assert torch.equal(value, again[key]), key


# what an optimizer subtracts, per unit of the rate, in its first two steps, from the gradients g and h


def adamw(g: Any, h: Any) -> tuple[Any, Any]:
    first, second = 0.1 * g, 0.001 * g**2
    one = (first / 0.1) / (np.sqrt(second / 0.001) + 1e-8)
    first, second = 0.9 * first + 0.1 * h, 0.999 * second + 0.001 * h**2
    return one, (first / (1 - 0.9**2)) / (np.sqrt(second / (1 - 0.999**2)) + 1e-8)


def ademamix(g: Any, h: Any) -> tuple[Any, Any]:
    """Pagliardini et al. 2024, with alpha 5 and beta_3 0.9999 from the start."""
    slow, fast, second = 1e-4 * g, 0.1 * g, 0.001 * g**2
    one = (fast / 0.1 + 5 * slow) / (np.sqrt(second / 0.001) + 1e-8)
    slow, fast, second = 0.9999 * slow + 1e-4 * h, 0.9 * fast + 0.1 * h, 0.999 * second + 0.001 * h**2
    return one, (fast / (1 - 0.9**2) + 5 * slow) / (np.sqrt(second / (1 - 0.999**2)) + 1e-8)


def lion(g: Any, h: Any) -> tuple[Any, Any]:
    """Chen et al. 2023, algorithm 2, beta 0.9 and 0.99."""
    return np.sign(g), np.sign(0.9 * 0.01 * g + 0.1 * h)


def sgd(g: Any, h: Any) -> tuple[Any, Any]:
    return g, h


def adafactor(g: Any, h: Any) -> tuple[Any, Any]:
    """Shazeer and Stern 2018, algorithms 4 and 5: means of rows and columns, updates of an RMS of at most 1."""
    updates, means = [], None
    for step, gradient in enumerate((g, h), 1):
        keep, square = 1 - step**-0.8, gradient**2 + 1e-30
        new = [square] if g.ndim < 2 else [square.mean(-1, keepdims=True), square.mean(-2, keepdims=True)]
        means = (
            new if means is None else [keep * old + (1 - keep) * value for old, value in zip(means, new, strict=True)]
        )
        second = means[0] if g.ndim < 2 else means[0] * means[1] / means[0].mean(-2, keepdims=True)
        update = gradient / np.sqrt(second)
        updates.append(update / max(1, sqrt((update**2).mean())))
    return updates[0], updates[1]


@pytest.mark.parametrize("statement", [adamw, ademamix, lion, sgd, adafactor], ids=lambda statement: statement.__name__)
def test_two_steps_are_the_papers(statement: Callable[..., Any]) -> None:
    named = tensors()
    rate, start = 1e-3, {name: value.detach().double().numpy() for name, value in named.items()}
    optimizer = build(named, planned_train(optimizer=statement.__name__, learning_rate=rate).settings.stage, ARCH)
    gradients, after = [], []
    for seed in (1, 2):
        gradients.append(give_gradients(named, seed))
        optimizer.step()
        after.append({name: value.detach().double().numpy().copy() for name, value in named.items()})
    for name in SHAPES:
        one, two = statement(gradients[0][name], gradients[1][name])
        np.testing.assert_allclose(start[name] - after[0][name], rate * one, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(after[0][name] - after[1][name], rate * two, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ON_CPU)
def test_the_products_of_a_step_are_counted(name: str) -> None:
    """By torch's counter: of tall and of wide matrices, and of nothing that Muon leaves to AdamW."""
    more = {"model.layers.0.mlp.down_proj.weight": (64, 80), "model.layers.0.self_attn.q_proj.weight": (64, 64)}
    torch.manual_seed(0)
    shapes = SHAPES | more
    named: dict[str, Tensor] = {each: torch.nn.Parameter(torch.randn(shape)) for each, shape in shapes.items()}
    optimizer = build(named, planned_train(optimizer=name).settings.stage, ARCH)
    give_gradients(named, 0)
    with FlopCounterMode(display=False) as counted:
        optimizer.step()
    assert products(name, shapes, ARCH) == counted.get_total_flops()
    assert (counted.get_total_flops() > 0) == (name in MULTIPLIES)


def test_muon_makes_the_update_of_hidden_matrices_orthogonal() -> None:
    """Newton and Schulz leave singular values around 1; 0.2 times the root of the longer side is their size."""
    named, rate = tensors(), 1e-3
    start = {name: value.detach().clone() for name, value in named.items()}
    optimizer = build(named, planned_train(optimizer="muon", learning_rate=rate).settings.stage, ARCH)
    gradients = give_gradients(named, 1)
    optimizer.step()
    for name, value in named.items():
        update = ((start[name] - value.detach()) / rate).double()
        if name in ("model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.k_proj.weight"):
            left, _, right = np.linalg.svd(gradients[name], full_matrices=False)
            values = np.diag(left.T @ (update.numpy() / (0.2 * sqrt(max(value.shape)))) @ right.T)
            assert values.min() > 0.6 and values.max() < 1.25, name
        else:
            np.testing.assert_allclose(update.numpy(), adamw(gradients[name], 0)[0], atol=1e-3, err_msg=name)


@pytest.mark.parametrize("name", ["adamw_8bit", "ademamix_8bit", "lion_8bit"])
def test_eight_bits_step_as_more_do(name: str) -> None:
    """Within what a code of 8 bits keeps: a few percent of the step on average."""
    found = {}
    for chosen in (name, name.removesuffix("_8bit")):
        named = tensors()
        optimizer = build(named, planned_train(optimizer=chosen).settings.stage, ARCH)
        start = {key: value.detach().clone() for key, value in named.items()}
        for seed in range(5):
            give_gradients(named, seed)
            optimizer.step()
        found[chosen] = torch.cat([(value.detach() - start[key]).flatten() for key, value in named.items()])
    few, many = found.values()
    assert not torch.equal(few, many)
    assert (few - many).norm() < 0.15 * many.norm()


@pytest.mark.parametrize("table", ["mixer.A_log", "mlp.experts.gate_up_proj_bias"])
def test_a_table_of_mambas_rates_or_of_experts_biases_is_no_matrix(table: str) -> None:
    """It does not decay, Muon does not make its update orthogonal, and the plan counts AdamW's state of it."""
    no, yes = f"model.layers.0.{table}", "model.layers.0.mixer.in_proj.weight"
    named: dict[str, Tensor] = {name: torch.nn.Parameter(torch.ones(4, 2)) for name in (no, yes)}
    groups = {group["weight_decay"]: group["params"] for group in grouped(named, 0.1, lambda _: 1.0)}
    assert groups[0.0] == [named[no]] and groups[0.1] == [named[yes]]
    muon, adamw = build(named, planned_train(optimizer="muon").settings.stage, ARCH).optimizers
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    assert [group["params"] for group in muon.param_groups] == [[named[yes]]]
    assert [group["params"] for group in adamw.param_groups] == [[named[no]]]
    assert [state_bytes("muon", {name: (4, 2)}, ARCH, 4) for name in (no, yes)] == [2 * 4 * 8, 4 * 8]


def test_weight_decay_is_of_matrices_and_rates_are_in_proportion() -> None:
    named = tensors()
    groups = grouped(named, 0.1, lambda name: 16.0 if "mlp" in name else 1.0)
    found = {id(value): (group["weight_decay"], group["lr_ratio"]) for group in groups for value in group["params"]}
    for name, value in named.items():
        assert found[id(value)] == (0.1 if value.ndim >= 2 else 0.0, 16.0 if "mlp" in name else 1.0)
    assert sum(len(group["params"]) for group in groups) == len(named)


def test_only_what_requires_a_gradient_is_stepped() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[0].requires_grad_(False)
    groups = plain(model, None, planned_train(), ARCH).param_groups
    assert {id(value) for group in groups for value in group["params"]} == {
        id(value) for value in model[1].parameters()
    }
