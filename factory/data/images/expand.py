"""The marks of images in a rendered conversation to as many tokens as the processor makes of each."""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from factory.data.images.read import read_image
from factory.data.record import BadRow
from factory.data.render import Rendered
from factory.refusal import refuse

Span = tuple[int, int]
# the texts that stand for an image in some model: what a text that has none may not hold
_MARKS = ("<image>", "<|image_pad|>", "<|image|>", "[IMG]", "<start_of_image>", "<image_soft_token>", "<IMG_CONTEXT>")
# what templates of this processor's models write around an image: for a template that has no place for one
_AROUND: dict[str, tuple[str, str]] = dict.fromkeys(
    ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor"), ("<|vision_start|>", "<|vision_end|>")
)
_KEPT = 4096  # sizes whose tokens are remembered


class Expander:
    """Of one processor, which `make` gives when the first image comes."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._known: dict[tuple[Span, ...], tuple[str, ...]] = {}
        self._last: tuple[tuple[str, ...], tuple[str, ...]] = (), ()

    @cached_property
    def processor(self) -> Any:
        return self._make()

    def expand(self, rendered: Rendered, places: Sequence[str]) -> Rendered:
        """The same conversation with all tokens of its images, which are then its `images`; texts are parted at them.

        Raises BadRow.
        """
        marks, texts = self._marks(rendered.text, places)
        if any(start < answer.end and answer.start < end for start, end in marks for answer in rendered.answers):
            raise BadRow("an answer has an image")
        return _replaced(rendered, marks, texts) if marks else rendered

    def prompt(self, text: str, places: Sequence[str]) -> str:
        """A text alone, likewise."""
        return _written_out(text, *self._marks(text, places))[0]

    def _marks(self, text: str, places: Sequence[str]) -> tuple[list[Span], list[str]]:
        """Where images stand in a text, and what is written there."""
        if not places:
            if any(mark in text for mark in _MARKS) and self.processor.image_token in text:
                raise BadRow("a text has the model's mark of an image, and the row no image")
            return [], []
        marks, before, after = _found(self.processor, text)
        if len(marks) != len(places):
            raise BadRow("the chat template does not write as many marks as there are images")
        texts = [f"{before}{each}{after}" for each in self._of_places(tuple(places))]
        fit = _FITTED.get(type(self.processor).__name__)
        return marks, fit(text, marks, texts) if fit else texts

    def _of_places(self, places: tuple[str, ...]) -> tuple[str, ...]:
        """What the processor writes in the place of each image of one conversation: it follows from their sizes."""
        if self._last[0] != places:  # a pair has the same images twice in a row
            images = [read_image(place) for place in places]
            sizes = tuple((image.width, image.height) for image in images)
            if sizes not in self._known:
                if len(self._known) >= _KEPT:
                    self._known.clear()
                self._known[sizes] = written(self.processor, images)
            self._last = places, self._known[sizes]
        return self._last[1]


def _idefics2(text: str, marks: Sequence[Span], texts: list[str]) -> list[str]:
    """Where two images touch, the token between them is written once; a word after an image is parted by a space."""
    joint = "<fake_token_around_image>"
    touching = [False, *(one[1] == other[0] for one, other in pairwise(marks))]
    found = [each.removeprefix(joint) if near else each for each, near in zip(texts, touching, strict=True)]
    parted = [re.match(r"[^\s<]", text[end:]) for _, end in marks]
    return [f"{each} " if word else each for each, word in zip(found, parted, strict=True)]


# whose processor writes an image as what is around it wants
_FITTED: dict[str, Callable[[str, Sequence[Span], list[str]], list[str]]] = {"Idefics2Processor": _idefics2}


def _found(processor: Any, text: str) -> tuple[list[Span], str, str]:
    """Where images stand in a text, and what is to be written around each."""
    marks = [found.span() for found in re.finditer(re.escape(processor.image_token), text)]
    if marks:
        return marks, "", ""
    marks = [found.span() for found in re.finditer("<image>", text)]  # of a template that knows nothing of images
    return marks, *_AROUND.get(type(processor).__name__, ("", ""))


def ids_as_processor(processor: Any, text: str, places: Sequence[str]) -> list[int]:
    """What the processor itself makes of a rendered conversation and its images."""
    marks, before, after = _found(processor, text)
    marked, _ = _written_out(text, marks, [f"{before}{processor.image_token}{after}"] * len(marks))
    images = [read_image(place) for place in places]
    if type(processor).__name__ == "PaliGemmaProcessor":  # it lays a text out itself, which here a template has done
        (expanded,), _ = processor.get_text_with_replacements([marked], written(processor, images))
        return processor.tokenizer(expanded, add_special_tokens=False)["input_ids"]
    return processor(text=[marked], images=[images], add_special_tokens=False)["input_ids"][0]


def written(processor: Any, images: Sequence[Any]) -> tuple[str, ...]:
    """What the processor writes in the place of each image of one conversation."""
    name, token = type(processor).__name__, processor.image_token
    if name == "MllamaProcessor":  # its text attends to the images from aside
        return (token,) * len(images)
    if name in _FITTED:  # it does not tell: then it is what there is of one image alone
        alone = [processor(text=[token], images=[[image]], add_special_tokens=False) for image in images]
        return tuple(processor.tokenizer.decode(each["input_ids"][0]) for each in alone)
    found = processor(
        text=[" ".join([token] * len(images))],
        images=[list(images)],
        return_text_replacement_offsets=True,
        add_special_tokens=False,
    )
    offsets = found.get("text_replacement_offsets")
    if not offsets:
        raise refuse("processor-unknown", "model.path", f"{name} does not tell what it writes for an image")
    return tuple(each["replacement"] for each in offsets[0])


def _written_out(text: str, marks: Sequence[Span], texts: Sequence[str]) -> tuple[str, list[Span]]:
    """The text with `texts` in the place of its marks, and where they stand then."""
    pieces, images, at, size = list[str](), list[Span](), 0, 0
    for (start, end), each in zip(marks, texts, strict=True):
        pieces += [text[at:start], each]
        size += start - at
        images.append((size, size + len(each)))
        size, at = size + len(each), end
    return "".join([*pieces, text[at:]]), images


def _replaced(rendered: Rendered, marks: Sequence[Span], texts: Sequence[str]) -> Rendered:
    text, images = _written_out(rendered.text, marks, texts)
    ends = [end for _, end in marks]
    gained = [0, *(new - old for (_, new), old in zip(images, ends, strict=True))]

    def moved(place: int) -> int:
        return place + gained[bisect_right(ends, place)]

    return replace(
        rendered,
        text=text,
        answers=tuple(replace(answer, start=moved(answer.start), end=moved(answer.end)) for answer in rendered.answers),
        texts=tuple(without([(moved(start), moved(end)) for start, end in rendered.texts], images)),
        exchanges=tuple(map(moved, rendered.exchanges)),
        system=None if rendered.system is None else (moved(rendered.system[0]), moved(rendered.system[1])),
        images=tuple(images),
    )


def without(spans: Sequence[Span], holes: Sequence[Span]) -> list[Span]:
    """The parts of the spans that are outside the holes, which are in order; a span that no hole touches stays."""
    found = list[Span]()
    for start, end in spans:
        inside = [hole for hole in holes if hole[0] < end and start < hole[1]]
        at = start
        for first, last in inside:
            if at < first:
                found.append((at, first))
            at = last
        if at < end or not inside:
            found.append((at, end))
    return found
