"""The prepared data set as what is shown of it: counts, lengths, and the first sequences token by token. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, median
from typing import Any

from factory.data.dataset import IGNORED, Example, Labelled, Pair
from factory.data.dataset import Sample as Prepared
from factory.data.decoding import BROKEN, Decode, after, decoder
from factory.data.record import MEDIA, Medium, by_kind

_LONGEST_CHARACTER = 8  # tokens that a character can need: four bytes, and a joined emoji's next
_BINS = 12
_FEW_SAME = 4  # so many equal special tokens in a row are shown as one


@dataclass(frozen=True, slots=True)
class Token:
    """What is seen as one: a token, several that are a character together, or a run of the same special one."""

    ids: tuple[int, ...]
    text: str
    trained: bool
    weight: float
    special: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A piece of a sequence: `size` tokens of the row `row` (from 1) of a source. A stream does not tell which."""

    size: int
    source: str | None = None
    row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One sequence. `name` is chosen or rejected where there are two, else empty."""

    name: str
    example: Example
    tokens: tuple[Token, ...]
    text: str

    @property
    def trained(self) -> int:
        return sum(len(token.ids) for token in self.tokens if token.trained)

    @property
    def size(self) -> int:
        return len(self.example.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    sides: tuple[Side, ...]
    origins: tuple[Origin, ...]
    label: bool | None = None

    @property
    def media(self) -> tuple[Medium, ...]:
        return self.sides[0].example.media

    @property
    def borders(self) -> dict[int, Origin]:
        """Where the second and later documents of a packed sequence begin, by token."""
        starts = accumulate(origin.size for origin in self.origins[:-1])
        return dict(zip(starts, self.origins[1:], strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Rows that are not trained; `first` are the numbers, from 1, of the first of them in their source.

    A stream does not tell which source.
    """

    source: str | None
    reason: str
    count: int
    first: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Rows of `low` up to and with `high` tokens."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens a row, of a pair its longer side. `bins` are without gaps.

    `of` is what has the tokens: a packed stream is seen as the sequences that it has become.
    """

    shortest: int
    median: float
    mean: float
    longest: int
    max_length: int
    bins: tuple[Bin, ...]
    of: str = "row"

    @property
    def lines(self) -> tuple[Bin | None, ...]:
        """The bins, and None where max_length belongs between them."""
        at = sum(each.low <= self.max_length for each in self.bins)
        return *self.bins[:at], None, *self.bins[at:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """`settings` is what it is a preview of, `data` the counts that a run's report has, too."""

    settings: dict[str, str]
    data: dict[str, Any]
    dropped: tuple[Dropped, ...]
    lengths: Lengths | None
    sequences: int
    steps: int
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()


class Reader:
    """Token ids to the text that each stands for in its place."""

    def __init__(self, decode: Decode, special: Iterable[int]):
        self.decode, self._special = decode, frozenset(special)

    def tokens(self, example: Example, starts: Iterable[int] = ()) -> tuple[Token, ...]:
        """A new document starts at each of `starts`: no token reaches over its border."""
        ids, starts = example.ids, frozenset(starts)
        found, at = list[Token](), 0
        while at < len(ids):
            trained, weight = _trained(example, at)
            if ids[at] in self._special:
                alike = self._alike(example, at, starts)
                size, text = alike if alike >= _FEW_SAME else 1, self.decode([ids[at]])
            else:
                size, text = self._character(example, at, starts)
            found.append(Token(tuple(ids[at : at + size]), text, trained, weight, ids[at] in self._special))
            at += size
        return tuple(found)

    def _alike(self, example: Example, at: int, starts: frozenset[int]) -> int:
        """How often this token is repeated from here on."""
        end = at + 1
        while end < len(example.ids) and example.ids[end] == example.ids[at] and _together(example, at, end, starts):
            end += 1
        return end - at

    def _character(self, example: Example, at: int, starts: frozenset[int]) -> tuple[int, str]:
        """Tokens from here on that decode to whole characters, and their text."""
        ids, before = example.ids, example.ids[max(0, at - 1) : at]
        size = 1
        while True:
            text = after(self.decode, before, ids[at : at + size])
            end = at + size
            more = end < len(ids) and ids[end] not in self._special and _together(example, at, end, starts)
            if not text.endswith(BROKEN) or not more or size == _LONGEST_CHARACTER:
                return size, text
            size += 1


def _trained(example: Example, at: int) -> tuple[bool, float]:
    """Whether a token is trained, and with which weight. A sequence's first one is predicted by nothing."""
    weight = 1.0 if example.weights is None else example.weights[at]
    trained = at > 0 and example.labels[at] != IGNORED and weight > 0
    return trained, weight if trained else 0.0


def _together(example: Example, first: int, last: int, starts: frozenset[int]) -> bool:
    return last not in starts and _trained(example, first) == _trained(example, last)


def reader_of(tokenizer: Any) -> Reader:
    """Of a transformers tokenizer. Added tokens that are not called special are shown as such: <think> is one."""
    added = [number for number, token in tokenizer.added_tokens_decoder.items() if token.content.strip()]
    return Reader(decoder(tokenizer), {*tokenizer.all_special_ids, *added})


def sample(found: Prepared, origins: Sequence[Origin], reader: Reader) -> Sample:
    starts = tuple(accumulate(origin.size for origin in origins[:-1]))
    return Sample(
        sides=tuple(
            Side(name=name, example=each, tokens=reader.tokens(each, starts), text=reader.decode(each.ids))
            for name, each in _sides(found)
        ),
        origins=tuple(origins),
        label=found.label if isinstance(found, Labelled) else None,
    )


def _sides(found: Prepared) -> Iterator[tuple[str, Example]]:
    if isinstance(found, Pair):
        yield "chosen", found.chosen
        yield "rejected", found.rejected
    else:
        yield "", found.example if isinstance(found, Labelled) else found


def stretches(found: tuple[Token, ...], borders: dict[int, Origin]) -> Iterator[tuple[Origin | None, list[Token]]]:
    """Tokens that are trained alike, with the document that begins before them where one does."""
    at, run, border = 0, list[Token](), None
    for token in found:
        begins = borders.get(at)
        if run and (begins is not None or (token.trained, token.weight) != (run[0].trained, run[0].weight)):
            yield border, run
            run, border = [], None
        border = border or begins
        run.append(token)
        at += len(token.ids)
    if run:
        yield border, run


def lengths(found: Sequence[int], max_length: int, of: str = "row") -> Lengths | None:
    """None where there is no row."""
    if not found:
        return None
    return Lengths(
        shortest=min(found),
        median=median(found),
        mean=fmean(found),
        longest=max(found),
        max_length=max_length,
        bins=tuple(_bins(found)),
        of=of,
    )


def _bins(found: Sequence[int]) -> Iterator[Bin]:
    """At most so many bins that a person can read, of a round width."""
    width = next(width for width in _round_numbers() if max(found) // width - min(found) // width < _BINS)
    counts = Counter(length // width for length in found)
    for number in range(min(counts), max(counts) + 1):
        yield Bin(low=number * width, high=(number + 1) * width - 1, rows=counts[number])


def _round_numbers() -> Iterator[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def to_json(preview: Preview) -> dict[str, Any]:
    """The contract's object, with what a person sees beside it. Rows are numbered from 1."""
    found = preview.lengths
    return {
        "data": preview.data,
        "samples": [_sample_json(each) for each in preview.samples],
        "settings": preview.settings,
        "sequences": preview.sequences,
        "steps": preview.steps,
        "lengths": None
        if found is None
        else {
            "min": found.shortest,
            "median": found.median,
            "mean": round(found.mean, 2),
            "max": found.longest,
            "max_length": found.max_length,
            "histogram": [{"from": each.low, "to": each.high, "rows": each.rows} for each in found.bins],
        },
        "dropped_rows": [
            {"source": each.source, "reason": each.reason, "count": each.count, "first": list(each.first)}
            for each in preview.dropped
        ],
        "notes": list(preview.notes),
    }


def _sample_json(sample: Sample) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for side in sample.sides:
        prefix = f"{side.name}_" if side.name else ""
        made[f"{prefix}input_ids"] = side.example.ids
        made[f"{prefix}labels"] = side.example.labels
        made[f"{prefix}text"] = side.text
        if side.example.weights is not None:
            made[f"{prefix}weights"] = side.example.weights
    made["documents"] = [
        {"source": each.source, "row": each.row or None, "tokens": each.size} for each in sample.origins
    ]
    if sample.label is not None:
        made["label"] = sample.label
    shown = by_kind(sample.media)
    made |= {column: list(shown[kind]) for column, kind in MEDIA.items() if kind in shown}
    return made
