"""Generative pre-training: the next token of plain text (Radford et al. 2018)."""

from dataclasses import dataclass

from factory.config import schema
from factory.data.record import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(schema.Stage):
    pass


KIND: Kind = "text"
RULES = ()
