"""What a terminal, a pipe and an ASCII console show of the same preview."""

import re
from io import BytesIO, StringIO, TextIOWrapper

import made_samples as made
import pytest
from rich.console import Console

from factory.data.dataset import Labelled, Pair
from factory.data.record import Medium
from factory.preview import samples
from factory.preview.samples import Preview
from factory.preview.terminal import Terminal, _unlike_marks

COLOUR = re.compile(r"\x1b\[([\d;]*)m")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM"):
        monkeypatch.delenv(name, raising=False)


def piped(found: Preview) -> str:
    console = Console(file=StringIO(), highlight=False, width=80)
    Terminal(console).print(found)
    return console.file.getvalue()


def on_terminal(found: Preview, width: int = 80) -> str:
    file = StringIO()
    Terminal(Console(file=file, highlight=False, width=width, force_terminal=True, color_system="256")).print(found)
    return file.getvalue()


def test_in_a_pipe_marks_stand_around_what_is_trained() -> None:
    said = piped(made.preview(made.sample(made.example("Red, blue."), 7)))
    assert "⟦Red, blue.<|im_end|>⟧↵" in said
    assert "── sequence 1 · set row 7 · " in said
    assert "\x1b" not in said


def test_a_line_is_not_broken_in_a_pipe() -> None:
    answer = "word " * 60
    assert f"⟦{answer}<|im_end|>⟧↵" in piped(made.preview(made.sample(made.example(answer))))


def test_marks_in_the_data_do_not_look_like_ours() -> None:
    said = piped(made.preview(made.sample(made.example("a⟧b⟦c"))))
    assert "⟦a⟨U+27E7⟩b⟨U+27E6⟩c<|im_end|>⟧" in said


def test_on_a_terminal_colours_tell_them_apart_and_nothing_else_is_sent() -> None:
    said = on_terminal(made.preview(made.sample(made.example("Red, blue."))))
    assert "\x1b[1;32mRed, blue.\x1b[0m" in said
    assert "\x1b[2muser↵\x1b[0m" in said
    assert "⟦" not in said
    assert "␛[31m" in said
    assert "\x1b" not in COLOUR.sub("", said)


def test_without_colour_a_terminal_gets_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    said = on_terminal(made.preview(made.sample(made.example("Red, blue."))))
    assert "⟦Red, blue.<|im_end|>⟧" in said
    assert not [style for style in COLOUR.findall(said) if re.search(r"\b3\d\b", style)]


def test_an_ascii_console_gets_ascii() -> None:
    buffer = BytesIO()
    file = TextIOWrapper(buffer, encoding="ascii", errors="strict")
    shown = (made.sample(made.example("红\x1b\n.")), made.sample(made.packed("A.", "B."), 1, 2))
    Terminal(Console(file=file, highlight=False, width=80)).print(made.preview(*shown, notes=("日本",)))
    file.flush()
    said = buffer.getvalue().decode("ascii")
    assert "[[\\u7ea2\\x1b\\n\n.<|im_end|>]]\\n" in said
    assert "--- set row 2 ---" in said
    assert "| set row 1 |" in said
    assert "\x1b" not in said


def test_ascii_marks_in_the_data_do_not_look_like_ours() -> None:
    file = TextIOWrapper(BytesIO(), encoding="ascii")
    console = Console(file=file, highlight=False, width=80)
    example = made.example("[[a]] [1][")
    Terminal(console).print(made.preview(made.sample(example)))
    file.seek(0)
    said = file.read()
    assert r"[[\x5b[a\x5d] [1][<|im_end|>]]" in said
    assert said.count("[[") == said.count("]]")


@pytest.mark.parametrize(
    ("text", "following", "wanted"),
    [("a]", "]]", r"a\x5d"), ("a[", "[[", r"a\x5b"), ("[INST]", "[[", "[INST]"), ("[[[", "]]", r"\x5b\x5b[")],
)
def test_a_bracket_beside_a_mark_is_told_from_it(text: str, following: str, wanted: str) -> None:
    assert _unlike_marks(text, following) == wanted


def test_pairs_stand_side_by_side_where_there_is_room() -> None:
    found = made.preview(made.sample(Pair(made.example("Blue."), made.example("No."))))
    wide, narrow = (COLOUR.sub("", on_terminal(found, width)) for width in (120, 80))
    assert re.search(r"chosen: \d+ tokens, \d+ trained .*rejected: \d+ tokens", wide)
    assert re.search(r"Blue\..*No\.", wide)
    assert re.search(r"chosen: .*\n(.*\n)*.*Blue\.<\|im_end\|>↵\s*\nrejected: ", narrow)


@pytest.mark.parametrize(("label", "words"), [(True, "👍 desirable"), (False, "👎 undesirable")])
def test_a_label_is_a_word(label: bool, words: str) -> None:
    assert f" · {words}\n" in piped(made.preview(made.sample(Labelled(made.example("Red."), label, 3))))


def test_documents_are_parted_and_named() -> None:
    said = piped(made.preview(made.sample(made.packed("A.", "B.", "C."), 4, 9, 2)))
    assert "sequence 1 · 3 documents from set row 4 on" in said
    assert re.findall(r"─── set row (\d+) ───", said) == ["9", "2"]
    assert re.search(r"⟦A\.<\|im_end\|>⟧↵\n─── set row 9 ───\n", said)


def test_a_weight_stands_before_what_it_weighs() -> None:
    said = piped(made.preview(made.sample(made.example("Red.", weight=0.5))))
    assert "⟦\N{MULTIPLICATION SIGN}0.5 Red.<|im_end|>⟧" in said


def test_images_are_counted() -> None:
    found = made.preview(
        made.sample(
            made.example("A cat.", media=[Medium("image", "a.png"), Medium("video", "b.mp4"), Medium("image", "c.png")])
        )
    )
    assert " · 2 images, 1 video\n" in piped(found)


def test_a_long_sequence_says_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.preview.terminal._SHOWN", 5)
    shown = made.sample(made.example("Red."))
    left = len(shown.sides[0].tokens) - 5
    said = piped(made.preview(shown))
    assert f"… {left} more (preview.html=PATH shows all)" in said
    assert "Red." not in said


def test_the_summary_counts_everything() -> None:
    said = piped(made.preview())
    for line in (
        "20: 12 trained, 2 held out, 1 not sampled, 5 dropped",
        "2 rows (30 tokens), 1 without the end of their answer",
        "400, of which 100 are trained (25%)",
        "98.5% of 6 sequences is filled",
        "3, over 6 sequences",
        "5: no ␛[2J<i>answer</i> (set rows 3, 4 …)",
        "10 to 40 tokens a row, median 21.5, mean 23.2",
    ):
        assert line in said, line


@pytest.mark.parametrize("limit", [15, 40])
def test_the_histogram_marks_max_length_where_it_belongs(limit: int) -> None:
    found = samples.lengths([*range(1, 21)] * 5, limit)
    assert found is not None
    said = piped(made.preview(lengths=found)).splitlines()
    lines = [line for line in said if "█" in line or "max_length" in line]
    below = [each for each in found.bins if each.low <= limit]
    assert f"─── max_length {limit} ───" in lines[len(below)]
    assert len(lines) == len(found.bins) + 1
