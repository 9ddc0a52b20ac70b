"""Adapted layers that read the same tensor are computed as one, and where they do not, as they would be alone."""

import copy
from typing import Any

import pytest
import torch
from families import KINDS, built_of
from test_fused import adapted, close, learned, model_of
from torch import Tensor, nn

from factory import fused
from factory.fused import together
from factory.fused.adapted import Adapted, LowRank
from factory.native import kernels

pytestmark = pytest.mark.usefixtures("computed")


def layers_of(*ranks: int, scale: float = 0.7) -> list[Adapted]:
    """Of 5 numbers each, the first with a bias."""
    torch.manual_seed(0)
    made = []
    for i, rank in enumerate(ranks):
        a, b, weight = (torch.randn(*shape, dtype=torch.float64) for shape in ((rank, 5), (3 + i, rank), (3 + i, 5)))
        bias = None if i else torch.randn(3, dtype=torch.float64)
        made.append(Adapted(a.requires_grad_(), b.requires_grad_(), scale, lambda weight=weight: weight, bias))
    return made


def test_several_layers_at_once_in_float64() -> None:
    layers = layers_of(2, 1, 4)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    pairs = [each for layer in layers for each in (layer.a, layer.b)]

    def all_of_them(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return fused.low_rank(x, layers, torch.float64)

    assert torch.autograd.gradcheck(all_of_them, (x, *pairs))
    for made, layer in zip(all_of_them(x), layers, strict=True):
        wanted = x @ (layer.weight() + 0.7 * layer.b @ layer.a).T + (0 if layer.bias is None else layer.bias)
        close(made, wanted, torch.float64)


def test_of_what_does_not_train_no_gradient_is_made() -> None:
    layers = layers_of(2, 3)
    layers[0].a.requires_grad_(False)
    layers[1].b.requires_grad_(False)
    first, second = fused.low_rank(torch.ones(1, 5, dtype=torch.float64), layers, torch.float64)
    (first.sum() + second.sum()).backward()
    assert [each.grad is not None for layer in layers for each in (layer.a, layer.b)] == [False, True, True, False]


def test_to_ask_a_forward_makes_no_library_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words would be shown in every run of such a model."""
    from transformers import Idefics3VisionConfig, modeling_utils
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionAttention

    heard = list[str]()
    monkeypatch.setattr(modeling_utils.logger, "warning_once", lambda text, *_: heard.append(text))
    layer = Idefics3VisionAttention(Idefics3VisionConfig(hidden_size=8, num_attention_heads=2))
    together.join(layer, lambda each: isinstance(each, nn.Linear))
    assert len(layer.q_proj.together.others(None)) == 3  # type: ignore[union-attr]
    assert not heard


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", {("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")}),
        ("qwen3", {("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")}),
        ("gemma2", {("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")}),
        ("phi3", set()),  # its layers are one already
        ("opt", set()),  # what it scales is no number here: nothing is known of it
    ],
)
def test_which_layers_read_the_same(kind: str, expected: set[tuple[str, ...]]) -> None:
    more = {"num_key_value_heads": 4} if kind == "opt" else {}
    model = model_of(kind, **more)
    together.join(model, lambda layer: type(layer) is nn.Linear)
    names = {id(layer): name.rpartition(".")[2] for name, layer in model.named_modules()}
    found = {tuple(names[id(each)] for each in layer.together.others(None)) for layer in linears(model)}
    assert found - {()} == expected


def test_every_kind_is_asked_and_the_asking_ends() -> None:
    with pytest.raises(TypeError):
        iter(together._Anything())  # type: ignore[call-overload]
    apart = {"bloom", "dbrx", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "mpt", "opt", "phi3"}  # joined, or as opt
    for kind, config in KINDS.items():
        model = built_of(config, "meta")
        together.join(model, lambda layer: type(layer) is nn.Linear)
        assert any(layer.together.others(None) for layer in linears(model)) == (kind not in apart), kind


def linears(model: Any) -> list[Any]:
    return [layer for layer in model.modules() if hasattr(layer, "together")]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each of the functions has that are applied."""
    counts, own = list[int](), LowRank.apply
    monkeypatch.setattr(LowRank, "apply", lambda x, layers, *more: counts.append(len(layers)) or own(x, layers, *more))
    return counts


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, [3, 1, 2, 1] * 2),
        ({"alpha_pattern": {"k_proj": 3}, "rank_pattern": {"v_proj": 2}}, [1, 1, 1, 1, 2, 1] * 2),  # v: 12 / 2
        ({"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 6}}, [3, 1, 2, 1] * 2),
    ],
)
def test_joined_layers_are_pefts(more: dict[str, Any], expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = adapted(**more)
    model = copy.deepcopy(plain)
    fused.fuse_linears(model)
    counts = counted(monkeypatch)
    for one, other in zip(learned(model, mixed=False), learned(plain, mixed=False), strict=True):
        close(one, other, torch.float32)
    assert counts == expected
    assert not any(layer.together._waiting for layer in linears(model))


@pytest.mark.parametrize("copied", [False, True])
def test_recomputed_layers_are_joined_too(copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    fused.fuse_linears(model)
    found = learned(model, mixed=True)
    model = copy.deepcopy(model) if copied else model
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    counts = counted(monkeypatch)
    for one, other in zip(learned(model, mixed=True), found, strict=True):
        assert torch.equal(one, other)
    assert counts == [3, 1, 2, 1] * 4


def test_a_layer_is_copied_without_those_that_are_joined_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = adapted()
    model = copy.deepcopy(plain)
    fused.fuse_linears(model)
    counts = counted(monkeypatch)
    for name, layer in model.named_modules():
        if hasattr(layer, "together") and layer.together.others(layer):
            copied, x = together.copied_alone(layer), torch.randn(2, 3, layer.in_features)
            assert copied.together.others(copied) == []
            close(copied(x), plain.get_submodule(name)(x), torch.float32)
            assert layer.together.others(layer)
    assert counts == [1] * 5 * 2  # q, k, v, gate and up of each layer


class Module(nn.Module):
    """Its second layer reads what `other` gives, and its third is called on some days."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.other, self.third_too = nn.Identity(), True

    def forward(self, x: Tensor) -> Tensor:
        made = self.first(x) + self.second(self.other(x))
        return made + self.third(x) if self.third_too else made


def test_layers_that_do_not_read_the_same_go_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["first", "second", "third"], init_lora_weights=False)
    plain: Any = get_peft_model(Module(), config)  # type: ignore[arg-type]
    model = copy.deepcopy(plain)
    monkeypatch.setattr(together, "_reading_what_comes_in", lambda *_: ["first", "second", "third"])
    fused.fuse_linears(model)
    counts = counted(monkeypatch)

    def same(model: Any, other: nn.Module, third_too: bool) -> None:
        for each in (model, plain):
            each.base_model.model.other, each.base_model.model.third_too = other, third_too
        x = torch.randn(2, 4, requires_grad=True)
        made, wanted = (each(x) for each in (model, plain))
        close(made, wanted, torch.float32)
        grads = [torch.autograd.grad(each.sum(), x)[0] for each in (made, wanted)]
        close(grads[0], grads[1], torch.float32)

    same(model, nn.Identity(), True)
    assert counts == [3]
    same(model, nn.Identity(), False)  # what the third would have given waits
    same(model, nn.Identity(), False)
    assert counts == [3, 3, 1, 1]
    assert not any(layer.together._waiting or layer.together.others(None) for layer in linears(model))
    fresh = copy.deepcopy(plain)
    fused.fuse_linears(fresh)
    counts.clear()
    same(fresh, nn.ReLU(), True)
    assert counts == [3, 1, 1]


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        made = self.first(x)
        x *= 2
        return made + self.second(x)


@pytest.mark.parametrize("way", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_what_was_changed_in_place_is_read_anew(way: Any) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["first", "second"], init_lora_weights=False)
    plain: Any = get_peft_model(InPlace(), config)  # type: ignore[arg-type]
    model = copy.deepcopy(plain)
    fused.fuse_linears(model)
    with way():
        x = torch.randn(3, 4)
        close(model(x.clone()), plain(x.clone()), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranks", [(8,), (4, 16, 3), (4, 17)])
def test_small_products_in_c_and_torchs(
    ranks: tuple[int, ...], dtype: torch.dtype, computed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are float64's. Of more than 16 ranks they are torch's."""
    called, own = list[str](), kernels.few_down
    monkeypatch.setattr(kernels, "few_down", lambda *given, **named: called.append("C") or own(*given, **named))
    torch.manual_seed(0)
    x = torch.randn(2, 11, 32).to(dtype)
    sizes = [(rank, 32 + 16 * i) for i, rank in enumerate(ranks)]
    parts = [(torch.randn(rank, 32), torch.randn(out, rank), torch.randn(out, 32).to(dtype)) for rank, out in sizes]
    slopes = [torch.randn(2, 11, out).to(dtype) for _, out in sizes]

    def found(kind: torch.dtype) -> list[Tensor]:
        leaf = x.to(kind, copy=True).requires_grad_()
        wide = torch.promote_types(kind, torch.float32)
        pairs = [each.to(wide, copy=True).requires_grad_() for a, b, _ in parts for each in (a, b)]
        layers = [
            Adapted(a, b, 0.7, lambda weight=weight: weight.to(kind), None)
            for a, b, (*_, weight) in zip(pairs[::2], pairs[1::2], parts, strict=True)
        ]
        made = fused.low_rank(leaf, layers, kind)
        return [*made, *torch.autograd.grad(made, [leaf, *pairs], [slope.to(kind) for slope in slopes])]

    exact = found(torch.float64)
    assert not called
    errors = [
        float((one.double() - other).norm() / other.norm()) for one, other in zip(found(dtype), exact, strict=True)
    ]
    assert bool(called) == (computed == "C" and max(ranks) <= 16)
    assert max(errors) < {torch.float32: 1e-6, torch.bfloat16: 0.01}[dtype]
    if called:  # the slopes in A: nothing that they are made of is narrowed
        assert max(errors[len(ranks) + 1 :: 2]) < 1e-6


def test_rows_and_slopes_that_lie_apart(computed: str) -> None:
    """As a slice of a wider tensor, and of a sum, whose slopes are one number."""
    torch.manual_seed(0)
    x, a, b, weight = (torch.randn(*shape) for shape in ((6, 48), (2, 16), (32, 2), (32, 16)))
    leaves = [each.requires_grad_() for each in (x, a, b)]
    layer = Adapted(a, b, 0.7, lambda: weight, None)
    made = fused.low_rank(x[:, 16:32], [layer], torch.float32)[0]
    found = torch.autograd.grad(made.sum(), leaves)
    wanted = x[:, 16:32] @ (weight + 0.7 * b @ a).T
    close(made, wanted, torch.float32)
    for one, other in zip(found, torch.autograd.grad(wanted.sum(), leaves), strict=True):
        close(one, other, torch.float32)
