"""Supervised fine-tuning: the assistant's tokens, given the conversation before them (Wei et al. 2022)."""

from dataclasses import dataclass
from typing import Any

from factory.config import schema
from factory.config.typed import key
from factory.data.record import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(schema.Stage):
    neftune_alpha: float | None = key(
        "NEFTune: noise on the embeddings in training, of this strength (the paper has 5 to 15); null: none",
        above=0,
        high=100,
    )


KIND: Kind = "messages"
RULES = ()


def parts_rows(own: dict[str, Any]) -> bool:
    """Return whether rows must stay apart: NEFTune's noise is by a row's length."""
    return own["neftune_alpha"] is not None
