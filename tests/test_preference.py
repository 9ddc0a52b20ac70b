"""Losses on preferences: against their papers' formulas in float64 NumPy, by hand, and against TRL's own."""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from math import exp, log
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from factory.preference import (
    LOSSES,
    Answers,
    Options,
    bradley_terry,
    kto,
    kto_divergence,
    preference,
    watched,
)
from factory.preference.logs import log_odds
from factory.stages.dpo.spec import resolved

BETA, SMOOTHING, GAMMA, TAU = 0.3, 0.1, 0.5, 0.05
SEEDS = range(5)
SMOOTHED = tuple(name for name, loss in LOSSES.items() if loss.smoothing != "none")
ALL = tuple((name, SMOOTHING if name in SMOOTHED else 0.0) for name in LOSSES) + tuple(
    (name, 0.0) for name in SMOOTHED if LOSSES[name].smoothing == "may"
)


def options(smoothing: float, **others: Any) -> Options:
    return Options(beta=BETA, label_smoothing=smoothing, gamma=GAMMA, **others)


class Tokens:
    """The log-probabilities of the tokens of `count` pairs' answers, by the policy and by the reference."""

    def __init__(self, seed: int, count: int = 6, size: float = 1.0) -> None:
        random = np.random.default_rng(seed)

        def answers() -> list[np.ndarray]:
            return [-size * random.exponential(size=random.integers(1, 9)) for _ in range(count)]

        self.chosen, self.rejected = answers(), answers()
        self.ref_chosen = [row + size * random.normal(size=len(row)) for row in self.chosen]
        self.ref_rejected = [row + size * random.normal(size=len(row)) for row in self.rejected]

    def answers(self, which: str, dtype: torch.dtype = torch.float64) -> Answers:
        rows, reference = getattr(self, which), getattr(self, f"ref_{which}")
        return Answers(
            torch.tensor([row.sum() for row in rows], dtype=dtype, requires_grad=True),
            torch.tensor([len(row) for row in rows]),
            torch.tensor([row.sum() for row in reference], dtype=dtype),
        )


# --- what the papers print, pair by pair; pi(y) is the product over the answer's tokens ---


def _sigma(x: float) -> float:
    return 1 / (1 + exp(-x))


def _log_pi(tokens: np.ndarray) -> float:
    total = 0.0
    for token in tokens:
        total += float(token)
    return total


def _mean(tokens: np.ndarray) -> float:
    return _log_pi(tokens) / len(tokens)


Four = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # chosen, rejected, and the reference's of both


def _dpo_logits(won: np.ndarray, lost: np.ndarray, ref_won: np.ndarray, ref_lost: np.ndarray) -> float:
    return BETA * log(exp(_log_pi(won)) / exp(_log_pi(ref_won))) - BETA * log(
        exp(_log_pi(lost)) / exp(_log_pi(ref_lost))
    )


def _rewards(won: np.ndarray, lost: np.ndarray, ref_won: np.ndarray, ref_lost: np.ndarray) -> tuple[float, float]:
    return BETA * (_log_pi(won) - _log_pi(ref_won)), BETA * (_log_pi(lost) - _log_pi(ref_lost))


def _binary(x: float, smoothing: float) -> float:
    return -(1 - smoothing) * log(_sigma(x)) - smoothing * log(_sigma(-x))


def _paper_ipo(won: np.ndarray, lost: np.ndarray, ref_won: np.ndarray, ref_lost: np.ndarray) -> float:
    return (_mean(won) - _mean(ref_won) - (_mean(lost) - _mean(ref_lost)) - 1 / (2 * BETA)) ** 2


def _paper_robust(*four: np.ndarray, smoothing: float) -> float:
    won, lost, ref_won, ref_lost = four
    right, swapped = (
        -log(_sigma(_dpo_logits(won, lost, ref_won, ref_lost))),
        -log(_sigma(_dpo_logits(lost, won, ref_lost, ref_won))),
    )
    return ((1 - smoothing) * right - smoothing * swapped) / (1 - 2 * smoothing)


def _paper_exo(*four: np.ndarray, smoothing: float) -> float:
    powers = [exp(reward) for reward in _rewards(*four)]
    policy = [power / sum(powers) for power in powers]
    human = [1 - smoothing, smoothing]
    return sum(p * log(p / q) for p, q in zip(policy, human, strict=True))


def _paper_nca(*four: np.ndarray) -> float:
    total = 0.0
    for reward, label in zip(_rewards(*four), (1.0, 0.0), strict=True):
        total -= label * log(_sigma(reward)) + 0.5 * log(_sigma(-reward))
    return total


def _paper_sppo(won: np.ndarray, lost: np.ndarray, ref_won: np.ndarray, ref_lost: np.ndarray) -> float:
    eta = 1 / BETA
    return (_log_pi(won) - _log_pi(ref_won) - eta * (1 - 0.5)) ** 2 + (
        _log_pi(lost) - _log_pi(ref_lost) - eta * (0 - 0.5)
    ) ** 2


def _paper_discopop(*four: np.ndarray) -> float:
    x = _dpo_logits(*four)
    blend = _sigma(x / TAU)
    return (1 - blend) * log(1 + exp(-x)) + blend * exp(-x)


def _paper_simpo(won: np.ndarray, lost: np.ndarray, smoothing: float) -> float:
    return _binary(BETA / len(won) * _log_pi(won) - BETA / len(lost) * _log_pi(lost) - GAMMA, smoothing)


def _paper_cpo(won: np.ndarray, lost: np.ndarray, smoothing: float) -> float:
    return _binary(BETA * _log_pi(won) - BETA * _log_pi(lost), smoothing) - _mean(won)


def _paper_orpo(won: np.ndarray, lost: np.ndarray) -> float:
    likely, unlikely = exp(_mean(won)), exp(_mean(lost))
    ratio = (likely / (1 - likely)) / (unlikely / (1 - unlikely))
    return -_mean(won) + BETA * -log(_sigma(log(ratio)))


def _paper_apo_down(*four: np.ndarray) -> float:
    better, worse = _rewards(*four)
    return 1 + _sigma(better) - _sigma(better - worse)


PAPERS: dict[str, Callable[[Four, float], float]] = {
    "sigmoid": lambda four, e: _binary(_dpo_logits(*four), e),
    "sigmoid_norm": lambda four, e: _binary(
        BETA * (_mean(four[0]) - _mean(four[2])) - BETA * (_mean(four[1]) - _mean(four[3])), e
    ),
    "hinge": lambda four, e: max(0.0, 1 - _dpo_logits(*four)),
    "ipo": lambda four, e: _paper_ipo(*four),
    "robust": lambda four, e: _paper_robust(*four, smoothing=e),
    "exo_pair": lambda four, e: _paper_exo(*four, smoothing=e),
    "nca_pair": lambda four, e: _paper_nca(*four),
    "bco_pair": lambda four, e: -log(_sigma(_rewards(*four)[0])) - log(_sigma(-_rewards(*four)[1])),
    "sppo_hard": lambda four, e: _paper_sppo(*four),
    "apo_zero": lambda four, e: 1 - _sigma(_rewards(*four)[0]) + _sigma(_rewards(*four)[1]),
    "apo_down": lambda four, e: _paper_apo_down(*four),
    "discopop": lambda four, e: _paper_discopop(*four),
    "simpo": lambda four, e: _paper_simpo(four[0], four[1], e),
    "cpo": lambda four, e: _paper_cpo(four[0], four[1], e),
    "orpo": lambda four, e: _paper_orpo(four[0], four[1]),
}


def _quantiles(first: Sequence[float], second: Sequence[float], smoothing: float) -> list[float]:
    """AOT: the i-th smallest of one against the i-th smallest of the other."""
    return [_binary(BETA * (a - b), smoothing) for a, b in zip(sorted(first), sorted(second), strict=True)]


def paper(name: str, tokens: Tokens, smoothing: float) -> list[float]:
    fours = list(zip(tokens.chosen, tokens.rejected, tokens.ref_chosen, tokens.ref_rejected, strict=True))
    if name == "aot":
        policy = [_log_pi(four[0]) - _log_pi(four[1]) for four in fours]
        reference = [_log_pi(four[2]) - _log_pi(four[3]) for four in fours]
        return _quantiles(policy, reference, smoothing)
    if name == "aot_unpaired":
        better = [_log_pi(four[0]) - _log_pi(four[2]) for four in fours]
        worse = [_log_pi(four[1]) - _log_pi(four[3]) for four in fours]
        return _quantiles(better, worse, smoothing)
    return [PAPERS[name](four, smoothing) for four in fours]


def test_every_loss_has_its_papers_formula() -> None:
    assert PAPERS.keys() | {"aot", "aot_unpaired"} == LOSSES.keys()


def test_a_loss_of_means_has_the_beta_of_its_papers_runs() -> None:
    """A mean over an answer's tokens is smaller than their sum by the length of the answer.

    SimPO: its authors' runs of Llama 3 8B's base. sigmoid_norm: allenai/open-instruct, configs/train_configs/tulu3,
    loss_type dpo_norm.
    """
    others = {name: loss.beta for name, loss in LOSSES.items() if loss.beta != 0.1}
    assert others == {"simpo": 2.0, "sigmoid_norm": 5.0}
    left_open = {"loss": "sigmoid_norm", "beta": None, "gamma": None, "nll_weight": None, "label_smoothing": 0}
    assert resolved(left_open) == {**left_open, "beta": 5.0, "gamma": 0.0, "nll_weight": 0.0}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "smoothing"), ALL)
def test_is_the_papers_formula(name: str, smoothing: float, seed: int) -> None:
    tokens = Tokens(seed)
    found = preference(name, tokens.answers("chosen"), tokens.answers("rejected"), options(smoothing))
    np.testing.assert_allclose(found.losses.detach().numpy(), paper(name, tokens, smoothing), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.smoothing == "none"])
def test_says_which_read_the_smoothing(name: str) -> None:
    tokens = Tokens(0)
    both = tokens.answers("chosen"), tokens.answers("rejected")
    assert torch.equal(preference(name, *both, options(0.0)).losses, preference(name, *both, options(0.2)).losses)


@pytest.mark.parametrize("name", LOSSES)
def test_says_what_it_reads(name: str) -> None:
    """The margin, the reference and the number of tokens change the loss where the table says so, and only there."""
    tokens, loss = Tokens(1), LOSSES[name]
    chosen, rejected = tokens.answers("chosen"), tokens.answers("rejected")
    plain = Options(beta=BETA, label_smoothing=SMOOTHING, nll_weight=0.0)
    first = preference(name, chosen, rejected, plain).losses

    def moved(chosen: Answers, rejected: Answers, options: Options) -> bool:
        return not torch.equal(preference(name, chosen, rejected, options).losses, first)

    wide = Options(beta=BETA, label_smoothing=SMOOTHING, gamma=GAMMA, nll_weight=0.0)
    assert moved(chosen, rejected, wide) is bool(loss.gamma)
    assert chosen.reference is not None
    other = Answers(chosen.sums, chosen.tokens, chosen.reference - 2)
    assert moved(other, rejected, plain) is loss.needs_reference
    assert moved(Answers(chosen.sums, 2 * chosen.tokens, chosen.reference), rejected, plain) is loss.average


@pytest.mark.parametrize("name", LOSSES)
def test_says_which_compare_pairs_with_one_another(name: str) -> None:
    tokens = Tokens(2)
    chosen, rejected = tokens.answers("chosen"), tokens.answers("rejected")
    whole = preference(name, chosen, rejected, options(SMOOTHING)).losses.sum()
    parts = torch.stack(
        [
            preference(name, _row(chosen, row), _row(rejected, row), options(SMOOTHING)).losses[0]
            for row in range(len(chosen.sums))
        ]
    ).sum()
    assert bool(torch.isclose(whole, parts)) is not LOSSES[name].ranks


def _row(answers: Answers, row: int) -> Answers:
    assert answers.reference is not None
    return Answers(answers.sums[row : row + 1], answers.tokens[row : row + 1], answers.reference[row : row + 1])


def test_the_nll_is_added_to_any_loss() -> None:
    tokens = Tokens(3)
    both = tokens.answers("chosen"), tokens.answers("rejected")
    apart = (
        preference("sigmoid", *both, options(0.0, nll_weight=0.2)).losses
        - preference("sigmoid", *both, options(0.0)).losses
    )
    expected = [-0.2 * row.mean() for row in tokens.chosen]
    np.testing.assert_allclose(apart.detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "loss", "rewards"),
    [
        # log pi: chosen -3 of 2 tokens (reference -4 of 2), rejected -6 of 3 (reference -5 of 3); beta 0.5
        # log-ratios 1 and -1, their means 1/2 and -1/3
        ("sigmoid", log(1 + exp(-1)), (0.5, -0.5)),  # 0.5 (1 - -1) = 1
        ("hinge", 0.0, (0.5, -0.5)),
        ("ipo", (1 / 2 + 1 / 3 - 1) ** 2, (0.25, -1 / 6)),  # 1 / (2 * 0.5) = 1
        ("sppo_hard", 0.0, (0.5, -0.5)),  # (1 - 1)^2 + (-1 + 1)^2
        ("simpo", log(1 + exp(-0.25)), (-0.75, -1.0)),  # means -1.5 and -2
        ("cpo", log(1 + exp(-1.5)) + 1.5, (-1.5, -3.0)),
        # odds e^-1.5 / (1 - e^-1.5) = 0.287217 and e^-2 / (1 - e^-2) = 0.156518: log of their ratio 0.607069
        ("orpo", 1.5 + 0.5 * log(1 + exp(-0.607069)), (-0.75, -1.0)),
    ],
)
def test_by_hand(name: str, loss: float, rewards: tuple[float, float]) -> None:
    chosen = Answers(torch.tensor([-3.0]), torch.tensor([2]), torch.tensor([-4.0]))
    rejected = Answers(torch.tensor([-6.0]), torch.tensor([3]), torch.tensor([-5.0]))
    found = preference(name, chosen, rejected, Options(beta=0.5))
    assert found.losses.tolist() == pytest.approx([loss], abs=1e-6)
    assert (found.chosen.item(), found.rejected.item()) == pytest.approx(rewards)


def test_what_people_watch() -> None:
    found = watched(torch.tensor([1.0, 0.5, -1.0]), torch.tensor([0.0, 0.5, 2.0]))
    assert {name: float(value) for name, value in found.items()} == {
        "rewards/chosen": 0.5,
        "rewards/rejected": 2.5,
        "rewards/margin": -2.0,
        "rewards/accuracy": 1.0,  # a tie is no success
    }


@pytest.mark.parametrize(("name", "smoothing"), ALL)
def test_gradients(name: str, smoothing: float) -> None:
    tokens = Tokens(4, count=3)
    chosen, rejected = tokens.answers("chosen"), tokens.answers("rejected")

    def losses(first: Tensor, second: Tensor) -> Tensor:
        return preference(
            name,
            Answers(first, chosen.tokens, chosen.reference),
            Answers(second, rejected.tokens, rejected.reference),
            options(smoothing),
        ).losses

    assert torch.autograd.gradcheck(losses, (chosen.sums, rejected.sums))
    found = preference(name, chosen, rejected, options(smoothing))
    assert not found.chosen.requires_grad
    assert not found.rejected.requires_grad


EXTREMES = (0.0, 1e-7, -1e-38, -1e-9, -1e-4, -1.0, -90.0, -1e4, -1e6)


@pytest.mark.parametrize(("name", "smoothing"), ALL)
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_finite_stays_finite(name: str, smoothing: float, tokens: int) -> None:
    """Certain and impossible answers on each side, in float32: losses and gradients are numbers."""
    grid = torch.cartesian_prod(*[torch.tensor(EXTREMES)] * 2)
    sums = [column.clone().requires_grad_() for column in grid.T]
    count = torch.full((len(grid),), tokens)
    chosen, rejected = (Answers(*row) for row in zip(sums, (count, count), grid.flip(0).T, strict=True))
    found = preference(name, chosen, rejected, options(smoothing))
    assert found.losses.isfinite().all()
    for gradient in torch.autograd.grad(found.losses.sum(), sums):
        assert gradient.isfinite().all()


def test_log_odds_near_a_certain_answer() -> None:
    """Their digits are kept where 1 - exp(x) has none in float32."""
    mean = np.array([-1e-6, -1e-5, -0.1, -0.7, -3.0, -30.0])
    wanted = mean - np.log(-np.expm1(mean))
    np.testing.assert_allclose(log_odds(torch.tensor(mean, dtype=torch.float32)).numpy(), wanted, rtol=1e-6)


def test_the_table_needs_no_torch() -> None:
    script = "import sys; from factory.preference import LOSSES; assert LOSSES; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# --- KTO and the reward model ---

WEIGHTS = {"beta": BETA, "desirable_weight": 1.3, "undesirable_weight": 0.7}


def _paper_kto(log_pi: np.ndarray, log_ref: np.ndarray, desirable: np.ndarray, z0: float) -> list[float]:
    losses = []
    for ours, theirs, wanted in zip(log_pi, log_ref, desirable, strict=True):
        reward = log(exp(ours) / exp(theirs))
        if wanted:
            losses.append(1.3 - 1.3 * _sigma(BETA * (reward - z0)))
        else:
            losses.append(0.7 - 0.7 * _sigma(BETA * (z0 - reward)))
    return losses


def _judged(seed: int, kinds: str = "both") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log pi, log pi_ref, desirable, and both log-probabilities of mismatched answers."""
    random = np.random.default_rng(seed)
    ours, theirs, kl, ref_kl = (torch.tensor(-5 * random.exponential(size=6)) for _ in range(4))
    desirable = {"both": random.random(6) < 0.5, "desirable": np.ones(6, bool), "undesirable": np.zeros(6, bool)}
    return ours.requires_grad_(), theirs, torch.tensor(desirable[kinds]), kl.requires_grad_(), ref_kl


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kinds", ["both", "desirable", "undesirable"])
def test_kto_is_the_papers_formula(seed: int, kinds: str) -> None:
    ours, theirs, desirable, kl, ref_kl = _judged(seed, kinds)
    z0 = kto_divergence((kl - ref_kl).detach().sum(), 6)
    total = sum(a - b for a, b in zip(kl.tolist(), ref_kl.tolist(), strict=True))
    assert z0.item() == pytest.approx(max(0.0, total / 6))
    losses, rewards = kto(ours, theirs, desirable, z0, **WEIGHTS)
    expected = _paper_kto(ours.detach().numpy(), theirs.numpy(), desirable.numpy(), z0.item())
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-10)
    torch.testing.assert_close(rewards, BETA * (ours.detach() - theirs))
    assert torch.autograd.gradcheck(lambda x: kto(x, theirs, desirable, z0, **WEIGHTS)[0], (ours,))


def test_kto_by_hand() -> None:
    # mismatched: ((-2 - -3) + (-4 - -7)) / 2 = 2; log-ratios 3 and 0, less 2: 1 and -2; beta 0.5
    z0 = kto_divergence(torch.tensor((-2.0 - -3.0) + (-4.0 - -7.0)), 2)
    assert z0 == 2
    losses, rewards = kto(
        torch.tensor([-1.0, -5.0]),
        torch.tensor([-4.0, -5.0]),
        torch.tensor([True, False]),
        z0,
        beta=0.5,
        desirable_weight=1.0,
        undesirable_weight=2.0,
    )
    assert losses.tolist() == pytest.approx([1 - 1 / (1 + exp(-0.5)), 2 - 2 / (1 + exp(-1))])
    assert rewards.tolist() == [1.5, 0.0]
    assert kto_divergence(torch.tensor(-3.0 - -2.0), 1) == 0


def test_kto_stays_finite() -> None:
    grid = torch.cartesian_prod(*[torch.tensor(EXTREMES)] * 2)
    ours = grid[:, 0].clone().requires_grad_()
    for desirable in (True, False):
        losses, _ = kto(ours, grid[:, 1], torch.full((len(grid),), desirable), 0.0, **WEIGHTS)
        assert losses.isfinite().all()
        assert torch.autograd.grad(losses.sum(), ours)[0].isfinite().all()


@pytest.mark.parametrize("seed", SEEDS)
def test_bradley_terry(seed: int) -> None:
    random = np.random.default_rng(seed)
    chosen, rejected = random.normal(size=(2, 7))
    first, second = (torch.tensor(scores, requires_grad=True) for scores in (chosen, rejected))
    expected = [-log(_sigma(c - r)) for c, r in zip(chosen, rejected, strict=True)]
    np.testing.assert_allclose(bradley_terry(first, second).detach().numpy(), expected, rtol=1e-10)
    assert torch.autograd.gradcheck(bradley_terry, (first, second))
    by_hand = bradley_terry(torch.tensor([2.0, 200.0]), torch.tensor([1.0, 500.0]))
    assert by_hand.tolist() == pytest.approx([log(1 + exp(-1)), 300.0])


# --- TRL as the oracle: the trainers' own functions, on trainers that hold only what these read ---


def _trl(path: str) -> Any:
    """A trainer's class."""
    module, name = path.rsplit(".", 1)
    found = pytest.importorskip(
        f"trl.{module}", reason="trl, the oracle, is not installed: pip install '.[dev]'", exc_type=ModuleNotFoundError
    )
    return getattr(found, name)


def _trainer(path: str, **attributes: Any) -> Any:
    trainer_class = _trl(path)
    trainer = object.__new__(trainer_class)
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    common = {
        "accelerator": accelerator,
        "model": SimpleNamespace(training=True),
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "aux_loss_enabled": False,
        "beta": BETA,
    }
    for name, value in (common | attributes).items():
        setattr(trainer, name, value)
    return trainer


def _padded(rows: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """(n, 8) log-probabilities of tokens and the mask of those that are there."""
    values, mask = torch.zeros(len(rows), 8, dtype=torch.float64), torch.zeros(len(rows), 8, dtype=torch.long)
    for at, row in enumerate(rows):
        values[at, : len(row)] = torch.tensor(row)
        mask[at, : len(row)] = 1
    return values.requires_grad_(), mask


def _output(per_token: Tensor) -> Any:
    zeros = torch.zeros(per_token.shape)
    return SimpleNamespace(log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def _prompted(mask: Tensor) -> Tensor:
    """The mask of whole rows: one token of prompt before the answer."""
    return torch.cat([torch.zeros(len(mask), 1, dtype=torch.long), mask], dim=1)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_reference])
@pytest.mark.parametrize("seed", SEEDS)
def test_is_trls_dpo(name: str, seed: int) -> None:
    """TRL 1.16 reads label_smoothing in robust, exo_pair and aot alone, and its rewards are of sums everywhere."""
    smoothing = SMOOTHING if name in ("robust", "exo_pair", "aot", "aot_unpaired") else 0.0
    trainer = _trainer(
        "trainer.dpo_trainer.DPOTrainer",
        label_smoothing=smoothing,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[name],
        loss_weights=[1.0],
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=TAU),
    )
    tokens = Tokens(seed)
    per_token, mask = _padded(tokens.chosen + tokens.rejected)
    chosen, rejected = tokens.answers("chosen"), tokens.answers("rejected")
    inputs = {
        "input_ids": torch.zeros(len(mask), 9, dtype=torch.long),
        "attention_mask": _prompted(mask),
        "completion_mask": _prompted(mask),
        "ref_chosen_logps": chosen.reference,
        "ref_rejected_logps": rejected.reference,
    }
    theirs = trainer._compute_loss(lambda **_: _output(per_token), inputs, False)
    mine = preference(name, chosen, rejected, options(smoothing))
    torch.testing.assert_close(mine.losses.mean(), theirs, rtol=1e-6, atol=1e-8)
    slopes = torch.autograd.grad(mine.losses.mean(), (chosen.sums, rejected.sums))
    (slope,) = torch.autograd.grad(theirs, per_token)
    torch.testing.assert_close(torch.cat(slopes), slope[:, 0], rtol=1e-6, atol=1e-8)
    if not LOSSES[name].average:
        said = {key: values[-1] for key, values in trainer._metrics["train"].items()}
        people = {key: float(value) / len(mine.losses) for key, value in watched(mine.chosen, mine.rejected).items()}
        names = {"rewards/margin": "rewards/margins", "rewards/accuracy": "rewards/accuracies"}
        assert people == pytest.approx({key: said[names.get(key, key)] for key in people})


@pytest.mark.parametrize(("name", "theirs"), [("simpo", "simpo"), ("cpo", "sigmoid"), ("sigmoid", "sigmoid")])
@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
def test_is_trls_cpo(name: str, theirs: str, smoothing: float) -> None:
    """Its sigmoid of log-ratios is also the oracle of DPO's label smoothing. The NLL is added outside of it."""
    trainer = _trainer(
        "experimental.cpo.cpo_trainer.CPOTrainer",
        alpha=0.0,
        loss_type=theirs,
        simpo_gamma=GAMMA,
        label_smoothing=smoothing,
    )
    tokens = Tokens(5)
    chosen, rejected = tokens.answers("chosen"), tokens.answers("rejected")
    mine = preference(name, chosen, rejected, options(smoothing, nll_weight=0.0))
    assert chosen.reference is not None
    assert rejected.reference is not None
    given = {
        "simpo": (chosen.means, rejected.means),
        "cpo": (chosen.sums, rejected.sums),
        "sigmoid": (chosen.sums - chosen.reference, rejected.sums - rejected.reference),
    }
    losses, *rewards = trainer.cpo_loss(*given[name])
    torch.testing.assert_close(mine.losses, losses)
    torch.testing.assert_close([mine.chosen, mine.rejected], rewards)


def test_is_trls_orpo() -> None:
    trainer = _trainer("experimental.orpo.orpo_trainer.ORPOTrainer")
    tokens = Tokens(6)
    chosen, rejected = tokens.answers("chosen"), tokens.answers("rejected")
    mine = preference("orpo", chosen, rejected, options(0.0, nll_weight=0.0))
    ratio, *rewards, _, _ = trainer.odds_ratio_loss(chosen.means, rejected.means)  # in float32
    torch.testing.assert_close(mine.losses.float(), -ratio, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close([mine.chosen.float(), mine.rejected.float()], rewards)


@pytest.mark.parametrize("kinds", ["both", "desirable", "undesirable"])
def test_is_trls_kto(kinds: str) -> None:
    ours, theirs, desirable, kl, ref_kl = _judged(7, kinds)
    weights = {name: value for name, value in WEIGHTS.items() if name != "beta"}
    trainer = _trainer(
        "trainer.kto_trainer.KTOTrainer",
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        _compute_kl_logps=lambda model, batch: kl,
        **weights,
    )
    per_token = ours.detach()[:, None].requires_grad_()
    mask = torch.tensor([[0, 1]] * 6)
    inputs = {
        "input_ids": torch.zeros(6, 2, dtype=torch.long),
        "attention_mask": mask,
        "completion_mask": mask,
        "label": desirable,
        "ref_logps": theirs,
        "ref_KL_logps": ref_kl,
    }
    loss = trainer._compute_loss(lambda **_: _output(per_token), inputs, False)
    z0 = kto_divergence((kl - ref_kl).detach().sum(), 6)
    losses, rewards = kto(ours, theirs, desirable, z0, **WEIGHTS)
    torch.testing.assert_close(losses.mean(), loss.double())
    assert trainer._metrics["train"]["kl"] == [pytest.approx(z0.item())]
    (mine,), (slope,) = torch.autograd.grad(losses.mean(), ours), torch.autograd.grad(loss, per_token)
    torch.testing.assert_close(mine, slope[:, 0])
    for name, which in (("chosen", desirable), ("rejected", ~desirable)):
        if which.any():
            assert trainer._metrics["train"][f"rewards/{name}"] == [pytest.approx(rewards[which].mean().item())]


def test_the_reference_point_is_of_all_ranks_as_trls() -> None:
    """Each of TRL's ranks takes the mean of all ranks' means."""
    judged = [_judged(seed) for seed in (1, 4)]
    weights = {name: value for name, value in WEIGHTS.items() if name != "beta"}
    means = torch.stack([(kl - ref_kl).detach().mean() for *_, kl, ref_kl in judged])
    z0 = kto_divergence(sum((kl - ref_kl).detach().sum() for *_, kl, ref_kl in judged), 12)  # type: ignore[arg-type]
    for ours, theirs, desirable, kl, ref_kl in judged:
        accelerator = SimpleNamespace(
            device=torch.device("cpu"), gather_for_metrics=lambda x: means if any(x == means) else x
        )
        trainer = _trainer(
            "trainer.kto_trainer.KTOTrainer",
            precompute_ref_logps=True,
            calculate_KL=True,
            loss_type="kto",
            _compute_kl_logps=lambda model, batch, kl=kl: kl,
            **{**weights, "accelerator": accelerator},
        )
        per_token, mask = ours.detach()[:, None], torch.tensor([[0, 1]] * 6)
        inputs = {
            "input_ids": torch.zeros(6, 2, dtype=torch.long),
            "attention_mask": mask,
            "completion_mask": mask,
            "label": desirable,
            "ref_logps": theirs,
            "ref_KL_logps": ref_kl,
        }
        loss = trainer._compute_loss(lambda per_token=per_token, **_: _output(per_token), inputs, False)
        assert trainer._metrics["train"]["kl"] == [pytest.approx(z0.item())] and z0 > 0
        torch.testing.assert_close(kto(ours, theirs, desirable, z0, **WEIGHTS)[0].mean().detach(), loss.double())


def test_is_trls_reward_model() -> None:
    trainer = _trainer("trainer.reward_trainer.RewardTrainer", args=SimpleNamespace(center_rewards_coefficient=None))
    scores = torch.tensor([0.3, -1.2, 2.0, 0.1, 0.4, -1.0])
    inputs: dict[str, Any] = {"attention_mask": torch.ones(6, 2)}
    loss = trainer.compute_loss(lambda **_: SimpleNamespace(logits=scores[:, None]), inputs)
    torch.testing.assert_close(bradley_terry(scores[:3], scores[3:]).mean(), loss)
    said = {key: values[-1] for key, values in trainer._metrics["train"].items()}
    people = watched(scores[:3], scores[3:])
    assert said["accuracy"] == pytest.approx(float(people["rewards/accuracy"]) / 3)
    assert said["margin"] == pytest.approx(float(people["rewards/margin"]) / 3)
