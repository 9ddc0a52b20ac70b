"""What is made of the prepared rows beside their sequences: the tokens that end an answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import compiled

from factory.preview.gather import preview

SAMPLED = ("stage.reward=trl:think_format_reward", "stage.max_new_tokens=6", "stage.gradient_accumulation_steps=1")
END = "<|eot_id|>"
LONG = {"instruction": "Count.", "output": "One and two and three. " * 40}
SHORT = {"instruction": "Hi.", "output": "Hello."}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("rows", [[LONG] * 9 + [SHORT], [SHORT] * 2])
def test_a_row_that_has_lost_its_end_hides_no_stop(
    rows: list[dict[str, str]], streams: bool, execute: Callable[..., Any], here: Path
) -> None:
    """The template's end of turn is not the tokenizer's end of text: who does not know it samples on and on."""
    made = [{**row, "instruction": f"{row['instruction']} {number}"} for number, row in enumerate(rows)]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, made)))
    done = execute(
        *("method=lora", "method.rank=4", "precision=fp32", "stage.max_steps=1", "stage.save_steps=null"),
        *("data=file", "data.path=rows.jsonl", "data.validation_fraction=0", f"data.streaming={str(streams).lower()}"),
        *("model.template=llama3", f"model.new_tokens=['{END}']", "data.truncation=right", "data.max_length=128"),
    )
    first = done.dataset.first.labels[-1]
    assert (first == 512) == (LONG not in rows), "the row that comes first is one that was cut"
    assert done.dataset.ends.tokens == {2, 512}


def test_a_short_text_leaves_something_to_be_continued(execute: Callable[..., Any], here: Path) -> None:
    (here / "rows.jsonl").write_text("\n".join(json.dumps({"text": f"The sea {number}."}) for number in range(6)))
    short = ("stage=pt", "method=lora", "method.rank=4", "precision=fp32", "stage.max_steps=1", "stage.save_steps=null")
    rows = ("data=file", "data.path=rows.jsonl", "data.validation_fraction=0.4")
    done = execute(*short, *rows, "evaluate.samples=1", "evaluate.max_new_tokens=2")
    ((text, ids, _),) = done.dataset.prompts
    assert text and 2 not in ids
    assert done.result["samples"][0]["prompt"] == text


def test_what_is_shown_of_a_model_ends_where_its_positions_do(execute: Callable[..., Any], here: Path) -> None:
    """GPT-2 has a learned row for each position, and none beyond."""
    tiny.save(here / "gpt2", model_type="gpt2", max_position_embeddings=64, n_inner=64, num_key_value_heads=4)
    rows = [{"text": "The sea and the wind and the sun. " * 8 + str(number)} for number in range(6)]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = ("stage=pt", "method=lora", "method.rank=4", "precision=fp32", "stage.max_steps=1", "stage.save_steps=null")
    data = ("data=file", "data.path=rows.jsonl", "data.validation_fraction=0.4", "data.max_length=64")
    done = execute(*run, *data, f"model.path={here / 'gpt2'}", "evaluate.samples=1", "evaluate.max_new_tokens=63")
    assert done.result["samples"]


@pytest.mark.parametrize(
    ("stage", "there", "said"),
    [
        ("stage=ppo", 6, "A step would ask 8 prompts, and 6 are there: it samples 6 answers, not the 8 of"),
        ("stage=ppo", 8, None),
        ("stage=grpo stage.group_size=2", 3, "A step would ask 4 prompts, and 3 are there: it samples 6 answers, not"),
        ("stage=grpo stage.group_size=2", 4, None),
        ("stage=sft", 1, None),
    ],
)
def test_fewer_prompts_than_a_step_asks_are_told(
    stage: str, there: int, said: str | None, tiny_model: Path, here: Path
) -> None:
    (here / "rows.jsonl").write_text("\n".join(json.dumps({**SHORT, "system": str(each)}) for each in range(there)))
    of_stage = () if stage == "stage=sft" else (*SAMPLED, "stage.rollout_batch_size=8")
    data = ("data=file", "data.path=rows.jsonl", "data.validation_fraction=0", "hardware=cpu", "stage.batch_size=2")
    plan = compiled(f"model.path={tiny_model}", *stage.split(), *of_stage, *data, training=False)
    told = [note for note in preview(plan, 0, lambda *_: None).notes if "A step would ask" in note]
    assert [note.startswith(said or "-") for note in told] == [True] * (said is not None)
    if of_stage:
        assert any(note.startswith("a step: at most 8 sampled answers, ") for note in plan.notes)
