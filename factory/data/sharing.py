"""Pairs of answers whose common beginning is computed once: what one prompt's two answers share is not made twice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.data.dataset import Pair

READ_AS = {"shared_ids": "input_ids", "shared_positions": "position_ids", "shared_spans": "attention_mask"}
PLACES = "places"


def shared(pairs: Sequence[Pair], longest: int, pad: int, multiple: int) -> dict[str, NDArray[Any]]:
    """One row of n pairs: of each the chosen answer with its prompt, then what the rejected one has of its own.

    shared_ids and shared_positions are (1, tokens), tokens a multiple of `multiple`. shared_spans, (1, 1, 3, tokens),
    is what each token sees beside causality, as `attention.mask.Spans` reads it. places, (2n, longest), is where the
    tokens of the rows stand, the chosen first, then the rejected; 0 where a row is padding.
    """
    n = len(pairs)
    commons = [_common(pair.chosen.ids, pair.rejected.ids) for pair in pairs]
    tokens = sum(len(pair.chosen.ids) + len(pair.rejected.ids) for pair in pairs) - sum(commons)
    wide = -(-tokens // multiple) * multiple
    ids, positions = np.full((1, wide), pad, np.int64), np.zeros((1, wide), np.int64)
    spans, places = np.full((1, 1, 3, wide), tokens, np.int64), np.zeros((2 * n, longest), np.int64)
    positions[0, tokens:] = np.arange(wide - tokens)
    start = 0
    for row, (pair, common) in enumerate(zip(pairs, commons, strict=True)):
        chosen, own = np.asarray(pair.chosen.ids), np.asarray(pair.rejected.ids[common:], np.int64)
        middle = start + len(chosen)
        end = middle + len(own)
        ids[0, start:end] = np.concatenate([chosen, own])
        positions[0, start:end] = np.concatenate([np.arange(len(chosen)), common + np.arange(len(own))])
        spans[0, 0, :, start:middle] = start
        spans[0, 0, :, middle:end] = [[middle], [start], [start + common]]
        places[row, : len(chosen)] = np.arange(start, middle)
        places[n + row, :common] = np.arange(start, start + common)
        places[n + row, common : common + len(own)] = np.arange(middle, end)
        start = end
    return {"shared_ids": ids, "shared_positions": positions, "shared_spans": spans, "places": places}


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    short = min(len(one), len(other))
    differing = np.flatnonzero(np.asarray(one[:short]) != np.asarray(other[:short]))
    return int(differing[0]) if len(differing) else short
