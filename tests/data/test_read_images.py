"""Images are read as they are meant, or a row says why not; in a text they become the tokens that they have."""

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.guard import guarded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from factory.data.media import Expander, read
from factory.data.media.expand import without
from factory.data.media.read import read_image
from factory.data.record import BadRow, Medium
from factory.data.render import Answer, Rendered


def saved(path: Path, image: Image.Image, **more: Any) -> str:
    image.save(path, **more)
    return str(path)


def corners(image: Image.Image) -> list[Any]:
    right, bottom = image.width - 1, image.height - 1
    return [image.getpixel(at) for at in ((0, 0), (right, 0), (0, bottom), (right, bottom))]


RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def picture() -> Image.Image:
    """Three by two, each corner of another colour."""
    made = Image.new("RGB", (3, 2), (9, 9, 9))
    for at, colour in {(0, 0): RED, (2, 0): BLUE, (0, 1): WHITE, (2, 1): BLACK}.items():
        made.putpixel(at, colour)
    return made


def test_a_path_a_file_url_and_bytes_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a picture.png"
    saved(path, picture())
    data = base64.b64encode(path.read_bytes()).decode()
    lines = base64.encodebytes(path.read_bytes()).decode()  # as in a mail
    places = [str(path), path.as_uri(), f"data:image/png;base64,{data}", f"data:application/octet-stream;base64,{data}"]
    places += [f"data:image/png;base64,{lines}", f"data:image/png;charset=utf-8;base64,{data}"]
    for place in places:
        found = read_image(place)
        assert (found.mode, found.size, corners(found)) == ("RGB", (3, 2), [RED, BLUE, WHITE, BLACK])


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "L", "1", "CMYK", "I;16"])
def test_every_kind_of_pixel_becomes_colours(mode: str, tmp_path: Path) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.array([[0, 255 << 8], [128 << 8, 255]], np.uint16))
        wanted = [BLACK, WHITE, (128, 128, 128), BLACK]
    else:
        image = Image.new("L", (2, 2), 255)
        image.putpixel((0, 0), 0)
        image, wanted = image.convert(mode), [BLACK, WHITE, WHITE, WHITE]
    found = read_image(saved(tmp_path / f"a.{'tiff' if mode == 'CMYK' else 'png'}", image))
    assert (found.mode, corners(found)) == ("RGB", wanted)


def test_grey_of_16_bits_in_a_ppm_keeps_its_shades(tmp_path: Path) -> None:
    """PIL holds it in 32 bits, and would show all but the darkest as white."""
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 2 2 65535\n" + np.array([[0, 255 << 8], [128 << 8, 255]], ">u2").tobytes())
    assert corners(read_image(str(path))) == [BLACK, WHITE, (128, 128, 128), BLACK]


@pytest.mark.parametrize("numbers", [np.int32, np.float32])
def test_numbers_without_a_white_are_no_image(numbers: Any, tmp_path: Path) -> None:
    place = saved(tmp_path / "a.tiff", Image.fromarray(np.array([[0, 70000], [500, 3]], numbers)))
    with pytest.raises(BadRow, match="an image cannot be read"):
        read_image(place)


def test_an_image_stands_as_its_camera_noted(tmp_path: Path) -> None:
    image, exif = picture(), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    found = read_image(saved(tmp_path / "a.png", image, exif=exif))
    assert found.size == (2, 3)
    assert corners(found) == [WHITE, RED, BLACK, BLUE]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_what_is_transparent_is_seen_on_white(mode: str, tmp_path: Path) -> None:
    """As transformers' processors lay it: a black drawing on nothing is not all black."""
    from transformers.image_transforms import convert_to_rgb

    image = Image.new("LA", (2, 2), (0, 0))
    for at, alpha in {(0, 0): 255, (1, 1): 100}.items():
        image.putpixel(at, (0, alpha))
    if mode in ("P", "RGB", "L"):  # which name one of their colours
        key: Any = (0, 0, 0) if mode == "RGB" else 0
        place = saved(tmp_path / "a.png", picture().convert(mode), transparency=key)
    else:
        place = saved(tmp_path / "a.png", image.convert(mode))
    wanted: Any = convert_to_rgb(Image.open(place), return_numpy=True)
    found = read_image(place)
    assert np.array_equal(np.asarray(found), wanted)
    assert (255, 255, 255) in corners(found)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg", "tiff", "webp"])
def test_a_camera_may_be_held_in_eight_ways(kind: str, turn: int, tmp_path: Path) -> None:
    """As PIL turns them."""
    exif = Image.Exif()
    exif[0x0112] = turn
    image = picture().resize((30, 20))
    place = saved(tmp_path / f"a.{kind}", image, exif=exif)
    with Image.open(place) as opened:
        assert np.array_equal(np.asarray(read_image(place)), np.asarray(ImageOps.exif_transpose(opened).convert("RGB")))
    assert read_image(place).size == ((20, 30) if turn > 4 else (30, 20))


@pytest.mark.parametrize("note", [b"Exif\0\0II*\0", b"Exif\0\0MM\0*\0\0\0", b"Exif\0\0no note at all", b"Exif\0\0"])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_picture_whose_note_is_broken_is_a_picture(kind: str, note: bytes, tmp_path: Path) -> None:
    """PIL raises what is no error of a file (struct.error): one such photograph ended a run."""
    found = read_image(saved(tmp_path / f"a.{kind}", picture().resize((30, 20)), exif=note, dpi=(72, 72)))
    assert (found.mode, found.size) == ("RGB", (30, 20))


def test_an_animation_gives_its_first_picture(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(str(tmp_path / "a.gif")).getpixel((0, 0)) == RED


@pytest.mark.parametrize("form", read.FORMATS)
def test_every_format_that_is_meant_is_read(form: str, tmp_path: Path) -> None:
    """By what is in the file, whatever its name says."""
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this PIL writes no {form}")
    path = tmp_path / "a.png"
    picture().resize((32, 32)).save(path, form)
    found = read_image(str(path))
    assert (found.mode, found.size) == ("RGB", (32, 32))


def test_a_photograph_with_another_within_is_read(tmp_path: Path) -> None:
    """As phones write them (MPO): PIL has no such format of its own, and reads them as JPEG."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read_image(str(tmp_path / "a.jpg")).size == (8, 8)


def test_a_format_that_this_pil_has_not_is_no_error_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "FORMATS", ("OF ANOTHER RELEASE", *read.FORMATS))
    assert read_image(saved(tmp_path / "a.png", picture())).size == (3, 2)


def test_what_is_a_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL has Ghostscript run an EPS, without an end that anybody set; a client may send one as a PNG."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("it was run"))
    eps = io.BytesIO()
    picture().save(eps, "EPS")
    (tmp_path / "a.png").write_bytes(eps.getvalue())
    data = f"data:image/png;base64,{base64.b64encode(eps.getvalue()).decode()}"
    for place in (str(tmp_path / "a.png"), data):
        with pytest.raises(BadRow, match="an image cannot be read"):
            read_image(place)


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(jpeg, "JPEG")
    (tmp_path / "half.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    for place, reason in {
        str(tmp_path / "none.png"): "an image is missing",
        str(tmp_path / "half.jpg"): "an image cannot be read",
        str(tmp_path / "text.png"): "an image cannot be read",
        str(tmp_path / "empty.png"): "an image cannot be read",
        str(tmp_path): "an image cannot be read",
        "data:image/png;base64,????": "an image cannot be read",
        "data:image/png;base64,aGVsbG8=": "an image cannot be read",
        "a\0b.png": "an image cannot be read",
        "x" * 5000: "an image cannot be read",
        "https://example.org/a.png": "an image is at an address, and none is fetched",
    }.items():
        with pytest.raises(BadRow) as raised:
            read_image(place)
        assert str(raised.value) == reason, place


def test_an_image_of_too_many_pixels_is_not_unfolded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.new("L", (100, 100)))
    monkeypatch.setattr(read, "MOST_PIXELS", 9_999)
    with pytest.raises(BadRow, match="too many pixels"):
        read_image(path)
    monkeypatch.setattr(read, "MOST_PIXELS", 10_000)
    assert read_image(path).size == (100, 100)


class Wide:
    """A processor whose images have a token for each pixel of their width, between two others."""

    tokens, name, calls = {"image": "<image>"}, "WideProcessor", 0

    def read(self, medium: Medium) -> Any:
        return read_image(medium.place)

    def __call__(self, kind: str, text: list[str], rows: list[list[Any]], **_: Any) -> dict[str, Any]:
        self.calls += 1
        assert text[0].count(self.tokens[kind]) == len(rows[0])
        return {"text_replacement_offsets": [[{"replacement": f"[{'*' * each.width}]"} for each in rows[0]]]}


def rendered(text: str, answers: tuple[Any, ...] = (), texts: tuple[Any, ...] = ()) -> Rendered:
    return Rendered(text, tuple(Answer(*span, 1.0, True) for span in answers), texts, (), None)


@given(st.lists(st.tuples(st.text("ab ", max_size=4), st.integers(1, 3)), min_size=1, max_size=4), st.text("ab"))
def test_all_stays_where_it_was_around_the_images(pieces: list[tuple[str, int]], end: str) -> None:
    """A text with images in it, then an answer, then a text."""
    question = "".join(f"{text}<image>" for text, _ in pieces) + end
    text = f"user {question} assistant answer."
    answer, after = text.index("answer"), len(text) - 1
    before = rendered(text, ((answer, after),), ((5, 5 + len(question)), (after, len(text))))
    expander = Expander(Wide)
    places = tuple(map(str, range(len(pieces))))
    expander._last = (("image", places),), {"image": tuple(f"[{'*' * width}]" for _, width in pieces)}
    made = expander.expand(before, {"image": places})
    assert [medium for *_, medium in made.media] == [Medium("image", place) for place in places]
    assert made.text == text.replace("<image>", "{}").format(*(f"[{'*' * width}]" for _, width in pieces))
    assert [made.text[start:stop] for start, stop, _ in made.media] == [f"[{'*' * width}]" for _, width in pieces]
    assert [made.text[each.start : each.end] for each in made.answers] == ["answer"]
    assert [made.text[start:stop] for start, stop in made.texts] == [
        each for each in (*(each for each, _ in pieces), end) if each
    ] + ["."]


def test_spans_lose_what_is_in_a_hole() -> None:
    assert without([(0, 9)], []) == [(0, 9)]
    assert without([(0, 9)], [(0, 2), (2, 3), (8, 9)]) == [(3, 8)]
    assert without([(0, 4), (4, 4), (5, 9), (9, 9)], [(3, 6)]) == [(0, 3), (6, 9), (9, 9)]
    assert without([(2, 4)], [(0, 9)]) == []


def test_an_images_tokens_follow_from_its_size_and_are_asked_for_once(tmp_path: Path) -> None:
    places = [saved(tmp_path / f"{number}.png", Image.new("L", (number % 2 + 1, 2))) for number in range(4)]
    processor = Wide()
    expander = Expander(lambda: processor)
    assert [expander.prompt("a <image> b", {"image": [place]}) for place in places] == ["a [*] b", "a [**] b"] * 2
    assert processor.calls == 2
    assert expander.prompt("<image><image>", {"image": places[:2]}) == "[*][**]"
    assert processor.calls == 3


def test_marks_without_an_image_and_images_without_a_mark_are_bad_rows(tmp_path: Path) -> None:
    place, expander = saved(tmp_path / "a.png", Image.new("L", (2, 2))), Expander(Wide)
    for text, places in (("none", [place]), ("<image><image>", [place]), ("<image>", [place, place])):
        with pytest.raises(BadRow, match="as many marks as there are images"):
            expander.expand(rendered(text), {"image": places})
    with pytest.raises(BadRow, match="and the row no image"):
        expander.expand(rendered("I write <image> here"), {})
    with pytest.raises(BadRow, match="an answer has an image"):
        expander.expand(rendered("ask: <image>", ((5, 12),)), {"image": [place]})
    untouched = rendered("no image")
    assert expander.expand(untouched, {}) is untouched


def test_a_row_without_images_needs_no_processor() -> None:
    def never() -> Any:
        raise AssertionError("it is made when the first image comes")

    text = rendered("<img> is a tag")
    assert Expander(never).expand(text, {}) is text


def test_a_processor_that_tells_nothing_is_refused(tmp_path: Path) -> None:
    from factory.config.refusal import UserError

    class Silent(Wide):
        def __call__(self, kind: str, text: list[str], rows: list[list[Any]], **_: Any) -> dict[str, Any]:
            return {"input_ids": [[1]]}

    with pytest.raises(UserError, match="processor-unknown"):
        Expander(Silent).prompt("<image>", {"image": [saved(tmp_path / "a.png", Image.new("L", (2, 2)))]})


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for place in (str(tmp_path / "pipe.png"), "/dev/zero", str(tmp_path), f"file://{tmp_path}/pipe.png"):
        with guarded(tmp_path), pytest.raises(BadRow):
            read_image(place)
