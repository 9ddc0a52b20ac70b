"""Losses on preferences: of pairs of answers (DPO and its kin), of answers judged one by one (KTO), of scores (RM).

Functions of the log-probabilities of whole answers, sums over an answer's trained tokens; the model is not seen here.
Importing this needs no torch, so that a spec can read `LOSSES`. Shapes: n pairs or answers. What is finite gives finite
losses and gradients. arXiv numbers stand for the papers.
"""

from factory.preference.losses import LOSSES
from factory.preference.pairs import preference, watched
from factory.preference.single import bradley_terry, kto, kto_divergence
from factory.preference.types import Answers, Options

__all__ = [
    "LOSSES",
    "Answers",
    "Options",
    "bradley_terry",
    "kto",
    "kto_divergence",
    "preference",
    "watched",
]
