"""Supervised fine-tuning: the assistant's tokens, given the conversation before them (Wei et al. 2022)."""

from dataclasses import dataclass

from factory import schema
from factory.data.formats import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(schema.Stage):
    pass


KIND: Kind = "messages"
RULES = ()
