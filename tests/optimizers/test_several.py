"""What takes gradients from tensors is not kept by them."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from factory.optimizers.several import weak
from factory.steps.engine import Engine

METHODS = {
    "galore": "method=galore method.rank=8",
    "layerwise": "method=full method.layerwise=true stage.max_grad_norm=null",
    "badam": "method=badam",
    "badam_ratio": "method=badam_ratio",
}


class Holder:
    def __init__(self, tensor: torch.Tensor, wrapped: Callable[[Any], Any]):
        self.tensor, self.seen = tensor, 0
        tensor.register_post_accumulate_grad_hook(wrapped(self.take))

    def take(self, tensor: torch.Tensor) -> None:
        self.seen += 1


@pytest.mark.parametrize(("wrapped", "stays"), [(weak, False), (lambda method: method, True)])
def test_a_hooks_object_goes_with_its_last_holder(wrapped: Callable[[Any], Any], stays: bool) -> None:
    """As torch's hooks are, it would stay: this is why they are wrapped."""
    tensor = torch.ones(3, requires_grad=True)
    holder = Holder(tensor, wrapped)
    (tensor * 2).sum().backward()
    assert holder.seen == 1
    gone = weakref.ref(holder)
    del holder, tensor
    gc.collect()
    assert (gone() is not None) == stays


def test_what_is_gone_is_not_called() -> None:
    tensor = torch.ones(3, requires_grad=True)
    Holder(tensor, weak)
    (tensor * 2).sum().backward()
    assert tensor.grad is not None and tensor.grad.tolist() == [2.0] * 3


@pytest.mark.parametrize("method", METHODS)
def test_after_training_nobody_holds_the_optimizer(
    method: str, execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state would lie beside the model that is read anew to be compared."""
    made: list[weakref.ref[Any]] = []
    original = Engine.__init__

    def begin(self: Any, *given: Any) -> None:
        original(self, *given)
        made.append(weakref.ref(self.optimizer))

    monkeypatch.setattr(Engine, "__init__", begin)
    done = execute(*METHODS[method].split(), "stage.max_steps=2", "evaluate.perplexity=false")
    gc.collect()
    assert done.model is not None
    assert [each() for each in made] == [None]
