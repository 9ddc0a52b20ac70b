"""The comparison as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

from factory.compare.columns import decimals
from factory.compare.comparison import Comparison
from factory.config.values import to_tree
from factory.evaluation.rows import Compared
from factory.plan import diff
from factory.plan.keys import as_set


def markdown(found: Comparison) -> str:
    heads, rows = _cells(found)
    right = ["---:" if head in {column.title for column in found.columns} else "---" for head in heads]
    lines = [_line(heads), f"|{'|'.join(f' {each} ' for each in right)}|", *map(_line, rows)]
    if found.notes:
        lines += ["", *(f"- {_escaped(note)}" for note in found.notes)]
    if told := differences(found):
        lines += ["", "| less the leading run | difference | 95 % interval | rows |", "| --- | ---: | ---: | ---: |"]
        lines += [_line([f"{title}: {name} less {leading}", *_interval(each)]) for title, name, leading, each in told]
    if spread := spreads(found):
        names = [found.runs[place].name for place in found.planned]
        lines += ["", _line(["the plans differ in", *names]), f"|{' --- |' * (len(names) + 1)}"]
        lines += [_line([each.key, *map(diff.shown, each.values)]) for each in spread]
    return "\n".join(lines) + "\n"


def _cells(found: Comparison) -> tuple[list[str], list[list[str]]]:
    labelled = any(found.labels)
    heads = ["run", *(["what differs"] if labelled else []), *(column.title for column in found.columns), "status"]
    rows = [
        [
            run.name,
            *([found.labels[place]] if labelled else []),
            *(
                f"**{column.text(run)}** *" if found.best(column, place) else column.text(run)
                for column in found.columns
            ),
            run.status,
        ]
        for place, run in enumerate(found.runs)
    ]
    return heads, rows


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def differences(found: Comparison) -> list[tuple[str, str, str, Compared]]:
    """(column's title, the other run's name, the leading run's, what they differ by) of every interval."""
    return [
        (column.title, found.names[place], found.names[verdict.leading], each)
        for column, verdict in found.judged()
        for place, each in verdict.others.items()
    ]


def spreads(found: Comparison) -> tuple[diff.Spread, ...]:
    """The keys that decide the result and differ, as they are set, then versions of packages that can change it."""
    if found.spreads is None:
        return ()
    return (*(replace(each, key=as_set(each.key)) for each in found.spreads.decisive), *found.spreads.versions)


def _interval(each: Compared) -> list[str]:
    made = each.difference
    return [decimals(made.value, "+"), f"{decimals(made.low, '+')} to {decimals(made.high, '+')}", f"{each.rows:,}"]


def table(found: Comparison) -> str:
    """CSV: a line a run, every number as it is in the report."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["run", "what_differs", "status", "where", *(column.key for column in found.columns), "best_of"])
    for place, run in enumerate(found.runs):
        numbers = (column.value(run) for column in found.columns)
        best = " ".join(column.key for column in found.columns if found.best(column, place))
        lines.writerow([run.name, found.labels[place], run.status, run.where, *map(_plain, numbers), best])
    return out.getvalue()


def _plain(number: float | None) -> str:
    if number is None:
        return ""
    return str(int(number)) if number == int(number) else repr(number)


def tree(found: Comparison) -> dict[str, Any]:
    """{runs: [{name, what_differs, status, said, where, overrides, digest, values}], verdicts, plans, notes}.

    A column has a verdict of each data set.
    """
    return {
        "runs": [
            {
                "name": run.name,
                "what_differs": found.labels[place],
                "status": run.status,
                "said": run.said,
                "where": run.where,
                "overrides": list(run.overrides),
                "digest": run.report.get("plan_digest"),
                "values": {column.key: column.value(run) for column in found.columns},
            }
            for place, run in enumerate(found.runs)
        ],
        "verdicts": {
            key: [
                {
                    "leading": found.runs[verdict.leading].name,
                    "best": None if verdict.best is None else found.runs[verdict.best].name,
                    "why": verdict.why,
                    "others": {found.runs[place].name: _numbers(each) for place, each in verdict.others.items()},
                }
                for verdict in each_data_set
            ]
            for key, each_data_set in found.verdicts.items()
        },
        "plans": [
            {
                "key": each.key,
                **{found.runs[at].name: value for at, value in zip(found.planned, each.values, strict=True)},
            }
            for each in spreads(found)
        ],
        "notes": list(found.notes),
    }


def _numbers(each: Compared) -> dict[str, Any]:
    """JSON has none that is endless: null."""
    tree = to_tree(each)
    return {**tree, "difference": {name: at if isfinite(at) else None for name, at in tree["difference"].items()}}


def as_json(found: Comparison) -> str:
    return json.dumps(tree(found), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
