"""The chunked loss of every known kind of model against the model's own logits; what isolates its documents."""

from typing import Any

import kinds
import pytest
import torch
from torch.nn import functional

from factory import losses
from factory.losses import TRANSFORMS, causal_lm, head_of, heads_agree

BIASED = ("phi", "phimoe", "gptj")
OWN_DROPOUT = ("seed_oss", "gpt_bigcode", "opt")  # in their functions' arguments, which evaluation mode alone stops
# attention that position_ids do not part: alibi, learned positions, a mask that leaves them out, convolutions, states
NOT_ISOLATED = ("opt", "bloom", "mpt", "gpt_oss", "lfm2", "qwen3_next", "granitemoehybrid")
NO_SDPA = ("gemma2", "gpt_neo", "bloom", "mpt", "gpt_oss")


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
    monkeypatch.setattr(losses, "LOSS_CHUNK", 8)
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
    monkeypatch.setitem(TRANSFORMS, kind, losses.Transform())
    assert heads_agree(model, batch()) > 0.01


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
    return ["eager"] if kind in NO_SDPA else ["eager", "sdpa"]


@pytest.mark.parametrize("kind", NO_SDPA)
def test_kinds_that_have_no_sdpa(kind: str) -> None:
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        kinds.build(kind, "sdpa")


def logits(model: Any, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    given = {"input_ids": ids} | ({} if positions is None else {"position_ids": positions})
    with torch.no_grad():
        return model(**losses._inputs(model, given)).logits


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_no_token_sees_the_future(kind: str) -> None:
    ids = batch()["input_ids"]
    other = torch.cat([ids[:, :9], ids[:, 9:].flip(1)], dim=1)
    for attention in attentions(kind):
        model = kinds.build(kind, attention)
        torch.testing.assert_close(logits(model, ids)[:, :9], logits(model, other)[:, :9], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_which_kinds_part_packed_documents(kind: str) -> None:
    """The second document's logits when the first one changes, and when it stands alone."""
    ids = batch()["input_ids"]
    other = torch.cat([ids[:, :7].flip(1), ids[:, 7:]], dim=1)
    positions = torch.tensor([[*range(7), *range(9)]] * 2)
    for attention in attentions(kind):
        model = kinds.build(kind, attention)
        second = logits(model, ids, positions)[:, 7:]
        seen = (second - logits(model, other, positions)[:, 7:]).abs().max() > 1e-4
        alone = (second - logits(model, ids[:, 7:])).abs().max() < 1e-4
        assert (bool(seen), bool(alone)) == ((True, False) if kind in NOT_ISOLATED else (False, True)), attention
