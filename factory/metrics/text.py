"""BLEU by sacrebleu, ROUGE by rouge-score, exact match: of generated answers, all from 0 to 100.

Papers: Papineni et al. 2002 (BLEU), Post 2018 (1804.08771: sacrebleu), Lin 2004 (ROUGE).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal
from unicodedata import category

import numpy as np

from factory.metrics import ROUGE
from factory.metrics.bootstrap import Statistics

# what a text is counted by: Chinese characters; characters of other languages without spaces between words; words as
# they stand; English words by their stems
Units = Literal["characters", "letters", "words", "stems"]
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# letters with their vowel and tone marks, without digits and punctuation: kana, Thai, Lao, Myanmar, Khmer
_UNSPACED = (
    "\u3005\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecf\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u109a-\u109d"
    "\u1780-\u17d3\u17d7\u17dc\u17dd"
)
_CHINESE, _OTHERS = re.compile(f"[{_HAN}]"), re.compile(f"[{_UNSPACED}]")
_CHARACTER = re.compile(f"[{_HAN}{_UNSPACED}]")
_CHARACTER_OR_WORD = re.compile(rf"[{_HAN}{_UNSPACED}]|[^\W_{_HAN}{_UNSPACED}]+")
# share of characters of languages without spaces above which no spaces part the words; of those that are not Chinese
# among them; of letters beyond a to z
_MOSTLY = 0.3
# sacrebleu's tokenizer. Japanese would have one of its own by words (ja-mecab), which is no dependency
_TOKENIZER: dict[Units, str] = {"characters": "zh", "letters": "char", "words": "13a", "stems": "13a"}


@dataclass(frozen=True, slots=True)
class Metric:
    """`of` is the metric from the sums (k) of its `statistics` (rows, k). `rows`: each row's own, from 0 to 100."""

    statistics: Statistics
    of: Callable[[Statistics], float]
    rows: list[float]
    signature: str

    @property
    def value(self) -> float:
        return self.of(self.statistics.sum(0))


def units(texts: Sequence[str]) -> Units:
    """What they are counted by: characters where no spaces part the words, as mostly in Chinese, Japanese and Thai.

    Of words with other letters than a to z rouge-score's own tokenizer leaves nothing.
    """
    text = "".join("".join(texts).split())
    han, others = len(_CHINESE.findall(text)), len(_OTHERS.findall(text))
    if han + others > _MOSTLY * len(text):
        return "letters" if others > _MOSTLY * (han + others) else "characters"
    letters = [letter for letter in text if letter.isalpha()]
    beyond = sum(not letter.isascii() for letter in letters)
    return "words" if beyond > _MOSTLY * len(letters) else "stems"


def score(answers: Sequence[str], references: Sequence[str], *, by: Units | None = None) -> dict[str, Metric]:
    """METRICS of the answers, one reference each. Unless told what to count `by`, the references' language decides."""
    assert len(answers) == len(references) > 0
    by = by or units(references)
    return {
        "bleu4": _bleu(answers, references, _TOKENIZER[by]),
        **_rouge(answers, references, by),
        "exact_match": _exact(answers, references),
    }


def _bleu(answers: Sequence[str], references: Sequence[str], tokenize: str) -> Metric:
    """Of the whole corpus: its statistics are the matching and all n-grams for n = 1 to 4, and both lengths."""
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(tokenize=tokenize)
    found = [bleu.corpus_score([answer], [[reference]]) for answer, reference in zip(answers, references, strict=True)]
    statistics = np.array([[*each.counts, *each.totals, each.sys_len, each.ref_len] for each in found], np.float64)
    return Metric(statistics, bleu4_of, [each.score for each in found], str(bleu.get_signature()))


def bleu4_of(sums: Statistics) -> float:
    """Matching n-grams for n = 1 to 4, all n-grams, the answers' length, the references' length: (10) → BLEU-4."""
    from sacrebleu.metrics.bleu import BLEU

    counts, totals = sums[:4].astype(int).tolist(), sums[4:8].astype(int).tolist()
    return BLEU.compute_bleu(counts, totals, int(sums[8]), int(sums[9]), smooth_method="exp").score


class _Characters:
    """What rouge-score takes for a tokenizer: characters where no spaces part words, and other languages' words."""

    def tokenize(self, text: str) -> list[str]:
        return _CHARACTER_OR_WORD.findall(text.lower())


class _Words:
    """Words of any letters, with the marks that belong to them, as vowels in Hindi are; of the unspaced characters."""

    def tokenize(self, text: str) -> list[str]:
        apart = _CHARACTER.sub(r" \g<0> ", text.lower())
        kept = "".join(each if each.isalnum() or category(each)[0] == "M" else " " for each in apart)
        return [word for word in kept.split() if any(map(str.isalnum, word))]


# what the scorer is made with, and how the signature says so
_ROUGE: dict[Units, tuple[dict[str, Any], str]] = {
    "characters": ({"tokenizer": _Characters()}, "characters"),
    "letters": ({"tokenizer": _Characters()}, "characters"),
    "words": ({"tokenizer": _Words()}, "words"),
    "stems": ({"use_stemmer": True}, "words, stemmed"),  # the package's own tokenizer, with its Porter stemmer
}


def _rouge(answers: Sequence[str], references: Sequence[str], by: Units) -> dict[str, Metric]:
    """F1, a mean over the rows."""
    from rouge_score.rouge_scorer import RougeScorer

    made, counted = _ROUGE[by]
    scorer = RougeScorer(list(ROUGE), **made)
    found = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    signature = f"rouge-score {version('rouge-score')}, f1, {counted}"
    return {name: _mean([100 * each[name].fmeasure for each in found], signature) for name in ROUGE}


def _exact(answers: Sequence[str], references: Sequence[str]) -> Metric:
    same = [100.0 * (a.strip() == b.strip()) for a, b in zip(answers, references, strict=True)]
    return _mean(same, "equal but for space around")


def _mean(rows: list[float], signature: str) -> Metric:
    return Metric(np.array([[row, 1.0] for row in rows]), mean_of, rows, signature)


def mean_of(sums: Statistics) -> float:
    """(sum, how many) → mean."""
    return float(sums[0] / sums[1])
