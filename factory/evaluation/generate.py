"""Answers to held-out prompts and their scores against the rows' own, batch by batch, kept as they are made. No torch.

A second run with the same folder goes on after the batches that are there, if it would make the same rows.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.data.batches import examples
from factory.data.dataset import Dataset, Labelled, Samples, without_end
from factory.data.encoding import Ends
from factory.data.record import Medium
from factory.evaluation import rows
from factory.evaluation.function import Score, metric
from factory.evaluation.spec import kind, shown
from factory.metrics import text
from factory.run.folder import read_json, write_whole


@dataclass(frozen=True, slots=True)
class Prompt:
    """A held-out row's tokens before its last answer, that as text, the answer, and the row's media."""

    id: str
    ids: list[int]
    text: str
    reference: str
    media: tuple[Medium, ...] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """`ended`: with a stop token, before the length limit."""

    text: str
    ended: bool


# of references that are counted by characters: what the report calls their language
_LANGUAGE: dict[text.Units, str] = {"characters": "Chinese", "letters": "no spaces between words"}
Answer = Callable[[int, list[Prompt]], list[Answered]]  # to a batch, by its number


def prompts(samples: Samples, tokenizer: Any, most: int | None, ends: Ends) -> list[Prompt]:
    """Of a pair the chosen answer is the reference; a labelled answer is one where it is wanted."""
    found = list[Prompt]()
    for number, name in enumerate(rows.ids(samples)):
        if len(found) == most:
            break
        sample = samples[number]
        if isinstance(sample, Labelled) and not sample.label:
            continue
        row = examples(sample)[0]
        asked, answer = row.ids[slice(*row.asked)], without_end(row.ids[row.prompt :], ends.tokens)
        text, reference = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (asked, answer))
        found.append(Prompt(name, row.ids[: row.prompt], text.strip(), ends.cut(reference).strip(), row.media))
    return found


def lost_ends(samples: Samples) -> int:
    """How many answers were cut at their end (data.truncation=right); of a stream nobody counts them."""
    return samples.counts()["open_ended"] if isinstance(samples, Dataset) else 0


@dataclass(frozen=True, slots=True)
class Scorer:
    """`by`: what the references' language is counted by. `functions`: the user's, by the names that the report has."""

    names: tuple[str, ...]
    by: text.Units
    functions: dict[str, Score] = field(default_factory=dict)

    def rows(self, asked: Sequence[Prompt], given: Sequence[Answered]) -> list[rows.Row]:
        """A line of the file for each. Raises UserError where a function of the user's fails."""
        answers, references = [each.text for each in given], [each.reference for each in asked]
        own = self._own(answers, references)
        told = [each.text for each in asked]
        values = {
            name: self.functions[name](told, answers, references) if name in self.functions else own[name].rows
            for name in self.names
        }
        return [
            {
                "id": prompt.id,
                "scores": {name: scores[at] for name, scores in values.items()},
                "sums": {"bleu4": own["bleu4"].statistics[at].tolist()} if "bleu4" in self.names else {},
                "prompt": prompt.text,
                "reference": prompt.reference,
                "answer": answer.text,
                "ended": answer.ended,
            }
            for at, (prompt, answer) in enumerate(zip(asked, given, strict=True))
        ]

    def _own(self, answers: Sequence[str], references: Sequence[str]) -> dict[str, text.Metric]:
        return text.score(answers, references, by=self.by)

    def signatures(self) -> dict[str, str]:
        """What two figures must share to be comparable."""
        own = self._own(["a"], ["a"])
        return {name: own[name].signature if name in own else "a function's mean" for name in self.names}


def scorer(asked: Sequence[str], references: Sequence[str]) -> Scorer:
    """Imports the user's functions. Raises UserError."""
    functions = {shown(name): metric(name) for name in asked if kind(name) == "function"}
    return Scorer(tuple(map(shown, asked)), text.units(references), functions)


def digest(plan_digest: str, asked: Sequence[Prompt]) -> str:
    """Of what the rows of an answers' file depend on."""
    content = [plan_digest, [(each.id, each.ids, each.reference, each.media) for each in asked]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(slots=True)
class Kept:
    """The answers' file, and beside it the digest of what it was made for."""

    file: Path
    digest: str

    def read(self) -> list[rows.Row]:
        """What is there of the same answers; else the file begins anew."""
        if (read_json(self._beside) or {}).get("digest") == self.digest:
            found = rows.read(self.file)
            rows.write(self.file, found)  # without a line that was cut, which the next would be joined to
            return found
        rows.write(self.file, [])
        write_whole(self._beside, json.dumps({"digest": self.digest}) + "\n")
        return []

    @property
    def _beside(self) -> Path:
        return self.file.with_suffix(".json")


def batches(asked: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    """The longest first: what does not fit into memory shows at once, and padding is short."""
    ordered = sorted(asked, key=lambda each: len(each.ids), reverse=True)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def answered(
    asked: Sequence[Prompt], size: int, there: Sequence[rows.Row], answer: Answer, scorer: Scorer
) -> Iterator[tuple[list[rows.Row], bool]]:
    """The rows of each batch, and whether they are new. A batch of which a row is missing is answered again whole."""
    known = {row["id"]: row for row in there}
    for number, batch in enumerate(batches(asked, size)):
        if all(each.id in known for each in batch):
            yield [known[each.id] for each in batch], False
            continue
        given = answer(number, batch)
        yield scorer.rows(batch, given), True


def report(found: Sequence[rows.Row], scorer: Scorer) -> tuple[dict[str, float], dict[str, Any]]:
    """Each metric over the rows, and how it was measured."""
    sums = {name: {row["id"]: rows.sums(row, name) for row in found} for name in scorer.names}
    figures = {name: rows.value(name, each) for name, each in sums.items()}
    return figures, {
        "rows": len(found),
        "ended": sum(row["ended"] for row in found),
        "language": _LANGUAGE.get(scorer.by, "words between spaces"),
        "counted_by": "characters" if scorer.by in _LANGUAGE else "words",
        "signatures": scorer.signatures(),
    }
