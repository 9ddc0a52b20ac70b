"""Against the packages' own corpus scores, and figures worked out by hand."""

from math import exp, log

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from factory.metrics import text

ANSWERS = ["the cat sat on the mat .", "there are two dogs here, running", "yes", ""]
REFERENCES = ["the cat sat on a mat .", "two dogs are running here", "yes", "no answer at all was given"]
CHINESE = (["今天天气很好。", "我爱北京"], ["今天天气真好。", "我爱北京天安门"])


@pytest.mark.parametrize(("answers", "references"), [(ANSWERS, REFERENCES), CHINESE], ids=["English", "Chinese"])
def test_bleu_is_sacrebleus_of_the_corpus(answers: list[str], references: list[str]) -> None:
    tokenize = "zh" if answers is CHINESE[0] else "13a"
    found = text.score(answers, references)["bleu4"]
    assert found.value == pytest.approx(sacrebleu.corpus_bleu(answers, [references], tokenize=tokenize).score)
    assert f"tok:{tokenize}|smooth:exp" in found.signature


def test_bleu_by_hand() -> None:
    """a b c d e f against a b c d x y: 4/6, 3/5, 2/4 and 1/3 of the n-grams, of the same length."""
    found = text.score(["a b c d e f"], ["a b c d x y"])["bleu4"]
    assert found.value == pytest.approx(100 * exp(sum(map(log, (4 / 6, 3 / 5, 2 / 4, 1 / 3))) / 4))
    short = text.score(["a b c d"], ["a b c d e f g h"])["bleu4"]
    assert short.value == pytest.approx(100 * exp(1 - 8 / 4))


def test_rouge_is_the_packages_mean() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    wanted = [scorer.score(b, a) for a, b in zip(ANSWERS, REFERENCES, strict=True)]
    found = text.score(ANSWERS, REFERENCES)
    for name in ("rouge1", "rouge2", "rougeL"):
        assert found[name].value == pytest.approx(100 * sum(each[name].fmeasure for each in wanted) / len(wanted))


def test_rouge_of_chinese_counts_characters() -> None:
    """今天天气很好 against 今天天气真好: 5 of 6 characters, 3 of 5 pairs, and 5 in a row of 6 with one left out."""
    found = text.score(["今天天气很好。"], ["今天天气真好。"])
    assert found["rouge1"].value == pytest.approx(100 * 5 / 6)
    assert found["rouge2"].value == pytest.approx(100 * 3 / 5)
    assert found["rougeL"].value == pytest.approx(100 * 5 / 6)
    assert "characters" in found["rouge1"].signature


def test_words_of_another_language_within_chinese_stay_words() -> None:
    assert text._Characters().tokenize("我爱Python3很好") == ["我", "爱", "python3", "很", "好"]


def test_exact_match_takes_no_heed_of_space_around() -> None:
    assert text.score([" yes\n", "No"], ["yes", "no"])["exact_match"].rows == [100.0, 0.0]


UNSPACED = {
    "Japanese": ("わたしはねこがすきです。", "わたしはいぬがすきです。"),
    "Thai": ("วันนี้อากาศดีมาก", "วันนี้อากาศร้อนมาก"),
    "Lao": ("ມື້ນີ້ອາກາດດີຫຼາຍ", "ມື້ນີ້ອາກາດຮ້ອນຫຼາຍ"),
    "Khmer": ("ថ្ងៃនេះអាកាសធាតុល្អ", "ថ្ងៃនេះអាកាសធាតុក្តៅ"),
    "Burmese": ("ဒီနေ့ရာသီဥတုကောင်းတယ်။", "ဒီနေ့ရာသီဥတုပူတယ်။"),
}


class _Each:
    def tokenize(self, text: str) -> list[str]:
        return [each for each in text if each not in "。။"]


@pytest.mark.parametrize("language", UNSPACED)
def test_where_no_spaces_part_words_characters_are_counted(language: str) -> None:
    answer, reference = UNSPACED[language]
    found = text.score([answer], [reference])
    names = ["rouge1", "rouge2", "rougeL"]
    wanted = RougeScorer(names, tokenizer=_Each()).score(reference, answer)
    assert all(found[name].value == pytest.approx(100 * wanted[name].fmeasure) for name in names)
    assert found["rouge1"].value > 50 and found["rouge1"].signature.endswith("f1, characters")
    assert found["bleu4"].value == pytest.approx(sacrebleu.corpus_bleu([answer], [[reference]], tokenize="char").score)
    assert "tok:char" in found["bleu4"].signature


def test_rouge_of_other_letters_counts_their_words() -> None:
    """The package's own tokenizer keeps a to z alone: of these words nothing, so that an equal answer would have 0."""
    found = text.score(["Кошка сидит на окне."], ["Кошка спит на окне."])
    assert found["rouge1"].value == found["rougeL"].value == pytest.approx(100 * 3 / 4)
    assert found["rouge2"].value == pytest.approx(100 * 1 / 3)
    assert found["rouge1"].signature.endswith("f1, words")
    assert text.score(["안녕 세상"], ["안녕 세상"])["rougeL"].value == 100


def test_a_mark_belongs_to_its_word() -> None:
    assert text._Words().tokenize("हिन्दी, ❤️ भाषा! 我爱X のは") == ["हिन्दी", "भाषा", "我", "爱", "x", "の", "は"]


@pytest.mark.parametrize(
    ("texts", "by"),
    [
        (["a naïve café", "yes"], "stems"),
        (["Привет, Tom"], "words"),
        (["안녕 세상"], "words"),
        (["我爱北京", "yes"], "characters"),
        (["我爱のはな北京天安門"], "characters"),  # a word of Japanese makes no Japanese
        (["今日は天気がとても良いですね"], "letters"),
        (["ตกลง", "yes"], "letters"),
        (["42"], "stems"),
        ([""], "stems"),
        (["a 我 bcdefgh"], "stems"),
    ],
)
def test_what_texts_are_counted_by(texts: list[str], by: str) -> None:
    assert text.units(texts) == by
