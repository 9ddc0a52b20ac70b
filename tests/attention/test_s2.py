"""S² attention: the paper's formula, nothing seen from later tokens, full attention outside training, gradients."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.masking_utils import create_causal_mask

from factory.attention import S2, mask, s2

GROUP = 4
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
}
DOCUMENTS = [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1], [0, 1, 0, 1, 2, 3, 4, 5, 6, 7]]


def layer(**changes: Any) -> Any:
    """An attention module, as far as an attention function looks at it."""
    return SimpleNamespace(**{"training": True, "is_causal": True, "num_key_value_groups": 1, **changes})


def model(kind: str = "llama", attention: str = S2, group_size: int = GROUP, **changes: Any) -> Any:
    """A tiny random model in training mode; the same weights whatever the attention."""
    s2.register(group_size)
    torch.manual_seed(0)
    config = tiny.config(model_type=kind, **(FAMILIES[kind] | changes))
    config._attn_implementation = attention
    config.use_cache = False
    return AutoModelForCausalLM.from_config(config).train()


def tokens(length: int, batch: int = 2) -> torch.Tensor:
    return torch.randint(3, 512, (batch, length), generator=torch.Generator().manual_seed(length))


def papers_formula(
    query: numpy.ndarray, key: numpy.ndarray, value: numpy.ndarray, group: int, documents: numpy.ndarray
) -> numpy.ndarray:
    """Algorithm 1 of the paper with a causal mask: shift half of the heads by -G/2, attend in groups, shift back.

    query, key, value (heads, length, dim), documents (length) in float64; returns (length, heads, dim). The length is
    padded up to whole groups. A token carries its position along: what the shift brings together from both ends is
    farther apart than a group, and is not seen.
    """
    heads, length, dim = query.shape
    total = -(-length // group) * group
    output = numpy.zeros((total, heads, dim))
    for head in range(heads):
        shift = group // 2 if head >= heads // 2 else 0
        padded = [
            numpy.concatenate([values, numpy.zeros((total - length, *values.shape[1:]))])
            for values in (query[head], key[head], value[head], numpy.arange(length), documents + 1)
        ]
        padded[3] = numpy.arange(total)
        q, k, v, position, document = (numpy.roll(values, -shift, axis=0) for values in padded)
        made = numpy.zeros((total, dim))
        for start in range(0, total, group):
            rows = slice(start, start + group)
            distance = position[rows, None] - position[None, rows]
            seen = (distance >= 0) & (distance < group) & (document[rows, None] == document[None, rows])
            scores = numpy.where(seen, q[rows] @ k[rows].T / numpy.sqrt(dim), -numpy.inf)
            weights = numpy.exp(scores - scores.max(axis=1, keepdims=True))
            made[rows] = weights / weights.sum(axis=1, keepdims=True) @ v[rows]
        output[:, head] = numpy.roll(made, shift, axis=0)
    return output[:length]


def expected(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: int, documents: Any = None
) -> numpy.ndarray:
    batch, heads, length = query.shape[:3]
    documents = numpy.zeros((batch, length)) if documents is None else documents
    shared = [numpy.repeat(states.double().numpy(), heads // states.shape[1], axis=1) for states in (query, key, value)]
    return numpy.stack([papers_formula(q, k, v, group, own) for q, k, v, own in zip(*shared, documents, strict=True)])


@pytest.mark.parametrize("length", [8, 16, 64, 9, 11, 13, 23, 30])
@pytest.mark.parametrize(
    ("heads", "key_heads"),
    [(4, 4), (8, 4), (8, 2), (4, 1), (6, 2), (9, 3), (3, 3), (5, 1), (2, 1), (2, 2)],
)
def test_equals_the_papers_formula(length: int, heads: int, key_heads: int) -> None:
    group, draw = 8 if length > 8 else 4, partial(torch.randn, generator=torch.Generator().manual_seed(length))
    query, key, value = (draw(3, count, length, 8) for count in (heads, key_heads, key_heads))
    scaling = 0.5  # in place of 1 / sqrt(8)
    output, _ = s2.attend(layer(), query, key, value, None, group_size=group, scaling=scaling)
    assert output.shape == (3, length, heads, 8)
    assert output.dtype == torch.float32
    wanted = expected(query * scaling * 8**0.5, key, value, group)
    numpy.testing.assert_allclose(output.numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_gradients_equal_the_papers_formula() -> None:
    """By differences of the NumPy formula, in a random direction."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = {name: draw(2, count, 13, 8) for name, count in (("query", 4), ("key", 2), ("value", 2))}
    weight = draw(2, 13, 4, 8)
    leaves: dict[str, Any] = {name: values.clone().requires_grad_() for name, values in states.items()}
    output, _ = s2.attend(layer(), **leaves, attention_mask=None, group_size=GROUP)
    (output * weight).sum().backward()
    for name, values in states.items():
        direction = draw(*values.shape)
        moved = (states | {name: values + step * direction} for step in (1e-5, -1e-5))
        more, less = ((expected(**each, group=GROUP) * weight.numpy()).sum() for each in moved)
        grad = leaves[name].grad
        assert grad is not None
        assert float((grad * direction).sum()) == pytest.approx((more - less) / 2e-5, rel=1e-6)


def seen(
    length: int, attention_mask: Any = None, row: int = 0, batch: int = 1
) -> tuple[list[list[int]], list[list[int]]]:
    """Which tokens each token sees, in the first and in the second half of two heads."""
    draw = partial(torch.randn, batch, 2, length, length)
    values = torch.eye(length).expand(batch, 2, length, length)  # the output is the attention's weights
    weights, _ = s2.attend(layer(), draw(), draw(), values, attention_mask, group_size=GROUP)
    first, second = ([token.nonzero().flatten().tolist() for token in weights[row, :, head]] for head in range(2))
    return first, second


def causal(*groups: range) -> list[list[int]]:
    return [list(range(group.start, token + 1)) for group in groups for token in group]


@pytest.mark.parametrize(
    ("length", "first", "second"),
    [
        (8, [range(4), range(4, 8)], [range(2), range(2, 6), range(6, 8)]),
        (10, [range(4), range(4, 8), range(8, 10)], [range(2), range(2, 6), range(6, 10)]),
        (11, [range(4), range(4, 8), range(8, 11)], [range(2), range(2, 6), range(6, 10), range(10, 11)]),
        (5, [range(4), range(4, 5)], [range(2), range(2, 5)]),
        (4, [range(4)], [range(4)]),
        (3, [range(3)], [range(3)]),
    ],
)
def test_groups_end_at_the_seam(length: int, first: list[range], second: list[range]) -> None:
    """Neither end of the sequence is in a group with the other."""
    assert seen(length) == (causal(*first), causal(*second))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("length", [12, 15])
def test_no_output_depends_on_a_later_token(kind: str, length: int) -> None:
    made, ids = model(kind), tokens(length, batch=1)
    changed = ids.repeat(length, 1)
    changed[range(length), range(length)] = (ids[0] + 1) % 512
    with torch.no_grad():
        before, after = made(input_ids=ids).logits, made(input_ids=changed).logits
    difference = (after - before).abs().amax(-1)  # (changed token, output)
    assert difference.tril(-1).max() < 1e-6
    assert difference.diagonal().min() > 1e-3


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_learned_flows_between_groups(kind: str) -> None:
    """Two layers reach tokens that no group of one layer reaches: the point of shifting."""
    made, ids = model(kind), tokens(12, batch=1)
    changed = ids.clone()
    changed[0, 2] += 1
    with torch.no_grad():
        difference = (made(input_ids=ids).logits - made(input_ids=changed).logits).abs().amax(-1)[0]
    assert (difference > 1e-6).tolist() == [False] * 2 + [True] * 6 + [False] * 4  # 2 to 5 shifted, then 4 to 7


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("length", "same"), [(GROUP - 1, True), (GROUP, True), (GROUP + 1, False)])
def test_one_group_is_full_attention(kind: str, length: int, same: bool) -> None:
    ids = tokens(length)
    assert close(model(kind)(input_ids=ids).logits, model(kind, "sdpa")(input_ids=ids).logits) == same


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", FAMILIES)
def test_attention_is_full_outside_training(kind: str) -> None:
    """Without and with a mask for padding, and where a cache is used."""
    ids, sparse, full = tokens(13), model(kind), model(kind, "sdpa")
    padded = torch.ones_like(ids)
    padded[0, :3] = 0
    with torch.no_grad():
        assert not close(sparse(input_ids=ids).logits, full(input_ids=ids).logits)
        assert close(sparse(input_ids=ids, use_cache=True).logits, full(input_ids=ids).logits)
        sparse.eval()
        full.eval()
        for inputs in ({}, {"attention_mask": torch.ones_like(ids)}, {"attention_mask": padded}):
            assert close(sparse(input_ids=ids, **inputs).logits, full(input_ids=ids, **inputs).logits)
    settings = {"max_new_tokens": 6, "do_sample": False, "use_cache": True, "eos_token_id": None}
    given = [each.generate(input_ids=ids, attention_mask=padded, **settings) for each in (sparse, full)]
    assert given[0].shape == (2, 19)
    assert torch.equal(*given)


@pytest.mark.parametrize("training", [False, True])
def test_isolated_documents_do_not_see_each_other(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if training:
        monkeypatch.setattr(mask, "sdpa_mask", None)  # no mask of the square of the length is made
    made, positions = model().train(training), torch.tensor(DOCUMENTS)
    ids = tokens(10)
    changed = ids.clone()
    changed[:, 0] += 1
    with torch.no_grad():
        before = made(input_ids=ids, position_ids=positions).logits
        after = made(input_ids=changed, position_ids=positions).logits
    difference = (after - before).abs().amax(-1)
    assert difference[0, 5:].max() < 1e-6
    assert difference[1, 2:].max() < 1e-6
    assert difference[:, 0].min() > 1e-3


@pytest.mark.parametrize("row", [0, 1])
def test_isolated_documents_are_cut_by_groups(row: int) -> None:
    told = documents_mask()
    cut = numpy.cumsum(numpy.array(DOCUMENTS[row]) == 0)
    whole = [causal(range(4), range(4, 8), range(8, 10)), causal(range(2), range(2, 6), range(6, 10))]
    own = [[[at for at in sight if cut[at] == cut[token]] for token, sight in enumerate(half)] for half in whole]
    assert list(seen(10, told, row, batch=2)) == own


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 2), (3, 1)])
def test_isolated_documents_equal_the_papers_formula(heads: int, key_heads: int) -> None:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    query, key, value = (draw(2, count, 10, 8) for count in (heads, key_heads, key_heads))
    output, _ = s2.attend(layer(), query, key, value, documents_mask(), group_size=GROUP)
    wanted = expected(query, key, value, GROUP, numpy.cumsum(numpy.array(DOCUMENTS) == 0, axis=1))
    numpy.testing.assert_allclose(output.numpy(), wanted, rtol=1e-5, atol=1e-5)


def documents_mask() -> mask.Mask:
    """What transformers hands on for packed documents."""
    made = create_causal_mask(
        config=model().config,
        inputs_embeds=torch.zeros(2, 10, 32),
        attention_mask=None,
        cache=None,
        position_ids=torch.tensor(DOCUMENTS),
    )
    assert isinstance(made, mask.Mask)
    return made


def test_a_sliding_window_is_kept_within_groups() -> None:
    made, ids = model("mistral", sliding_window=2), tokens(12, batch=1)
    changed = ids.clone()
    changed[0, 4] += 1
    with torch.no_grad():
        difference = (made(input_ids=ids).logits - made(input_ids=changed).logits).abs().amax(-1)[0]
    assert (difference > 1e-6).tolist() == [False] * 4 + [True] * 3 + [False] * 5  # one token further in each layer


def test_masked_padding_is_not_seen() -> None:
    """On the right it changes nothing; on the left it hides tokens, whole groups of them too, and gradients stay."""
    made, ids = model(), tokens(14)
    right, left = torch.ones_like(ids), torch.ones_like(ids)
    right[0, 11:], left[0, :5] = 0, 0
    plain = made(input_ids=ids).logits
    assert close(made(input_ids=ids, attention_mask=right).logits[0, :11], plain[0, :11])
    changed = ids.clone()
    changed[0, :5] += 1
    hidden = made(input_ids=changed, attention_mask=left).logits
    assert close(made(input_ids=ids, attention_mask=left).logits[0, 5:], hidden[0, 5:])
    assert not close(plain[0, 5:], hidden[0, 5:])
    hidden[:, 5:].sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in made.parameters())


def adapted(made: Any) -> Any:
    made.enable_input_require_grads()
    return get_peft_model(made, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))


def gradients(made: Any, checkpointing: bool, bf16: bool, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Of one step, for every tensor that is trained."""
    if checkpointing:
        made.gradient_checkpointing_enable({"use_reentrant": False})
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = made(**inputs, labels=inputs["input_ids"]).loss
    assert loss.isfinite()
    loss.backward()
    trained = {name: each.grad for name, each in made.named_parameters() if each.requires_grad}
    assert trained
    for name, grad in trained.items():
        assert grad is not None, name
        assert grad.isfinite().all(), name
        assert grad.abs().max() > 0, name
    return trained


@pytest.mark.parametrize("method", [adapted, lambda made: made], ids=["lora", "full"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_gradients_live_and_checkpointing_keeps_them(
    kind: str, method: Callable[[Any], Any], bf16: bool, packed: bool
) -> None:
    inputs = {"input_ids": tokens(10)} | ({"position_ids": torch.tensor(DOCUMENTS)} if packed else {})
    plain, recomputed = (gradients(method(model(kind)), on, bf16, inputs) for on in (False, True))
    full = gradients(method(model(kind, "sdpa")), False, bf16, inputs)
    assert plain.keys() == recomputed.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(recomputed[name], grad, rtol=1e-6, atol=1e-8)
    assert any(not close(full[name], grad) for name, grad in plain.items())


@pytest.mark.parametrize("inputs", [{}, {"position_ids": torch.tensor(DOCUMENTS)}], ids=["whole", "packed"])
def test_compiled_layers_give_the_same(inputs: dict[str, Any]) -> None:
    torch.compiler.reset()
    plain, compiled = model(), model()
    for decoder_layer in compiled.model.layers:
        decoder_layer.compile(backend="eager")
    for training in (True, False):
        one, other = (each.train(training)(input_ids=tokens(10), **inputs).logits for each in (plain, compiled))
        assert close(one, other)
    assert not close(one, plain.train()(input_ids=tokens(10), **inputs).logits)


def test_dropout_is_applied() -> None:
    same, values = torch.ones(1, 2, 12, 12), torch.eye(12).expand(1, 2, 12, 12)
    torch.manual_seed(0)
    output, _ = s2.attend(layer(), same, same, values, None, group_size=GROUP, dropout=0.5)
    assert 0 < (output.sum(-1) == 0).sum() < 24  # a token all of whose weights are dropped


@pytest.mark.parametrize("wrong", [0, 1, 5, -2])
def test_a_group_has_two_halves(wrong: int) -> None:
    with pytest.raises(AssertionError):
        s2.register(wrong)


@pytest.mark.parametrize(
    ("heads", "keys", "changes"),
    [
        (1, 12, {}),
        (2, 13, {}),
        (2, 12, {"attention_mask": torch.ones(1, 1, 12, 12, dtype=torch.bool)}),
        (2, 12, {"softcap": 50.0}),
        (2, 12, {"s_aux": torch.zeros(2)}),
        (2, 12, {"position_bias": torch.zeros(1, 2, 12, 12)}),
        (2, 12, {"module": layer(is_causal=False)}),
    ],
)
def test_what_groups_cannot_hold_is_not_left_out(heads: int, keys: int, changes: dict[str, Any]) -> None:
    arguments = {"module": layer(), "attention_mask": None, "group_size": GROUP, **changes}
    query, key = torch.zeros(1, heads, 12, 8), torch.zeros(1, heads, keys, 8)
    with pytest.raises(AssertionError, match="S² attention"):
        s2.attend(query=query, key=key, value=key, **arguments)


def test_a_saved_model_does_not_name_it(tmp_path: Path) -> None:
    """It loads where nothing is registered."""
    model().save_pretrained(tmp_path)
    assert S2 not in json.loads((tmp_path / "config.json").read_text()).values()
