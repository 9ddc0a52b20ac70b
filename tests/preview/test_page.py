"""The page: one file that loads nothing, in which the data are text and never anything else."""

import base64
import re
from hashlib import sha256
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import made_samples as made
import pytest
from PIL import Image

from factory.config.refusal import UserError
from factory.data.dataset import Example, Labelled, Pair
from factory.data.record import Medium
from factory.preview import page
from factory.preview.samples import Preview, Sample

VOID = {"meta", "link", "img", "input", "br", "hr"}


class Parsed(HTMLParser):
    """The page's elements, and the texts inside the tokens."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.tokens: list[tuple[str, str, bool]] = []  # ids, text, whether it is trained
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if "data-ids" in dict(attrs):
            self.tokens.append((dict(attrs)["data-ids"] or "", "", "mark" in self.open))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open[-1:] == ["i"] and self.tokens:
            ids, text, trained = self.tokens[-1]
            self.tokens[-1] = (ids, text + data, trained)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def parsed(*shown: Sample, **changes: object) -> Parsed:
    return Parsed(page.page(made.preview(*shown, **changes)))


def test_every_element_is_closed_and_every_token_is_there() -> None:
    found = made.example("Red 红 & <i>blue</i>.")
    read = parsed(made.sample(found))
    assert read.open == []
    assert [int(number) for ids, *_ in read.tokens for number in ids.split()] == found.ids
    assert "".join(text for _, text, trained in read.tokens if trained) == "Red 红 & <i>blue</i>.<|im_end|>"


def test_what_stands_in_the_data_is_text() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'\x1b[2J\u202e"
    before = [tag for tag, _ in parsed(made.sample(made.example("x"))).elements if tag not in ("i", "s", "span")]
    read = parsed(made.sample(made.example(evil)), settings={"data": evil}, notes=())
    assert [tag for tag, _ in read.elements if tag not in ("i", "s", "span")].count("script") == before.count("script")
    assert not read.all("img")
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    assert "\x1b" not in read.text and "\u202e" not in read.text
    assert "".join(text for _, text, trained in read.tokens if trained).startswith(
        "<script>alert(1)</script><img src=x"
    )


def test_nothing_is_loaded_and_only_the_pages_own_script_runs() -> None:
    text = page.page(made.preview(made.sample(made.example("See https://example.org/x.js"))))
    read = Parsed(text)
    assert not [
        value for _, attributes in read.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert not re.search(r"@import|url\(", text)
    (policy,) = [meta["content"] for meta in read.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    assert policy is not None and policy.startswith("default-src 'none';") and f"script-src 'sha256-{digest}'" in policy


def test_pairs_have_a_side_each_and_labels_are_words() -> None:
    read = parsed(
        made.sample(Pair(made.example("Blue."), made.example("No."))),
        made.sample(Labelled(made.example("A."), False, 3)),
    )
    names = [attributes["aria-label"] for attributes in read.all("div") if attributes.get("tabindex") == "0"]
    assert [name.split(";")[0] for name in names if name] == [
        "tokens of sequence 1, chosen",
        "tokens of sequence 1, rejected",
        "tokens of sequence 2",
    ]
    assert "👎 undesirable" in read.text


def test_documents_and_weights_are_shown() -> None:
    read = parsed(made.sample(made.packed("A.", "B."), 4, 9), made.sample(made.example("C.", weight=0.25)))
    assert [attributes for attributes in read.all("span") if attributes.get("class") == "border"] != []
    assert "set row 9" in read.text
    assert [attributes["data-weight"] for attributes in read.all("mark")[-3:]] == ["1", "1", "0.25"]


def test_a_run_of_special_tokens_is_shown_once() -> None:
    (pad,) = made.ids("<|endoftext|>")
    read = parsed(made.sample(Example([pad] * 9, [-100] * 9)))
    assert [ids for ids, *_ in read.tokens] == [str(pad)]
    assert "\N{MULTIPLICATION SIGN}9" in read.text


def test_pictures_are_small_and_inside_and_a_broken_one_is_said(tmp_path: Path) -> None:
    Image.new("RGB", (640, 320), "teal").save(tmp_path / "cat.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    images = (str(tmp_path / "cat.png"), str(tmp_path / "broken.png"), "https://example.org/<dog>.png")
    read = parsed(made.sample(made.example("A cat.", media=[Medium("image", place) for place in images])))
    (picture,) = read.all("img")
    assert (picture["width"], picture["height"]) == ("160", "80")
    assert (picture["src"] or "").startswith("data:image/png;base64,")
    assert read.text.count("not shown") == 2
    assert "<dog>.png" in read.text


def test_of_a_film_three_frames_are_shown_and_a_sound_is_named(tmp_path: Path) -> None:
    import av
    import numpy as np

    with av.open(str(tmp_path / "cat.mkv"), "w") as film:
        stream = film.add_stream("ffv1", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "bgr0"
        for shade in range(0, 250, 50):
            shown = np.full((16, 32, 3), shade, np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        film.mux(stream.encode())
    shown = [Medium("video", str(tmp_path / "cat.mkv")), Medium("audio", "purr.wav"), Medium("video", "none.mp4")]
    read = parsed(made.sample(made.example("A cat.", media=shown)))
    pictures = [(each["src"] or "").partition(",")[2] for each in read.all("img")]
    shades = [Image.open(BytesIO(base64.b64decode(each))).getpixel((3, 3)) for each in pictures]
    assert shades == [(0,) * 3, (100,) * 3, (200,) * 3]
    for text in ("a sound", "purr.wav", "not shown", "none.mp4"):
        assert text in read.text


def test_a_picture_is_shown_as_a_model_is_given_it(tmp_path: Path) -> None:
    """Upright, from a file: URL, and where it is a part of its row, whose bytes are no name to be told."""
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: turn by 90 degrees
    Image.new("RGB", (640, 320), "teal").save(tmp_path / "cat.jpg", exif=turned)
    content = base64.b64encode((tmp_path / "cat.jpg").read_bytes()).decode()
    images = ((tmp_path / "cat.jpg").as_uri(), f"data:application/octet-stream;base64,{content}")
    read = parsed(made.sample(made.example("A cat.", media=[Medium("image", place) for place in images])))
    assert [(picture["width"], picture["height"]) for picture in read.all("img")] == [("80", "160")] * 2
    assert "cat.jpg" in read.text and content[-20:] not in read.text


def test_the_counts_are_there() -> None:
    read = parsed()
    for text in ("20 read", "no ␛[2J<i>answer</i>", "set rows 3, 4 …", "98.5% of 6 sequences", "max_length 40"):
        assert text in read.text, text


def test_a_page_is_whole_or_not_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    Path("page.html").write_text("old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        page.write(made.preview(), Path("page.html"))
    assert [path.name for path in here.iterdir()] == ["page.html"]
    assert Path("page.html").read_text() == "old"


def test_a_page_takes_the_place_of_the_last_one(here: Path) -> None:
    found: Preview = made.preview()
    Path("page.html").write_text("old")
    page.write(found, Path("page.html"))
    assert Path("page.html").read_text(encoding="utf-8") == page.page(found)
