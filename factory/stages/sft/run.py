from typing import Any

from factory.data.encode import chat as examples
from factory.data.formats import Record
from factory.losses import causal_lm as loss
from factory.plan import Pack

__all__ = ["examples", "loss", "prompts"]


def prompts(records: list[Record], tokenizer: Any, pack: Pack) -> list[tuple[str, list[int]]]:
    """Conversations up to the last answer, which is to be given."""
    return [
        (
            record.prompt[-1]["content"],
            tokenizer(
                tokenizer.apply_chat_template(list(record.prompt), tokenize=False, add_generation_prompt=True),
                add_special_tokens=False,
            )["input_ids"],
        )
        for record in records
    ]
