"""Floating-point operations of a training step: of what is multiplied with, forward, backward, and once more.

Those of an optimizer that multiplies matrices itself: `factory.optimizers.spec.products`.
"""

import re
from collections.abc import Collection

from factory.architecture import Architecture, Shape, elements


def forward(arch: Architecture, length: int) -> float:
    """Of a token in a sequence of `length`: Kaplan et al. 2020, table 1, a multiply-add counted as two.

    2 N of the weights, of which experts count as far as a token passes through them, and 2 layers length width of
    attention: half of the scores, as the others lie ahead.
    """
    return arch.forward_flops_per_token() + _attention(arch, length) * arch.layers


def _attention(arch: Architecture, length: int) -> float:
    return 2 * length * arch.heads * arch.head_dim


def _layers(arch: Architecture, length: int, first: int) -> float:
    """Those of `forward` that are of the layers from `first` on."""
    return (forward(arch, length) - _head(arch)) * (arch.layers - first) / max(1, arch.layers)


def _head(arch: Architecture) -> float:
    return 2 * arch.vocabulary * arch.hidden


def trained(arch: Architecture, shapes: dict[str, Shape], length: int, again: int) -> float:
    """Of a token that is trained: forward, the gradients of what flows back, those of weights, and layers made again.

    Nothing flows below the lowest layer that trains. What stands beside the model's own tensors is multiplied with, and
    has both gradients. `again`: the layers, the first ones, whose products are made again.
    """
    base = {name for name, _ in arch.tensors()}
    own = elements(shape for name, shape in shapes.items() if name in base)
    beside = elements(shapes.values()) - own
    first = _lowest(arch, shapes)
    back = _head(arch) + _layers(arch, length, first)
    weights = forward(arch, 0) * own / arch.parameters() + 6 * beside
    scores = _attention(arch, length) * (arch.layers - first)  # each product of attention has two gradients
    made_again = _layers(arch, length, first) - _layers(arch, length, max(first, again))
    return forward(arch, length) + back + weights + scores + made_again


def _lowest(arch: Architecture, names: Collection[str]) -> int:
    """The first layer that something trains in: the first of all where the embedding trains, or what sees or hears."""
    at = re.compile(rf"{re.escape(arch.layers_at)}\.(\d+)\.")
    before = (arch.embedding, *(part for part in arch.parts.values() if not at.match(part)))
    if any(part in name for name in names for part in before):
        return 0
    return min((int(match[1]) for match in map(at.search, names) if match), default=arch.layers)
