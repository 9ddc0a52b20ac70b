"""Samples made by hand with the tiny tokenizer."""

from typing import Any

import tiny

from factory.data.dataset import IGNORED, Example, Labelled, Pair
from factory.preview import samples
from factory.preview.samples import Dropped, Origin, Preview, Sample

QUESTION = "<|im_start|>user\nName \x1b[31mtwo <b>colours</b> 你好.<|im_end|>\n<|im_start|>assistant\n"


def reader() -> samples.Reader:
    return samples.reader_of(tiny.tokenizer())


def ids(text: str) -> list[int]:
    return tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]


def example(answer: str, *, question: str = QUESTION, weight: float | None = None, **values: Any) -> Example:
    """The answer and its end are trained; the newline after it is not."""
    prompt, trained, tail = ids(question), ids(f"{answer}<|im_end|>"), ids("\n")
    labels = [IGNORED] * len(prompt) + trained + [IGNORED] * len(tail)
    weights = None if weight is None else [0.0] * len(prompt) + [weight] * len(trained) + [0.0] * len(tail)
    return Example([*prompt, *trained, *tail], labels, weights=weights, **values)


def sample(found: Any, *rows: int) -> Sample:
    first = {Pair: lambda: found.chosen, Labelled: lambda: found.example}.get(type(found), lambda: found)()
    sizes = first.documents or (len(first.ids),)
    origins = [Origin(size=size, source="set", row=row) for size, row in zip(sizes, rows or (1,), strict=True)]
    return samples.sample(found, origins, reader())


def packed(*answers: str) -> Example:
    parts = [example(answer) for answer in answers]
    return Example(
        [token for part in parts for token in part.ids],
        [label for part in parts for label in part.labels],
        tuple(len(part.ids) for part in parts),
    )


def preview(*shown: Sample, **changes: Any) -> Preview:
    values: dict[str, Any] = {
        "settings": {"data": "a <set>", "model": "tiny"},
        "data": {
            "rows": 20,
            "used": 12,
            "validation": 2,
            "not_sampled": 1,
            "dropped": {"no \x1b[2J<i>answer</i>": 5},
            "truncated": 2,
            "cut_tokens": 30,
            "open_ended": 1,
            "tokens": 400,
            "trained_tokens": 100,
            "packing_efficiency": 0.985,
        },
        "dropped": (Dropped(source="set", reason="no \x1b[2J<i>answer</i>", count=5, first=(3, 4)),),
        "lengths": samples.lengths([10, 12, 31, 40], 40),
        "sequences": 6,
        "steps": 3,
        "samples": shown,
    }
    return Preview(**values | changes)
