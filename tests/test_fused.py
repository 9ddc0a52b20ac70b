"""The fused functions are what transformers and PEFT compute, and are put where they are that, and nowhere else."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from allocated import most_allocated
from torch import Tensor

from factory import fused
from factory.fused.adapted import Adapted

pytestmark = pytest.mark.usefixtures("computed")

IDS = torch.arange(24).view(2, 12) % 64


def close(one: Tensor, other: Tensor, dtype: torch.dtype) -> None:
    """In bfloat16 within two of its last digits."""
    rtol, atol = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 1e-5), torch.bfloat16: (2**-6, 2**-6)}[dtype]
    assert one.dtype == other.dtype
    torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def slopes(function: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    """What it makes, and the gradients of a fixed weighing of that in all that wants one."""
    leaves = [each for each in given if each.requires_grad]
    made = function(*given)
    weighing = torch.linspace(-1, 1, made.numel()).view_as(made).to(made.dtype)
    return [made, *torch.autograd.grad(made, leaves, weighing)]


def norm_of(kind: str, width: int) -> Any:
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    made = {"llama": LlamaRMSNorm, "gemma": Gemma2RMSNorm}[kind](width)
    torch.nn.init.uniform_(made.weight, -0.5, 1.5)
    return made


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_a_norm_is_the_models_own(kind: str, dtype: torch.dtype, trained: bool) -> None:
    torch.manual_seed(0)
    norm = norm_of(kind, 48).to(dtype).requires_grad_(trained)
    x = torch.randn(3, 5, 48).to(dtype).requires_grad_()
    ours = slopes(lambda x, w: fused.rms_norm(x, w, 1e-6, kind == "gemma"), x, norm.weight)
    theirs = slopes(lambda x, _: norm(x), x, norm.weight)
    for one, other in zip(ours, theirs, strict=True):
        if other.dim() == 1:  # a sum over tokens
            close(one / 15, other / 15, dtype)
        else:
            close(one, other, dtype)


@pytest.mark.parametrize("whole", [True, False])
def test_a_norms_slopes_in_float64(whole: bool) -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 7), (7,)))
    assert torch.autograd.gradcheck(lambda x, w: fused.rms_norm(x, w, 1e-6, whole), (x, weight))


def test_a_gates_and_a_low_ranks_slopes_in_float64() -> None:
    torch.manual_seed(0)
    shapes = ((2, 3, 5), (2, 5), (4, 2), (4, 5), (4,))
    x, a, b, weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    frozen = weight.detach(), bias.detach()
    assert torch.autograd.gradcheck(fused.gated_silu, (x, x.detach().flip(0).requires_grad_()))

    def low_rank(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return fused.low_rank(x, [Adapted(a, b, 0.7, lambda: frozen[0], frozen[1])], torch.float64)[0]

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused.Linear.apply(x, weight, bias, torch.float64)

    assert torch.autograd.gradcheck(low_rank, (x, a, b))
    close(low_rank(x, a, b), x @ (frozen[0] + 0.7 * b @ a).T + frozen[1], torch.float64)
    assert torch.autograd.gradcheck(linear, (x, weight, bias))
    close(linear(x, weight, bias), x @ weight.T + bias, torch.float64)


def test_what_an_adapter_adds_is_not_rounded_away() -> None:
    """In bfloat16, a twentieth of what is added is above the last digit: all of it is there on the average."""
    torch.manual_seed(0)
    x, weight, a = (torch.randn(*shape).bfloat16() for shape in ((512, 64), (96, 64), (4, 64)))
    b, slope = torch.randn(96, 4).bfloat16() * 2e-4, torch.randn(512, 96).bfloat16()
    wide = [each.double() for each in (x, weight, a, b, slope)]
    added, by_x = wide[0] @ wide[2].T @ wide[3].T, wide[4] @ wide[3] @ wide[2]

    def share(made: Tensor, base: Tensor, small: Tensor) -> float:
        """Of `small`, by least squares, what `made` has more than `base`."""
        return float(((made.double() - base) * small).sum() / small.square().sum())

    forward = wide[0] @ wide[1].T, added
    assert abs(share(x @ weight.T + x @ a.T @ b.T, *forward)) < 0.5  # rounded one after the other
    leaf = x.clone().requires_grad_()
    (made,) = fused.low_rank(leaf, [Adapted(a, b, 1.0, lambda: weight, None)], torch.bfloat16)
    (found,) = torch.autograd.grad(made, leaf, slope)
    assert share(made, *forward) == pytest.approx(1, abs=0.2)
    assert share(found, wide[4] @ wide[1], by_x) == pytest.approx(1, abs=0.2)


def model_of(kind: str, **more: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **heads, **more}))
    for name, value in made.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return made.eval()


def replaced(model: Any, plain: Any) -> dict[str, int]:
    """How many of each class have another forward than their own."""
    found: dict[str, int] = {}
    for one, other in zip(model.modules(), plain.modules(), strict=True):
        if type(one) is not type(other):
            assert isinstance(one, type(other))
            found[type(one).__name__] = found.get(type(one).__name__, 0) + 1
    return found


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", {"LlamaRMSNorm": 5, "LlamaMLP": 2}),
        ("qwen3", {"Qwen3RMSNorm": 9, "Qwen3MLP": 2}),
        ("gemma2", {"Gemma2RMSNorm": 9}),  # its gate is no silu
        ("gemma3_text", {"Gemma3RMSNorm": 13}),
        ("phi3", {"Phi3RMSNorm": 5}),  # its gate and up are one layer
        ("gpt_neox", {}),  # its norms are others
    ],
)
def test_what_is_replaced_computes_the_same(kind: str, expected: dict[str, int]) -> None:
    plain = model_of(kind)
    model = copy.deepcopy(plain)
    torch.manual_seed(5)
    fused.fuse(model)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))  # an adapter that is attached next starts as it did
    assert replaced(model, plain) == expected
    losses = [each(input_ids=IDS, labels=IDS).loss for each in (model, plain)]
    close(*losses, torch.float32)
    for loss in losses:
        loss.backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        close(one.grad, other.grad, torch.float32)
    again = copy.deepcopy(model)  # a copy's layers are its own
    with torch.no_grad():
        again.model.norm.weight.zero_() if hasattr(again, "model") else again.gpt_neox.final_layer_norm.weight.zero_()
        assert not torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_a_norm_that_only_looks_like_one_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    norm, mlp = LlamaRMSNorm.forward, LlamaMLP.forward
    monkeypatch.setattr(LlamaRMSNorm, "forward", lambda self, x: norm(self, x + 1e-5))  # it shows where eps does
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: 1.01 * mlp(self, x))
    plain = model_of("llama")
    model = copy.deepcopy(plain)
    fused.fuse(model)
    assert replaced(model, plain) == {}


def test_positions_that_are_turned_in_another_way_are_left(computed: str) -> None:
    """Pairs of neighbours (Glm 4) are not pairs of halves, nor is a function of other arguments what it was."""
    from transformers.models.glm4 import modeling_glm4
    from transformers.models.qwen3 import modeling_qwen3

    if computed != "C":
        return
    own = modeling_qwen3.apply_rotary_pos_emb
    usual = getattr(own, "usual", own)  # another test may have been here
    fused._turn({})  # a method of that name
    for left in (modeling_glm4.apply_rotary_pos_emb, lambda query, key: (query, key), lambda *given: given[:1]):
        names = {"apply_rotary_pos_emb": left}
        fused._turn(names)
        assert names["apply_rotary_pos_emb"] is left
    names = {"apply_rotary_pos_emb": usual}
    for _ in range(2):  # the second finds it done
        fused._turn(names)
        assert names["apply_rotary_pos_emb"].usual is usual
    turned, (query, key) = names["apply_rotary_pos_emb"], torch.randn(2, 1, 4, 3, 8).transpose(2, 3)
    angles = torch.randn(2, 1, 4, 8)
    for more in ({}, {"unsqueeze_dim": 1}):
        for one, other in zip(turned(query, key, *angles, **more), usual(query, key, *angles), strict=True):
            close(one, other, torch.float32)
    for wrong in (query.double(), query[..., :6], query.contiguous()):  # what does not fit is the file's own to do
        given = (wrong, wrong, *(each.to(wrong.dtype)[..., : wrong.shape[-1]] for each in angles))
        for one, other in zip(turned(*given), usual(*given), strict=True):
            assert torch.equal(one, other)


def test_a_norm_with_a_gate_is_left() -> None:
    from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

    model = torch.nn.ModuleDict({"norm": MambaRMSNormGated(8, group_size=8)})
    fused.fuse(model)
    assert type(model["norm"]) is MambaRMSNormGated
    assert model["norm"](torch.ones(1, 8), torch.ones(1, 8)).shape == (1, 8)


def adapted(dropout: float = 0.0, **more: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules="all-linear", **more)
    made = get_peft_model(model_of("llama", attention_bias=True), config)
    torch.manual_seed(1)
    for name, value in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.2)
    return made.train()


def learned(model: Any, *, mixed: bool) -> list[Tensor]:
    """The loss, and the gradients of what trains."""
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        loss = model(input_ids=IDS, labels=IDS).loss
    trained = [value for value in model.parameters() if value.requires_grad]
    return [loss, *torch.autograd.grad(loss, trained)]


def test_a_low_rank_layer_is_pefts() -> None:
    plain = adapted()
    model = copy.deepcopy(plain)
    fused.fuse_linears(model)
    assert replaced(model, plain) == {"Linear": 14}
    for one, other in zip(learned(model, mixed=False), learned(plain, mixed=False), strict=True):
        close(one, other, torch.float32)


def test_a_low_rank_layer_rounds_no_more_than_pefts() -> None:
    """Under autocast, where PEFT rounds its products, their multiple and the sum, and here the sum alone."""
    ours, theirs = 0.0, 0.0
    for seed in range(8):
        plain = adapted()
        torch.manual_seed(seed)
        for name, value in plain.named_parameters():
            if value.dim() > 1:
                torch.nn.init.normal_(value, std=0.2 if "lora_B" in name else value.shape[-1] ** -0.5)
        model = copy.deepcopy(plain)
        fused.fuse_linears(model)
        exact = learned(plain, mixed=False)
        ours += off(learned(model, mixed=True), exact)
        theirs += off(learned(plain, mixed=True), exact)
    assert 0 < ours <= 1.1 * theirs


def whole(**more: Any) -> tuple[Any, Any]:
    """A model all of whose weights train, as it is and with all that is fused."""
    plain = model_of("llama", attention_bias=True, **more).train()
    model = copy.deepcopy(plain)
    fused.fuse(model)
    fused.fuse_linears(model)
    return plain, model


@pytest.mark.parametrize("mixed", [True, False])
def test_a_linear_layer_is_torchs(mixed: bool) -> None:
    """To the last bit, where autocast narrows what is multiplied and where it does not."""
    plain = model_of("llama", attention_bias=True)
    model = copy.deepcopy(plain)
    fused.fuse_linears(model)
    assert replaced(model, plain) == {"Linear": 14}  # all but the head
    for layer in (model.model.layers[0].mlp.up_proj, plain.model.layers[0].mlp.up_proj):
        layer.weight.requires_grad_(False)
    for one, other in zip(learned(model, mixed=mixed), learned(plain, mixed=mixed), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mixed", [True, False])
def test_what_is_made_is_the_same_where_nothing_is_learned(mixed: bool) -> None:
    model = adapted()
    fused.fuse(model)
    fused.fuse_linears(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        learned = model(input_ids=IDS).logits
        with torch.no_grad():
            assert torch.equal(model(input_ids=IDS).logits, learned)


def test_weights_are_narrowed_by_autocast_where_nothing_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps them from token to token of an answer that is sampled."""
    plain, model = whole()
    fused.fuse(plain)
    monkeypatch.setattr(fused.Linear, "forward", lambda *_: pytest.fail("it narrows the weight each time"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def sizes_kept(model: Any) -> list[int]:
    """Numbers of each tensor that is kept for the backward pass, its parameters aside."""
    own, kept = {value.data_ptr() for value in model.parameters()}, dict[int, int]()

    def pack(value: Tensor) -> Tensor:
        if value.data_ptr() not in own:
            kept[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=IDS, labels=IDS).loss
    assert loss.requires_grad
    return list(kept.values())


def test_neither_a_narrow_weight_nor_what_is_made_again_is_kept() -> None:
    plain, model = whole(intermediate_size=40)
    gated, weights = IDS.numel() * 40, {32 * 32, 32 * 16, 32 * 40}
    assert sizes_kept(plain).count(gated) > 6 and weights < set(sizes_kept(plain))
    assert sizes_kept(model).count(gated) == 4  # of two layers, what the gate's and the other layer made
    assert not weights & set(sizes_kept(model))


@pytest.mark.parametrize("mixed", [True, False])
def test_layers_that_are_recomputed_learn_the_same(mixed: bool) -> None:
    _, model = whole()
    kept, found = len(sizes_kept(model)), learned(model, mixed=mixed)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert len(sizes_kept(model)) < kept / 2
    for one, other in zip(learned(model, mixed=mixed), found, strict=True):
        assert torch.equal(one, other)


def test_what_is_made_again_goes_with_its_makers_gradient() -> None:
    torch.manual_seed(0)
    x, scale, weight = (torch.randn(*shape, requires_grad=True) for shape in ((2, 3, 8), (8,), (4, 8)))
    made = fused.rms_norm(x, scale, 1e-6, False)
    _, again, kept = made.again  # type: ignore[attr-defined]
    assert torch.equal(again(kept, torch.float32), made) and again._made is not None
    linear = fused.Linear.apply(made, weight, None, torch.float32)
    (linear.sum() + made.sum()).backward()
    assert again._made is None
    with torch.no_grad():
        assert not hasattr(fused.rms_norm(x, scale, 1e-6, False), "again")


def off(found: list[Tensor], exact: list[Tensor]) -> float:
    return sum(((one - other).norm() / other.norm()).item() for one, other in zip(found, exact, strict=True))


def test_what_peft_can_do_besides_is_left_to_it() -> None:
    """Dropout while training, no adapter, merged ones; and other layers than a low rank beside a linear."""
    plain = adapted(dropout=0.5)
    model = copy.deepcopy(plain)
    fused.fuse_linears(model)

    def logits(each: Any) -> Tensor:
        torch.manual_seed(2)
        with torch.no_grad():
            return each(input_ids=IDS).logits

    close(logits(model), logits(plain), torch.float32)
    assert not torch.equal(logits(model), logits(model.eval()))
    with_adapter = logits(model)
    with model.disable_adapter(), plain.eval().disable_adapter():
        close(logits(model), logits(plain), torch.float32)
        assert not torch.allclose(logits(model), with_adapter, atol=1e-3)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), with_adapter, rtol=1e-4, atol=1e-4)
    base = model.get_base_model().model.layers[0].mlp.up_proj.get_base_layer()
    base.weight.requires_grad_(True)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert base.weight.grad is not None and base.weight.grad.any()
    dora = adapted(use_dora=True)
    before = [type(each) for each in dora.modules()]
    fused.fuse_linears(dora)
    assert [type(each) for each in dora.modules()] == before


def tied(kind: str = "llama", **more: Any) -> tuple[Any, Any]:
    """A model whose head is its embedding, as it is and with one gradient of that."""
    plain = model_of(kind, tie_word_embeddings=True, **more).train()
    model = copy.deepcopy(plain)
    fused.fuse_embedding(model)
    return plain, model


def gradients(model: Any, ids: Tensor, *, passes: int = 1) -> list[Tensor]:
    """Added up over as many backward passes, each of two losses."""
    for _ in range(passes):
        (model(input_ids=ids, labels=ids).loss + 2 * model(input_ids=ids.flip(1), labels=ids).loss).backward()
    found = [value.grad for value in model.parameters()]
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])  # the second scales what its embedding gives
def test_an_embedding_that_is_the_head_learns_the_same(kind: str) -> None:
    ids = torch.cat((IDS, torch.full_like(IDS, 7)), dim=1)  # a word that is there often, and padding
    plain, model = tied(kind)
    assert (
        sum(replaced(model, plain).values()) == 1 and (IDS == 0).any() and model.get_input_embeddings().padding_idx == 0
    )
    expected, weight = gradients(plain, ids), model.get_input_embeddings().weight
    for changed in (lambda: model, lambda: copy.deepcopy(model), lambda: model.requires_grad_(True)):
        for one, other in zip(gradients(changed(), ids), expected, strict=True):
            close(one, other, torch.float32)
        weight.requires_grad_(False)
        assert model(input_ids=ids, labels=ids).loss.backward() is None and weight.grad is None
        weight.requires_grad_(True)
        model.zero_grad()
    for one, other in zip(gradients(model, ids, passes=2), gradients(plain, ids, passes=2), strict=True):
        close(one, other, torch.float32)


def test_a_word_that_is_there_often_is_summed_before_it_is_rounded() -> None:
    torch.manual_seed(0)
    ids, slope = torch.full((1, 500), 3), torch.rand(1, 500, 4).bfloat16()

    def learned(look: Callable[[Tensor], Tensor]) -> Tensor:
        table = torch.zeros(8, 4, dtype=torch.bfloat16, requires_grad=True)
        (look(table) * slope).sum().backward()
        assert table.grad is not None and not table.grad[:3].any()
        return table.grad[3].double()

    exact = slope.double().sum((0, 1))
    ours = learned(lambda table: fused.Lookup.apply(ids, table, fused.Rows(table, None)) + 0 * table[0])
    theirs = learned(lambda table: torch.nn.functional.embedding(ids, table))
    assert (ours / exact - 1).abs().max() <= 2**-8 < 0.01 < (theirs / exact - 1).abs().max()


def test_an_embedding_learns_where_nothing_reads_the_head() -> None:
    plain, model = tied()
    for _ in range(2):
        for each in (plain, model):
            each.model(input_ids=IDS).last_hidden_state.square().sum().backward()
    close(model.model.embed_tokens.weight.grad, plain.model.embed_tokens.weight.grad, torch.float32)


def test_an_embedding_that_is_the_head_has_one_gradient() -> None:
    plain, model = tied(vocab_size=20_000)
    table = 20_000 * 32 * 4
    logits = torch.linspace(-1, 1, IDS.numel() * 20_000).view(*IDS.shape, -1)

    def most(each: Any) -> int:
        gradients(each, IDS)
        return most_allocated(lambda: each(input_ids=IDS).logits.backward(logits))

    assert most(plain) - most(model) > 0.9 * table
    assert most(model) < 1.1 * table + logits.numel() * 4


def test_an_embedding_beside_a_head_is_left() -> None:
    plain = model_of("llama")
    model = copy.deepcopy(plain)
    fused.fuse_embedding(model)
    assert replaced(model, plain) == {}
    plain, _ = tied()
    for name, value in {"sparse": True, "scale_grad_by_freq": True, "max_norm": 1.0}.items():
        model = copy.deepcopy(plain)
        setattr(model.get_input_embeddings(), name, value)
        fused.fuse_embedding(model)
        assert replaced(model, plain) == {}


def test_what_does_not_fit_is_as_wrong_as_ever(computed: str) -> None:
    """A weight of another width and a gate that is broadcast are torch's to refuse or to do."""
    x, gate = torch.randn(3, 8), torch.randn(3, 8)
    with pytest.raises(RuntimeError):
        fused.rms_norm(x, torch.ones(6), 1e-5, False)
    close(fused.gated_silu(gate, x[:1]), torch.nn.functional.silu(gate) * x[:1], torch.float32)


class Changing(torch.nn.Module):
    """What a norm and a gate made is changed in place before it is read."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP, LlamaRMSNorm

        sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
        self.norm, self.mlp = LlamaRMSNorm(8), LlamaMLP(LlamaConfig(**sizes))
        self.up, self.in_place = torch.nn.Linear(8, 4, bias=False), True

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        made = self.norm(x)
        made *= 2
        gated = self.mlp.act_fn(self.mlp.gate_proj(made)) * self.mlp.up_proj(made)
        return self.up(made + self.mlp.down_proj(gated)) + self.up(made)


def test_what_was_changed_in_place_is_not_made_again() -> None:
    torch.manual_seed(0)
    plain, x = Changing(), torch.randn(2, 5, 8)
    model = copy.deepcopy(plain)
    fused.fuse(model)
    fused.fuse_linears(model)
    for each in (plain, model):
        each(x).square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, name
        close(one.grad, other.grad, torch.float32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_layer_makes_may_be_changed_in_place(dtype: torch.dtype, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 4, bias=bias).to(dtype)
    x = torch.randn(shape).to(dtype).requires_grad_()

    def changed(function: Callable[..., Tensor]) -> list[Tensor]:
        def made(x: Tensor, *_: Tensor) -> Tensor:
            found = function(x)
            found += 1
            return found

        return slopes(made, x, *layer.parameters())

    ours = changed(lambda x: fused.Linear.apply(x, layer.weight, layer.bias, dtype))
    for one, other in zip(ours, changed(layer), strict=True):
        close(one, other, dtype)


def test_one_class_with_two_activations() -> None:
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    plain = torch.nn.ModuleList(LlamaMLP(LlamaConfig(hidden_act=kind, **sizes)) for kind in ("silu", "gelu", "silu"))
    model, x = copy.deepcopy(plain), torch.randn(3, 8)
    fused.fuse(model)
    assert [type(one) is type(other) for one, other in zip(model, plain, strict=True)] == [False, True, False]
    for one, other in zip(model, plain, strict=True):
        close(one(x), other(x), torch.float32)


class Heads(torch.nn.Module):
    """A norm, and an MLP, that read other shapes than most."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps, self.act_fn = torch.nn.Parameter(torch.ones(8)), 1e-6, torch.nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        _batch, _length, _heads, _width = x.shape
        return x * self.weight


class Ranked(Heads):
    def __init__(self) -> None:
        super().__init__()
        del self.weight
        self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(8, 8) for _ in range(3))


@pytest.mark.parametrize("kind", [Heads, Ranked])
def test_what_takes_other_shapes_is_left(kind: type[torch.nn.Module]) -> None:
    model = torch.nn.ModuleList([kind()])
    fused.fuse(model)
    assert type(model[0]) is kind


def test_a_bias_that_trains_beside_an_adapter_learns() -> None:
    plain = adapted(bias="lora_only")
    model = copy.deepcopy(plain)
    fused.fuse_linears(model)
    for one, other in zip(learned(model, mixed=False), learned(plain, mixed=False), strict=True):
        close(one, other, torch.float32)


def test_who_turns_otherwise_gets_what_was_there() -> None:
    """By name, or with other numbers: qwen4_exp's queries alone."""
    turned = fused._Turned(lambda *given, **named: (given, named))
    query, angles = torch.randn(1, 2, 5, 8), torch.randn(1, 5, 8)
    assert turned(query, cos=angles, sin=angles) == ((query,), {"cos": angles, "sin": angles})
    assert turned(query, query, angles) == ((query, query, angles), {})
    assert turned(query, query, angles, angles, None)[0][4] is None


def test_what_was_turned_may_be_changed_in_place() -> None:
    from transformers.models.llama import modeling_llama

    fused.fuse(model_of("llama"))
    query, key = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(2))
    made = modeling_llama.apply_rotary_pos_emb(query, key, *torch.randn(2, 1, 5, 8))
    for each in made:
        each *= 2
        each.sum().backward()
    assert query.grad is not None and key.grad is not None
