"""The rows of a run are read back, paired and compared: the metrics over them are those of the whole."""

import random
from math import exp, inf, isfinite
from pathlib import Path

import numpy as np
import pytest

from factory.evaluation import rows
from factory.metrics import text
from factory.run.folder import RunFolder

REFERENCES = ["the cat sat on the mat", "a dog runs in the park", "it is raining today in Rome", "two and two are four"]
ANSWERS = ["the cat is on the mat", "a dog runs in a park", "it is sunny today in Rome", "two and two make five"]


def run(folder: Path, **files: list[rows.Row]) -> Path:
    for name, content in files.items():
        rows.write(RunFolder(folder).evaluation / f"{name}.jsonl", content)
    return folder


def nats(seed: int, shift: float, count: int = 40) -> list[rows.Row]:
    draws = np.random.default_rng(seed)
    tokens = np.random.default_rng(0).integers(5, 50, count)
    losses = tokens * (2 + shift + 0.1 * draws.standard_normal(count))
    pairs = zip(losses.tolist(), tokens.tolist(), strict=True)
    return [{"id": f"demo:{at}", "scores": {"nats": loss, "tokens": size}} for at, (loss, size) in enumerate(pairs)]


def asked(right: str) -> list[rows.Row]:
    """Three questions of one subject of CMMLU, one of another."""
    ids = ["agronomy:1", "agronomy:2", "agronomy:3", "arts:1"]
    return [{"id": row, "scores": {"cmmlu": 100.0 * (one == "y")}} for row, one in zip(ids, right, strict=True)]


def answered(answers: list[str]) -> list[rows.Row]:
    found = text.score(answers, REFERENCES)
    return [
        {
            "id": f"demo:{at}",
            "scores": {name: metric.rows[at] for name, metric in found.items()},
            "sums": {"bleu4": found["bleu4"].statistics[at].tolist()},
        }
        for at in range(len(answers))
    ]


def test_a_metric_over_its_rows_is_that_of_the_whole(tmp_path: Path) -> None:
    losses = nats(1, 0)
    where = run(tmp_path, perplexity=losses, generation=answered(ANSWERS), cmmlu=asked("yynn"))
    found = {name: rows.value(name, sums) for name, sums in rows.measures(where).items()}
    wanted = {name: metric.value for name, metric in text.score(ANSWERS, REFERENCES).items()}
    total, tokens = (sum(row["scores"][name] for row in losses) for name in ("nats", "tokens"))
    wanted["rouge"] = (wanted["rouge1"] + wanted["rouge2"] + wanted["rougeL"]) / 3
    wanted |= {"perplexity": exp(total / tokens), "cmmlu": (200 / 3 + 0) / 2}  # by subject, as its authors have it
    assert found == pytest.approx(wanted)


def test_runs_are_compared_over_the_rows_that_both_have(tmp_path: Path) -> None:
    worse, better = nats(1, 0), nats(2, -0.3)
    random.Random(0).shuffle(better)
    one = run(tmp_path / "one", perplexity=worse, cmmlu=asked("yynn"))
    other = run(tmp_path / "other", perplexity=[*better[:30]], cmmlu=asked("yyny"), generation=answered(ANSWERS))
    found = rows.compared(one, other)
    assert set(found) == {"perplexity", "cmmlu"}
    common = {row["id"]: row for row in better[:30]}
    sides = [[row for row in worse if row["id"] in common], list(common.values())]
    before, after = (exp(sum(r["scores"]["nats"] for r in s) / sum(r["scores"]["tokens"] for r in s)) for s in sides)
    expected = after - before
    perplexity, cmmlu = found["perplexity"], found["cmmlu"]
    assert (perplexity.difference.value, perplexity.rows) == (pytest.approx(expected), 30)
    assert perplexity.better is True and perplexity.difference.high < 0
    assert rows.compared(other, one)["perplexity"].better is False
    assert cmmlu.difference.value == pytest.approx(50) and cmmlu.better is None  # of four questions nobody can say


def test_what_has_diverged_is_compared_without_an_end(tmp_path: Path) -> None:
    """Its figure is a number still, and that of some rows which are drawn is none."""
    one, other = run(tmp_path / "one", perplexity=nats(1, 0)), run(tmp_path / "other", perplexity=nats(2, 707.76))
    found = rows.compared(one, other)["perplexity"]
    assert isfinite(found.difference.value) and found.difference.value > 1e300
    assert (found.difference.low, found.difference.high, found.better) == (-inf, inf, None)
    assert (rows.perplexity(710), rows.perplexity(2)) == (inf, exp(2))


def test_a_line_that_a_kill_cut_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert rows.read(file) == []
    rows.write(file, asked("yyyy"))
    file.write_text(file.read_text()[:-9])
    assert rows.read(file) == asked("yyyy")[:3]
