"""Supervised fine-tuning: the assistant's tokens, given the conversation before them (Wei et al. 2022)."""

from typing import Any

from pydantic import Field

from factory.config.settings import Stage
from factory.data.record import Kind


class Settings(Stage):
    neftune_alpha: float | None = Field(
        description="NEFTune: noise on the embeddings in training, of this strength (the paper has 5 to 15); null: "
        "none",
        gt=0,
        le=100,
    )


KIND: Kind = "messages"


def parts_rows(own: dict[str, Any]) -> bool:
    """Return whether rows must stay apart: NEFTune's noise is by a row's length."""
    return own["neftune_alpha"] is not None
