from math import gcd
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.methods.badam.run import attach
from factory.methods.badam_ratio.spec import Settings, chosen
from factory.optimizers.run import build, trained
from factory.optimizers.several import Hooked
from factory.plan import Train

__all__ = ["attach", "optimizer"]


def indices(settings: Settings, size: int, turn: int, seed: int) -> Tensor:
    """The elements that are trained in a turn. Turns follow each other through the tensor, and start over at its end.

    Scattered: the tensor is gone through by a stride that shares no divisor with its size, so that each is met once.
    """
    count = chosen(settings, size)
    places = (turn * count + torch.arange(count)) % size
    if settings.mask == "adjacent" or count == size:
        return places
    stride = seed % size
    while gcd(stride, size) != 1:
        stride = (stride + 1) % size
    return places * stride % size


class Share:
    """The optimizer of one tensor, which sees the chosen elements alone, as float32."""

    def __init__(self, settings: Settings, plan: Train, arch: Architecture, name: str, tensor: Tensor):
        self.settings, self.tensor, self.steps = settings, tensor, 0
        self.seed = crc32(f"{torch.initial_seed()} {name}".encode())  # of the run's
        self.elements = torch.nn.Parameter(torch.empty(0, device=tensor.device))
        self.inner = build({name: self.elements}, plan, arch)
        for group in self.inner.param_groups:
            group["weight_decay"] = plan.weight_decay if tensor.ndim >= 2 else 0.0
        self.alive = torch.zeros((), dtype=torch.bool)
        tensor.register_post_accumulate_grad_hook(self._take)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def _take(self, tensor: Tensor) -> None:
        assert tensor.grad is not None
        places = self._places()
        part = tensor.grad.flatten()[places].float()
        self.alive = tensor.grad.any()
        tensor.grad = None
        if self.elements.grad is None:
            self.elements.data = tensor.detach().flatten()[places].float()
            self.elements.grad = part
        else:  # of an earlier micro-step
            self.elements.grad += part

    def _places(self) -> Tensor:
        turn = self.steps // self.settings.switch_interval
        return indices(self.settings, self.tensor.numel(), turn, self.seed).to(self.tensor.device)

    @torch.no_grad()
    def step(self) -> None:
        if self.elements.grad is None:
            return
        if self.steps % self.settings.switch_interval == 0:
            self.inner.state.clear()
        self.inner.step()
        self.tensor.view(-1)[self._places()] = self.elements.to(self.tensor.dtype)
        self.elements.grad = None
        self.elements.data = self.elements.new_empty(0)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.steps = state["steps"]


class Shares(Hooked):
    def __init__(self, shares: dict[str, Share]):
        super().__init__(list(shares.values()))
        self.shares = shares

    def has_gradient(self, name: str) -> bool:
        share = self.shares[name]
        return share.elements.grad is not None and bool(share.alive)

    def clip(self, max_norm: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_([share.elements for share in self.shares.values()], max_norm)


def optimizer(model: Any, settings: Settings, plan: Train, arch: Architecture) -> Any:
    return Shares({name: Share(settings, plan, arch, name, value) for name, value in trained(model).items()})
