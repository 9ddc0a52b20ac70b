"""A preview's figures in words: the same on a terminal and on a page."""

from collections.abc import Iterator, Sequence

from factory.data.record import Medium, by_kind
from factory.preview.samples import Bin, Dropped, Lengths, Origin, Preview, Sample, Side
from factory.preview.visible import in_line


def counted(preview: Preview) -> Iterator[tuple[str, str]]:
    """The counts, each with its name: the same lines for a terminal and for a page."""
    data = preview.data
    dropped = sum(data["dropped"].values())
    unused = f", {data['not_sampled']:,} not sampled" if data["not_sampled"] else ""
    yield (
        "rows",
        f"{data['rows']:,}: {data['used']:,} trained, {data['validation']:,} held out{unused}, {dropped:,} dropped",
    )
    if data["truncated"]:
        ended = f", {data['open_ended']:,} without the end of their answer" if data["open_ended"] else ""
        yield "cut", f"{many(data['truncated'], 'row')} ({many(data['cut_tokens'], 'token')}){ended}"
    share = data["trained_tokens"] / data["tokens"] if data["tokens"] else 0
    yield "tokens", f"{data['tokens']:,}, of which {data['trained_tokens']:,} are trained ({share:.0%})"
    if data["packing_efficiency"] is not None:
        yield "packing", f"{data['packing_efficiency']:.1%} of {many(preview.sequences, 'sequence')} is filled"
    yield "steps", f"{preview.steps:,}, over {many(preview.sequences, 'sequence')}"


def many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def dropped(found: Dropped) -> str:
    place = where(found)
    return f"{found.count:,}: {in_line(found.reason)}" + (f" ({place})" if place else "")


def where(found: Dropped) -> str:
    """Empty where it is not known."""
    if not found.first:
        return ""
    listed = ", ".join(f"{row:,}" for row in found.first)
    source = "" if found.source is None else f"{in_line(found.source)} "
    return f"{source}row{'s' * (found.count > 1)} {listed}{' …' if found.count > len(found.first) else ''}"


def described(lengths: Lengths) -> str:
    middle = f"{lengths.median:,.1f}".removesuffix(".0")  # of an even number of rows a half may be left
    return (
        f"{lengths.shortest:,} to {lengths.longest:,} tokens a {lengths.of}, median {middle}, mean {lengths.mean:,.1f}"
    )


def span(found: Bin) -> str:
    return f"{found.low:,}" if found.low == found.high else f"{found.low:,}-{found.high:,}"


def bar_length(rows: int, most: int, room: int) -> int:
    """In proportion, and never nothing for something."""
    return max(1, round(room * rows / most)) if rows else 0


def sizes(side: Side) -> str:
    return f"{side.size:,} tokens, {side.trained:,} trained"


def origin(found: Origin) -> str:
    return "next document" if found.source is None else f"{in_line(found.source)} row {found.row:,}"


def origins(sample: Sample) -> str:
    """Empty where nothing is known."""
    first, count = sample.origins[0], len(sample.origins)
    if count == 1:
        return "" if first.source is None else origin(first)
    return f"{count:,} documents" + ("" if first.source is None else f" from {origin(first)} on")


def media(shown: Sequence[Medium]) -> str:
    """`2 images, 1 video`."""
    return ", ".join(many(len(places), kind) for kind, places in by_kind(shown).items())
