"""A loss of pairs from the log-probabilities of their answers."""

from typing import TYPE_CHECKING

from factory.preference.losses import LOSSES, Preference
from factory.preference.types import Answers, Options, Pairs, Preferred

if TYPE_CHECKING:
    from torch import Tensor


def preference(name: str, chosen: Answers, rejected: Answers, options: Options) -> Preferred:
    """A loss of `LOSSES`, with the NLL of the chosen answers, each a mean over its tokens.

    An answer's reward is beta log(pi / pi_ref) of what the loss compares: sums, or means, or log pi without reference.
    """
    loss = LOSSES[name]
    pairs = _compared(loss, chosen, rejected)
    losses = loss.loss(pairs, options)
    weight = loss.nll if options.nll_weight is None else options.nll_weight
    if weight:
        losses = losses - weight * chosen.means
    return Preferred(losses, options.beta * pairs.better.detach(), options.beta * pairs.worse.detach())


def watched(chosen: "Tensor", rejected: "Tensor") -> dict[str, "Tensor"]:
    """Sums over n pairs of what people watch, from the rewards of their answers, each (n)."""
    return {
        "rewards/chosen": chosen.sum(),
        "rewards/rejected": rejected.sum(),
        "rewards/margin": (chosen - rejected).sum(),
        "rewards/accuracy": (chosen > rejected).sum(),
    }


def _compared(loss: Preference, chosen: Answers, rejected: Answers) -> Pairs:
    both = (chosen, rejected)
    mine = [answers.means if loss.average else answers.sums for answers in both]
    return Pairs(*mine, *(_reference(loss, answers) for answers in both))


def _reference(loss: Preference, answers: Answers) -> "Tensor":
    if not loss.needs_reference:
        return answers.sums.new_zeros(answers.sums.shape)
    assert answers.reference is not None
    return answers.reference / answers.tokens.clamp(min=1) if loss.average else answers.reference
