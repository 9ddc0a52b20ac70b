"""Rows with images and videos: the tokens are the processor's own, and so are the loss and its gradients."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import films
import pytest
import seers
import torch
from PIL import Image
from torch.nn import functional

from factory.data import batches
from factory.data.dataset import IGNORED, Example
from factory.data.encoding import EncodedRow, Encoding, spec_of
from factory.data.media import Inputs, processor_spec
from factory.data.media.video import Frames
from factory.data.record import BadRow, Medium, Message, Record
from factory.losses import causal_lm
from factory.methods.parts import part_of
from factory.steps.load import read_processor

SIZES = {"wide": (40, 24), "square": (24, 24), "tall": (12, 30)}
ONE_TURN = ("paligemma",)
MOVING = [kind for kind, seer in seers.SEERS.items() if seer.video]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("seers")
    return cache(lambda kind: seers.save(kind, root / kind, weights=False))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    root = tmp_path_factory.mktemp("images")

    @cache
    def image(name: str) -> str:
        noise = Image.effect_noise(SIZES[name], 90)
        Image.merge("RGB", (noise, noise.rotate(90).resize(noise.size), noise)).save(root / f"{name}.png")
        return str(root / f"{name}.png")

    return image


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    root = tmp_path_factory.mktemp("films")
    return cache(lambda name: films.save(root / f"{name}.mkv", films.frames(name)))


def seen_of(kind: str) -> Frames:
    """LLaVA-OneVision takes as many frames of all."""
    return Frames(fps=None, most=4) if kind == "llava_onevision" else Frames(fps=2.0, most=128)


def pack(**changes: Any) -> Encoding:
    values: dict[str, Any] = {"template": "auto", "max_length": 1024, "truncation": "drop", "packing": False}
    values |= {"isolate_documents": False, "padding_free": False, "train_on_prompt": False, "mask_history": False}
    return Encoding(**(values | {"reasoning": "template", "tools": "auto", "videos": False} | changes))


def record(turns: tuple[str, ...], images: tuple[str, ...] = (), videos: tuple[str, ...] = ()) -> Record:
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[at % 2], content=content) for at, content in enumerate(turns))
    return Record(prompt=messages[:-1], response=messages[-1:], images=images, videos=videos)


def records(kind: str, image: Callable[[str], str]) -> list[Record]:
    """One image, two of other sizes, one in the middle of a text, in two turns, and none."""
    one, two = (image("wide"),), (image("square"), image("tall"))
    found = [record(("<image>What is it?", "A star."), one), record(("<image><image>Which?", "Both."), two)]
    if kind not in ONE_TURN:
        turns = ("<image>\nWhat is it?", "A star.", "And is <image> one?", "No.")
        found += [record(turns, two), record(("What is red?", "A colour."), ())]
    return found


def moving(kind: str, image: Callable[[str], str], film: Callable[[str], str]) -> list[Record]:
    """One video, two of other sizes, one after an image, one in the second turn, and none."""
    mixed = record(("<image><video>Which?", "Both."), (image("wide"),), (film("next"),))
    return [
        record(("<video>What is it?", "A star."), videos=(film("short"),)),
        record(("<video><video>Which?", "Both."), videos=(film("long"), film("wide"))),
        *([mixed] if kind != "smolvlm" else []),  # its processor keeps the video's frames alone
        record(("What?", "A star.", "And <video>?", "No."), videos=(film("long"),)),
        record(("<image>What is it?", "A star."), (image("tall"),)),
        record(("What is red?", "A colour.")),
    ]


def encoded(kind: str, folder: Path, rows: list[Record], **changes: Any) -> list[EncodedRow | BadRow]:
    from transformers import AutoTokenizer

    known: Any = AutoTokenizer.from_pretrained(folder)
    images = processor_spec(kind, read_processor(str(folder), None), known, seen_of(kind))
    return spec_of(known, pack(**changes), "messages", images).encoder.encode(rows)


def example(row: EncodedRow | BadRow) -> Example:
    assert isinstance(row, EncodedRow), row
    labels = [IGNORED] * len(row.tokens.ids)
    for start, end, _ in row.tokens.spans:
        labels[start:end] = row.tokens.ids[start:end]
    return Example(row.tokens.ids, labels, media=row.tokens.media)


def theirs(kind: str, processor: Any, one: Record, **more: Any) -> Any:
    """What the processor gives of a whole conversation in its template, as a user of transformers would ask for it."""
    messages = [*one.prompt, *one.response]
    given = [{"role": each["role"], "content": parts(each["content"])} for each in messages]
    shown: dict[str, Any] = {"images": [[Image.open(place) for place in one.images]]} if one.images else {}
    if one.videos:
        shown |= videos(kind, one)
    if kind in ONE_TURN:
        asked = messages[0]["content"]
        return processor(text=[asked], suffix=[messages[1]["content"]], **shown, **more)
    own = kind == "smolvlm" and one.videos  # its processor has another template for them
    text = (processor if own else processor.tokenizer).apply_chat_template(given, tokenize=False)
    more = {"return_tensors": "pt"} | more if one.videos else more
    return processor(text=[text], **shown, add_special_tokens=False, **more)


def parts(content: str) -> list[dict[str, str]]:
    """As messages of transformers have them."""
    split = re.split("<(image|video)>", content)
    made = [{"type": each} if at % 2 else {"type": "text", "text": each} for at, each in enumerate(split)]
    return [part for part in made[:-1] if part.get("text") != ""] + made[-1:]


def videos(kind: str, one: Record) -> dict[str, Any]:
    """The frames that are to be seen of films that were never written: two a second, the first and the last of them."""
    whole = [films.frames(Path(place).stem) for place in one.videos]
    counts = [4 if kind == "llava_onevision" else 2 * len(each) // films.RATE for each in whole]
    numbers = [[at * (len(each) - 1) // (count - 1) for at in range(count)]
               for each, count in zip(whole, counts, strict=True)]  # fmt: skip
    told = [
        {"fps": films.RATE, "total_num_frames": len(each), "duration": len(each) / films.RATE, "frames_indices": found}
        for each, found in zip(whole, numbers, strict=True)
    ]
    shown = [each[found] for each, found in zip(whole, numbers, strict=True)]
    return {"videos": shown, "video_metadata": told, "do_sample_frames": False}


@pytest.mark.parametrize("kind", seers.SEERS)
def test_the_tokens_are_the_processors(kind: str, folder: Any, image: Any) -> None:
    processor = seers.processor(kind, folder(kind))
    for one, row in zip(records(kind, image), encoded(kind, folder(kind), records(kind, image)), strict=True):
        found = example(row)
        assert found.ids == list(theirs(kind, processor.own, one)["input_ids"][0])
        assert found.media == tuple(Medium("image", place) for place in one.images)
        trained = processor.tokenizer.decode([token for token in found.labels if token != IGNORED])
        assert [text.strip() for text in trained.replace("<end_of_utterance>", "<|im_end|>").split("<|im_end|>")] == [
            *(message["content"] for message in [*one.prompt, *one.response][1::2]),
            "",
        ]


@pytest.mark.parametrize("kind", MOVING)
def test_the_tokens_of_videos_are_the_processors(kind: str, folder: Any, image: Any, film: Any) -> None:
    processor, rows = seers.processor(kind, folder(kind), seen_of(kind)), moving(kind, image, film)
    processor._take_videos()
    for one, row in zip(rows, encoded(kind, folder(kind), rows), strict=True):
        assert example(row).ids == list(theirs(kind, processor.own, one)["input_ids"][0])
        shown = {medium.kind: medium.place for medium in example(row).media}
        assert shown.get("video") == (one.videos[-1] if one.videos else None)


@pytest.mark.parametrize("kind", seers.SEERS)
def test_the_loss_and_its_gradients_are_the_models_own(kind: str, folder: Any, image: Any) -> None:
    """Row by row, against the model's own forward of what its processor gives; then all rows in one batch."""
    as_the_models_own(kind, folder(kind), records(kind, image))


@pytest.mark.parametrize("kind", MOVING)
def test_the_loss_and_its_gradients_of_videos_are_the_models_own(kind: str, folder: Any, image: Any, film: Any) -> None:
    as_the_models_own(kind, folder(kind), moving(kind, image, film))


def as_own(
    model: Any, inputs: dict[str, Any], sample: Example, media: Inputs, atol: float
) -> tuple[torch.Tensor, set[str]]:
    """A row's loss, and the tensors with a gradient, once both are those of the model's own forward of `inputs`."""
    logits = model(**doubled(inputs), use_cache=False).logits[:, :-1]  # its own `loss` would be in float32
    own = functional.cross_entropy(logits.transpose(1, 2), torch.tensor([sample.labels])[:, 1:], reduction="sum")
    mine = causal_lm(model, doubled(batches.collate([sample], 0, "cpu", media=media)))
    torch.testing.assert_close(mine, own, rtol=1e-10, atol=1e-10)
    trained = dict(model.named_parameters())
    left, right = (
        torch.autograd.grad(loss, list(trained.values()), allow_unused=True, retain_graph=True) for loss in (mine, own)
    )
    for name, slope, other in zip(trained, left, right, strict=True):
        assert (slope is None) == (other is None), name
        if slope is not None and other is not None:
            torch.testing.assert_close(slope, other, rtol=1e-6, atol=atol)
    alive = {name for name, slope in zip(trained, left, strict=True) if slope is not None and slope.any()}
    return mine.detach(), alive


def as_the_models_own(kind: str, folder: Path, rows: list[Record]) -> None:
    from factory.architecture import architecture

    processor = seers.processor(kind, folder, seen_of(kind))
    model = seers.model(kind, seers.tokenizer(kind)).double().train()
    arch, media = architecture(model.config.to_dict()), Inputs(lambda: processor)
    trained = dict(model.named_parameters())
    sums, slopes = [], []
    samples = [example(row) for row in encoded(kind, folder, rows)]
    if any(one.videos for one in rows):
        processor._take_videos()
    for one, sample in zip(rows, samples, strict=True):
        inputs = dict(theirs(kind, processor.own, one, return_tensors="pt"))
        loss, alive = as_own(model, inputs, sample, media, 1e-7)  # some compute norms in float32
        sums.append(loss)
        slopes.append(alive)
    eyes = {name for name in trained if part_of(name, arch) == "vision" and name.endswith("weight")}
    if kind != "mllama":
        together = causal_lm(model, doubled(batches.collate(samples, 0, "cpu", media=media)))
        torch.testing.assert_close(together.detach(), sum(sums), rtol=1e-10, atol=1e-10)
    assert slopes[0] & eyes, "no gradient reaches what sees"


def test_a_batch_of_llama_vision_is_as_its_processors(folder: Any, image: Any) -> None:
    """Its tokens before an image attend to all the room for images that the batch has: so it is compared as a whole."""
    kind = "mllama"
    processor, model = seers.processor(kind, folder(kind)), seers.model(kind, seers.tokenizer(kind)).double()
    rows = [one for one in records(kind, image) if one.images]
    samples = [example(row) for row in encoded(kind, folder(kind), rows)]
    mine = causal_lm(model, doubled(batches.collate(samples, 0, "cpu", media=Inputs(lambda: processor))))
    messages = [[*one.prompt, *one.response] for one in rows]
    given = [[{**each, "content": parts(each["content"])} for each in each_row] for each_row in messages]
    inputs = processor.own(
        text=[processor.tokenizer.apply_chat_template(each, tokenize=False) for each in given],
        images=[[Image.open(place) for place in one.images] for one in rows],
        return_tensors="pt",
        padding=True,
        add_special_tokens=False,
    )
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    for row, sample in enumerate(samples):
        labels[row, : len(sample.labels)] = torch.tensor(sample.labels)
    logits = model(**doubled(inputs), use_cache=False).logits[:, :-1]
    own = functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="sum")
    torch.testing.assert_close(mine, own, rtol=1e-10, atol=1e-10)


def doubled(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def test_a_text_reads_alike_whether_or_not_its_neighbour_has_an_image(folder: Any, image: Any) -> None:
    """PaliGemma sees what comes before an answer in both directions: beside an image's row, a text's did too."""
    kind = "paligemma"
    processor = seers.processor(kind, folder(kind))
    model = seers.model(kind, seers.tokenizer(kind)).double().train()
    rows = [record(("<image>What is it?", "A star."), (image("wide"),)), record(("What is red?", "A colour."))]
    samples = [example(row) for row in encoded(kind, folder(kind), rows)]

    def loss(*chosen: Example) -> torch.Tensor:
        return causal_lm(model, doubled(batches.collate(chosen, 0, "cpu", media=Inputs(lambda: processor))))

    together, apart = loss(*samples), loss(samples[0]) + loss(samples[1])
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)
