"""Samples to batches: the order is a pure function of seed and epoch, so a resumed run needs no saved position."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from math import ceil
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from factory.ahead import moved
from factory.data.dataset import (
    IGNORED,
    OF_ANSWERS,
    TRAINED_AT,
    Dataset,
    Example,
    Labelled,
    Pair,
    Sample,
    Samples,
)
from factory.data.media import Inputs
from factory.schedules import steps_per_epoch

MicroBatch = list[int]
Item = TypeVar("Item")
# lengths are padded to a multiple: for each new shape a CPU's bfloat16 kernels are compiled and kept, 12 MB a time
_MULTIPLE = 8
_POLL = 0.1  # seconds in which a full queue sees that it is closed
# of the sequences that a model reads, as transformers names it: bounds, (sequences + 1), and the longest length
FLASH = ("cu_seq_lens_q", "max_length_q", "cu_seq_lens_k", "max_length_k")
LENGTHS = "sequence_lengths"  # the same as a tuple
# the row in which all rows stand one after another: (1, tokens), its positions, and where each row begins: (rows)
JOINED, STARTS = {"joined_ids": "input_ids", "joined_positions": "position_ids"}, "row_starts"
MISMATCHED = "mismatched_"  # begins the names of what a batch of labelled answers says of its second half


def micro_batches(
    step: int, examples: int, batch_size: int, accumulation: int, seed: int, lengths: NDArray[np.int64] | None = None
) -> list[MicroBatch]:
    """The examples of optimizer step `step` (from 0), by index. Each epoch has every example once.

    `lengths`, of all examples: those of like length are put side by side.
    """
    epoch, within = divmod(step, steps_per_epoch(examples, batch_size, accumulation))
    start = within * batch_size * accumulation
    chosen = order(examples, seed, epoch)[start : start + batch_size * accumulation]
    return cut(chosen.tolist(), batch_size, None if lengths is None else lengths[chosen])


def cut(chosen: Sequence[Item], batch_size: int, lengths: Sequence[int] | NDArray[np.int64] | None) -> list[list[Item]]:
    """A step's micro-batches; where `lengths` are given the longest come first.

    A step trains the same whatever is beside what, as its loss is a mean over all that it trains: only what is padded
    becomes less.
    """
    if lengths is not None and batch_size > 1:
        chosen = [chosen[place] for place in np.argsort(-np.asarray(lengths), kind="stable")]
    return [list(chosen[first : first + batch_size]) for first in range(0, len(chosen), batch_size)]


@lru_cache(maxsize=2)  # the thread that is ahead may be in the next epoch
def order(examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """In which an epoch trains its examples: their numbers."""
    return np.random.default_rng([seed, epoch]).permutation(examples)


@dataclass(frozen=True, slots=True)
class Step:
    """The micro-batches of an optimizer step, as tensors.

    `trained` tokens (by weight) or `samples` are what the sum of their losses is divided by: of all ranks. The last
    `idle` of the batches are counted for nothing: a rank has them so that all have equally many. `chosen` are the
    numbers of this rank's samples, where they are those of a set. It `tells` nothing of live gradients where its loss
    may have none.
    """

    batches: list[dict[str, Any]]
    tokens: int
    trained: float
    samples: int
    chosen: tuple[int, ...] = ()
    idle: int = 0
    tells: bool = field(default=True, kw_only=True)


def steps(
    samples: Samples,
    batch_size: int,
    accumulation: int,
    seed: int,
    first: int,
    last: int,
    collate: Callable[[list[Any]], dict[str, Any]],
    share: Callable[[list[MicroBatch]], tuple[list[MicroBatch], int]] = lambda chosen: (chosen, 0),
    *,
    by_length: bool = True,
) -> Iterator[Step]:
    """The optimizer steps from `first` up to `last`, in their order; of each, this rank's `share`.

    `by_length`: those of a step of like length are put side by side, labelled ones never (`mismatched`).
    """
    known = samples.lengths if by_length and isinstance(samples, Dataset) and samples.kind != "labelled" else None
    for number in range(first, last):
        chosen, idle = share(micro_batches(number, len(samples), batch_size, accumulation, seed, known))
        made = step([[samples[index] for index in indices] for indices in chosen], collate, idle)
        counted = chosen[: len(chosen) - idle]
        yield replace(made, chosen=tuple(index for indices in counted for index in indices))


def step(micro: list[list[Any]], collate: Callable[[list[Any]], dict[str, Any]], idle: int = 0) -> Step:
    """Counts what is not idle."""
    counted = micro[: len(micro) - idle]
    found = [each for samples in counted for sample in samples for each in examples(sample)]
    return Step(
        [collate(samples) for samples in micro],
        sum(len(each.ids) for each in found),
        sum(each.trained for each in found),
        sum(len(samples) for samples in counted),
        idle=idle,
    )


def lengths(samples: Sequence[Sample]) -> list[int] | None:
    """Tokens of each; None where it matters what is beside what (`mismatched`)."""
    if any(isinstance(sample, Labelled) for sample in samples):
        return None
    return [sum(len(each.ids) for each in examples(sample)) for sample in samples]


def examples(sample: Sample) -> tuple[Example, ...]:
    """The sequences of a sample that are trained."""
    if isinstance(sample, Pair):
        return sample.chosen, sample.rejected
    return (sample.example,) if isinstance(sample, Labelled) else (sample,)


def collate(
    samples: Sequence[Any],
    pad: int,
    device: str,
    max_length: int | None = None,
    media: Inputs | None = None,
    others: Samples = (),
    padding_free: bool = False,
    bounds: bool = False,
    reference: Callable[[dict[str, Any]], Any] | None = None,
) -> dict[str, Any]:
    """A micro-batch of n samples as tensors.

    input_ids and labels are (rows, longest), padded on the right; position_ids too where documents are isolated, and
    weights (float) where a trained token counts other than 1. No attention mask is made: in a causal model nothing
    attends to what comes after it, padding included, and transformers isolates documents by position_ids only without
    one.

    Pairs make 2n rows: the chosen, then the rejected, in the same order. Labelled ones make 2n too: as they are, then
    each prompt with the next one's answer (`mismatched`, which also reads `others`); `desirable` (n) are their labels.

    `padding_free` adds the row in which all of them stand one after another (`_joined`): the model reads that one, and
    losses find a row's tokens in it by its start. Labelled ones have two such rows, a half each (`halves`).

    `media` adds what the model takes of the rows' images, videos and sounds, and `reference` what the loss measures the
    rows against. Where a row holds several documents, `sequence_lengths` are those of all sequences that the model
    reads, padding included, and with `bounds` the same as cumulative lengths on the device (`FLASH`). All that is read
    of the rows is read here, before they are on a GPU, which would have to be waited for: `trained_at` too.
    """
    import torch

    rows = _rows(samples, max_length, others)
    batch = _arrays(samples, rows, pad)
    parts = {"": rows}
    if isinstance(samples[0], Labelled):
        parts = {"": rows[: len(samples)], MISMATCHED: rows[len(samples) :]}
    lengths = dict[str, tuple[int, ...]]()
    for prefix, members in parts.items():
        if padding_free:
            made, lengths[prefix] = _joined(members, pad)
            batch |= {f"{prefix}{name}": values for name, values in made.items()}
        elif bounds or "position_ids" in batch:
            lengths[prefix] = tuple(chain.from_iterable(_lengths(row, batch["input_ids"].shape[1]) for row in members))
    there: dict[str, Any] = {name: torch.from_numpy(values) for name, values in batch.items()}
    if media is not None:
        there |= media([row.media for row in rows], batch["input_ids"], batch["labels"] != IGNORED)
    if reference is not None:
        there["reference"] = reference(there)
    there = {name: moved(values, device) for name, values in there.items()}
    for prefix, sizes in lengths.items():
        there[f"{prefix}{LENGTHS}"] = sizes
        if bounds:
            ends = torch.from_numpy(np.cumsum([0, *sizes], dtype=np.int32))
            values = (moved(ends, device), max(sizes))
            there |= {f"{prefix}{name}": value for name, value in zip(FLASH, values * 2, strict=True)}
    if isinstance(samples[0], Labelled):
        there[OF_ANSWERS] = int(np.count_nonzero(batch[TRAINED_AT][0] < len(samples)))
    return there


def shows(batch: dict[str, Any]) -> bool:
    """Whether a row of the micro-batch has an image, a video or a sound."""
    return any(name.startswith(("pixel_values", "input_features")) for name in batch)


def _arrays(samples: Sequence[Any], rows: list[Example], pad: int) -> dict[str, NDArray[Any]]:
    """What of a batch follows from the rows alone."""
    longest = padded(max(len(row.ids) for row in rows))
    batch = {
        "input_ids": _padded([row.ids for row in rows], longest, pad, np.int64),
        "labels": _padded([row.labels for row in rows], longest, IGNORED, np.int64),
    }
    if any(row.documents for row in rows):
        batch["position_ids"] = np.stack([_positions(_lengths(row, longest)) for row in rows])
    if any(row.weights is not None for row in rows):
        weights = [row.weights or [float(label != IGNORED) for label in row.labels] for row in rows]
        batch["weights"] = _padded(weights, longest, 0, np.float32)
    if isinstance(samples[0], Labelled):
        batch["desirable"] = np.array([sample.label for sample in samples])
    batch[TRAINED_AT] = np.stack(np.nonzero(batch["labels"][:, 1:] != IGNORED))
    return batch


def _joined(rows: Sequence[Example], pad: int) -> tuple[dict[str, NDArray[Any]], tuple[int, ...]]:
    """Return the row in which the rows stand one after another, and the lengths of the sequences in it.

    joined_ids and joined_positions are (1, tokens), padded to a multiple; row_starts, (rows), says where each begins.
    The lengths are those of the documents of packed rows, else of the rows, and of what is padded.
    """
    tokens = [token for row in rows for token in row.ids]
    whole = Example(tokens, [], tuple(chain.from_iterable(row.documents or (len(row.ids),) for row in rows)))
    length = padded(len(tokens))
    sizes = _lengths(whole, length)
    starts = np.cumsum([0, *(len(row.ids) for row in rows[:-1])])
    made = {"joined_ids": _padded([tokens], length, pad, np.int64), "joined_positions": _positions(sizes)[None]}
    return {**made, STARTS: starts.astype(np.int64)}, sizes


def _rows(samples: Sequence[Any], max_length: int | None, others: Samples) -> list[Example]:
    if isinstance(samples[0], Pair):
        return [sample.chosen for sample in samples] + [sample.rejected for sample in samples]
    if isinstance(samples[0], Labelled):
        return [sample.example for sample in samples] + mismatched(samples, max_length, others)
    return list(samples)


def halves(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a batch of labelled answers as two, the answers and the mismatched ones; another batch as it is.

    Each is what a model reads at once. Where they train is in the order of the rows.
    """
    if "desirable" not in batch:
        return [batch]
    n, of_answers = len(batch["desirable"]), batch[OF_ANSWERS]
    own = {name: value for name, value in batch.items() if not name.startswith(MISMATCHED)}
    second = {name.removeprefix(MISMATCHED): value for name, value in batch.items() if name.startswith(MISMATCHED)}
    (rows, places), of_rows = batch[TRAINED_AT], [name for name in own if name in _OF_ROWS]
    first = {name: value for name, value in own.items() if name not in ("desirable", OF_ANSWERS)}
    return [
        first | {name: own[name][:n] for name in of_rows} | {TRAINED_AT: (rows[:of_answers], places[:of_answers])},
        second | {name: own[name][n:] for name in of_rows} | {TRAINED_AT: (rows[of_answers:] - n, places[of_answers:])},
    ]


_OF_ROWS = ("input_ids", "labels", "position_ids", "weights", "reference")


def read(batch: dict[str, Any]) -> Any:
    """The ids that the model reads of a batch: (rows, length)."""
    return batch.get("joined_ids", batch["input_ids"])


def padded(length: int) -> int:
    """The length that sequences are padded to."""
    return ceil(length / _MULTIPLE) * _MULTIPLE


def mismatched(samples: Sequence[Labelled], max_length: int | None = None, others: Samples = ()) -> list[Example]:
    """Prompt i with the answer of sample i + 1: the pairs that KTO's reference point is measured on.

    Ethayarajh et al. 2024, arXiv 2402.01306, section 4.1: answers are shifted by one within the micro-batch, so they
    are the very answers that are trained, in other places. One sample alone, as an epoch may end with, is given the
    answer of the first of `others` with another prompt: its own would make the reference point what is compared with
    it. Beyond `max_length` an answer loses its end.
    """
    answering = [*samples[1:], samples[0]] if len(samples) > 1 else [_another(samples[0], others)]
    found = []
    for sample, other in zip(samples, answering, strict=True):
        prompt = sample.example.ids[: sample.prompt]
        ids = prompt + other.example.ids[other.prompt :]
        labels = [IGNORED] * len(prompt) + other.example.labels[other.prompt :]
        weights = other.example.weights
        if weights is not None:
            weights = ([0.0] * len(prompt) + weights[other.prompt :])[:max_length]
        found.append(Example(ids[:max_length], labels[:max_length], (), weights, sample.example.media))
    return found


def _another(sample: Labelled, others: Samples) -> Labelled:
    """The first with another prompt; itself where there is none."""
    asked = sample.example.ids[: sample.prompt]
    for number in range(len(others)):
        other = others[number]
        assert isinstance(other, Labelled)
        if other.example.ids[: other.prompt] != asked:
            return other
    return sample


def _padded(rows: list[Any], length: int, fill: int, kind: type) -> NDArray[Any]:
    found = np.full((len(rows), length), fill, kind)
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return found


def _lengths(example: Example, length: int) -> tuple[int, ...]:
    """The lengths of a row's documents, and of its padding up to `length`."""
    documents = example.documents or (len(example.ids),)
    padding = length - sum(documents)
    return (*documents, padding) if padding else tuple(documents)


def _positions(sizes: Sequence[int]) -> NDArray[np.int64]:
    """0, 1, 2 … from the start of each sequence."""
    starts = np.cumsum([0, *sizes[:-1]])
    return np.arange(sum(sizes)) - np.repeat(starts, sizes)


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException


class Prefetcher(Generic[Item]):
    """Makes the next items in a thread while the present one is used: at most `ahead` of them wait.

    What making them raises is raised here, in its turn. Leaving the `with` ends the thread and closes the iterator.
    """

    def __init__(self, items: Iterator[Item], ahead: int = 2):
        self._queue: queue.Queue[Any] = queue.Queue(ahead)
        self._closed = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._fill, args=(items,), daemon=True, name="prefetch")
        self._thread.start()

    def _fill(self, items: Iterator[Item]) -> None:
        last = _Raised(StopIteration())
        try:
            for item in items:
                if not self._put(item):
                    break
        except BaseException as error:  # whatever it is, it belongs to the one who waits for the item
            last = _Raised(error)
        finally:
            if isinstance(items, Generator):
                items.close()
        self._put(last)

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._ended or self._closed.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, _Raised):
            self._ended = True
            raise item.error
        return item

    def __enter__(self) -> "Prefetcher[Item]":
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
