"""Which tokens stay of a row that is too long."""

from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from factory.data.record import BadRow
from factory.data.truncate import Kept, Layout, TooLong, kept, shifted

# header 3, question, header 4, answer, end 1: one exchange after the other; a system text of 6 in front
SYSTEM, HEADER, OPENING = 6, 3, 4


def layout(*exchanges: tuple[int, int], system: bool = False) -> Layout:
    """Of (question, answer) lengths; an answer's last token ends it, one token of structure follows."""
    at, texts, answers, starts = 2, [], [], []
    if system:
        texts.append((at, at + SYSTEM))
        at += SYSTEM + 1
    for question, answer in exchanges:
        at += HEADER
        starts.append(at)
        texts.append((at, at + question))
        at += question + OPENING
        answers.append((at, at + answer))
        at += answer + 1
    return Layout(at, texts, answers, starts, lambda _: True, texts[0] if system else None)


def stays(found: Kept) -> list[int]:
    return [token for start, end in found.stretches for token in range(start, end)]


def inside(spans: list[tuple[int, int]]) -> set[int]:
    return {token for start, end in spans for token in range(start, end)}


@pytest.mark.parametrize("truncation", ["drop", "error", "right", "left", "keep_response"])
def test_what_fits_stays_as_it_is(truncation: str) -> None:
    row = layout((5, 6), (7, 8))
    assert kept(row, row.length, truncation) == Kept(((0, row.length),))


def test_drop_and_error() -> None:
    row = layout((5, 6))
    with pytest.raises(BadRow, match="longer than max_length"):
        kept(row, row.length - 1, "drop")
    with pytest.raises(TooLong, match=rf"{row.length} tokens"):
        kept(row, row.length - 1, "error")


def test_right_takes_the_end() -> None:
    row = layout((5, 6), (7, 8))
    (first, last) = row.answers
    assert kept(row, last[1], "right") == Kept(((0, last[1]),))  # the end of turn just fits
    assert kept(row, last[1] - 1, "right") == Kept(((0, last[1] - 1),), open_ended=True)
    assert kept(row, last[0] + 1, "right") == Kept(((0, last[0] + 1),), open_ended=True)
    for limit in range(first[1], last[0] + 1):  # in a header or a question: back to the answer before it
        assert kept(row, limit, "right") == Kept(((0, first[1]),))
    with pytest.raises(BadRow, match="no room for the answer"):
        kept(row, first[0], "right")


def test_left_takes_whole_exchanges_then_the_questions_beginning() -> None:
    row = layout((5, 6), (7, 8), (9, 4), system=True)
    first, second, third = row.exchanges
    found = kept(row, row.length - 1, "left")
    assert found.stretches == ((0, first), (second, row.length))
    without = first + row.length - third
    assert kept(row, without, "left").stretches == ((0, first), (third, row.length))
    assert kept(row, without - 3, "left").stretches == ((0, first), (third + 3, row.length))
    assert len(stays(kept(row, without - 8, "left"))) == without - 8  # one token of the question
    with pytest.raises(BadRow, match="no room for the answer"):
        kept(row, without - 9, "left")


def test_left_leaves_a_system_text_before_the_question() -> None:
    row = Layout(30, [(3, 9), (10, 20)], [(22, 29)], [3], lambda _: True, system=(3, 9))
    assert kept(row, 25, "left").stretches == ((0, 10), (15, 30))


def test_keep_response_cuts_the_longest_texts() -> None:
    row = layout((20, 6), (5, 8), (12, 4))
    texts = [end - start for start, end in row.texts]
    found = kept(row, row.length - 10, "keep_response")
    left = [len(set(stays(found)) & set(range(start, end))) for start, end in row.texts]
    assert sum(texts) - sum(left) == 10
    assert left == [11, 5, 11]
    assert all(set(range(end - size, end)) <= set(stays(found)) for (_, end), size in zip(row.texts, left, strict=True))
    assert len(stays(kept(row, row.length - 34, "keep_response"))) == row.length - 34
    with pytest.raises(BadRow, match="no room for the answer"):
        kept(row, row.length - 35, "keep_response")


def test_a_cut_parts_no_character() -> None:
    """Where characters have two tokens each, a cut between them goes on to where less is kept."""
    row = layout((20, 10))
    even = Layout(row.length, row.texts, row.answers, row.exchanges, lambda token: token % 2 == 0)
    (start, _), (question, _) = row.answers[0], row.texts[0]
    for truncation in ("left", "keep_response"):
        for cut in range(1, 8):
            (_, (begin, _)) = kept(even, row.length - cut, truncation).stretches
            assert begin % 2 == 0 and 0 <= begin - (question + cut) <= 1
    for limit in range(start + 2, row.answers[0][1]):
        assert len(stays(kept(even, limit, "right"))) == limit - limit % 2


sizes = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=5)


@pytest.mark.parametrize("truncation", ["right", "left", "keep_response"])
@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(exchanges=sizes, system=st.booleans(), share=st.floats(0.05, 0.99))
def test_the_rules_hold(truncation: str, exchanges: list[tuple[int, int]], system: bool, share: float) -> None:
    row = layout(*exchanges, system=system)
    limit = max(1, int(row.length * share))
    assume(limit < row.length)
    try:
        found = kept(row, limit, truncation)
    except BadRow:
        if truncation == "right":
            assert limit <= row.answers[0][0]
        elif truncation == "left":
            least = row.exchanges[0] + row.length - row.exchanges[-1] - exchanges[-1][0] + 1
            assert limit < least
        else:
            assert limit < row.length - sum(end - start - 1 for start, end in row.texts)
        return
    here = stays(found)
    assert 0 < len(here) <= limit
    gone = set(range(row.length)) - set(here)
    structure = set(range(row.length)) - inside([*row.texts, *row.answers])
    if truncation == "keep_response":
        assert not gone & (structure | inside(list(row.answers)))
        assert len(here) == limit
    if truncation == "left":
        # the system and its header stay, and so does all of the last exchange but its question
        assert not gone & set(range(row.exchanges[0]))
        assert not gone & set(range(row.texts[-1][1], row.length))
        # what is gone are whole exchanges, and a beginning
        starts = [start for start in row.exchanges if start in set(here)]
        assert not gone or min(gone) == row.exchanges[0]
        for start, after in pairwise(starts):
            assert not gone & set(range(start, after))
    if truncation == "right":
        assert here == list(range(len(here)))
        assert any(start < len(here) <= end for start, end in row.answers)
        assert found.open_ended == all(len(here) != end for _, end in row.answers)
    spans = [(start, end, 1.0) for start, end in row.answers]
    trained = inside(list(row.answers)) - gone
    assert inside([(start, end) for start, end, _ in shifted(spans, found)]) == {
        at for at, token in enumerate(here) if token in trained
    }
