"""Accuracies, their means and errors: against NumPy in float64, and two runs against the closed form."""

import json
import random
from math import sqrt

import numpy as np
import pytest

from factory.benchmarks import benchmark
from factory.benchmarks.result import MEANS, Result, Row, by_subject, choice, mean
from factory.benchmarks.types import Average
from factory.metrics.bootstrap import Statistics, difference

SUBJECTS = {"agronomy": 30, "arts": 50, "chinese_history": 80, "ancient_chinese": 40}  # of four of CMMLU's categories


def result(seed: int, skill: float, sizes: dict[str, int] = SUBJECTS, name: str = "cmmlu") -> Result:
    """Of a model that is right with a probability of `skill`."""
    truth, draws, rows = random.Random(0), random.Random(seed), list[Row]()
    for subject, count in sizes.items():
        for number in range(1, count + 1):
            answer = truth.choice("ABCD")
            given = answer if draws.random() < skill else draws.choice("ABCD".replace(answer, ""))
            rows.append(
                Row(
                    subject=subject, number=number, text="?", answer=answer, given=given, log_probs=(-1.0,) * 4, shots=5
                )
            )
    return Result(
        name=name,
        source="here",
        digest="0123456789abcdef",
        shots=5,
        chat=False,
        rows=tuple(rows),
        dropped={},
        absent=(),
        not_sampled=0,
        reading="shared",
        apart=0.0,
    )


def test_means_and_errors_are_numpys() -> None:
    found = result(1, 0.6)
    right = {
        subject: np.array([100.0 * row.right for row in found.rows if row.subject == subject]) for subject in SUBJECTS
    }
    together = np.concatenate(list(right.values()))
    assert {name: score.accuracy for name, score in found.subjects.items()} == pytest.approx(
        {name: values.mean() for name, values in right.items()}
    )
    overall = found.overall
    assert (overall.subjects, overall.count) == (4, 200)
    assert overall.micro == pytest.approx(together.mean())
    assert overall.micro_error == pytest.approx(together.std(ddof=1) / sqrt(len(together)))
    assert overall.macro == pytest.approx(np.mean([values.mean() for values in right.values()]))
    errors = [values.std(ddof=1) / sqrt(len(values)) for values in right.values()]
    assert overall.macro_error == pytest.approx(sqrt(sum(each**2 for each in errors)) / len(errors))
    assert abs(overall.macro - overall.micro) > 0.1
    assert found.accuracy == overall.macro  # as CMMLU's authors have it


def test_a_category_is_of_its_subjects_alone() -> None:
    found = result(1, 0.6)
    assert {name: (each.subjects, each.count) for name, each in found.categories.items()} == {
        "Humanities": (2, 130),  # arts and Chinese history
        "Social Science": (1, 40),
        "Other": (1, 30),
        "China specific": (2, 120),  # Chinese history again, and ancient Chinese
    }
    scores = found.subjects
    assert found.categories["China specific"] == mean([scores["chinese_history"], scores["ancient_chinese"]])
    assert found.categories["Other"].macro == found.categories["Other"].micro == scores["agronomy"].accuracy


def test_mmlu_is_reported_by_question() -> None:
    found = result(1, 0.6, {"astronomy": 10, "law": 0, "virology": 90}, "mmlu")
    assert found.accuracy == found.overall.micro != found.overall.macro
    assert list(found.categories) == ["STEM", "other"]


def test_errors_are_those_of_the_harness() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    for count, skill in ((2, 0.5), (7, 0.6), (200, 0.3)):
        found = result(3, skill, {"agronomy": count})
        wanted = metrics.mean_stderr([100.0 * row.right for row in found.rows])
        assert (found.overall.micro_error, found.overall.macro_error) == pytest.approx((wanted, wanted))
    assert result(3, 0.5, {"agronomy": 1}).overall.micro_error == 0


def test_the_error_is_how_far_runs_lie_apart() -> None:
    """Of 400 models of the same skill, the spread of their accuracies."""
    runs = [result(seed, 0.6).overall for seed in range(400)]
    for kind in ("micro", "macro"):
        spread = np.std([getattr(run, kind) for run in runs])
        assert np.mean([getattr(run, f"{kind}_error") for run in runs]) == pytest.approx(spread, rel=0.1)


def statistics(found: Result) -> Statistics:
    return by_subject([row.subject for row in found.rows], [100.0 * row.right for row in found.rows])


@pytest.mark.parametrize("kind", MEANS)
def test_two_runs_are_compared_by_their_rows(kind: Average) -> None:
    first, second = result(1, 0.3), result(2, 0.6)
    mine, theirs, over = statistics(first), statistics(second), MEANS[kind]
    assert over(mine.sum(0)) == pytest.approx(getattr(first.overall, kind))
    found = difference(mine, theirs, over, samples=1000)
    assert found.value == pytest.approx(getattr(second.overall, kind) - getattr(first.overall, kind))
    assert found.sure and found.low > 0
    assert not difference(mine, mine, over).sure
    half = (found.high - found.low) / 2
    errors = [getattr(run.overall, f"{kind}_error") for run in (first, second)]
    assert half == pytest.approx(1.96 * sqrt(errors[0] ** 2 + errors[1] ** 2), rel=0.2)  # they answer independently


def test_a_draw_without_a_subject_is_a_mean_of_the_others() -> None:
    found = result(1, 0.6, {"agronomy": 1, "arts": 30})
    assert MEANS["macro"](statistics(found)[1:].sum(0)) == pytest.approx(found.subjects["arts"].accuracy)


@pytest.mark.parametrize(
    ("log_probs", "letter"),
    [((-1.0, -2.0, -3.0, -4.0), "A"), ((-9.0, -2.0, -3.0, -1.5), "D"), ((-2.0, -1.0, -1.0, -3.0), "B"), (None, None)],
)
def test_the_likeliest_letter_is_given(log_probs: tuple[float, ...] | None, letter: str | None) -> None:
    assert choice(log_probs) == letter


def test_the_report_and_the_rows_are_plain() -> None:
    found = result(1, 0.6)
    tree = json.loads(json.dumps(found.to_tree(), allow_nan=False))
    assert tree["accuracy"] == tree["overall"]["macro"] and tree["average"] == "macro"
    assert tree["subjects"]["arts"] == {
        "accuracy": found.subjects["arts"].accuracy,
        "right": found.subjects["arts"].right,
        "count": 50,
    }
    rows = json.loads(json.dumps(found.row_trees(), allow_nan=False))
    assert len(rows) == 200
    assert rows[30] == {
        "id": "arts:1",
        "scores": {"cmmlu": 100.0 * found.rows[30].right},
        "question": "?",
        "subject": "arts",
        "number": 1,
        "answer": found.rows[30].answer,
        "given": found.rows[30].given,
        "right": found.rows[30].right,
        "shots": 5,
        "log_probs": {"A": -1.0, "B": -1.0, "C": -1.0, "D": -1.0},
    }
    assert "CMMLU, 5-shot, plain text, 200 questions of 4 subjects" in tree["signature"]


def test_what_a_reader_must_know_is_said() -> None:
    from dataclasses import replace

    whole = result(1, 0.6)
    assert whole.notes == ()
    rows = list(whole.rows)
    rows[0], rows[1] = replace(rows[0], given=None, log_probs=None, shots=0), replace(rows[1], shots=3)
    told = replace(
        whole,
        rows=tuple(rows),
        dropped={"no question": {"count": 2, "first": ["test/arts.csv:3"]}},
        absent=benchmark("cmmlu").subjects[4:],
        not_sampled=1234,
        reading="whole",
    )
    assert told.notes == (
        "CMMLU: 4 of 67 subjects are in here.",
        "CMMLU: 1,234 questions are left out by max_samples.",
        "CMMLU: 2 broken rows are left out: no question.",
        "CMMLU: 1 of 200 questions have fewer than 5 shots before them, as the context is too short; the first ones "
        "are left out.",
        "CMMLU: 1 questions do not fit into the context and count as wrong.",
        "CMMLU: each prompt was read whole, as a shared start changes this model's answers.",
    )
    alone = replace(whole, reading="alone")
    assert alone.notes == ("CMMLU: each prompt was read alone, as padding changes this model's answers.",)
