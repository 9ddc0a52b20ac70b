"""Kahneman-Tversky optimization (Ethayarajh et al. 2024). A spec without a run: it plans, and is refused by `train`."""

from dataclasses import dataclass

from factory import schema
from factory.data.record import Kind
from factory.typed import key


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(schema.Stage):
    beta: float = key("strength of the pull to the reference model", above=0)
    desirable_weight: float = key("what the loss of a wanted answer counts (paper, equation 8)", above=0)
    undesirable_weight: float = key("what the loss of an unwanted answer counts (paper, equation 8)", above=0)


KIND: Kind = "labelled"
RULES = ()
