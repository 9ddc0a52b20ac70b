"""Several optimizers that the loop treats as one, stepped after the backward pass or within it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor


class Several:
    """Each steps its own tensors."""

    def __init__(self, optimizers: list[Any]):
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)


class Hooked(Several, ABC):
    """Takes gradients from their tensors within the backward pass, so that the loop must ask here for them."""

    def take_from(self, tensors: dict[str, Tensor]) -> None:
        """`_take` has each as soon as its gradient is whole, with its name, for as long as this optimizer is there."""
        for name, tensor in tensors.items():
            tensor.register_post_accumulate_grad_hook(partial(weak(self._take), name))

    @abstractmethod
    def _take(self, name: str, tensor: Tensor) -> None: ...

    @abstractmethod
    def has_gradient(self, name: str) -> bool:
        """Whether the last backward pass gave the tensor one that is not zero."""

    @abstractmethod
    def clip(self, max_norm: float) -> Tensor:
        """The norm of all gradients of the last backward pass together, before they were clipped to it."""


def weak(method: Callable[..., None]) -> Callable[..., None]:
    """Calls a bound method while somebody has its object.

    A tensor holds such hooks where Python's search for cycles does not see them: if what they call held the tensor,
    neither would ever go.
    """
    found = WeakMethod(method)

    def call(*given: Any) -> None:
        if (alive := found()) is not None:
            alive(*given)

    return call


class Layerwise(Hooked):
    """An optimizer for each tensor, stepped in the backward pass as soon as the tensor's gradient is whole.

    The gradient is freed at once, so that no two of the larger ones exist together (Lv et al. 2023, LOMO; Zhao et al.
    2024, GaLore, section 4.3). `norms` are those of the last backward pass, by tensor, before they were clipped.
    """

    def __init__(self, optimizers: dict[str, Any], max_norm: float | None):
        super().__init__(list(optimizers.values()))
        self.norms: dict[str, Tensor] = {}
        self._each, self._limit = optimizers, float("inf") if max_norm is None else max_norm
        self.take_from({name: each.param_groups[0]["params"][0] for name, each in optimizers.items()})

    def _take(self, name: str, tensor: Tensor) -> None:
        self.norms[name] = torch.nn.utils.clip_grad_norm_([tensor], self._limit)
        self._each[name].step()
        tensor.grad = None

    def has_gradient(self, name: str) -> bool:
        return name in self.norms and bool(self.norms[name])

    def clip(self, max_norm: float) -> Tensor:
        """Too late to clip: a rule refuses to ask for it."""
        assert max_norm == float("inf")
        return torch.nn.utils.get_total_norm(self.norms.values())

    def step(self) -> None:
        """Everything has been stepped already."""

    def zero_grad(self) -> None:
        self.norms = {}
