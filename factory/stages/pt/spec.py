"""Generative pre-training: the next token of plain text (Radford et al. 2018)."""

from dataclasses import dataclass
from typing import Any

from factory import schema
from factory.data.record import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(schema.Stage):
    pass


KIND: Kind = "text"
RULES = ()


def parts_rows(own: dict[str, Any]) -> bool:
    """The loss is a sum over tokens, of whatever row."""
    return False
