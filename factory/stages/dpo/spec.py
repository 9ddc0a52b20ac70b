"""Direct preference optimization (Rafailov et al. 2023). A spec without a run: it plans, and is refused by `train`."""

from dataclasses import dataclass
from typing import Literal

from factory import schema
from factory.data.record import Kind
from factory.typed import key


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(schema.Stage):
    beta: float = key("strength of the pull to the reference model", above=0)
    loss: Literal["sigmoid"] = key("the preference loss (paper, equation 7)")


KIND: Kind = "pairs"
RULES = ()
