"""What is made of the prepared rows beside their sequences: the tokens that end an answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
