"""Which run is best, in each column where that can be said, and how sure it is.

A run is best where its interval against every other run leaves out 0: the paired bootstrap (`metrics.bootstrap`) over
the rows that both have measured, 95 % each. It is found by its figure first, so that of many runs the best is named a
little too often; the intervals themselves are shown beside it. Of runs on several data sets each set has its own best.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.compare.columns import Column
from factory.compare.runs import Run
from factory.evaluation import rows
from factory.metrics import ROUGE
from factory.plan.diff import ABSENT, flat, shown
from factory.plan.keys import as_set
from factory.plan.plan import DataSource, Plan

# of `Plan.decisive()`: what draws the held-out rows; what their tokens, and which of them count, follow from; and
# what bounds an answer
_CHOSEN = ("align.", "data.mixing", "data.max_samples", "data.streaming", "data.shuffle_buffer")
_SOURCES = ("align.sources.", "data.sources.")
_DATA = (*_CHOSEN, *_SOURCES, "data.validation")
_ROWS = ("seed", *_DATA, "evaluate.rows")
_TOKENS = (*_ROWS, "pack.", "data.", "model.template", "stage.name", "evaluate.stride")
_ANSWERS = (*_ROWS, "evaluate.max_new_tokens", "evaluate.temperature")
_NO_MATTER = ("pack.packing", "pack.isolate_documents", "pack.padding_free")  # held-out rows stand alone
_OF_TOKENS = ("perplexity", "loss")
# what runs were that differ in a key which starts so; what tells most of them first
_WERE = {
    _SOURCES: "measured on different data",
    "data.validation": "measured on different held-out rows",
    _CHOSEN: "measured on rows that were chosen otherwise",
    "evaluate.rows": "measured on rows that do not train and on rows that do",
    "seed": "measured on rows that different seeds hold out",
    "pack.max_length": "measured on sequences of different length",
    "evaluate.stride": "measured with windows of different strides",
    ("pack.", "data.", "model.template"): "measured on rows that were made tokens of otherwise",
    "stage.name": "measured by the losses of different stages",
    "evaluate.": "measured by answers that were written otherwise",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """`best` and `leading` are places among the runs: surely best, and best by the figure alone.

    `others` are the compared ones by their place: the other run less the leading one. `why` says why there is no best.
    """

    leading: int
    best: int | None
    others: dict[int, rows.Compared]
    why: str | None


class Judge:
    """The runs' rows, read once, and the intervals of each pair, drawn once."""

    def __init__(self, runs: Sequence[Run]):
        self._runs = runs
        self.unread = dict[int, str]()  # runs whose rows cannot be used, and why
        self._measures = [self._read(place) for place in range(len(runs))]
        self._pairs: dict[tuple[int, int], dict[str, rows.Compared]] = {}

    def _read(self, place: int) -> dict[str, Any]:
        folder = self._runs[place].folder
        try:
            return {} if folder is None else rows.measures(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # whatever a broken file holds
            self.unread[place] = f"its evaluation rows cannot be read ({type(error).__name__}: {error})"
            return {}

    def verdicts(self, column: Column) -> tuple[Verdict, ...]:
        """One of each data set; none where nothing is to be chosen: no better side, or fewer than two figures."""
        values = {place: value for place, run in enumerate(self._runs) if (value := column.value(run)) is not None}
        if column.better is None or len(values) < 2:
            return ()
        asked_alike = any(_signature(column.key, self._runs[place]) for place in values)
        together = [list(values)] if asked_alike else on_same_data(self._runs, values)
        return tuple(self._among(column, {place: values[place] for place in places}) for places in together)

    def _among(self, column: Column, values: dict[int, float]) -> Verdict:
        runs = self._runs
        leading = (min if column.better == "low" else max)(values, key=values.__getitem__)
        if runs[leading].status == "red check":
            return Verdict(leading, None, {}, f"{runs[leading].name} leads, and a check of it is red")
        if wrong := apart(column.key, [runs[place] for place in values]):
            return Verdict(leading, None, {}, wrong)
        if lacking := [runs[place].name for place in values if column.key not in self._measures[place]]:
            return Verdict(leading, None, {}, f"no rows of it were written by {listed(lacking)}")
        pairs = {place: self._pair(leading, place).get(column.key) for place in values if place != leading}
        if lacking := [runs[place].name for place, found in pairs.items() if found is None]:
            return Verdict(leading, None, {}, f"{runs[leading].name} and {listed(lacking)} have no row in common")
        others = {place: found for place, found in pairs.items() if found is not None}
        if few := [runs[place].name for place, found in others.items() if found.few]:
            rows = min(found.rows for found in others.values())
            shared = f"share {rows} row{'s' * (rows > 1)}: too few to tell"
            why = f"{runs[leading].name}, which leads, and {listed(few)} {shared}"
            return Verdict(leading, None, others, why)
        if better := [runs[place].name for place, found in others.items() if found.better]:
            why = f"{runs[leading].name} leads by its own rows, and {listed(better)} by those that both have measured"
            return Verdict(leading, None, others, why)
        unsure = [runs[place].name for place, found in others.items() if found.better is not False]
        if unsure:
            why = f"the interval of {runs[leading].name}, which leads, against {listed(unsure)} holds 0"
            return Verdict(leading, None, others, why)
        return Verdict(leading, leading, others, None)

    def _pair(self, first: int, second: int) -> dict[str, rows.Compared]:
        if (first, second) not in self._pairs:
            one, other = self._runs[first].folder, self._runs[second].folder
            assert one is not None and other is not None
            self._pairs[first, second] = rows.compared(one, other)
        return self._pairs[first, second]


def on_same_data(runs: Sequence[Run], places: Iterable[int]) -> list[list[int]]:
    """The places in groups of two or more runs on the same data; all in one where no two are on the same."""
    places, by_data = list(places), dict[str | None, list[int]]()
    for place in places:
        data = None if runs[place].plan is None else str(_decisive(runs[place], _DATA))
        by_data.setdefault(data, []).append(place)
    return [group for group in by_data.values() if len(group) > 1] or [places]


def apart(metric: str, runs: Sequence[Run]) -> str | None:
    """Why the figures of these runs cannot be set side by side, if so: other rows, other tokens, another benchmark."""
    if asked := [(run.name, signature) for run in runs if (signature := _signature(metric, run))]:
        return _unlike("were asked different questions", asked)
    if lacking := [run.name for run in runs if run.plan is None]:
        return f"what {listed(lacking)} measured is not known without a plan"
    by_tokens = metric in _OF_TOKENS
    decided = [dict(_decisive(run, _TOKENS if by_tokens else _ANSWERS)) for run in runs]
    for start, were in _WERE.items():
        if told := _first_unlike(start, decided):
            told = (start == _SOURCES and _data(runs)) or told
            return _unlike(f"were {were}", [(run.name, each) for run, each in zip(runs, told, strict=True)])
    if by_tokens:
        return _of_tokenizers(runs)
    return _unlike("were scored in different ways", [(run.name, str(_scored(metric, run))) for run in runs])


def _first_unlike(start: str | tuple[str, ...], decided: Sequence[dict[str, Any]]) -> list[str]:
    """What each run has of the first key that starts so and differs, as it is set; nothing where none does."""
    for key in dict.fromkeys(key for each in decided for key in each if key.startswith(start)):
        values = [each.get(key, ABSENT) for each in decided]
        if any(value != values[0] for value in values):
            return [f"{as_set(key)}={shown(value)}" for value in values]
    return []


def _data(runs: Sequence[Run]) -> list[str] | None:
    """The data of each run, in the fewest words that tell all of them apart: the sets, their files, and their sizes."""
    found = [_measured(run.plan) for run in runs if run.plan is not None]
    named = [", ".join(each) for each in found]
    files = [", ".join(Path(source.path).name for source in each.values()) for each in found]
    sizes = [sum(source.bytes for source in each.values()) for each in found]
    sized = [f"{name} of {count:,} bytes" for name, count in zip(files, sizes, strict=True)]
    kinds = len({str(_decisive(run, _SOURCES)) for run in runs})
    return next((each for each in (named, files, sized) if len(set(each)) == kinds), None)


def _of_tokenizers(runs: Sequence[Run]) -> str | None:
    """Where a run saved none, it has that of another run on the same base, or the one that lay beside its weights.

    The last may be the same in other words, as libraries write it: what differs from it is not known to be another.
    """
    of_base = {run.base: run.tokenizer for run in runs if run.tokenizer is not None}
    saved = [(run.name, run.tokenizer or of_base.get(run.base)) for run in runs]
    known = [(name, tokenizer) for name, tokenizer in saved if tokenizer is not None]
    if wrong := _unlike("have different tokenizers", known, shown=False):
        return wrong
    beside = {run.base: run.loaded for run in runs if run.loaded is not None}
    told = [
        (run.name, str(tokenizer or beside.get(run.base, run.base)))
        for (_, tokenizer), run in zip(saved, runs, strict=True)
    ]
    return _unlike("are not known to have the same tokenizer", told, shown=False)


def _signature(metric: str, run: Run) -> str | None:
    """Of a benchmark, or of a task of lm-evaluation-harness, whose metrics are TASK/METRIC."""
    measured = run.report.get("evaluate", {})
    of_task = measured.get("harness", {}).get(metric.partition("/")[0], {})
    return measured.get("benchmarks", {}).get(metric, of_task).get("signature")


def _scored(metric: str, run: Run) -> str | None:
    """The signature of a score of answers: by which package, and what it counts."""
    signatures = run.report.get("evaluate", {}).get("generation", {}).get("signatures", {})
    return signatures.get(ROUGE[0] if metric == rows.ROUGE_MEAN else metric)


def _decisive(run: Run, starts: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Rows of a set that is held out whole follow from it alone, and from the seed where that draws some of them."""
    assert run.plan is not None
    held, measured = run.plan.settings.data.validation, _measured(run.plan)
    streaming = run.plan.settings.data.streaming
    drawn = any(source.asked.max_samples is not None for source in measured.values())

    def decides(key: str) -> bool:
        # ranks hold rows out, wherever they stand; of a stream its order does
        if held is None and key == "align.order":
            return streaming
        if held is None or not key.startswith(("seed", *_DATA)):
            return key not in _NO_MATTER
        of_held = key.startswith(tuple(f"{start}{held}." for start in _SOURCES))
        return of_held or key == "data.validation" or (key == "seed" and drawn)

    leaves = flat(run.plan.decisive())
    return [(key, value) for key, value in leaves if key.startswith(starts) and decides(key)]


def _measured(plan: Plan) -> dict[str, DataSource]:
    """The sets that held-out rows are of."""
    held = plan.settings.data.validation
    return {name: source for name, source in plan.sources.items() if held in (None, name)}


def _unlike(were: str, told: Sequence[tuple[str, str]], *, shown: bool = True) -> str | None:
    """`the runs were measured on different data: demo (a and b); shop.jsonl (c)`; `told` is of each run by its name."""
    by_value = dict[str, list[str]]()
    for name, value in told:
        by_value.setdefault(value, []).append(name)
    if len(by_value) < 2:
        return None
    groups = (f"{value} ({listed(names)})" if shown else listed(names) for value, names in by_value.items())
    return f"the runs {were}: {'; '.join(groups)}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, the first few of many."""
    shown = list(names[:4]) + ([f"{len(names) - 4} more"] if len(names) > 4 else [])
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
