"""What is written holds the reports' own numbers, fits where it is shown, and the page needs nothing but itself."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import side_by_side
from rich.console import Console
from test_compare_judged import ROUGE, comparison, measured

from factory.compare import plots, terminal, written
from factory.compare.comparison import Comparison
from factory.compare.page import page
from factory.compare.plots import Series
from factory.plan import diff

EVIL = "[x] it [broke] <script>alert(1)</script> | here."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    where = tmp_path_factory.mktemp("runs")
    scores = [{"rougeL": ROUGE.tolist()}, {"rougeL": (ROUGE + 5).tolist()}]
    evaluate = [{"perplexity_before": 30.0, "perplexity": value, "rougeL": value * 3} for value in (12.25, 9.5)]
    one = measured(where / "a", 12.25, evaluate=evaluate[0], scores=scores[0])
    two = measured(where / "b", 9.5, "method=full", evaluate=evaluate[1], scores=scores[1], seed=1)
    failed = side_by_side.run(where / "c", "method=qlora", status="failed", losses=(4.0, None), error=EVIL)
    return comparison(one, two, failed, where / "nowhere")


def test_csv_and_json_hold_the_numbers_as_they_are(made: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(written.table(made))))
    assert [row["status"] for row in rows] == ["finished", "finished", "failed", "missing"]
    for row, run in zip(rows[:2], made.runs[:2], strict=True):
        assert float(row["perplexity"]) == run.report["evaluate"]["perplexity"]
        assert int(row["trainable"]) == run.report["parameters"]["trainable"]
        assert int(row["peak_bytes"]) == run.report["memory"]["peak_bytes"]
    assert rows[2]["perplexity"] == "" and [row["best_of"] for row in rows] == ["", "perplexity", "", ""]
    tree = json.loads(written.as_json(made))
    assert [run["values"]["perplexity"] for run in tree["runs"]] == [12.25, 9.5, None, None]
    (verdict,) = tree["verdicts"]["perplexity"]
    assert verdict["best"] == "b" and verdict["others"]["a"]["difference"]["value"] == pytest.approx(2.75)
    keys = {each["key"]: each for each in tree["plans"]}
    assert (keys["method.name"]["a"], keys["method.name"]["b"]) == ("lora", "full")
    assert "method.rank" in keys  # as it is set


def test_markdown_has_a_row_a_run_and_marks_the_best_alone(made: Comparison) -> None:
    lines = written.markdown(made).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines[:6]}) == 1
    assert [line.split(" | ")[0] for line in lines[2:6]] == ["| a", "| b", "| c", "| nowhere"]
    assert "**9.500** *" in lines[3] and "**" not in "".join([lines[2], *lines[4:6]])
    assert any("failed: [x] it [broke] <script>alert(1)</script> \\| here." in line for line in lines)


@pytest.mark.parametrize("width", [80, 120, 160])
def test_the_terminal_shows_what_there_is_room_for_and_names_the_rest(width: int, made: Comparison) -> None:
    console = Console(width=width, record=True, file=io.StringIO(), highlight=False)
    for each in terminal.shown(made, width):
        console.print(each)
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    columns, left_out = terminal.fitting(made, width)
    assert "perplexity" in [column.key for column in columns]
    head = text[: text.index("Not shown")] if left_out else text
    assert all(column.written(column.value(run) or 0) in head for column in columns for run in made.runs[:1])
    for column in left_out:
        assert column.title in text[text.index("Not shown") :]
    assert "9.500*" in head and "12.250*" not in text
    assert "[x] it [broke]" in text  # brackets are no markup


WORD = re.compile(r"[a-z]+")
SAID = (
    "perplexity less that of run difference interval to rows differences the plans key and more keys "
    + terminal._NOT_SHOWN
)
LONG = (
    ("method.rank=16", "method.target_modules=[q_proj,k_proj,v_proj,o_proj]"),
    ("method=galore", "compute.activation_checkpointing=true", "stage.gradient_accumulation_steps=4"),
    ("method=qlora", "stage.early_stopping_patience=3", "stage.eval_steps=1"),
    ("method=full", "stage.weight_decay=0.5"),
)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("width", [80, 120])
def test_a_key_is_broken_where_its_words_end(width: int, count: int, tmp_path: Path) -> None:
    names = [next((text for text in asked if text.startswith("method=")), "method=lora") for asked in LONG[:count]]
    runs = [
        measured(tmp_path / name, 9.5 + place, *asked, evaluate={"perplexity": 9.5 + place})
        for place, (name, asked) in enumerate(zip(names, LONG, strict=False))
    ]
    found, console = comparison(*runs), Console(width=width, record=True, file=io.StringIO(), highlight=False)
    for each in terminal.shown(found, width):
        console.print(each)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    known = [text for each in written.spreads(found) for text in (each.key, *map(diff.shown, each.values))]
    known += [*found.names, *(run.name for run in found.runs), SAID]
    tables = text[text.index("perplexity, less") :]
    assert set(WORD.findall(tables)) <= set(WORD.findall(" ".join(known)))


@pytest.mark.parametrize(
    ("word", "room", "lines"),
    [
        ("seed", 20, ["seed"]),
        ("attach.settings.target_modules", 20, ["attach.settings.", "  target_modules"]),
        ("train.own.gradient_accumulation_steps", 20, ["train.own.gradient_", "  accumulation_steps"]),
        ("[q_proj,k_proj,v_proj,o_proj]", 24, ["[q_proj,k_proj,v_proj,", "  o_proj]"]),
        ("stage.beta=0.1", 12, ["stage.beta=", "  0.1"]),
        ("outputs/2026-11-30/one", 14, ["outputs/", "  2026-11-30/", "  one"]),
        ("", 9, [""]),
    ],
)
def test_where_a_word_may_end_a_line(word: str, room: int, lines: list[str]) -> None:
    assert terminal.parted(word, room) == lines
    assert all(len(line) <= room for line in lines)


def test_the_page_needs_no_network_and_runs_no_script(made: Comparison) -> None:
    text = page(made)
    assert not re.search(r"<script|src=|https?:|@import|url\(|<link", text)
    assert "default-src 'none'" in text
    assert "&lt;script&gt;" in text
    assert text.count("number best") == 1
    figures = re.findall(r"<h3>(.*?)</h3>", text)
    assert figures[:5] == [
        "Loss by step",
        "Loss by token",
        "Loss by second",
        "Learning rate",
        "Memory against perplexity",
    ]
    assert figures[5:] == ["perplexity", "rougeL"]
    for svg in re.findall(r"<svg.*?</svg>", text):
        ElementTree.fromstring(svg)
    assert text.count("<th class='run'") == 4


def test_a_page_without_curves_or_plans_is_a_page(tmp_path: Path) -> None:
    made = comparison(tmp_path / "nowhere", tmp_path / "neither")
    assert "<svg" not in page(made) and made.columns == ()
    assert written.markdown(made).startswith("| run | status |")


def test_a_page_of_runs_on_several_sets_has_no_option_for_these(tmp_path: Path) -> None:
    """Of `data=[a,b]` Hydra tells no option."""
    both = "data=[demo,demo_tools]"
    text = page(
        comparison(*(side_by_side.run(tmp_path / method, f"method={method}", both) for method in ("lora", "full")))
    )
    assert "<dt>stage</dt>" in text and "<dt>data</dt>" not in text and "<dt>method</dt>" not in text


def test_an_axis_holds_its_values_and_has_round_ticks() -> None:
    axis = plots.axis([0.37, 4.2], 100, 0)
    assert axis.at(axis.low) == 100 and axis.at(axis.high) == 0
    assert axis.low < 0.37 and axis.high > 4.2
    assert axis.ticks() == [1, 2, 3, 4]
    assert plots.axis([5.0, 5.0], 0, 1).ticks()  # of one value too
    assert plots.axis([2e-5, 1e-3], 0, 1, zero=True).low == 0


def test_many_points_are_means_of_neighbours_between_the_first_and_the_last() -> None:
    points = [(float(at), float(at % 2)) for at in range(10_000)]
    thin = plots.thinned(points)
    assert len(thin) < 300 and thin[0] == points[0] and thin[-1] == points[-1]
    assert all(abs(y - 0.5) < 0.02 for _, y in thin[1:-1])
    assert plots.thinned(points[:100]) == points[:100]


def test_curves_that_coincide_share_their_line() -> None:
    points = [(1.0, 1.0), (2.0, 2.0)]
    drawn = plots.lines([Series(0, "a", points), Series(1, "b", [*points]), Series(2, "c", points[:1])], "step", "loss")
    dashes = re.findall(r"<g class='s s(\d)'( style='[^']*')?>", drawn)
    assert [bool(dash) for _, dash in dashes] == [True, True, False]
    assert len({dash for _, dash in dashes}) == 3  # each another


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"format": "auto", "out": None}, "text"),
        ({"format": "auto", "out": "a.md"}, "markdown"),
        ({"format": "auto", "out": "a.HTML"}, "html"),
        ({"format": "csv", "out": "a.csv"}, "csv"),
        ({"format": "csv", "out": "a.html"}, None),
        ({"format": "auto", "out": "a.py"}, None),
        ({"format": "auto", "out": "no/a.md"}, None),
    ],
    ids=str,
)
def test_the_format_follows_the_name(keys: dict[str, Any], wanted: str | None, here: Path) -> None:
    from factory.compare.show import chosen
    from factory.config.refusal import UserError
    from factory.config.settings import Compare

    if wanted is None:
        with pytest.raises(UserError, match="compare-out"):
            chosen(Compare(**keys))
    else:
        assert chosen(Compare(**keys)) == wanted


def test_the_verb_writes_prints_and_refuses(command: Callable[..., Any], here: Path) -> None:
    for name, perplexity, override in (("a", 12.0, "seed=42"), ("b", 9.0, "method=full")):
        measured(here / name, perplexity, override, seed=len(name))
    said = command("compare", "a", "b", "compare.format=csv")
    assert said.code == 0 and said.out.splitlines()[0].startswith("run,what_differs,status")
    assert command("compare", "a", "b", "compare.out=p.html").code == 0
    assert (here / "p.html").read_text().startswith("<!doctype html>")
    assert "12.000" in command("compare", "a", "b").out
    assert command("compare", "a", "compare.fromat=csv").rules == ["unknown-key"]
    assert command("compare", "a", "method=lora").rules == ["compare-what"]
    assert command("train", "compare.format=csv").rules == ["key-of-another-verb"]


def test_what_a_stage_measures_is_what_its_runs_are_compared_by(tmp_path: Path) -> None:
    """The loss where whole answers are judged; each before and after."""
    judged = {"loss_before": 0.7, "loss": 0.25, "rewards/accuracy": 0.9}
    written_ = {"perplexity_before": 9.0, "perplexity": 5.0}
    one, two = side_by_side.run(tmp_path / "a", evaluate=judged), side_by_side.run(tmp_path / "b", evaluate=written_)
    made = comparison(one, two)
    shown = [(column.title, [column.text(run) for run in made.runs]) for column in made.columns[6:]]
    assert shown == [
        ("loss before", ["0.700", "-"]),
        ("loss", ["0.250", "-"]),
        ("rewards/accuracy", ["0.900", "-"]),
        ("perplexity before", ["-", "9.000"]),
        ("perplexity", ["-", "5.000"]),
    ]
    assert made.verdicts == {}  # of one figure each there is no best
