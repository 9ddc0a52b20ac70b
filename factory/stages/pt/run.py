from typing import Any

from factory.data.encode import text as examples
from factory.data.formats import Record
from factory.losses import causal_lm as loss
from factory.plan import Pack

__all__ = ["examples", "loss", "prompts"]

_PROMPT_TOKENS = 24


def prompts(records: list[Record], tokenizer: Any, pack: Pack) -> list[tuple[str, list[int]]]:
    """The beginnings of documents, to be continued."""
    texts = [record.response[0]["content"] for record in records]
    ids = [tokenizer(text)["input_ids"][:_PROMPT_TOKENS] for text in texts]
    return [(tokenizer.decode(prompt, skip_special_tokens=True), prompt) for prompt in ids]
