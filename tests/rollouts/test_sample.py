"""Sampling: what is drawn is the model's, whatever stands beside it; an answer ends where it ends."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from factory.rollouts.sample import Answer, Sampling, answer, sample

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [300]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def sampled(model: Any, sampling: Sampling, prompts: list[list[int]] = PROMPTS, stops: tuple[int, ...] = (2,)) -> Any:
    return sample(model, prompts, sampling, pad=0, stops=stops, device="cpu")


def likeliest(model: Any, prompt: list[int], count: int) -> list[int]:
    """Token by token, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_answers_are_the_likeliest_tokens_whatever_stands_beside_them(model: Any) -> None:
    found = sampled(model, Sampling(5, greedy=True))
    for prompt, each in zip(PROMPTS, found, strict=True):
        assert each == Answer(prompt, likeliest(model, prompt, 5), ended=False)


def test_an_answer_ends_with_the_token_that_ends_it(model: Any) -> None:
    """The stop is among what it would have written: what follows it is not there."""
    whole = likeliest(model, PROMPTS[1], 5)
    stop = whole[2]
    assert stop not in whole[:2]
    found = sampled(model, Sampling(5, greedy=True), stops=(2, stop))[1]
    assert found == Answer(PROMPTS[1], whole[:3], ended=True)


def test_what_the_models_own_file_ends_an_answer_with_does(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = likeliest(model, PROMPTS[1], 5)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [2, whole[2]])
    found = sampled(model, Sampling(5, greedy=True))[1]
    assert (found.ids, found.said, found.ended) == (whole[:3], whole[:2], True)


@pytest.mark.parametrize(
    ("row", "ids", "ended"), [([4, 2, 0, 0], [4, 2], True), ([4, 5], [4, 5], False), ([2, 2], [2], True)]
)
def test_padding_is_no_part_of_an_answer(row: list[int], ids: list[int], ended: bool) -> None:
    assert answer([1], row, (2,)) == Answer([1], ids, ended)


def test_what_the_head_reads_is_contiguous(model: Any) -> None:
    """Else torch multiplies a frozen bfloat16 head with a slice of the states by copying the head for each row."""
    seen = list[bool]()
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, states, __: seen.append(states[0].is_contiguous()))
    sampled(model, Sampling(3, greedy=True))
    hook.remove()
    assert seen == [True, True, True]
    assert not head._forward_pre_hooks


def test_the_draw_is_torchs_global_generators(model: Any) -> None:
    torch.manual_seed(3)
    first, second = (sampled(model, Sampling(6)) for _ in range(2))
    torch.manual_seed(3)
    assert sampled(model, Sampling(6)) == first != second


def test_the_draw_has_the_models_probabilities(model: Any) -> None:
    """The first token's frequencies over 4,000 draws at temperature 0.05 and at top_k and top_p that leave few."""
    torch.manual_seed(0)
    count, temperature = 4000, 0.05
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPTS[1]])).logits[0, -1].double() / temperature
    wanted = logits.softmax(-1)

    def frequencies(sampling: Sampling) -> torch.Tensor:
        drawn = torch.tensor([each.ids[0] for each in sampled(model, sampling, [PROMPTS[1]] * count)])
        return torch.bincount(drawn, minlength=512).double() / count

    assert float((frequencies(Sampling(1, temperature)) - wanted).abs().max()) < 0.03
    top = wanted.topk(3)
    left = frequencies(Sampling(1, temperature, top_k=3))
    assert set(left.nonzero()[:, 0].tolist()) == set(top.indices.tolist())
    assert float((left[top.indices] - top.values / top.values.sum()).abs().max()) < 0.03
    nucleus = frequencies(Sampling(1, temperature, top_p=float(top.values[0]) / 2))
    assert nucleus.nonzero()[:, 0].tolist() == [int(top.indices[0])]


def test_the_models_own_settings_of_sampling_are_not_followed(model: Any) -> None:
    plain = sampled(model, Sampling(5, greedy=True))
    own = model.generation_config
    own.repetition_penalty, own.suppress_tokens = 5.0, [plain[0].ids[0]]
    try:
        assert sampled(model, Sampling(5, greedy=True)) == plain
        assert model.generation_config is own
    finally:
        own.repetition_penalty, own.suppress_tokens = None, None
