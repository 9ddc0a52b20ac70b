"""The marks of images, videos and sounds in a rendered conversation to as many tokens as the processor writes."""

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from factory.config.refusal import refuse
from factory.data.media.processor import Processor
from factory.data.media.read import NAMED
from factory.data.record import MEDIA, BadRow, Medium
from factory.data.render import Rendered

Span = tuple[int, int]
Places = Mapping[str, Sequence[str]]  # of the media of one conversation, by kind
# the texts that stand for something in some model: what a text that has none of them may not hold
_MARKS = (
    *("<image>", "<|image_pad|>", "<|image|>", "[IMG]", "<start_of_image>", "<image_soft_token>", "<IMG_CONTEXT>"),
    *("<video>", "<|video_pad|>", "<|video|>", "<|VIDEO|>", "<|AUDIO|>", "<|audio|>", "[AUDIO]", "<audio_soft_token>"),
)
_SEEN = ("<|vision_start|>", "<|vision_end|>")
# what templates of this processor's models write around one: for a template that has no place for it
_AROUND: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor"), _SEEN),
    "Qwen2AudioProcessor": ("<|audio_bos|>", "<|audio_eos|>"),
}
_HEARD = 2  # tokens: of one alone Qwen2-Audio's class takes the text for one that is not written out
_KEPT = 4096  # sizes whose tokens are remembered


class Expander:
    """Of one processor, which `make` gives when the first image, video or sound comes."""

    def __init__(self, make: Callable[[], Processor]):
        self._make = make
        self._known: dict[Any, tuple[str, ...]] = {}
        self._last: tuple[Any, dict[str, tuple[str, ...]]] = (), {}

    @cached_property
    def processor(self) -> Processor:
        return self._make()

    def expand(self, rendered: Rendered, places: Places) -> Rendered:
        """The same conversation with all tokens of its `media`, in their order; texts are parted at them.

        Raises BadRow.
        """
        marks, texts = self._marks(rendered.text, places)
        for answer in rendered.answers:
            if inside := [mark for mark in marks if mark.start < answer.end and answer.start < mark.end]:
                raise BadRow(f"an answer has {NAMED[inside[0].medium.kind]}")
        return _replaced(rendered, marks, texts) if marks else rendered

    def prompt(self, text: str, places: Places) -> str:
        """A text alone, likewise."""
        return _written_out(text, *self._marks(text, places))[0]

    def _marks(self, text: str, places: Places) -> tuple[list["Mark"], list[str]]:
        """Where something stands in a text, and what is written there."""
        if not places and not any(mark in text for mark in _MARKS):
            return [], []
        found, around = marks(self.processor, text, places)
        if not found:
            return [], []
        made = {kind: iter(texts) for kind, texts in self._of_places(places).items()}
        texts = [next(made[mark.medium.kind]).join(around[mark.medium.kind]) for mark in found]
        fit = _FITTED.get(self.processor.name)
        return found, fit(text, found, texts) if fit else texts

    def _of_places(self, places: Places) -> dict[str, tuple[str, ...]]:
        """What the processor writes in the place of each of one conversation: it follows from their sizes."""
        asked = tuple((kind, tuple(each)) for kind, each in places.items())
        if self._last[0] != asked:  # a pair has the same twice in a row
            self._last = asked, {kind: self._of_kind(kind, each) for kind, each in asked}
        return self._last[1]

    def _of_kind(self, kind: str, places: Sequence[str]) -> tuple[str, ...]:
        shown = [self.processor.read(Medium(kind, place)) for place in places]
        if kind == "video":  # hardly two are of one length, and each is long
            return written(self.processor, kind, shown)
        sizes = (kind, *map(_SIZES[kind], shown))
        if sizes not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[sizes] = written(self.processor, kind, shown)
        return self._known[sizes]


# all that the tokens of one depend on
_SIZES: dict[str, Callable[[Any], Any]] = {"image": lambda image: image.size, "audio": len}


@dataclass(frozen=True, slots=True)
class Mark:
    """Characters of a text in whose place something is shown."""

    start: int
    end: int
    medium: Medium


def marks(processor: Processor, text: str, places: Places) -> tuple[list[Mark], dict[str, tuple[str, str]]]:
    """Where each of the places stands in a text, and by kind what is to be written around it. Raises BadRow."""
    found, around = list[Mark](), dict[str, tuple[str, str]]()
    for column, kind in MEDIA.items():
        wanted, token = places.get(kind, ()), processor.tokens.get(kind)
        if token is None:
            if wanted:
                raise BadRow(f"it has {column}, and the model takes none")
            continue
        mark = re.escape(token)
        per_frame = kind == "video" and processor.name == "Qwen3VLProcessor"  # its text has _SEEN around each frame
        if per_frame:
            mark = f"{mark.join(map(re.escape, _SEEN))}|{mark}"
        spans = [each.span() for each in re.finditer(mark, text)]
        around[kind] = "", ""
        if wanted and not spans:  # of a template that knows nothing of them
            spans = [each.span() for each in re.finditer(f"<{kind}>", text)]
            around[kind] = ("", "") if per_frame else _AROUND.get(processor.name, ("", ""))
        if spans and not wanted:
            raise BadRow(f"a text has the model's mark of {NAMED[kind]}, and the row no {kind}")
        if len(spans) != len(wanted):
            raise BadRow(f"the chat template does not write as many marks as there are {column}")
        found += [Mark(*span, Medium(kind, place)) for span, place in zip(spans, wanted, strict=True)]
    return sorted(found, key=lambda mark: mark.start), around


def _idefics2(text: str, marks: Sequence[Mark], texts: list[str]) -> list[str]:
    """Where two images touch, the token between them is written once; a word after an image is parted by a space."""
    joint = "<fake_token_around_image>"
    touching = [False, *(one.end == other.start for one, other in pairwise(marks))]
    found = [each.removeprefix(joint) if near else each for each, near in zip(texts, touching, strict=True)]
    parted = [re.match(r"[^\s<]", text[mark.end :]) for mark in marks]
    return [f"{each} " if word else each for each, word in zip(found, parted, strict=True)]


# whose processor writes an image as what is around it wants
_FITTED: dict[str, Callable[[str, Sequence[Mark], list[str]], list[str]]] = {"Idefics2Processor": _idefics2}


def ids_as_processor(processor: Processor, text: str, places: Places) -> list[int]:
    """What the processor itself makes of a rendered conversation and what is shown in it."""
    found, around = marks(processor, text, places)
    marked, _ = _written_out(
        text, found, [processor.tokens[mark.medium.kind].join(around[mark.medium.kind]) for mark in found]
    )
    shown = {kind: [[processor.read(Medium(kind, place)) for place in each]] for kind, each in places.items()}
    if processor.name == "PaliGemmaProcessor":  # it lays a text out itself, which here a template has done
        images = written(processor, "image", shown["image"][0])
        (expanded,), _ = processor.own.get_text_with_replacements([marked], images)
        return processor.tokenizer(expanded, add_special_tokens=False)["input_ids"]
    return list(map(int, processor.all([marked], shown)["input_ids"][0]))


def written(processor: Processor, kind: str, shown: Sequence[Any]) -> tuple[str, ...]:
    """What the processor writes in the place of each of one conversation, which are all of one kind."""
    token = processor.tokens[kind]
    if processor.name == "MllamaProcessor":  # its text attends to the images from aside
        return (token,) * len(shown)
    if processor.name in _FITTED:  # it does not tell: then it is what there is of one image alone
        alone = [processor(kind, [token], [[image]]) for image in shown]
        return tuple(processor.tokenizer.decode(each["input_ids"][0]) for each in alone)
    if kind == "video" and len(shown) > 1:  # of other lengths they would not be one tensor
        return tuple(text for each in shown for text in written(processor, kind, [each]))
    found = processor(kind, [" ".join([token] * len(shown))], [shown], return_text_replacement_offsets=True)
    offsets = found.get("text_replacement_offsets")
    if not offsets:
        wrong = f"{processor.name} does not tell what it writes for {NAMED[kind]}"
        raise refuse(
            "processor-unknown",
            "model.path",
            wrong,
            because=(
                "how many tokens an image, a video or a sound has, and what the model sees and hears of it, is "
                "known from its processor only"
            ),
            fix=(
                "use a model whose processor transformers has (LLaVA, Idefics, Qwen-VL, PaliGemma, Gemma 3, "
                "InternVL, Llama 3.2 Vision …), or data of text only"
            ),
        )
    texts = tuple(each["replacement"] for each in offsets[0])
    if kind == "audio" and any(text.count(token) < _HEARD for text in texts):
        raise BadRow("an audio is too short to be heard")
    return texts


def _written_out(text: str, marks: Sequence[Mark], texts: Sequence[str]) -> tuple[str, list[Span]]:
    """The text with `texts` in the place of its marks, and where they stand then."""
    pieces, places, at, size = list[str](), list[Span](), 0, 0
    for mark, each in zip(marks, texts, strict=True):
        pieces += [text[at : mark.start], each]
        size += mark.start - at
        places.append((size, size + len(each)))
        size, at = size + len(each), mark.end
    return "".join([*pieces, text[at:]]), places


def _replaced(rendered: Rendered, marks: Sequence[Mark], texts: Sequence[str]) -> Rendered:
    text, places = _written_out(rendered.text, marks, texts)
    ends = [mark.end for mark in marks]
    gained = [0, *(new - old for (_, new), old in zip(places, ends, strict=True))]

    def moved(place: int) -> int:
        return place + gained[bisect_right(ends, place)]

    return replace(
        rendered,
        text=text,
        answers=tuple(replace(answer, start=moved(answer.start), end=moved(answer.end)) for answer in rendered.answers),
        texts=tuple(without([(moved(start), moved(end)) for start, end in rendered.texts], places)),
        exchanges=tuple(map(moved, rendered.exchanges)),
        system=None if rendered.system is None else (moved(rendered.system[0]), moved(rendered.system[1])),
        media=tuple((*place, mark.medium) for place, mark in zip(places, marks, strict=True)),
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
