"""The chunked loss of every known kind of model against the model's own logits; what isolates its documents; groups."""

from dataclasses import replace
from typing import Any

import kinds
import pytest
import torch
from families import built_of, of, roomy
from torch.nn import functional

from factory import chunks, losses
from factory.architecture import FAMILIES, REMOTE_CODE, traits_of
from factory.attention import PER_DOCUMENT, S2, s2, segments
from factory.data.batches import collate, read
from factory.data.dataset import IGNORED, Example
from factory.logits import TRANSFORMS, Transform, head_of, text_model
from factory.losses import answer_states, causal_lm, heads_agree, sequence_log_probs

BIASED = ("phi", "phimoe", "gptj")
OWN_DROPOUT = ("seed_oss", "gpt_bigcode", "opt")  # in their functions' arguments, which evaluation mode alone stops
NO_SDPA = tuple(kind for kind in kinds.KINDS if not traits_of(kind).sdpa)
OTHERS = ("dbrx", "llama4")  # kinds whose heads are not known, or not their own


def batch(length: int = 16) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 90, (2, length), generator=torch.Generator().manual_seed(3))
    labels = ids.clone()
    labels[:, :4] = -100
    labels[1, 9:12] = -100
    return {"input_ids": ids, "labels": labels}


def full(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The cross entropy of the model's own logits, said by hand."""
    labels = given["labels"][:, 1:]
    logits = model(**losses._inputs(model, given)).logits[:, :-1]
    return functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="sum")


def test_every_known_head_has_a_tiny_model() -> None:
    assert set(TRANSFORMS) == set(kinds.KINDS)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_loss_and_gradients_are_the_models_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, in chunks of a few tokens, in training mode."""
    monkeypatch.setattr(chunks, "CHUNK", 8)
    model, given = kinds.build(kind).double(), batch()
    model.train(kind not in OWN_DROPOUT)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    head = head_of(model)
    assert head is not None
    assert (head.bias is not None) == (kind in BIASED)
    mine, own = causal_lm(model, given), full(model, given)
    torch.testing.assert_close(mine, own, rtol=1e-12, atol=1e-12)
    parameters = [value for value in model.parameters() if value.requires_grad]
    both = zip(
        torch.autograd.grad(mine, parameters, allow_unused=True),
        torch.autograd.grad(own, parameters, allow_unused=True),
        strict=True,
    )
    for left, right in both:
        assert (left is None) == (right is None)
        if left is not None and right is not None:
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite", "minicpm3"])
def test_a_head_without_its_transform_is_found_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = kinds.build(kind)
    assert heads_agree(model, batch()) < 1e-5
    monkeypatch.setitem(TRANSFORMS, kind, Transform())
    assert heads_agree(model, batch()) > 0.01


@pytest.mark.parametrize("outer", ["as it is", "another mask", "twice"])
def test_states_are_those_of_the_models_own_call_where_it_calls_alike(outer: str) -> None:
    """Else the decoder is called again, and what differs is found out."""
    model = kinds.build("llama")
    called, decode = list[None](), model.model.forward

    def counted(**named: Any) -> Any:
        called.append(None)
        return decode(**named)

    def other(**named: Any) -> Any:
        if outer == "twice":
            model.model(**named)
        given = {**named, "attention_mask": torch.eye(named["input_ids"].shape[1])[None, None] == 1}
        return own(**(given if outer == "another mask" else named))

    own, model.model.forward = model.forward, counted
    if outer != "as it is":
        model.forward = other
    apart = heads_agree(model, batch())
    assert (len(called), apart > 1e-3) == {"as it is": (1, False), "another mask": (2, True), "twice": (3, False)}[
        outer
    ]


def test_an_unknown_kind_takes_its_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = kinds.build("gemma2").double()
    monkeypatch.delitem(TRANSFORMS, "gemma2")
    assert head_of(model) is None
    torch.testing.assert_close(causal_lm(model, batch()), full(model, batch()), rtol=1e-12, atol=1e-12)
    assert heads_agree(model, batch()) == 0


def test_an_adapted_head_takes_the_models_own_logits() -> None:
    """The weight under a LoRA is not the one in use."""
    from peft import LoraConfig, get_peft_model

    model = kinds.build("llama").double()
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False))
    assert head_of(wrapped) is None
    torch.testing.assert_close(causal_lm(wrapped, batch()), full(wrapped, batch()), rtol=1e-12, atol=1e-12)


def test_a_head_that_is_saved_whole_is_read() -> None:
    from peft import LoraConfig, get_peft_model

    model = kinds.build("phi").double()
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with torch.no_grad():
        wrapped.get_output_embeddings().bias.add_(torch.arange(96) / 10)
    assert head_of(wrapped) is not None
    torch.testing.assert_close(causal_lm(wrapped, batch()), full(wrapped, batch()), rtol=1e-12, atol=1e-12)
    assert heads_agree(wrapped, batch()) < 1e-12


def attentions(kind: str) -> list[str]:
    return ["eager", "sdpa"] if traits_of(kind).sdpa else ["eager"]


@pytest.mark.parametrize("kind", NO_SDPA)
def test_kinds_that_have_no_sdpa(kind: str) -> None:
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        kinds.build(kind, "sdpa")


def logits(model: Any, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    given = {"input_ids": ids} | ({} if positions is None else {"position_ids": positions})
    with torch.no_grad():
        return text_model(model)(**losses._inputs(model, given)).logits


def of_family(kind: str) -> Any:
    torch.manual_seed(0)
    return built_of(roomy(of(kind)), "cpu").eval()


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_no_token_sees_the_future(kind: str) -> None:
    ids = batch()["input_ids"]
    other = torch.cat([ids[:, :9], ids[:, 9:].flip(1)], dim=1)
    for attention in attentions(kind):
        model = kinds.build(kind, attention)
        torch.testing.assert_close(logits(model, ids)[:, :9], logits(model, other)[:, :9], rtol=1e-5, atol=1e-5)


def test_every_family_is_looked_at() -> None:
    assert FAMILIES.keys() - REMOTE_CODE <= {*kinds.KINDS, *OTHERS}
    assert {kind for kind in kinds.TEXT if not traits_of(kind).ours} - {"granitemoehybrid", "falcon"} == UNSUITED.keys()


@pytest.mark.parametrize("kind", [*kinds.KINDS, *OTHERS])
def test_which_kinds_part_packed_documents(kind: str) -> None:
    """The second document's logits when the first one changes, and when it stands alone."""
    ids = batch()["input_ids"]
    other = torch.cat([ids[:, :7].flip(1), ids[:, 7:]], dim=1)
    positions = torch.tensor([[*range(7), *range(9)]] * 2)
    models = [of_family(kind)] if kind in OTHERS else [kinds.build(kind, attention) for attention in attentions(kind)]
    for model in models:
        second = logits(model, ids, positions)[:, 7:]
        seen = (second - logits(model, other, positions)[:, 7:]).abs().max() > 1e-4
        alone = (second - logits(model, ids[:, 7:])).abs().max() < 1e-4
        assert (bool(seen), bool(alone)) == ((False, True) if traits_of(kind).isolates else (True, False))


NO_CHANCE = {"attention_dropout", "residual_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout"}
NO_CHANCE |= {"router_jitter_noise", "input_jitter_noise"}
IN_GROUPS = [kind for kind in kinds.TEXT if traits_of(kind).ours]


def training(kind: str, attention: str) -> Any:
    """In training mode, with nothing left to chance."""
    model = kinds.built(kinds.config(kind, **dict.fromkeys(NO_CHANCE, 0.0)), attention).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def in_groups(kind: str) -> bool:
    """Whether S² attention is all that flows between this kind's tokens, and is full attention where it should be.

    Two tokens see as much in groups of four, and in those that are shifted by two, as in full attention. From the
    third on, two layers reach the sixth token (those of 2 to 5 shifted, then of 4 to 7).
    """
    s2.register(4)
    ids = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(3))
    changed = ids.clone()
    changed[0, 2] += 1
    grouped, full = training(kind, S2), training(kind, attentions(kind)[-1])
    sparse, whole = logits(grouped, ids), logits(full, ids)
    reached = ((sparse - logits(grouped, changed)).abs().amax(-1)[0] > 1e-6).tolist()
    outside = logits(grouped.eval(), ids) - logits(full.eval(), ids)
    same = (sparse - whole).abs().amax(-1)[0] < 1e-4
    equal = bool(same[:2].all()) and not bool(same.all()) and float(outside.abs().max()) < 1e-4
    return equal and reached == [2 <= at < 8 for at in range(12)]


@pytest.mark.parametrize("kind", IN_GROUPS)
def test_groups_are_all_that_a_kind_sees(kind: str) -> None:
    assert in_groups(kind)


@pytest.mark.parametrize("kind", [kind for kind in IN_GROUPS if traits_of(kind).isolates])
def test_groups_keep_packed_documents_apart(kind: str) -> None:
    s2.register(4)
    model, positions = training(kind, S2), torch.tensor([[*range(5), *range(7)]])
    ids = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(3))
    changed = ids.clone()
    changed[0, 2] += 1
    difference = (logits(model, ids, positions) - logits(model, changed, positions)).abs().amax(-1)[0]
    assert difference[5:].max() < 1e-6 < difference[3]


JOINABLE = [kind for kind in IN_GROUPS if traits_of(kind).isolates and traits_of(kind).flash]
WINDOW = 5  # tokens


def of_windows(kind: str, attention: str) -> Any:
    """With a window in all layers that the kind gives one."""
    config = kinds.config(kind)
    sliding = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0}
    known = {name: value for name, value in sliding.items() if hasattr(config, name)}
    return kinds.built(kinds.config(kind, **known) if "sliding_window" in known else config, attention)


def side(prompt: int, *parts: list[int]) -> Example:
    ids = [token for part in parts for token in part]
    return Example(ids, [IGNORED] * prompt + ids[prompt:])


@pytest.mark.parametrize("kind", [kind for kind in JOINABLE if traits_of(kind).lengths])
def test_rows_that_stand_in_one_are_as_rows_of_their_own(kind: str) -> None:
    """Log-probabilities, gradients and last states of padded rows by torch's kernel, of a kind's own windows too."""
    segments.register(PER_DOCUMENT)
    draw = torch.randint(3, 60, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    packed = replace(side(3, draw[7:30]), documents=(12, 11))
    packed.labels[12] = IGNORED  # predicted by nothing of its own
    rows = [side(9, draw[:9], draw[20:26]), side(4, draw[30:52]), packed]
    found = list[tuple[torch.Tensor, dict[str, Any]]]()
    for attention, joined in ((attentions(kind)[-1], False), (PER_DOCUMENT, False), (PER_DOCUMENT, True)):
        model = of_windows(kind, attention).double()
        given = collate(rows, 0, "cpu", padding_free=joined)
        assert read(given).shape == ((1, 64) if joined else (3, 24))
        sums, counts = sequence_log_probs(model, given)
        assert counts.tolist() == [6, 18, 19]
        (sums * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
        slopes = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        found.append((sums.detach(), {**slopes, "states": answer_states(model, given).detach()}))
    one, slopes = found[0]
    for other, theirs in found[1:]:
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-8)
        assert theirs.keys() == slopes.keys()
        for name, slope in slopes.items():
            torch.testing.assert_close(theirs[name], slope, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["nemotron", "stablelm"])
def test_kinds_that_keep_lengths_to_themselves(kind: str) -> None:
    segments.register(PER_DOCUMENT)
    with pytest.raises(AssertionError, match="no lengths"):
        causal_lm(kinds.build(kind, PER_DOCUMENT), collate([side(1, [3, 4, 5])], 0, "cpu"))


def test_a_kind_that_keeps_its_window_to_itself() -> None:
    segments.register(PER_DOCUMENT)
    given = collate([side(1, [*range(3, 27)])], 0, "cpu")
    one, other = (causal_lm(of_windows("phimoe", name), given) for name in ("sdpa", PER_DOCUMENT))
    assert abs(one - other) > 0.1
    assert {kind for kind in JOINABLE if not traits_of(kind).lengths} == {"nemotron", "stablelm", "phimoe"}


# what stands in the way: an error, or more than groups that tokens see (alibi in the mask, states)
UNSUITED = {
    "gemma2": AssertionError,
    "gpt_neo": KeyError,
    "mpt": AttributeError,
    "gpt_oss": AssertionError,
    "bloom": None,
    "qwen3_next": None,
}


@pytest.mark.parametrize("kind", UNSUITED)
def test_kinds_that_groups_do_not_suit(kind: str) -> None:
    assert not traits_of(kind).ours
    error = UNSUITED[kind]
    if error is None:
        assert not in_groups(kind)
        return
    with pytest.raises(error):
        in_groups(kind)
