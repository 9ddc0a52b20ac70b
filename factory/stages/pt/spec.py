"""Generative pre-training: the next token of plain text (Radford et al. 2018)."""

from factory.config.settings import Stage
from factory.data.record import Kind


class Settings(Stage):
    pass


KIND: Kind = "text"
