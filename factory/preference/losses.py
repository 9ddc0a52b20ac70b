"""The losses of pairs, and what each of them reads."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Literal

from factory.preference.logs import log_odds, log_sigmoid
from factory.preference.types import Options, Pairs

if TYPE_CHECKING:
    from torch import Tensor

_TAU = 0.05  # DiscoPOP's temperature, the one that its paper found


def _sigmoid(pairs: Pairs, options: Options) -> "Tensor":
    """DPO, Rafailov et al. 2023 (2305.18290), eq. 7; smoothed as Mitchell's note on noisy preferences has it (cDPO)."""
    return _smoothed(options.beta * pairs.margin, options)


def _hinge(pairs: Pairs, options: Options) -> "Tensor":
    """SLiC-HF, Zhao et al. 2023 (2305.10425), on log-ratios scaled by beta as Liu et al. 2023 (RSO, 2309.06657)."""
    return (1 - options.beta * pairs.margin).relu()


def _ipo(pairs: Pairs, options: Options) -> "Tensor":
    """Azar et al. 2023 (2310.12036), eq. 17, of means: TRL has it from the authors; the paper prints sums."""
    return (pairs.margin - 1 / (2 * options.beta)) ** 2


def _robust(pairs: Pairs, options: Options) -> "Tensor":
    """Ray Chowdhury et al. 2024 (2403.00409): the sigmoid loss without the bias of labels flipped with that chance."""
    flipped = options.label_smoothing
    assert 0 <= flipped < 0.5
    logits = options.beta * pairs.margin
    return (-(1 - flipped) * log_sigmoid(logits) + flipped * log_sigmoid(-logits)) / (1 - 2 * flipped)


def _exo_pair(pairs: Pairs, options: Options) -> "Tensor":
    """Ji et al. 2024 (2402.00856), eq. 16: the reverse KL from the smoothed labels to the policy's choice of two."""
    smoothing = options.label_smoothing
    assert 0 < smoothing < 1
    logits = options.beta * pairs.margin
    chosen = logits.sigmoid() * (log_sigmoid(logits) - log(1 - smoothing))
    return chosen + (-logits).sigmoid() * (log_sigmoid(-logits) - log(smoothing))


def _nca_pair(pairs: Pairs, options: Options) -> "Tensor":
    """Chen et al. 2024 (2402.05369): NCA of two answers with a hard label."""
    better, worse = options.beta * pairs.better, options.beta * pairs.worse
    return -log_sigmoid(better) - 0.5 * log_sigmoid(-better) - 0.5 * log_sigmoid(-worse)


def _bco_pair(pairs: Pairs, options: Options) -> "Tensor":
    """Jung et al. 2024 (2404.04656): binary cross entropy; as in TRL 1.16 without the paper's reward shift."""
    return -log_sigmoid(options.beta * pairs.better) - log_sigmoid(-options.beta * pairs.worse)


def _sppo_hard(pairs: Pairs, options: Options) -> "Tensor":
    """Wu et al. 2024 (2405.00675), eq. 4.7 with 1 / beta for eta, the chosen answer winning with probability 1."""
    half = 0.5 / options.beta
    return (pairs.better - half) ** 2 + (pairs.worse + half) ** 2


def _aot(pairs: Pairs, options: Options) -> "Tensor":
    """Melnyk et al. 2024 (2406.05882), paired: the policy's margins against the reference's, each sorted in the batch.

    A loss is of a rank in the batch that is given, not of a pair.
    """
    policy, reference = pairs.chosen - pairs.rejected, pairs.ref_chosen - pairs.ref_rejected
    return _smoothed(options.beta * (policy.sort().values - reference.sort().values), options)


def _aot_unpaired(pairs: Pairs, options: Options) -> "Tensor":
    """Melnyk et al. 2024 (2406.05882), unpaired: the chosen log-ratios against the rejected, each sorted."""
    return _smoothed(options.beta * (pairs.better.sort().values - pairs.worse.sort().values), options)


def _apo_zero(pairs: Pairs, options: Options) -> "Tensor":
    """D'Oosterlinck et al. 2024 (2408.06266), eq. 7 plus 1, as TRL: for chosen answers better than the model's own."""
    return (-options.beta * pairs.better).sigmoid() + (options.beta * pairs.worse).sigmoid()


def _apo_down(pairs: Pairs, options: Options) -> "Tensor":
    """D'Oosterlinck et al. 2024 (2408.06266), eq. 8 plus 1, as TRL: for chosen answers worse than the model's own."""
    return (options.beta * pairs.better).sigmoid() + (-options.beta * pairs.margin).sigmoid()


def _discopop(pairs: Pairs, options: Options) -> "Tensor":
    """Lu et al. 2024 (2406.08414), eq. 5: the logistic loss blended into the exponential one.

    exp(-x) sigmoid(x / tau) is taken as one exponential: the first factor overflows where the second vanishes.
    """
    logits = options.beta * pairs.margin
    exponential = (log_sigmoid(logits / _TAU) - logits).exp()
    return -log_sigmoid(logits) * (-logits / _TAU).sigmoid() + exponential


def _simpo(pairs: Pairs, options: Options) -> "Tensor":
    """Meng et al. 2024 (2405.14734), eq. 6; smoothed as the sigmoid loss."""
    return _smoothed(options.beta * pairs.margin - options.gamma, options)


def _orpo(pairs: Pairs, options: Options) -> "Tensor":
    """Hong et al. 2024 (2403.07691), eq. 7, weighted by lambda (beta) as in eq. 6; the chosen's NLL comes on top."""
    return -options.beta * log_sigmoid(log_odds(pairs.chosen) - log_odds(pairs.rejected))


def _smoothed(logits: "Tensor", options: Options) -> "Tensor":
    """-log sigmoid, and with the share of wrong labels that of the pair the other way round."""
    right = -log_sigmoid(logits)
    if not options.label_smoothing:
        return right
    return (1 - options.label_smoothing) * right - options.label_smoothing * log_sigmoid(-logits)


@dataclass(frozen=True, slots=True)
class Preference:
    """What a loss of pairs reads. `nll`: the weight that its paper gives to the chosen answers' NLL."""

    loss: Callable[[Pairs, Options], "Tensor"]
    needs_reference: bool = True
    average: bool = False  # of means over an answer's tokens, not of sums
    nll: float = 0.0
    # label_smoothing, below 0.5 everywhere: not read, may be 0, or must not be
    smoothing: Literal["none", "may", "must"] = "none"
    ranks: bool = False  # its pairs are compared with one another: the size of a batch changes it
    beta: float = 0.1  # what most people take
    gamma: float = 0.0  # the same; 0: not read


# simpo's beta and gamma are those of its authors' runs on Llama 3 8B's base.
# CPO, Xu et al. 2024 (2401.08417), eq. 3 and its NLL term: the sigmoid loss without reference, and the chosen
# answer's NLL, a mean over its tokens as in TRL; the paper prints log pi, the sum.
# sigmoid_norm: DPO of means, Lambert et al. 2024 (Tülu 3, 2411.15124), and the beta of its runs: a mean is smaller than
# a sum by the length of the answer.
LOSSES = {
    "sigmoid": Preference(_sigmoid, smoothing="may"),
    "sigmoid_norm": Preference(_sigmoid, average=True, smoothing="may", beta=5.0),
    "hinge": Preference(_hinge),
    "ipo": Preference(_ipo, average=True),
    "robust": Preference(_robust, smoothing="may"),
    "exo_pair": Preference(_exo_pair, smoothing="must"),
    "nca_pair": Preference(_nca_pair),
    "bco_pair": Preference(_bco_pair),
    "sppo_hard": Preference(_sppo_hard),
    "aot": Preference(_aot, smoothing="may", ranks=True),
    "aot_unpaired": Preference(_aot_unpaired, smoothing="may", ranks=True),
    "apo_zero": Preference(_apo_zero),
    "apo_down": Preference(_apo_down),
    "discopop": Preference(_discopop),
    "simpo": Preference(_simpo, needs_reference=False, average=True, smoothing="may", beta=2.0, gamma=1.0),
    "cpo": Preference(_sigmoid, needs_reference=False, nll=1.0, smoothing="may"),
    "orpo": Preference(_orpo, needs_reference=False, average=True, nll=1.0),
}
