"""A best is named only where the rows say so, and never of figures that measure different things."""

import json
import re
from dataclasses import replace
from math import inf, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import side_by_side

from factory.compare import found, written
from factory.compare.comparison import Comparison, compared
from factory.compare.judged import Verdict
from factory.compare.page import page
from factory.evaluation import rows
from factory.run.folder import RunFolder

TOKENS = np.random.default_rng(0).integers(20, 80, 60)
LOSSES = np.random.default_rng(1).normal(2, 0.3, 60)  # nats a token, of each row
ROUGE = np.random.default_rng(2).uniform(10, 50, 60)


def nats(perplexity: float, noise: float = 0.02, seed: int = 0) -> list[tuple[float, int]]:
    """Rows with this perplexity, each off the others' by the noise."""
    sums = TOKENS * (LOSSES + noise * np.random.default_rng(seed).standard_normal(60))
    sums *= log(perplexity) * TOKENS.sum() / sums.sum()
    return list(zip(sums.tolist(), TOKENS.tolist(), strict=True))


def measured(folder: Path, perplexity: float, *overrides: str, seed: int = 0, **more: Any) -> Path:
    evaluate = {"perplexity_before": 30.0, "perplexity": perplexity}
    rows = nats(perplexity, seed=seed)
    return side_by_side.run(folder, *overrides, **{"evaluate": evaluate, "nats": rows, **more})


def comparison(*folders: Path) -> Comparison:
    return compared(found.named([run for folder in folders for run in found.of_folder(folder)]))


def verdict(*folders: Path, metric: str = "perplexity") -> Verdict:
    (found,) = comparison(*folders).verdicts[metric]
    return found


def test_a_run_that_is_better_in_every_row_is_best(tmp_path: Path) -> None:
    lora = measured(tmp_path / "a", 12.0)
    full = measured(tmp_path / "b", 10.0, "method=full", seed=1)
    qlora = measured(tmp_path / "c", 11.0, "method=qlora", seed=2)
    made = comparison(lora, full, qlora)
    assert made.names == ("method=lora", "method=full", "method=qlora")
    (judged,) = made.verdicts["perplexity"]
    assert (judged.best, judged.leading, judged.why) == (1, 1, None)
    assert {place: found.difference.value for place, found in judged.others.items()} == pytest.approx({0: 2.0, 2: 1.0})
    assert all(found.difference.low > 0 and found.rows == 60 for found in judged.others.values())
    best = [(column.key, place) for column in made.columns for place in range(3) if made.best(column, place)]
    assert best == [("perplexity", 1)]  # memory, speed and the loss have none


def test_a_run_that_has_diverged_stands_in_the_table_beside_the_others(tmp_path: Path) -> None:
    """Its perplexity is beyond every number in some of the rows that are drawn: nothing was shown of any run."""
    good = measured(tmp_path / "a", 12.0)
    lost = measured(tmp_path / "b", 1e308, "method=full", seed=1)
    made = comparison(good, lost)
    (judged,) = made.verdicts["perplexity"]
    assert (judged.leading, judged.best) == (0, None) and "holds 0" in str(judged.why)
    assert (judged.others[1].difference.low, judged.others[1].difference.high) == (-inf, inf)
    assert "| +1.000e+308 | -inf to +inf | 60 |" in written.markdown(made)
    told = json.loads(written.as_json(made))["verdicts"]["perplexity"][0]["others"]["b"]["difference"]
    assert told == {"value": pytest.approx(1e308), "low": None, "high": None}
    shown = page(made)
    assert "not drawn: method=full, +1.000e+308 [-inf, +inf]" in shown
    assert not [each for each in re.findall(r"<svg.*?</svg>", shown, re.DOTALL) if "inf" in each or "nan" in each]


def test_where_one_interval_holds_0_nobody_is_best(tmp_path: Path) -> None:
    near = measured(tmp_path / "a", 10.02, seed=1)
    leads = measured(tmp_path / "b", 10.0, "seed=42", "method=full", seed=2)
    far = measured(tmp_path / "c", 14.0, "method=qlora", seed=3)
    judged = verdict(near, leads, far)
    assert (judged.leading, judged.best) == (1, None)
    assert judged.why is not None and "method=lora" in judged.why and "method=qlora" not in judged.why
    assert judged.others[0].difference.low < 0 < judged.others[0].difference.high
    assert judged.others[2].difference.low > 0


@pytest.mark.parametrize(("rows", "best"), [(1, None), (5, None), (6, 0)])
def test_few_rows_name_no_best_however_alike_they_are(rows: int, best: int | None, tmp_path: Path) -> None:
    scores = np.arange(rows) + 10.0
    for name, more in (("a", 1.0), ("b", 0.0)):
        figures = (scores + more).tolist()
        side_by_side.run(tmp_path / name, evaluate={"rougeL": sum(figures) / rows}, scores={"rougeL": figures})
    judged = verdict(tmp_path / "a", tmp_path / "b", metric="rougeL")
    assert (judged.leading, judged.best) == (0, best)
    assert judged.others[1].difference.high < 0
    if best is None:
        assert judged.why is not None and f"share {rows} row" in judged.why and "too few to tell" in judged.why


def test_the_interval_is_that_of_the_paired_differences(tmp_path: Path) -> None:
    """Of a mean over rows the bootstrap agrees with the normal interval of the differences: s / sqrt(n) * 1.96."""
    other = ROUGE + np.random.default_rng(3).normal(1, 2, 60)
    one = side_by_side.run(tmp_path / "a", evaluate={"rougeL": ROUGE.mean()}, scores={"rougeL": ROUGE.tolist()})
    two = side_by_side.run(
        tmp_path / "b", "method=full", evaluate={"rougeL": other.mean()}, scores={"rougeL": other.tolist()}
    )
    judged = verdict(one, two, metric="rougeL")
    differences = ROUGE - other
    half = 1.96 * differences.std(ddof=1) / np.sqrt(60)
    interval = judged.others[0].difference
    assert (judged.leading, judged.best) == (1, 1)  # more is better
    assert interval.value == pytest.approx(differences.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (differences.mean() - half, differences.mean() + half), abs=0.1
    )


@pytest.mark.parametrize(
    ("overrides", "more", "why"),
    [
        (("seed=7",), {}, "measured on rows that different seeds hold out: seed=42 (a); seed=7 (b)"),
        (
            ("data.max_samples=50",),
            {},
            "rows that were chosen otherwise: data.max_samples=null (a); data.max_samples=50",
        ),
        (
            ("data.max_length=64",),
            {},
            "sequences of different length: data.max_length=1024 (a); data.max_length=64 (b)",
        ),
        (("data.train_on_prompt=true",), {}, "data.train_on_prompt=false (a); data.train_on_prompt=true (b)"),
        (
            ("data=demo_tools", "data.max_length=64"),
            {},
            "on different data: demo (data=demo); demo_tools (data=demo_tools",
        ),
        (("method=full",), {"tokenizer": "bytes"}, "the runs have different tokenizers: method=lora; method=full"),
        (("method=full",), {"nats": ()}, "no rows of it were written by"),
        (("method=full",), {"checks": {"save_reload": {"passed": False, "detail": ""}}}, "a check of it is red"),
    ],
    ids=str,
)
def test_figures_that_cannot_be_compared_have_no_best(
    overrides: tuple[str, ...], more: dict[str, Any], why: str, tmp_path: Path
) -> None:
    judged = verdict(measured(tmp_path / "a", 12.0), measured(tmp_path / "b", 9.0, *overrides, seed=1, **more))
    assert (judged.best, judged.others) == (None, {})
    assert judged.why is not None and why in judged.why


def test_data_is_told_apart_by_as_few_words_as_do(tmp_path: Path) -> None:
    """By its files, else by their sizes, else by what a user set; each with every run that has it."""

    def why(*sets: tuple[str, ...]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        made = [measured(folder / "abc"[at], 9.0 + at, *more, seed=at) for at, more in enumerate(sets)]
        return verdict(*made).why or ""

    for name, count in (("one/shop.jsonl", 20), ("faq.jsonl", 30), ("two/shop.jsonl", 40)):
        (tmp_path / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
        lines = (f'{{"instruction": "Say {n}.", "output": "It is {n}."}}\n' for n in range(count))
        (tmp_path / "rows" / name).write_text("".join(lines))
    shop, faq, other = (
        ("data=file", f"data.path={tmp_path / 'rows' / name}")
        for name in ("one/shop.jsonl", "faq.jsonl", "two/shop.jsonl")
    )
    files = why(shop, faq)
    assert "different data: shop.jsonl (" in files and "; faq.jsonl (" in files and "bytes" not in files
    sizes = why(shop, other)
    assert sizes.count("shop.jsonl of ") == 2 and "bytes" in sizes
    assert "data.sources.file.max_samples=5 (" in why(shop, (*shop, "data.sources.file.max_samples=5"))


@pytest.mark.parametrize("override", ["stage.learning_rate=1e-3", "data.packing=true", "hardware.threads=1"])
def test_what_changes_no_held_out_token_keeps_figures_comparable(override: str, tmp_path: Path) -> None:
    assert verdict(measured(tmp_path / "a", 12.0), measured(tmp_path / "b", 9.0, override, seed=1)).best == 1


@pytest.mark.parametrize("metric", ["perplexity", "rougeL"])
@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ((), ("data.path=two.jsonl",), None),
        ((), ("seed=7",), None),
        ((), ("data.max_samples=5", "data.sources.file.weight=2"), None),
        (("data.sources.demo.max_samples=9",), ("data.sources.demo.max_samples=9", "seed=7"), "different seeds"),
        ((), ("data.sources.demo.max_samples=9",), "different data: data.sources.demo.max_samples=null"),
    ],
    ids=str,
)
def test_of_a_set_that_is_held_out_whole_what_trains_keeps_figures_comparable(
    metric: str, one: tuple[str, ...], other: tuple[str, ...], why: str | None, here: Path
) -> None:
    for name in ("one", "two"):
        line = f'{{"instruction": "Say {name}.", "output": "It is {name}."}}\n'
        (here / f"{name}.jsonl").write_text(line * 20)
    data = ("data=[file,demo]", f"data.path={here / 'one.jsonl'}", "data.validation=demo")
    lines = [(*data, *(text.replace("two.jsonl", str(here / "two.jsonl")) for text in more)) for more in (one, other)]
    asked = {"perplexity": 12.0, "rougeL": ROUGE.mean()}, {"perplexity": 9.0, "rougeL": ROUGE.mean() + 5}
    folders = [
        measured(here / "ab"[at], asked[at]["perplexity"], *line, seed=at, evaluate=asked[at], scores=scores)
        for at, (line, scores) in enumerate(
            zip(lines, ({"rougeL": ROUGE.tolist()}, {"rougeL": (ROUGE + 5).tolist()}), strict=True)
        )
    ]
    judged = verdict(*folders, metric=metric)
    assert judged.best == (1 if why is None else None)
    assert why is None or why in (judged.why or "")


def test_a_run_that_saved_no_tokenizer_has_that_of_its_base(tmp_path: Path) -> None:
    """As one has that only measures."""
    one = measured(tmp_path / "a", 12.0, tokenizer=None)
    assert verdict(one, measured(tmp_path / "b", 9.0, "method=full", seed=1)).best == 1


@pytest.mark.parametrize(
    ("tokenizers", "why"),
    [
        (("words", "words"), None),
        (("words", "bytes"), "the runs are not known to have the same tokenizer: "),
        (("words", None), "the runs are not known to have the same tokenizer: "),
    ],
    ids=str,
)
def test_weights_that_were_only_measured_have_the_tokenizer_beside_them(
    tokenizers: tuple[str | None, ...], why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fully tuned ones of one base have, whose fingerprints differ."""
    folders = list[Path]()
    for number, tokenizer in enumerate(tokenizers):
        model = tmp_path / f"weights{number}"
        model.mkdir()
        if tokenizer is not None:
            (model / "tokenizer.json").write_text(json.dumps({"model": tokenizer, "padding": number}))
        made = side_by_side.plan()
        load = replace(made.steps.load, source="folder", path=str(model), fingerprint=f"weights {number}")
        made = replace(made, steps=replace(made.steps, load=load))
        monkeypatch.setattr(side_by_side, "plan", lambda *_, made=made: made)
        folders.append(measured(tmp_path / f"run{number}", 12.0 - number, seed=number, tokenizer=None))
        monkeypatch.undo()
    judged = verdict(*folders)
    assert (judged.why or "").startswith(why or "") and judged.best == (1 if why is None else None)


def test_rows_of_other_data_still_let_answers_be_compared(tmp_path: Path) -> None:
    """Another tokenizer makes perplexities incomparable, and leaves ROUGE as it is."""
    scores = {"rougeL": ROUGE.tolist()}, {"rougeL": (ROUGE + 5).tolist()}
    evaluate = [{"perplexity": 12.0, "rougeL": ROUGE.mean()}, {"perplexity": 9.0, "rougeL": ROUGE.mean() + 5}]
    one = measured(tmp_path / "a", 12.0, evaluate=evaluate[0], scores=scores[0])
    two = measured(tmp_path / "b", 9.0, "method=full", evaluate=evaluate[1], scores=scores[1], tokenizer="bytes")
    made = comparison(one, two)
    assert [found.best for found in made.verdicts["perplexity"]] == [None]
    assert [found.best for found in made.verdicts["rougeL"]] == [1]


def test_of_runs_on_several_data_sets_each_set_has_its_best(tmp_path: Path) -> None:
    """And one that is alone on its set is compared with nobody."""
    one, two = ("data=demo",), ("data=demo_tools",)
    folders = [
        measured(tmp_path / name, perplexity, *data, f"method={method}", seed=seed)
        for seed, (name, data, method, perplexity) in enumerate(
            (
                ("a", one, "lora", 12.0),
                ("b", one, "full", 9.0),
                ("c", two, "lora", 30.0),
                ("d", two, "full", 40.0),
                ("e", ("data=[demo,demo_tools]",), "lora", 5.0),
            )
        )
    ]
    made = comparison(*folders)
    assert [(found.best, set(found.others)) for found in made.verdicts["perplexity"]] == [(1, {0}), (2, {3})]
    (column,) = (column for column in made.columns if column.key == "perplexity")
    assert [made.best(column, place) for place in range(5)] == [False, True, True, False, False]
    assert sum("of each data set one" in note for note in made.notes) == 1


def test_the_mean_of_the_rouges_has_its_rows_and_a_best(tmp_path: Path) -> None:
    """The mean over rows of the three is the mean of the three means, which is the column's figure."""
    names = ("rouge1", "rouge2", "rougeL")

    def answered(name: str, *overrides: str, more: float) -> Path:
        scores = {each: (ROUGE + more * (at + 1)).tolist() for at, each in enumerate(names)}
        evaluate = {each: float(np.mean(values)) for each, values in scores.items()}
        return side_by_side.run(tmp_path / name, *overrides, evaluate=evaluate, scores=scores)

    made = comparison(answered("a", more=0), answered("b", "method=full", more=3))
    (column,) = (column for column in made.columns if column.key == "rouge")
    (judged,) = made.verdicts["rouge"]
    assert judged.best == 1
    figures = [column.value(run) for run in made.runs]
    assert figures[0] is not None and figures[1] is not None
    assert judged.others[0].difference.value == pytest.approx(figures[0] - figures[1]) == pytest.approx(-6)


def test_scores_against_other_references_are_not_compared(tmp_path: Path) -> None:
    """One that was cut makes another figure of the same row."""

    def answered(name: str, *overrides: str, scores: Any, cut: int) -> Path:
        made = side_by_side.run(tmp_path / name, *overrides, evaluate={"rougeL": float(scores.mean())})
        references = ["an answer" if at < cut else "an" for at in range(60)]
        lines = [
            {"id": f"demo:{at}", "scores": {"rougeL": score}, "reference": reference}
            for at, (score, reference) in enumerate(zip(scores.tolist(), references, strict=True))
        ]
        rows.write(RunFolder(made).evaluation / "generation.jsonl", lines)
        return made

    whole, cut = answered("a", scores=ROUGE, cut=60), answered("b", "method=full", scores=ROUGE + 1, cut=40)
    judged = verdict(whole, cut, metric="rougeL")
    assert (judged.best, judged.others[0].rows) == (1, 40)


def test_scores_that_count_otherwise_have_no_best(tmp_path: Path) -> None:
    def answered(name: str, *overrides: str, more: float, counted: str) -> Path:
        evaluate = {"rougeL": float(ROUGE.mean()) + more, "generation": {"signatures": {"rougeL": counted}}}
        scores = {"rougeL": (ROUGE + more).tolist()}
        return side_by_side.run(tmp_path / name, *overrides, evaluate=evaluate, scores=scores)

    one = answered("a", more=0, counted="words")
    judged = verdict(one, answered("b", "method=full", more=5, counted="characters"), metric="rougeL")
    assert judged.best is None and judged.why is not None and "were scored in different ways: words (" in judged.why
    assert verdict(one, answered("c", "method=full", more=5, counted="words"), metric="rougeL").best == 1


def test_a_run_that_leads_by_rows_of_its_own_is_said_to(tmp_path: Path) -> None:
    """It has answered more, and is worse in each that both have: its interval does not hold 0."""
    many, few = np.concatenate([ROUGE[:20] - 5, ROUGE[20:] + 50]), ROUGE[:20]
    one, two = (
        side_by_side.run(tmp_path / name, *more, evaluate={"rougeL": each.mean()}, scores={"rougeL": each.tolist()})
        for name, more, each in (("a", (), many), ("b", ("method=full",), few))
    )
    judged = verdict(one, two, metric="rougeL")
    assert (judged.leading, judged.best, judged.others[1].better) == (0, None, True)
    assert judged.why == "method=lora leads by its own rows, and method=full by those that both have measured"


def test_benchmarks_are_compared_by_what_was_asked(tmp_path: Path) -> None:
    def asked(signature: str, accuracy: float) -> dict[str, Any]:
        return {"benchmarks": {"mmlu": {"accuracy": accuracy, "signature": signature}}}

    one = side_by_side.run(tmp_path / "a", evaluate=asked("MMLU, 5-shot", 30.0))
    two = side_by_side.run(tmp_path / "b", "seed=7", evaluate=asked("MMLU, 0-shot", 40.0))
    judged = verdict(one, two, metric="mmlu")
    assert (
        judged.best is None
        and judged.why is not None
        and "asked different questions: MMLU, 5-shot (a); MMLU, 0-shot (b)" in judged.why
    )


def test_a_plan_of_another_version_is_said_and_compares_nothing(tmp_path: Path) -> None:
    old = measured(tmp_path / "b", 9.0, "method=full")
    (old / "plan.yaml").write_text("version: 2\n")
    made = comparison(measured(tmp_path / "a", 12.0), old)
    assert made.spreads is None
    assert any("it has version 2" in note for note in made.notes)
    assert any("is not known without a plan" in note for note in made.notes)


def test_rows_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    broken = measured(tmp_path / "b", 9.0, "method=full")
    (broken / "evaluation" / "perplexity.jsonl").write_text('{"id": 1}\nnonsense\n')
    made = comparison(measured(tmp_path / "a", 12.0), broken)
    assert [found.best for found in made.verdicts["perplexity"]] == [None]
    assert any("rows cannot be read" in note for note in made.notes)
