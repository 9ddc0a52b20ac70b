"""Nothing in a text of somebody's data moves a cursor, hides, or turns the reading direction round."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from factory.preview.visible import encodable, escaped, in_line, visible

# Cc and Cf move or hide, Zl and Zp end lines, Cs cannot be printed
HIDDEN = {"Cc", "Cf", "Zl", "Zp", "Cs"}
JOINERS = "\u200c\u200d"  # that letters and emoji are made with


def test_control_characters_are_shown_as_symbols() -> None:
    assert visible("\x1b[2J\r\x07\x7f\x9b\t") == "␛[2J␍␇␡⟨U+009B⟩⇥"
    assert visible("a\u202eb\u200bc\ufeff\u2028\ud800") == "a⟨U+202E⟩b⟨U+200B⟩c⟨U+FEFF⟩⟨U+2028⟩⟨U+D800⟩"
    assert visible("one\ntwo\xa0three") == "one↵\ntwo⍽three"


def test_letters_and_joined_emoji_stay_as_they_are() -> None:
    text = "naïve 你好 नमस्ते نمی\u200cشود 👩\u200d👩\u200d👧"
    assert visible(text) == text


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_the_text_nothing_hidden_is_left(text: str) -> None:
    for made in (visible(text).replace("\n", ""), in_line(text), escaped(text).replace("\n", "")):
        assert not [c for c in made if unicodedata.category(c) in HIDDEN and c not in JOINERS and not is_sign(c)]
    assert escaped(text).isascii()


def is_sign(character: str) -> bool:
    """Arabic and Syriac signs that are format characters and still seen."""
    return any(word in unicodedata.name(character, "") for word in ("ARABIC", "SYRIAC"))


@given(st.text(st.characters(exclude_categories=())))
def test_an_escaped_text_can_be_read_back(text: str) -> None:
    assert escaped(text).replace("\\n\n", "\\n").encode("ascii").decode("unicode_escape") == text


def test_what_an_encoding_lacks_is_escaped() -> None:
    assert encodable("naïve ↵", "latin-1") == "naïve \\u21b5"
    assert encodable("↵", "ascii") == "\\u21b5"
