"""Media in a row: never cut, never trained, the same when their batch is made; and what a processor needs."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import films
import pytest
import seers
import tiny
import torch
from PIL import Image
from test_seen import encoded, example, pack, record

from factory.config.refusal import UserError
from factory.data import batches
from factory.data.dataset import IGNORED, Labelled, Pair
from factory.data.encoding import spec_of
from factory.data.media import Inputs, Processor, processor, processor_spec
from factory.data.media.video import Frames
from factory.data.record import BadRow, Medium, Message, Record
from factory.steps.load import read_processor, read_tokenizer

KIND = "qwen2_vl"
LONG = "word " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seers.save(KIND, tmp_path_factory.mktemp("seers") / KIND, weights=False)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    root = tmp_path_factory.mktemp("images")

    @cache
    def image(number: int) -> str:
        Image.new("RGB", (16, 16 + 4 * number), (40 * number, 0, 90)).save(root / f"{number}.png")
        return str(root / f"{number}.png")

    return image


def known(folder: Path) -> Any:
    return read_tokenizer(str(folder), None, False, "auto")


def runs(ids: list[int], mark: int) -> list[int]:
    """The lengths of the stretches of a token."""
    text = "".join("x" if token == mark else " " for token in ids)
    return [len(part) for part in text.split()]


def test_texts_are_cut_around_an_image(folder: Path, image: Any) -> None:
    one = record((f"{LONG}<image>{LONG}", "A star."), (image(0),))
    mark = known(folder).convert_tokens_to_ids("<|image_pad|>")
    whole = example(encoded(KIND, folder, [one])[0])
    for truncation in ("left", "keep_response"):
        (made,) = encoded(KIND, folder, [one], truncation=truncation, max_length=len(whole.ids) - 20)
        cut = example(made)
        assert len(cut.ids) <= len(whole.ids) - 20
        assert runs(cut.ids, mark) == runs(whole.ids, mark)
        assert cut.media == tuple(Medium("image", place) for place in one.images)
        assert [label for label in cut.labels if label != IGNORED] == [
            label for label in whole.labels if label != IGNORED
        ]
    (lost,) = encoded(KIND, folder, [one], truncation="keep_response", max_length=len(runs(whole.ids, mark)) + 20)
    assert isinstance(lost, BadRow)


def test_an_image_that_others_are_said_of_is_not_taken_away(folder: Path, image: Any) -> None:
    """The first exchange goes, and its image stands before the second's question; one that would go with it stays."""
    places = (image(0), image(1))
    first = record((f"<image>{LONG}", "A star.", "And now?", "A moon."), places[:1])
    size = len(example(encoded(KIND, folder, [first])[0]).ids)
    (row,) = encoded(KIND, folder, [first], truncation="left", max_length=size - 10)
    assert example(row).media == (Medium("image", places[0]),)
    assert "A star" not in known(folder).decode(example(row).ids)
    for turns, images in (
        ((f"{LONG}<image>", "A star.", "And now?", "A moon."), places[:1]),
        ((f"<image>{LONG}", "A star.", "<image>And now?", "A moon."), places),
    ):
        (row,) = encoded(KIND, folder, [record(turns, images)], truncation="left", max_length=size - 10)
        assert isinstance(row, BadRow)
        assert str(row) == "too long, and an image would be lost"


def test_a_cut_end_takes_its_images_along(folder: Path, image: Any) -> None:
    places = (image(0), image(1))
    one = record(("<image>What?", "A star.", f"{LONG}<image>", "A moon."), places)
    (row,) = encoded(KIND, folder, [one], truncation="right", max_length=60)
    made = example(row)
    assert made.media == (Medium("image", places[0]),)
    assert len(runs(made.ids, known(folder).convert_tokens_to_ids("<|image_pad|>"))) == 1


def test_no_token_of_an_image_is_trained(folder: Path, image: Any) -> None:
    one = record(("See <image>: what?", "A star."), (image(1),))
    whole, prompt = (example(encoded(KIND, folder, [one], train_on_prompt=both)[0]) for both in (False, True))
    mark = known(folder).convert_tokens_to_ids("<|image_pad|>")
    assert whole.ids == prompt.ids
    assert [token for token, label in zip(prompt.ids, prompt.labels, strict=True) if label == IGNORED] == [
        token for token in prompt.ids if token == mark
    ]


def test_a_row_that_cannot_be_seen_says_why(folder: Path, image: Any) -> None:
    asked = record(("<image>What?", "A star."), (image(0),))
    tokenizer = known(folder)
    (blind,) = spec_of(tokenizer, pack(), "messages").encoder.encode([asked])
    assert str(blind) == "it has images, and the model has no processor for them"
    film = record(("<video>What?", "A star."), videos=("a.mp4",))
    heard = replace(record(("<audio>What?", "A star.")), audios=("a.wav",))
    spoken = replace(record(("Write <|image_pad|>.", "No."), ()))
    missing = record(("<image>What?", "A star."), ("none.png",))
    found = [str(row) for row in encoded(KIND, folder, [film, heard, spoken, missing])]
    assert found == [
        "a video is missing",
        "it has audios, and the model takes none",
        "a text has the model's mark of an image, and the row no image",
        "an image is missing",
    ]


def test_a_template_that_knows_nothing_of_images_has_them_as_the_models_own_writes_them(
    folder: Path, image: Any
) -> None:
    from factory import templates

    tokenizer, one = known(folder), record(("<image>What?", "A star."), (image(0),))
    (own,) = encoded(KIND, folder, [one])
    tokenizer.chat_template = templates.read("chatml")
    images = processor_spec(KIND, read_processor(str(folder), None), tokenizer)
    (made,) = spec_of(tokenizer, pack(), "messages", images).encoder.encode([one])
    assert example(made).ids == example(own).ids


def test_a_spec_is_sent_to_a_worker_and_hashed(folder: Path, image: Any) -> None:
    """Another setting of the processor makes other rows."""
    from factory.config.settings import Source
    from factory.data import prepare
    from factory.plan.plan import DataSource

    tokenizer, files = known(folder), read_processor(str(folder), None)
    other = files | {"preprocessor_config.json": files["preprocessor_config.json"].replace(b"256", b"128")}
    one, same, changed = (
        spec_of(tokenizer, pack(), "messages", processor_spec(KIND, each, tokenizer)) for each in (files, files, other)
    )
    asked = Source.model_construct(
        origin="file", columns={}, tags={}, folder=None, subset=None, split="", revision=None
    )
    source = DataSource(path="a.jsonl", format="messages", bytes=1, sha256="a", asked=asked)
    keys = [prepare.key(source, spec, None, 0) for spec in (one, same, changed)]
    assert keys[0] == keys[1] != keys[2]
    sent = pickle.loads(pickle.dumps(one))
    assert sent == one
    asked = [record(("<image>What?", "A star."), (image(5),))]
    assert sent.encoder.encode(asked) == one.encoder.encode(asked)
    assert len(example(changed.encoder.encode(asked)[0]).ids) < len(example(one.encoder.encode(asked)[0]).ids)


def test_both_answers_of_a_pair_see_the_image(folder: Path, image: Any) -> None:
    asked: tuple[Message, ...] = ({"role": "user", "content": "<image>What?"},)
    answers: list[Message] = [{"role": "assistant", "content": text} for text in ("A star.", "A moon it is.")]
    one = Record(prompt=asked, response=(answers[0],), rejected=(answers[1],), images=(image(2),))
    tokenizer = known(folder)
    images = processor_spec(KIND, read_processor(str(folder), None), tokenizer)
    assert images is not None
    (row,) = spec_of(tokenizer, pack(), "pairs", images).encoder.encode([one])
    assert not isinstance(row, BadRow)
    assert row.rejected is not None
    assert row.tokens.media == row.rejected.media == (Medium("image", one.images[0]),)
    first, second = example(row), example(replace(row, tokens=row.rejected))
    media = Inputs(lambda: images.processor_of(tokenizer))
    batch = batches.collate([Pair(first, second)], 0, "cpu", media=media)
    assert batch["input_ids"].shape[0] == 2
    patches = len(batch["pixel_values"]) // 2
    assert torch.equal(batch["pixel_values"][:patches], batch["pixel_values"][patches:])
    alone = batches.collate([first], 0, "cpu", media=media)
    assert torch.equal(alone["pixel_values"], batch["pixel_values"][:patches])
    samples = [Labelled(each, True, each.labels.index(label)) for each, label in ((first, first.labels[-3]),)]
    assert len(batches.collate(samples, 0, "cpu", media=media)["image_grid_thw"]) == 2
    assert "pixel_values" not in batches.collate([first], 0, "cpu")


def test_an_image_that_is_another_now_is_refused(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "a.png"
    Image.new("RGB", (16, 16)).save(place)
    row = example(encoded(KIND, folder, [record(("<image>What?", "A star."), (str(place),))])[0])
    media = Inputs(lambda: seers.processor(KIND, folder))
    assert "pixel_values" in batches.collate([row], 0, "cpu", media=media)
    Image.new("RGB", (16, 40)).save(place)
    with pytest.raises(UserError, match=r"media-changed.*tokens now"):
        batches.collate([row], 0, "cpu", media=media)
    place.unlink()
    with pytest.raises(UserError, match="an image is missing"):
        batches.collate([row], 0, "cpu", media=media)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    known = seers.tokenizer("smolvlm")
    files = read_processor(str(seers.save("smolvlm", tmp_path, weights=False)), None)
    with pytest.raises(UserError, match="pip install num2words"):
        Processor(files, "smolvlm", known)
    for message in ("\nPixtralProcessor requires the Torchvision library but it was not found", "No module"):

        def lacking(*_: Any, message: str = message) -> Any:
            raise ImportError(message, name=None if "library" in message else "torchvision")

        monkeypatch.setattr(processor, "_made", lacking)
        with pytest.raises(UserError, match="pip install torchvision"):
            Processor(files, "mistral3", known)


def test_a_text_may_speak_of_what_the_row_does_not_show(folder: Path, image: Any) -> None:
    """The mark of another kind is a text then, whose or where it is."""
    said = ("<image>What does <video> mean in HTML?", "Use <video> for it.")
    (row,) = encoded(KIND, folder, [record(said, (image(0),))])
    text = known(folder).decode(example(row).ids)
    assert text.count("<video>") == 2 and example(row).media == (Medium("image", image(0)),)


def test_rows_that_no_plan_saw_are_not_packed(folder: Path, image: Any) -> None:
    (row,) = encoded(KIND, folder, [record(("<image>What?", "A star."), (image(0),))], packing=True)
    assert str(row) == "it has images, and rows that are packed show none"


def test_prompts_alone_show_nothing(folder: Path, image: Any) -> None:
    """What no plan saw of them is not dropped in silence, and no text of theirs becomes an image's token."""
    shown = replace(record(("<image>What?", "A star."), (image(0),)), response=())
    spoken = replace(record(("Write <|image_pad|>.", "No.")), response=())
    assert [str(row) for row in encoded(KIND, folder, [shown, spoken])] == [
        "it has images, and rows that are prompts alone show none",
        "a text has the model's mark of an image, and the row no image",
    ]
    (blind,) = spec_of(known(folder), pack(), "messages").encoder.encode([shown])
    assert str(blind) == "it has images, and the model has no processor for them"


def test_films_that_do_not_fit_into_one_batch_are_refused(tmp_path: Path) -> None:
    """Of a kind whose rule a plan knows, or of one that it does not know."""
    place = seers.save("llava_onevision", tmp_path / "model", weights=False)
    processor = seers.processor("llava_onevision", place, Frames(fps=2.0, most=128))
    media = tuple(
        Medium("video", films.save(tmp_path / f"{name}.mkv", films.frames(name))) for name in ("short", "long")
    )
    with pytest.raises(UserError, match=r"(?s)media-of-a-batch.*video_fps=null"):
        Inputs(lambda: processor)([media], torch.zeros(1, 8).long().numpy())


def test_films_are_no_medium_of_a_model_that_takes_none(folder: Path, tmp_path: Path) -> None:
    """Although its processor would: what a model takes is the plan's to say."""
    tokenizer = known(folder)
    spec = processor_spec(KIND, read_processor(str(folder), None), tokenizer, None)
    asked = record(("<video>What?", "A star."), videos=(films.save(tmp_path / "a.mkv", films.frames("short")),))
    (row,) = spec_of(tokenizer, pack(), "messages", spec).encoder.encode([asked])
    assert str(row) == "it has videos, and the model takes none"


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("granite_speech", {"processor_config.json": b'{"processor_class": "GraniteSpeechProcessor"}'}),
        (
            KIND,
            {"processor_config.json": b'{"processor_class": "Qwen2VLProcessor"}', "preprocessor_config.json": b"[]"},
        ),
    ],
)
def test_files_that_make_no_processor_are_refused(kind: str, files: dict[str, bytes]) -> None:
    with pytest.raises(UserError, match="processor-unknown"):
        Processor(files, kind, seers.tokenizer("llava"))


WITHOUT = """
import sys, importlib.util as util
here = util.find_spec
util.find_spec = lambda name, *more: None if name.partition(".")[0] == "torchvision" else here(name, *more)
from transformers import AutoTokenizer
from factory.data.media import Processor
files = {
    "processor_config.json": b'{"processor_class": "PixtralProcessor"}',
    "preprocessor_config.json": b'{"image_processor_type": "PixtralImageProcessor"}',
}
Processor(files, "mistral3", AutoTokenizer.from_pretrained(sys.argv[1]))
"""


@pytest.mark.slow
def test_pixtral_needs_torchvision(tmp_path: Path) -> None:
    seers.tokenizer("llava").save_pretrained(tmp_path)
    command = [sys.executable, "-c", WITHOUT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "UserError" in done.stderr and "pip install torchvision" in done.stderr


def test_a_processor_that_is_not_known_or_knows_other_tokens_is_refused(folder: Path) -> None:
    files = read_processor(str(folder), None)
    with pytest.raises(UserError, match="no AProcessor"):
        Processor({"processor_config.json": b'{"processor_class": "AProcessor"}'}, KIND, known(folder))
    with pytest.raises(UserError, match="no processor for llama"):
        Processor({"preprocessor_config.json": b"{}"}, "llama", known(folder))
    plain = {"preprocessor_config.json": files["preprocessor_config.json"]}
    assert Processor(plain, KIND, known(folder)).name == "Qwen2VLProcessor"
    paligemma = b'{"processor_class": "PaliGemmaProcessor"}'
    siglip = b'{"image_processor_type": "SiglipImageProcessor", "image_seq_length": 4}'
    files = {"processor_config.json": paligemma, "preprocessor_config.json": siglip}
    with pytest.raises(UserError, match="adds 1,153 tokens"):
        Processor(files, "paligemma", tiny.tokenizer())
    assert processor_spec(KIND, {}, known(folder)) is None


def test_the_template_of_an_older_processor_is_read(folder: Path, tmp_path: Path) -> None:
    """Before tokenizers carried it, it lay beside the processor alone."""
    import json

    tokenizer = seers.tokenizer("llava")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": seers.FIRST}))
    assert read_tokenizer(str(tmp_path), None, False, "auto").chat_template == seers.FIRST
