"""Images, videos and audios: in a column or within the messages, as many as there are marks."""

import base64
from typing import Any

import pytest

from factory.data.formats import BadRow, align

GOOD = {"role": "assistant", "content": "ho"}
BARE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(200))).decode()  # as transformers reads it
IMAGE = "the <image> marks are not as many as the images"


def shown(content: Any, **columns: Any) -> tuple[str, Any]:
    """The user's text and the record."""
    record = align({"messages": [{"role": "user", "content": content}, GOOD], **columns}, "messages", {}, {})
    return record.prompt[0]["content"], record


@pytest.mark.parametrize(
    ("images", "place"),
    [
        ("a.png", "a.png"),
        (["a.png"], "a.png"),
        ({"path": "a.png", "bytes": None}, "a.png"),
        ([{"path": "a.png", "bytes": b"\x00\xff"}], "data:application/octet-stream;base64,AP8="),
        (b"\x00\xff", "data:application/octet-stream;base64,AP8="),
        ("data:image/png;base64,AP8=", "data:image/png;base64,AP8="),
        ([{"url": "https://example.org/a.png"}], "https://example.org/a.png"),
        ([BARE], f"data:image/*;base64,{BARE}"),
        (f"/9j/{'a' * 90}/b.jpg", f"/9j/{'a' * 90}/b.jpg"),
        ('["a.png"]', "a.png"),
        ("[a].png", "[a].png"),
    ],
)
def test_a_column_of_images(images: Any, place: str) -> None:
    text, record = shown("what is <image>?", images=images)
    assert (text, record.images) == ("what is <image>?", (place,))


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ({"type": "image", "image": "a.png"}, "a.png"),
        ({"type": "image", "url": "https://example.org/a.png"}, "https://example.org/a.png"),
        ({"type": "image", "path": "a.png", "text": None}, "a.png"),
        ({"type": "image", "base64": "AP8="}, "data:image/*;base64,AP8="),
        ({"type": "image", "source": {"type": "base64", "data": "AP8="}}, "data:image/*;base64,AP8="),
        ({"type": "image", "source": {"type": "url", "url": "a.png"}}, "a.png"),
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AP8=", "detail": "low"}},
            "data:image/png;base64,AP8=",
        ),
        ({"type": "image_url", "image_url": "a.png"}, "a.png"),
        ({"type": "input_image", "image_url": "a.png"}, "a.png"),
    ],
)
def test_an_image_among_the_parts_of_a_content(part: dict[str, Any], place: str) -> None:
    text, record = shown([{"type": "text", "text": "this: "}, part, {"type": "text", "text": " what?"}])
    assert (text, record.images) == ("this: <image> what?", (place,))


def test_a_table_of_texts_has_its_images_as_json() -> None:
    text, record = shown("<image><image>hi", images='["1.png", "2.png"]')
    assert (text, record.images) == ("<image><image>hi", ("1.png", "2.png"))


def test_parts_may_point_into_the_column() -> None:
    text, record = shown([{"type": "image"}, {"type": "text", "text": "a"}, {"type": "image"}], images=["1", "2"])
    assert (text, record.images) == ("<image>a<image>", ("1", "2"))
    numbered = [{"type": "image", "index": 1, "text": None}, {"type": "image", "index": 0}]
    assert shown(numbered, images=["1", "2"])[1].images == ("2", "1")


def test_videos_and_audios_likewise() -> None:
    text, record = shown("<video> and <audio>", videos="a.mp4", audios=["a.wav"])
    assert (text, record.videos, record.audios, record.images) == ("<video> and <audio>", ("a.mp4",), ("a.wav",), ())
    heard = [{"type": "input_audio", "input_audio": {"data": "AP8=", "format": "wav"}}, {"type": "video", "video": "v"}]
    text, record = shown(heard)
    assert (text, record.audios, record.videos) == ("<audio><video>", ("data:audio/wav;base64,AP8=",), ("v",))


def test_images_without_a_mark_stand_in_front_of_the_first_question() -> None:
    system = {"role": "system", "content": "be"}
    row = {"messages": [system, {"role": "user", "content": "hi"}, GOOD], "images": ["1", "2"]}
    record = align(row, "messages", {}, {})
    assert record.prompt == (system, {"role": "user", "content": "<image><image>hi"})
    assert row["messages"][1] == {"role": "user", "content": "hi"}  # the row is as it was
    pair = {"prompt": "hi", "chosen": "ho", "rejected": "no", "images": "1"}
    assert align(pair, "pairs", {}, {}).prompt == ({"role": "user", "content": "<image>hi"},)
    alpaca = {"instruction": "hi", "output": "ho", "images": ["1"]}
    assert align(alpaca, "alpaca", {}, {}).prompt == ({"role": "user", "content": "<image>hi"},)


def test_a_column_of_one_image_is_read_where_a_mark_asks_for_it() -> None:
    """LLaVA's sets have it so; in others a column of that name is something else."""
    assert shown("<image>hi", image="a.png")[1].images == ("a.png",)
    assert shown("hi", image="a.png")[1].images == ()


@pytest.mark.parametrize("columns", [{}, {"images": None}, {"image": ""}])
def test_a_row_without_images_may_talk_of_them(columns: dict[str, Any]) -> None:
    text, record = shown("what is <image> in HTML, and <audio>?", **columns)
    assert (text, record.images) == ("what is <image> in HTML, and <audio>?", ())


def test_a_pair_has_its_prompts_images() -> None:
    pair = {"prompt": "<image>hi", "chosen": "ho", "rejected": "no", "images": ["1"]}
    assert align(pair, "pairs", {}, {}).images == ("1",)
    question = {"role": "user", "content": [{"type": "image", "image": "1"}, {"type": "text", "text": "hi"}]}
    whole = {"chosen": [question, GOOD], "rejected": [question, {**GOOD, "content": "no"}]}
    record = align(whole, "messages_pairs", {}, {})
    assert (record.prompt[0]["content"], record.images) == ("<image>hi", ("1",))


PART = {"type": "image", "image": "1"}


@pytest.mark.parametrize(
    ("content", "columns", "reason"),
    [
        ("<image>hi", {"images": ["1", "2"]}, IMAGE),
        ("<image><image>hi", {"images": ["1"]}, IMAGE),
        ("<image>hi", {"images": []}, IMAGE),
        ([{"type": "image"}], {}, IMAGE),
        ([{"type": "image", "index": 1}], {"images": ["1"]}, IMAGE),
        ([{"type": "image", "index": -1}], {"images": ["1"]}, IMAGE),
        ([PART, {"type": "text", "text": "<image>"}], {}, IMAGE),
        ([PART], {"images": ["1"]}, "some of what is shown is in the messages and some is not"),
        ([PART, {"type": "image"}], {}, "some of what is shown is in the messages and some is not"),
        ("<image>", {"images": [5]}, "image: neither a path nor a URL nor bytes"),
        ("<image>", {"images": {"path": None, "bytes": None}}, "image: neither a path nor a URL nor bytes"),
        ([{"type": "video", "video": ["1", "2"]}], {}, "video: neither a path nor a URL nor bytes"),
    ],
)
def test_marks_and_images_that_do_not_fit_have_a_reason(content: Any, columns: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as error:
        shown(content, **columns)
    assert str(error.value) == reason


def test_answers_of_a_pair_share_their_images() -> None:
    own = {"role": "assistant", "content": [PART]}
    with pytest.raises(BadRow, match="chosen or rejected has images of its own"):
        align({"prompt": "hi", "chosen": [GOOD], "rejected": [own]}, "pairs", {}, {})
    question = {"role": "user", "content": [PART]}
    other = {"role": "user", "content": [{**PART, "image": "2"}]}
    with pytest.raises(BadRow, match="chosen and rejected have different images"):
        align({"chosen": [question, GOOD], "rejected": [other, GOOD]}, "messages_pairs", {}, {})
