"""A grown vocabulary: the rows, how they start and train, and what a user reads back."""

import json
from pathlib import Path
from typing import Any

import kinds
import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.config.refusal import UserError
from factory.plan.vocabulary import Vocabulary, adapted, layers, resized, tokens_in, trainable, vocabulary
from factory.steps.vocabulary import add_tokens, grow, near_mean, tokens_of
from factory.steps.walk import walk

NEW = ("<tool>", "</tool>", "<think>")


@pytest.mark.parametrize(
    ("said", "after", "new"),
    [
        ({"rows": 96, "tokens": 96, "added": 0, "multiple": None}, 96, range(0)),
        ({"rows": 96, "tokens": 96, "added": 3, "multiple": None}, 99, range(96, 99)),
        ({"rows": 96, "tokens": 96, "added": 3, "multiple": 64}, 128, range(96, 99)),
        ({"rows": 128, "tokens": 96, "added": 3, "multiple": 64}, 128, range(96, 99)),  # spare rows are taken
        ({"rows": 100, "tokens": 96, "added": 0, "multiple": 64}, 100, range(0)),  # nothing to resize: nothing to pad
        ({"rows": 96, "tokens": 98, "added": 0, "multiple": None}, 98, range(96, 98)),
        ({"rows": 96, "tokens": 98, "added": 2, "multiple": 8}, 104, range(96, 100)),
        ({"rows": 96, "tokens": 94, "added": 4, "multiple": None}, 98, range(94, 98)),  # two spare, two grown
    ],
)
def test_how_many_rows(said: dict[str, Any], after: int, new: range) -> None:
    assert vocabulary(**said) == Vocabulary(before=said["rows"], after=after, new=new)


def test_new_rows_are_drawn_around_the_mean() -> None:
    """Mean and covariance of many draws against NumPy's, in float64."""
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(300, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 5
    drawn = near_mean(old, 20_000, generator).double().numpy()
    wanted = old.double().numpy()
    np.testing.assert_allclose(drawn.mean(0), wanted.mean(0), atol=1e-3)
    covariance = 1e-5 * np.cov(wanted.T, bias=True)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.05 * covariance.max())


def test_rows_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    old = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr("factory.steps.vocabulary._AT_ONCE", 7)
    (drawn,) = near_mean(old, 1, torch.Generator().manual_seed(0)).double()
    spread = old.std(0) * 1e-5**0.5
    assert ((drawn - old.mean(0)).abs() < 5 * spread).all()
    assert ((drawn - old.mean(0)).abs() > 0).any()


PLANNED = Vocabulary(before=96, after=104, new=range(96, 99))


@pytest.mark.parametrize(
    "kind", [kind for kind in kinds.KINDS if kind != "mllama"]
)  # its embedding is longer than its head
def test_every_kind_grows(kind: str) -> None:
    """Old rows and old tokens' logits stay to the bit, heads stay tied, biases grow, and config.json knows."""
    ids = torch.randint(3, 90, (1, 8), generator=torch.Generator().manual_seed(0))
    before, after, again = kinds.build(kind), kinds.build(kind), kinds.build(kind)
    grow(after, PLANNED, seed=1)
    grow(again, PLANNED, seed=1)
    grow(again, PLANNED, seed=1)
    old, new = before.get_input_embeddings().weight, after.get_input_embeddings().weight
    assert new.shape[0] == after.get_output_embeddings().weight.shape[0] == 104
    assert after.config.get_text_config().vocab_size == 104
    assert torch.equal(new[:96], old)
    assert torch.equal(new, again.get_input_embeddings().weight)
    spread = old.std(0) * 1e-5**0.5
    assert ((new[96:] - old.mean(0)).abs() < 6 * spread + 1e-6).all()
    tied = before.get_output_embeddings().weight is old
    assert (after.get_output_embeddings().weight is new) == tied
    bias = after.get_output_embeddings().bias
    assert bias is None or torch.allclose(bias[96:], bias[:96].mean())
    with torch.no_grad():
        one, other = (model(input_ids=ids, use_cache=False).logits for model in (before, after))
    torch.testing.assert_close(other[..., :96], one, rtol=1e-5, atol=1e-5)
    same_architecture(before, after)


def same_architecture(before: Any, after: Any) -> None:
    """The plan's formula says what the grown model has."""
    planned, built = resized(walk(before), 104), walk(after)
    assert dict(planned.tensors()) == dict(built.tensors())


def test_tokens_are_whole_from_then_on(tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    count = tokens_of(tokenizer)
    add_tokens(tokenizer, NEW)
    assert tokens_of(tokenizer) == count + 3
    ids = tokenizer("a<tool>b</tool>")["input_ids"]
    assert {count, count + 1} <= set(ids)
    assert "<tool>" in tokenizer.decode(ids, skip_special_tokens=True)
    with pytest.raises(UserError, match="token-known"):
        add_tokens(tokenizer, ("<other>", "<tool>"))
    assert tokens_of(tokenizer) == count + 3


def test_the_plan_counts_tokens_without_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert tokens_in(tmp_path) == tokens_of(tokenizer) == 512
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    add_tokens(tokenizer, NEW)
    tokenizer.save_pretrained(tmp_path)
    assert tokens_in(tmp_path) == 515
    unigram = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": [{"id": 2, "content": "c"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    assert tokens_in(tmp_path) == 3
    (tmp_path / "tokenizer.json").write_text("[]")
    assert tokens_in(tmp_path) is None
    assert tokens_in(tmp_path / "none") is None


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("multiple", [None, 64])
def test_an_adapters_new_rows_train_and_come_back(tied: bool, multiple: int | None, tmp_path: Path) -> None:
    """LoRA with new tokens: only what the plan says trains, and plain PEFT reads equal logits."""
    from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

    base = tiny.save(tmp_path / "base", tie_word_embeddings=tied)
    tokenizer = AutoTokenizer.from_pretrained(base)
    count = tokens_of(tokenizer)
    add_tokens(tokenizer, NEW)
    model = AutoModelForCausalLM.from_pretrained(base)
    rows = model.config.vocab_size
    planned = vocabulary(rows=rows, tokens=count, added=3, multiple=multiple)
    arch = resized(walk(model), planned.after)
    grow(model, planned, seed=0)
    wrapped = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **adapted(arch, planned.new))
    )
    trained = {
        name: tuple(value.shape)
        for name, value in wrapped.named_parameters()
        if value.requires_grad and "lora_" not in name
    }
    assert trained == trainable(arch, planned.new)
    assert len(trained) == len(layers(arch)) == (1 if tied else 2)
    frozen = {name: value.detach().clone() for name, value in wrapped.named_parameters() if not value.requires_grad}
    optimizer = torch.optim.SGD([value for value in wrapped.parameters() if value.requires_grad], lr=1.0)
    ids = torch.tensor([[5, count, 7, count + 1, count + 2, 9, count]])
    for _ in range(2):
        optimizer.zero_grad()
        wrapped(input_ids=ids, labels=ids).loss.backward()
        assert all(value.grad is not None for value in wrapped.parameters() if value.requires_grad)
        optimizer.step()
    assert all(torch.equal(value, frozen[name]) for name, value in wrapped.named_parameters() if name in frozen)
    wrapped.save_pretrained(str(tmp_path / "model"), save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "model")
    reloaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        theirs = wrapped.eval()(input_ids=ids).logits[..., : count + 3]
        ours = reloaded(input_ids=ids).logits[..., : count + 3]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (theirs[..., count:] - theirs[..., :count].mean(-1, keepdim=True)).abs().max() > 0.01  # they learned
    merged = wrapped.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits[..., : count + 3], theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["phi", "gptj", "phimoe"])
def test_peft_drops_a_heads_bias(kind: str) -> None:
    """Why adapters can't train the new rows of a head that has a bias."""
    from peft import LoraConfig, get_peft_model

    model, ids = kinds.build(kind), torch.arange(8)[None]
    before = model(input_ids=ids, use_cache=False).logits
    given = adapted(walk(model), range(90, 96))
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **given))
    assert (wrapped(input_ids=ids, use_cache=False).logits - before).abs().max() > 0.1


def test_the_loss_reads_new_rows_of_a_tied_head(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from factory.logits import head_of
    from factory.losses import causal_lm

    model = AutoModelForCausalLM.from_pretrained(tiny.save(tmp_path, tie_word_embeddings=True))
    new = range(512, 515)
    grow(model, Vocabulary(before=512, after=515, new=new), seed=0)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **adapted(walk(model), new)))
    delta = next(value for name, value in wrapped.named_parameters() if "trainable_tokens" in name)
    torch.nn.init.normal_(delta)
    assert head_of(wrapped) is not None
    ids = torch.tensor([[5, 512, 7, 513, 514, 9, 512]])
    own, mine = wrapped(input_ids=ids, labels=ids).loss * 6, causal_lm(wrapped, {"input_ids": ids, "labels": ids})
    torch.testing.assert_close(mine, own)
    for left, right in zip(torch.autograd.grad(mine, [delta]), torch.autograd.grad(own, [delta]), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
