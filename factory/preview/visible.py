"""Text of somebody's data made visible: nothing in it moves a cursor, hides, or turns the reading direction round."""

import unicodedata

NEWLINE, TAB, HARD_SPACE = "↵", "⇥", "⍽"
# format characters that letters and emoji are joined with, and Arabic signs that are seen
_HARMLESS = frozenset("\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class _Symbols(dict[int, str]):
    """Code point to what is shown for it, made when it is first met."""

    def __missing__(self, code: int) -> str:
        self[code] = _symbol(chr(code))
        return self[code]


def _symbol(character: str) -> str:
    code = ord(character)
    if character in _HARMLESS or unicodedata.category(character) not in _UNSEEN:
        return character
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's control pictures
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


_SYMBOLS = _Symbols({ord("\n"): f"{NEWLINE}\n", ord("\t"): TAB, ord("\xa0"): HARD_SPACE})


def visible(text: str) -> str:
    """Control characters as symbols; a newline has its sign and still ends the line."""
    return text.translate(_SYMBOLS)


def in_line(text: str) -> str:
    """The same for a text that stays within its line."""
    return visible(text).replace("\n", "")


def escaped(text: str) -> str:
    """All in ASCII, with Python's escapes, a backslash doubled; a newline has its own and ends the line."""
    return "\\n\n".join(line.encode("unicode_escape").decode("ascii") for line in text.split("\n"))


def encodable(text: str, encoding: str) -> str:
    """What an encoding does not have becomes an escape."""
    return text.encode(encoding, "backslashreplace").decode(encoding)
