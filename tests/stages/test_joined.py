"""Rows that stand one after another in one row have each stage's loss, metrics and gradients of padded rows.

In float64, the padded ones by torch's kernel. Rows differ in length, and one is alone with its kind of label.
"""

from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from factory.architecture import architecture
from factory.attention import PER_DOCUMENT, segments
from factory.config import registry
from factory.data.batches import collate, halves, read
from factory.data.dataset import IGNORED, Example, Labelled, Pair
from factory.losses import row_losses, sequence_log_probs
from factory.plan import heads
from factory.stages.loss import Loss

DRAW = torch.Generator().manual_seed(5)


def ids(count: int) -> list[int]:
    return torch.randint(3, 512, (count,), generator=DRAW).tolist()


def example(prompt: int, answer: int, start: list[int] | None = None, **more: Any) -> Example:
    tokens = [*(start or ids(prompt)), *ids(answer)]
    return Example(tokens, [IGNORED] * prompt + tokens[prompt:], **more)


def packed() -> Example:
    one, other = example(3, 6), example(4, 9)
    return Example(one.ids + other.ids, one.labels + other.labels, (9, 13))


def pair(prompt: int, chosen: int, rejected: int) -> Pair:
    start = ids(prompt)
    return Pair(example(prompt, chosen, start), example(prompt, rejected, start))


PLAIN = [example(4, 9), example(2, 3), example(7, 20)]
WEIGHED = [example(4, 3, weights=[0.0] * 4 + [0.5, 2.0, 1.0]), example(5, 8)]
PAIRS = [pair(4, 9, 3), pair(6, 2, 17)]
LABELLED = [
    Labelled(example(prompt, answer), wanted, prompt) for prompt, answer, wanted in ((4, 9, True), (7, 3, False))
]
SAMPLES: dict[str, list[tuple[str, list[Any]]]] = {
    "sft": [("rows", PLAIN), ("weighed", WEIGHED), ("packed", [packed(), *PLAIN[:1], packed()])],
    "pt": [("rows", PLAIN)],
    "dpo": [("pairs", PAIRS)],
    "orpo": [("pairs", PAIRS)],
    "rm": [("pairs", PAIRS)],
    "kto": [("labelled", LABELLED)],
    "ppo": [("rows", PLAIN)],
    "grpo": [("rows", PLAIN)],
}
OWN: dict[str, dict[str, Any]] = {
    "dpo": {"loss": "sigmoid", "beta": 0.1},
    "orpo": {"beta": 0.1},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "ppo": {"temperature": 0.7, "clip": 0.2, "value_clip": 0.2, "value_coefficient": 0.1},
    "grpo": {"temperature": 0.7, "clip": 0.2, "beta": 0.04, "loss": "grpo", "max_new_tokens": 20},
}
CASES = [pytest.param(stage, rows, id=f"{stage} {name}") for stage, found in SAMPLES.items() for name, rows in found]


def model(stage: str, attention: str) -> Any:
    torch.manual_seed(0)
    segments.register(PER_DOCUMENT)
    config = tiny.config(model_type="llama")
    config._attn_implementation = attention
    made = AutoModelForCausalLM.from_config(config).double()
    shapes = heads.heads(stage, architecture(config.to_dict()))
    heads.add(made, shapes, (), dtype=torch.float64, device="cpu", seed=1)
    return made


def columns(stage: str, samples: list[Example]) -> dict[str, torch.Tensor]:
    """What a rolled batch says of its answers' tokens, (n, t) each."""
    if stage not in ("ppo", "grpo"):
        return {}
    counts = torch.tensor([sample.count for sample in samples])
    mask = torch.arange(int(counts.max())) < counts[:, None]

    def drawn(number: int) -> torch.Tensor:
        values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        return values.masked_fill(~mask, 0)

    if stage == "ppo":
        return {"mask": mask, "old": drawn(1) - 6, "old_values": drawn(2), "advantages": drawn(3), "returns": drawn(4)}
    return {"mask": mask, "old": drawn(1) - 6, "advantages": drawn(2)[:, 0], "reference_log_probs": drawn(3) - 6}


def with_reference(batch: dict[str, Any]) -> torch.Tensor:
    return torch.linspace(-40, -10, len(batch["labels"]), dtype=torch.float64)


def measured(stage: str, samples: list[Any], attention: str, joined: bool) -> tuple[Any, ...]:
    made = model(stage, attention)
    batch = collate(samples, 0, "cpu", padding_free=joined, reference=with_reference) | columns(stage, samples)
    assert (read(batch).shape[0] == 1) == joined
    loss: Loss = registry.run("stages", stage).loss(made, batch, OWN.get(stage, {}))
    loss.total.backward()
    slopes = {name: each.grad for name, each in made.named_parameters() if each.grad is not None}
    watched = {name: (float(value), float(count)) for name, (value, count) in loss.metrics.items()}
    with torch.no_grad():
        parts = halves(batch)
        sums = [torch.stack([row_losses(made, part), *sequence_log_probs(made, part)]) for part in parts]
    return loss.total.detach(), slopes, watched, torch.cat(sums, 1)


@pytest.mark.parametrize(("stage", "samples"), CASES)
def test_a_joined_row_is_its_rows(stage: str, samples: list[Any]) -> None:
    total, slopes, watched, sums = measured(stage, samples, "sdpa", joined=False)
    for joined in (False, True):
        other, theirs, also, again = measured(stage, samples, PER_DOCUMENT, joined)
        torch.testing.assert_close(other, total, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(again, sums, rtol=1e-7, atol=1e-9)
        assert also.keys() == watched.keys()
        for name, values in watched.items():
            assert also[name] == pytest.approx(values, rel=1e-6), name
        assert theirs.keys() == slopes.keys() and len(slopes) > 5
        for name, slope in slopes.items():
            torch.testing.assert_close(theirs[name], slope, rtol=1e-5, atol=1e-8, msg=name)
