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
    assert done.dataset.stops == [2, 512]
