"""Mix: which rows train, how often, which are held out. Digests and a seed decide, never a row's place in a file."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from factory.config.settings import Data
from factory.data.packing import Integers
from factory.plan.plan import held_out_rows

DIGEST_BYTES = 16
Purpose = Literal["sample", "hold out", "repeat", "interleave"]
Ranks = NDArray[np.uint64]


def digest(row: Mapping[Any, Any]) -> bytes:
    """A hash of what the row says, in whatever order its keys stand (`formats.read_of`: without what nobody reads)."""
    try:
        text = _JSON.encode(row)
    except TypeError:  # keys that JSON does not have, or that cannot be sorted
        text = repr(row)
    return blake2b(text.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()


def _as_text(value: Any) -> str:
    return blake2b(value).hexdigest() if isinstance(value, bytes) else str(value)


_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=_as_text)


def words(digests: Sequence[bytes]) -> Ranks:
    """Digests as two integers each: (rows, 2)."""
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, DIGEST_BYTES // 8)


def ranks(digests: Ranks, seed: int, purpose: Purpose) -> Ranks:
    """A place (rows) for each digest (rows, 2) that looks random and depends on nothing else. Equal ones rank alike."""
    salt = np.frombuffer(blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest(), dtype="<u8")
    return _scrambled(digests[:, 0] ^ _scrambled(digests[:, 1] + salt))


def _scrambled(value: Ranks) -> Ranks:
    """The output function of SplitMix64 (Steele et al. 2014, figure 17): a bijection."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Mixed:
    """Rows by their numbers in all sources one after another. `train` is an epoch; rows repeat where they are weighted.

    `used` are the distinct rows of `train`: of all rows, used + validation + not_sampled + contained.
    """

    train: Integers
    validation: Integers
    used: int
    not_sampled: int
    contained: int  # would be sampled, but the validation source has the very same row


def mix(sources: Mapping[str, Ranks], data: Data, seed: int) -> Mixed:
    """`sources` have the digests (rows, 2) of what can be trained, in the order of `data`."""
    digests = np.concatenate([np.zeros((0, 2), np.uint64), *sources.values()])
    sampled: dict[str, Integers] = {}
    start = 0
    for name, found in sources.items():
        numbers = np.arange(start, start + len(found), dtype=np.int64)
        sampled[name] = _smallest(numbers, digests, data.sources[name].max_samples, seed, "sample")
        start += len(found)
    contained = 0
    if data.validation is not None:
        validation = sampled.pop(data.validation)
        held = _keys(digests[validation])
        same = {name: np.isin(_keys(digests[kept]), held) for name, kept in sampled.items()}
        found = ranks(digests[_joined(kept[same[name]] for name, kept in sampled.items())], seed, "sample")
        sampled = {name: kept[~same[name]] for name, kept in sampled.items()}
        whole = sum(map(len, sampled.values()))
        sampled = _at_most(sampled, digests, data.max_samples, seed)
        if data.max_samples is not None and whole >= data.max_samples:  # what ranks above the last may not be here
            found = found[found <= ranks(digests[_joined(sampled.values())], seed, "sample").max()]
        contained = len(found)
    else:
        sampled = _at_most(sampled, digests, data.max_samples, seed)
        pool = _joined(sampled.values())
        count = held_out_rows(len(pool), data.validation_fraction)
        validation = held_out(pool, ranks(digests[pool], seed, "hold out"), count) if count else pool[:0]
        sampled = _only(sampled, ~_marked(validation, len(digests)))
    weights = {name: data.sources[name].weight for name in sampled}
    if data.mixing == "concat":
        train = _joined(_repeated(kept, digests, weights[name], seed) for name, kept in sampled.items())
    else:
        train = _interleaved(sampled, digests, weights, seed, until_all=data.mixing == "interleave_over")
    used = int(_marked(train, len(digests)).sum())
    return Mixed(train, validation, used, len(digests) - used - len(validation) - contained, contained)


def _joined(parts: Iterable[Integers]) -> Integers:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _marked(numbers: Integers, rows: int) -> NDArray[np.bool_]:
    marks = np.zeros(rows, np.bool_)
    marks[numbers] = True
    return marks


def _only(sampled: dict[str, Integers], marks: NDArray[np.bool_]) -> dict[str, Integers]:
    return {name: numbers[marks[numbers]] for name, numbers in sampled.items()}


def _keys(digests: Ranks) -> NDArray[np.void]:
    return np.ascontiguousarray(digests).view(f"V{DIGEST_BYTES}").reshape(-1)


def _smallest(numbers: Integers, digests: Ranks, count: int | None, seed: int, purpose: Purpose) -> Integers:
    """The `count` rows of the smallest rank, in their own order; of equal ones those that come first."""
    if count is None or count >= len(numbers):
        return numbers
    order = np.argsort(ranks(digests[numbers], seed, purpose), kind="stable") if count else numbers
    return np.sort(numbers[order[:count]])


def _at_most(sampled: dict[str, Integers], digests: Ranks, count: int | None, seed: int) -> dict[str, Integers]:
    if count is None:
        return sampled
    return _only(sampled, _marked(_smallest(_joined(sampled.values()), digests, count, seed, "sample"), len(digests)))


def held_out(numbers: Integers, ranks: Ranks, count: int) -> Integers:
    """`count` rows of the smallest ranks; fewer where equal rows, which stay together, would be more."""
    order = np.argsort(ranks, kind="stable")
    ranked = ranks[order]
    starts = np.flatnonzero(np.concatenate([[True] * min(1, len(order)), ranked[1:] != ranked[:-1]]))
    sizes = np.diff(starts, append=len(order))
    chosen = list[int]()
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        if len(chosen) == count:
            break
        if len(chosen) + size <= count:
            chosen += range(start, start + size)
    return np.sort(numbers[order[np.array(chosen, np.int64)]])


def _repeated(numbers: Integers, digests: Ranks, weight: float, seed: int) -> Integers:
    """All rows as often as the weight has whole times, and a share of them once more: what is left of the weight."""
    whole = int(weight)
    extra = _smallest(numbers, digests, round((weight - whole) * len(numbers)), seed, "repeat")
    return np.concatenate([np.tile(numbers, whole), extra])


def _interleaved(
    sampled: dict[str, Integers], digests: Ranks, weights: dict[str, float], seed: int, *, until_all: bool
) -> Integers:
    """Draws a source for each row, with the weights as probabilities, until one is used up, or all are.

    The draws and the ends are those of datasets.interleave_datasets (first_exhausted, all_exhausted), so the counts are
    the same. A source's rows come by rank: what is left over is no tail of a file.
    """
    order = {
        name: numbers[np.argsort(ranks(digests[numbers], seed, "interleave"), kind="stable")]
        for name, numbers in sampled.items()
        if len(numbers) and weights[name] > 0
    }
    if not order:
        return np.zeros(0, np.int64)
    lengths = np.array([len(numbers) for numbers in order.values()])
    chances = np.array([weights[name] for name in order])
    draws = _draws(lengths, chances / chances.sum(), seed, until_all=until_all)
    found = np.empty(len(draws), np.int64)
    for number, rows in enumerate(order.values()):
        at = np.flatnonzero(draws == number)
        found[at] = rows[np.arange(len(at)) % len(rows)]
    return found


def _draws(lengths: Integers, chances: NDArray[np.float64], seed: int, *, until_all: bool) -> Integers:
    generator = np.random.default_rng(seed)
    blocks, counts = list[Integers](), np.zeros(len(lengths), np.int64)
    while not (all if until_all else any)(counts >= lengths):
        blocks.append(generator.choice(len(lengths), size=1000, p=chances))
        counts += np.bincount(blocks[-1], minlength=len(lengths))
    draws = np.concatenate(blocks)
    # a source ends with its last row's draw; the epoch with the first, or the last, of these
    ends = [
        np.flatnonzero(draws == number)[length - 1] for number, length in enumerate(lengths) if counts[number] >= length
    ]
    return draws[: (max if until_all else min)(ends) + 1]
