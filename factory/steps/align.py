"""Align: files to standard records, every row accounted for, some of the documents held out."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.data import formats, read
from factory.data.formats import BadRow, Record
from factory.execute.context import Run
from factory.plan import held_out_rows
from factory.refusal import refuse

MOST_BAD = 0.5  # share of bad rows above which the format itself must be wrong


@dataclass(slots=True)
class Records:
    """rows = train + validation + not_sampled + dropped, before any is found too long."""

    train: list[Record]
    validation: list[Record]
    rows: int
    not_sampled: int
    dropped: dict[str, int] = field(default_factory=dict)


def align(run: Run) -> dict[str, Any]:
    plan = run.plan.steps.align
    records: list[tuple[bytes, Record]] = []
    dropped: dict[str, int] = {}
    rows = 0
    for name, source in plan.sources.items():
        bad: dict[str, int] = {}
        count = 0
        for row in read.rows(Path(source.path)):
            count += 1
            try:
                record = formats.FORMATS[source.format].align(formats.rename(row, source.columns))
            except BadRow as error:
                bad[str(error)] = bad.get(str(error), 0) + 1
                continue
            records.append((_key(row, run.plan.seed), record))
        _refuse_wrong_format(name, source.format, count, bad)
        rows += count
        for reason, number in bad.items():
            dropped[reason] = dropped.get(reason, 0) + number
    used = len(records)
    if plan.max_samples is not None and plan.max_samples < used:
        chosen = {key for key, _ in sorted(records, key=lambda pair: pair[0])[: plan.max_samples]}
        records = [pair for pair in records if pair[0] in chosen][: plan.max_samples]
    held_out = held_out_rows(len(records), plan.validation_fraction, plan.validation_rows)
    # by the rows' own hashes: the same rows are held out whatever stands beside them
    ranked = sorted(range(len(records)), key=lambda number: records[number][0])
    chosen = set(ranked[:held_out])
    train = [record for number, (_, record) in enumerate(records) if number not in chosen]
    validation = [record for number, (_, record) in enumerate(records) if number in chosen]
    return {
        "records": Records(
            train=train, validation=validation, rows=rows, not_sampled=used - len(records), dropped=dropped
        )
    }


def _key(row: dict[str, Any], seed: int) -> bytes:
    text = json.dumps([seed, row], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _refuse_wrong_format(name: str, format: str, rows: int, bad: dict[str, int]) -> None:
    if sum(bad.values()) <= rows * MOST_BAD:
        return
    reason = max(bad, key=lambda reason: bad[reason])
    raise refuse(
        "rows-broken",
        f"data.sources.{name}.format={format}",
        f"{sum(bad.values()):,} of {rows:,} rows cannot be used, most as: {reason}",
        name=name,
    )
