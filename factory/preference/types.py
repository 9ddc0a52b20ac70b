"""What a loss of pairs is given and gives."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`beta`: TRL's name of ORPO's lambda too, and IPO's tau. `nll_weight` None: what the loss's paper has."""

    beta: float
    label_smoothing: float = 0.0  # the share of pairs that are taken to be labelled the wrong way round
    gamma: float = 0.0  # SimPO's target margin, in units of the reward
    nll_weight: float | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """An answer's log-probability, its number of tokens and the reference's log-probability, each (n).

    An answer without tokens is certain: its log-probability is 0, as a sum and as a mean.
    """

    sums: "Tensor"
    tokens: "Tensor"
    reference: "Tensor | None" = None

    @property
    def means(self) -> "Tensor":
        return self.sums / self.tokens.clamp(min=1)


@dataclass(frozen=True, slots=True)
class Pairs:
    """What a loss compares, each (n): sums, or means where the loss is one of means; without a reference zeros."""

    chosen: "Tensor"
    rejected: "Tensor"
    ref_chosen: "Tensor"
    ref_rejected: "Tensor"

    @property
    def better(self) -> "Tensor":
        """log(pi / pi_ref) of the chosen answers."""
        return self.chosen - self.ref_chosen

    @property
    def worse(self) -> "Tensor":
        """log(pi / pi_ref) of the rejected answers."""
        return self.rejected - self.ref_rejected

    @property
    def margin(self) -> "Tensor":
        return self.better - self.worse


@dataclass(frozen=True, slots=True)
class Preferred:
    """Each pair's loss and the rewards of its answers, each (n); the rewards carry no gradient."""

    losses: "Tensor"
    chosen: "Tensor"
    rejected: "Tensor"
