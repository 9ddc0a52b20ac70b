import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from factory.data.placing import Fast, _Encoded, _Spelled

WORDS = ["the cat sat on the mat, naïve café", "übergrößen 日本語 日本 🙂🙂 the the cat's", "  spaces\n\nlines\t"] * 5


def trained(*added: AddedToken, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    made = Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    if normalizer is not None:
        made.normalizer = normalizer  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(WORDS, BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens([AddedToken("<|end|>"), *added])
    return made


PLAIN = trained()


def by_offsets(tokenizer: Tokenizer, text: str) -> _Encoded:
    return _Encoded(tokenizer.encode(text, add_special_tokens=False), len(text))


@settings(max_examples=300, deadline=None)
@example("日本語🙂<|end|>\n the cat 🙂")
@example("")
@given(st.text(st.sampled_from("the cat日本語é🙂ü\n \x00\u0301") | st.characters(exclude_categories=["Cs"])))
def test_lengths_in_bytes_tell_the_places_that_offsets_tell(text: str) -> None:
    (found,) = Fast(PLAIN, placed=True).encode([text])
    wanted = by_offsets(PLAIN, text)
    assert isinstance(found, _Spelled)
    assert found.ids == wanted.ids
    assert [found.edge(at) for at in range(len(text) + 1)] == [wanted.edge(at) for at in range(len(text) + 1)]
    assert [found.whole(at) for at in range(len(found.ids) + 1)] == [
        wanted.whole(at) for at in range(len(found.ids) + 1)
    ]


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (trained(normalizer=normalizers.NFC()), unicodedata.normalize("NFD", "naïve café")),
        (trained(AddedToken("<turn>", lstrip=True, rstrip=True)), "the cat  <turn>  the mat"),
    ],
    ids=["normalizer", "added token that takes space"],
)
def test_where_tokens_spell_something_else_their_offsets_are_asked_for(tokenizer: Tokenizer, text: str) -> None:
    other = "the cat sat"
    first, second, third = Fast(tokenizer, placed=True).encode([other, text, other])
    assert isinstance(first, _Spelled)
    assert isinstance(second, _Encoded)
    assert isinstance(third, _Spelled)
    assert second.ids == by_offsets(tokenizer, text).ids
