from typing import Any

from factory.architecture import Architecture
from factory.methods.badam.spec import Settings, blocks, trainable
from factory.optimizers.run import plain as optimizer
from factory.plan import Attach

__all__ = ["attach", "begin_step", "optimizer"]


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    for name in trainable(settings, arch):
        model.get_parameter(name).requires_grad_(True)
    return model


def active(settings: Settings, count: int, step: int, seed: int) -> int:
    """Which of the blocks is trained in a step. Each is, once, before any is again."""
    import numpy

    round_, place = divmod(step // settings.switch_interval, count)
    if settings.order == "random":
        return int(numpy.random.default_rng([seed, round_]).permutation(count)[place])
    return place if settings.order == "ascending" else count - 1 - place


def begin_step(model: Any, optimizer: Any, settings: Settings, arch: Architecture, step: int) -> None:
    """Marks the step's block, and at a change starts Adam's state from nothing."""
    import torch

    found = blocks(settings, arch)
    if step % settings.switch_interval == 0:
        optimizer.state.clear()
    seed = torch.initial_seed()  # the run's, which a checkpoint's random state carries too
    chosen = found[active(settings, len(found), step, seed)]
    for name in trainable(settings, arch):
        model.get_parameter(name).requires_grad_(name in chosen)
