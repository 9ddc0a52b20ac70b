"""Examples to batches: the order is a pure function of seed and epoch, so a resumed run needs no saved position."""

from functools import lru_cache
from math import ceil
from typing import Any

from factory.data.encode import IGNORED, Example

MicroBatch = list[int]
# lengths are padded to a multiple: for each new shape a CPU's bfloat16 kernels are compiled and kept, 12 MB a time
_MULTIPLE = 8


def steps_per_epoch(examples: int, batch_size: int, accumulation: int) -> int:
    return ceil(examples / (batch_size * accumulation))


def total_steps(examples: int, batch_size: int, accumulation: int, num_epochs: float, max_steps: int | None) -> int:
    return max_steps or max(1, ceil(num_epochs * steps_per_epoch(examples, batch_size, accumulation)))


def micro_batches(step: int, examples: int, batch_size: int, accumulation: int, seed: int) -> list[MicroBatch]:
    """The examples of optimizer step `step` (from 0), by index. Each epoch has every example once."""
    epoch, within = divmod(step, steps_per_epoch(examples, batch_size, accumulation))
    order = _order(examples, seed, epoch)
    start = within * batch_size * accumulation
    chosen = order[start : start + batch_size * accumulation]
    return [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]


@lru_cache(maxsize=1)
def _order(examples: int, seed: int, epoch: int) -> list[int]:
    import numpy

    return numpy.random.default_rng([seed, epoch]).permutation(examples).tolist()


def collate(examples: list[Example], pad: int, device: str) -> dict[str, Any]:
    """input_ids and labels (batch, longest), padded on the right; position_ids too where documents are isolated.

    No attention mask is made: in a causal model nothing attends to what comes after it, padding included, and
    transformers isolates documents by position_ids only without one.
    """
    import torch

    longest = ceil(max(len(example.ids) for example in examples) / _MULTIPLE) * _MULTIPLE
    batch = {
        "input_ids": torch.tensor([_padded(example.ids, longest, pad) for example in examples]),
        "labels": torch.tensor([_padded(example.labels, longest, IGNORED) for example in examples]),
    }
    if any(example.documents for example in examples):
        batch["position_ids"] = torch.tensor([_positions(example, longest) for example in examples])
    return {name: values.to(device) for name, values in batch.items()}


def _padded(values: list[int], length: int, fill: int) -> list[int]:
    return values + [fill] * (length - len(values))


def _positions(example: Example, length: int) -> list[int]:
    documents = example.documents or (len(example.ids),)
    padding = length - sum(documents)
    return [position for size in (*documents, padding) for position in range(size)]
