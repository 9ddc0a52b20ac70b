from contextlib import suppress
from typing import Any

from factory.data.encode import chat as examples
from factory.data.encode import rendered
from factory.data.formats import BadRow, Record
from factory.losses import causal_lm as loss
from factory.plan import Pack

__all__ = ["examples", "loss", "prompts"]


def prompts(records: list[Record], tokenizer: Any, pack: Pack) -> list[tuple[str, list[int]]]:
    """Conversations up to the last answer, which is to be given; those that the template refuses are left out."""
    found = []
    for record in records:
        with suppress(BadRow):
            text = rendered(tokenizer, list(record.prompt), add_generation_prompt=True)
            found.append((record.prompt[-1]["content"], tokenizer(text, add_special_tokens=False)["input_ids"]))
    return found
