"""What the plan's panel says, read as a terminal would have it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import compiled
from rich.console import Console

from factory.data import hub
from factory.plan.plan import Plan, Speed
from factory.run.plan_shown import plan_panel


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compute.attention=per_document",), "a row each, nothing padded"),
        (("compute.attention=sdpa",), "a row each"),
        (("compute.attention=per_document", "stage=dpo"), "a row each, nothing padded"),
        (("compute.attention=sdpa", "stage=dpo"), "a row each"),
        (("stage=pt", "data.isolate_documents=true"), "packed, documents isolated"),
    ],
)
def test_how_rows_stand_in_a_batch(words: tuple[str, ...], said: str) -> None:
    (line,) = (line for line in _lines(compiled("hardware=cpu", *words)) if " tokens, " in line and "up to" in line)
    assert line.split(" tokens, ")[1] == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("method=lora_plus", "rank 8, alpha 16, b_learning_rate_ratio 16, initialization kaiming"),
        ("method=dora method.rank=4", "rank 4, alpha 16, dora, b_learning_rate_ratio 1, initialization kaiming"),
        ("method=freeze", "more num_layers 3, position last, modules all"),
        ("method=freeze method.layers=[1,2]", "1 more layers [1, 2], modules all"),
    ],
)
def test_a_methods_own_settings_stand_below_it(words: str, said: str) -> None:
    assert said in " ".join(" ".join(_lines(compiled("hardware=cpu", *words.split(), training=False))).split())


def test_nothing_fits_a_card_that_nobody_knows(machine: Callable[..., None]) -> None:
    machine(gpus=())
    alone, told = (
        " ".join(" ".join(_lines(compiled("hardware=single_gpu", *more, training=False))).split())
        for more in ((), ("hardware.memory=80GB",))
    )
    assert " fits" not in alone.replace("whether that fits", "") and "hardware.memory=80GB" in alone
    assert "of 74.51 GiB: fits; most in " in told and "no such card is here" not in told


def test_the_size_of_a_set_of_the_hub_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "unreachable", lambda path: None)
    made = compiled("hardware=cpu", "data=alpaca_cleaned", training=False)
    (line,) = (line for line in _lines(made) if "align" in line)
    assert line.endswith("format alpaca, of the hub, its size is not known yet")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("stage=sft", "8 sequences"),
        ("stage=dpo", "8 pairs"),
        ("stage=rm", "8 pairs"),
        ("stage=grpo stage.reward=a:b", "32 sampled answers"),
    ],
)
def test_what_a_step_is_of(words: str, said: str) -> None:
    two = "stage.gradient_accumulation_steps=2"
    assert f" of {said}, adamw" in " ".join(_lines(compiled("hardware=cpu", two, *words.split(), training=False)))


def test_one_step_is_one_and_a_slow_one_is_no_standstill() -> None:
    made = compiled("hardware=cpu", "stage.max_steps=1", "stage.eval_steps=1", training=False)
    slow = Speed(low=0.3, high=2.96, start_seconds=1)
    text = " ".join(_lines(replace(made, estimate=replace(made.estimate, speed=slow, seconds=None))))
    assert "sft 1 step of " in " ".join(text.split()) and "every 1 step " in f"{text} " and "1 steps" not in text
    assert "0.3 to 3 tokens/s" in text


def test_a_list_in_a_note_is_no_markup() -> None:
    words = ("method.target_modules=[q_proj]", "method.target_modules=[v_proj]")
    note = " ".join(" ".join(_lines(compiled("hardware=cpu", *words, training=False))).split())
    assert f"{words[0]} is replaced by {words[1]}, which stands after it" in note


def _lines(made: Plan) -> list[str]:
    console = Console(width=100)
    with console.capture() as seen:
        console.print(plan_panel(made))
    return [line.strip("│ ") for line in seen.get().splitlines()]


def _text(made: Plan) -> str:
    return " ".join(" ".join(_lines(made)).split())


def test_of_each_set_it_is_said_what_is_not_taken_once_and_whole(here: Path) -> None:
    (here / "own.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 4)
    sets = ("hardware=cpu", "data=[demo,file]", "data.path=own.jsonl", "data.sources.demo.weight=2")
    sets += ("data.sources.file.max_samples=3",)
    held = _text(compiled(*sets, "data.validation=file", training=False))
    assert " bytes, weight 2 align file own.jsonl, " in held
    assert " bytes, held out whole, at most 3 rows pack " in held
    both = _text(compiled(*sets, training=False))
    assert "held out whole" not in both and " bytes, at most 3 rows pack " in both
    other = _text(compiled(*sets, "data.validation=demo", training=False))
    assert "held out whole align file" in other and "weight 2" not in other  # of rows that do not train it says nothing


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "of the held-out rows: 10 %, at most 200 rows; data.validation=demo measures the whole set"),
        (("data.validation=demo",), "of the rows of demo, all of them"),
        (("evaluate.rows=train", "data.validation_fraction=0"), "of the rows that train"),
    ],
)
def test_an_evaluation_says_which_rows_it_measures(words: tuple[str, ...], said: str) -> None:
    made = compiled("hardware=cpu", "method=none", *words, verb="evaluate", training=False)
    assert f"evaluate perplexity {said} " in _text(made)
