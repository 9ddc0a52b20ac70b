"""What GaLore and APOLLO share: an optimizer's state that lives at a matrix's low-rank projection."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.optimizers.run import build, trained
from factory.optimizers.several import Layerwise, Several
from factory.plan import Train


def around(kind: "type[LowRank]", projected: Callable[[Architecture], set[str]]) -> Callable[..., Any]:
    """A method's `optimizer`: one of this kind for each projected tensor, and the plain one for the others."""

    def optimizer(model: Any, settings: Any, plan: Train, arch: Architecture) -> Any:
        named, wanted = trained(model), projected(arch)
        found = {name: kind(settings, plan, arch, name, value) for name, value in named.items() if name in wanted}
        rest = {name: value for name, value in named.items() if name not in found}
        if settings.layerwise:
            each = {name: build({name: value}, plan, arch) for name, value in rest.items()}
            return Layerwise({**found, **each}, settings.max_grad_norm_per_tensor)
        return Projected([build(rest, plan, arch)] if rest else [], list(found.values()))

    return optimizer


class Projected(Several):
    """The optimizers of one kind of projected matrices, and others; projectors that are due are drawn together."""

    def __init__(self, others: list[Any], low: "list[LowRank]"):
        super().__init__([*others, *low])
        self._others, self._low = others, low

    def step(self) -> None:
        for other in self._others:
            other.step()
        if due := [each for each in self._low if each.is_due()]:
            due[0].refresh_all(due)
        for each in self._low:
            each.update()


class LowRank(ABC):
    """The optimizer of one matrix G of (…, m, n), whose gradient it sees at (…, rank, n) or (…, m, rank).

    The shorter side is projected; leading dimensions, as of stacked experts, are matrices of their own. The projected
    gradient goes through any optimizer of `stage.optimizer`, as that of a stand-in that is zero before each step and
    has the step's direction after it. The stand-in and its state are float32 whatever the matrix is.
    """

    factor = 1.0

    def __init__(self, settings: Any, plan: Train, arch: Architecture, name: str, matrix: Tensor):
        self.rank, self.interval, self.scale = settings.rank, settings.update_interval, settings.scale
        self.left = matrix.shape[-2] <= matrix.shape[-1]
        self.param_groups = [{"params": [matrix], "lr": plan.learning_rate, "weight_decay": plan.weight_decay}]
        self.stand_in = torch.nn.Parameter(torch.empty(0, device=matrix.device))
        self.inner = build({name: self.stand_in}, replace(plan, learning_rate=1.0, weight_decay=0.0), arch)
        self.steps = 0
        self.projector: Tensor | None = None

    @abstractmethod
    def draw(self, gradient: Tensor) -> Tensor:
        """The projector, (…, side, rank) with `side` the shorter of the gradient's two."""

    @abstractmethod
    def direction(self, gradient: Tensor, low: Tensor, normalized: Tensor) -> Tensor:
        """What is subtracted from the matrix, times the rate and `factor`.

        `normalized` is the inner optimizer's answer to `low`.
        """

    @property
    def matrix(self) -> Tensor:
        return self.param_groups[0]["params"][0]

    def is_due(self) -> bool:
        """Whether the next step is one that takes a new projector."""
        return self.matrix.grad is not None and self.steps % self.interval == 0

    @torch.no_grad()
    def refresh(self) -> None:
        assert self.matrix.grad is not None
        self.projector = self.draw(self.matrix.grad.float())

    @staticmethod
    def refresh_all(due: "list[LowRank]") -> None:
        for each in due:
            each.refresh()

    def step(self) -> None:
        if self.is_due():
            self.refresh()
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        """A step with the projector that is there."""
        (group,), matrix = self.param_groups, self.matrix
        if matrix.grad is None:
            return
        gradient = matrix.grad.float()
        self.steps += 1
        matrix.grad = None  # so that it goes when this step is done with it
        low = self.project(gradient)
        direction = self.direction(gradient, low, self._through_inner(low))
        if group["weight_decay"]:
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(direction, alpha=-group["lr"] * self.factor)

    def project(self, gradient: Tensor) -> Tensor:
        assert self.projector is not None
        return self.projector.mT @ gradient if self.left else gradient @ self.projector

    def project_back(self, low: Tensor) -> Tensor:
        assert self.projector is not None
        return self.projector @ low if self.left else low @ self.projector.mT

    def _through_inner(self, low: Tensor) -> Tensor:
        self.stand_in.data, self.stand_in.grad = torch.zeros_like(low), low.clone()
        self.inner.step()
        moved = self.stand_in.data
        self.stand_in.data, self.stand_in.grad = low.new_empty(0), None
        return moved.neg_()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "steps": self.steps, "projector": self.projector}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.steps = state["steps"]
        saved = state["projector"]
        self.projector = None if saved is None else saved.to(self.stand_in.device)
