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

# what a text is counted by: Chinese characters; words as they stand; English words by their stems
Units = Literal["characters", "words", "stems"]
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_CHINESE = re.compile(f"[{_HAN}]")
_CHARACTER_OR_WORD = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+")
_MOSTLY = 0.3  # share of Chinese characters above which there are no words between spaces; of letters beyond a to z


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


def chinese(texts: Sequence[str]) -> bool:
    """Whether they are mostly Chinese: such texts are counted by characters, as no spaces part their words."""
    text = "".join("".join(texts).split())
    return bool(text) and len(_CHINESE.findall(text)) > _MOSTLY * len(text)


def units(texts: Sequence[str]) -> Units:
    """What they are counted by. Of words with other letters than a to z rouge-score's own tokenizer leaves nothing."""
    if chinese(texts):
        return "characters"
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    beyond = sum(not letter.isascii() for letter in letters)
    return "words" if beyond > _MOSTLY * len(letters) else "stems"


def score(answers: Sequence[str], references: Sequence[str], *, by: Units | None = None) -> dict[str, Metric]:
    """METRICS of the answers, one reference each. Unless told what to count `by`, the references' language decides."""
    assert len(answers) == len(references) > 0
    by = by or units(references)
    return {
        "bleu4": _bleu(answers, references, "zh" if by == "characters" else "13a"),
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
    """What rouge-score takes for a tokenizer: Chinese characters, and the words of other languages between them."""

    def tokenize(self, text: str) -> list[str]:
        return _CHARACTER_OR_WORD.findall(text.lower())


class _Words:
    """Words of any letters, with the marks that belong to them, as vowels in Hindi are; Chinese characters apart."""

    def tokenize(self, text: str) -> list[str]:
        apart = _CHINESE.sub(r" \g<0> ", text.lower())
        kept = "".join(each if each.isalnum() or category(each)[0] == "M" else " " for each in apart)
        return [word for word in kept.split() if any(map(str.isalnum, word))]


# what the scorer is made with, and how the signature says so
_ROUGE: dict[Units, tuple[dict[str, Any], str]] = {
    "characters": ({"tokenizer": _Characters()}, "characters"),
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
