"""What GaLore and APOLLO share: an optimizer's state that lives at a matrix's low-rank projection."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.optimizers.run import build, trained
from factory.optimizers.several import Hooked, Layerwise, Several
from factory.plan import Train

AT_ONCE = 2**24  # elements of the matrices whose projectors are drawn together: LAPACK takes some five times as much


def around(
    kind: "type[LowRank]",
    projected: Callable[[Architecture], set[str]],
    in_the_pass: Callable[[Any, Train], bool] = lambda settings, plan: False,
) -> Callable[..., Any]:
    """A method's `optimizer`: one of this kind for each projected tensor, and the plain one for the others.

    `in_the_pass`: whether gradients are projected within the backward pass.
    """

    def optimizer(model: Any, settings: Any, plan: Train, arch: Architecture) -> Any:
        named, wanted = trained(model), projected(arch)
        found = {name: kind(settings, plan, arch, name, value) for name, value in named.items() if name in wanted}
        rest = {name: value for name, value in named.items() if name not in found}
        if settings.layerwise:
            each = {name: build({name: value}, plan, arch) for name, value in rest.items()}
            return Layerwise({**found, **each}, settings.max_grad_norm_per_tensor)
        others = [build(rest, plan, arch)] if rest else []
        if in_the_pass(settings, plan):
            return ProjectedInThePass(others, rest, found)
        return Projected(others, list(found.values()))

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
            each.take()
            each.update()


class ProjectedInThePass(Hooked):
    """As `Projected`, but each gradient is projected as soon as it is whole, and of the whole one its norm stays.

    What clips is a number that all gradients are multiplied by, so that those projected may be (algorithm 2 of GaLore
    is linear in the gradient until its inner optimizer). On the way to a projector `AT_ONCE` elements wait at most.
    """

    def __init__(self, others: list[Any], rest: dict[str, Tensor], low: "dict[str, LowRank]"):
        super().__init__([*others, *low.values()])
        self._rest, self._low = rest, low
        self._norms: dict[str, Tensor] = {}
        self._waiting: list[LowRank] = []
        self.take_from({name: each.matrix for name, each in low.items()})

    def _take(self, name: str, tensor: Tensor) -> None:
        each = self._low[name]
        assert tensor.grad is not None and each.low is None, f"{name} has two gradients in a step"
        self._norms[name] = torch.nn.utils.get_total_norm([tensor.grad])
        if not each.is_due():
            each.take()
            return
        self._waiting.append(each)
        if sum(one.matrix.numel() for one in self._waiting) >= AT_ONCE:
            self._draw()

    def _draw(self) -> None:
        if self._waiting:
            self._waiting[0].refresh_all(self._waiting)
        for each in self._waiting:
            each.take()
        self._waiting.clear()

    def has_gradient(self, name: str) -> bool:
        if name in self._low:
            return name in self._norms and bool(self._norms[name])
        gradient = self._rest[name].grad
        return gradient is not None and bool(gradient.any())

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """As torch.nn.utils.clip_grad_norm_ does, its small number in the denominator included."""
        self._draw()
        others = [value.grad for value in self._rest.values() if value.grad is not None]
        total = torch.nn.utils.get_total_norm([*self._norms.values(), *others])
        if max_norm < float("inf"):
            low = [each.low for each in self._low.values() if each.low is not None]
            scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
            for gradient in (*others, *low):
                gradient.mul_(scale)
        return total

    def step(self) -> None:
        self._draw()
        super().step()

    def zero_grad(self) -> None:
        super().zero_grad()
        self._norms = {}
        self._waiting.clear()
        for each in self._low.values():
            each.low = None


class LowRank(ABC):
    """The optimizer of one matrix G of (…, m, n), whose gradient it sees at (…, rank, n) or (…, m, rank).

    The shorter side is projected; leading dimensions, as of stacked experts, are matrices of their own. The projected
    gradient goes through any optimizer of `stage.optimizer`, as that of a stand-in that is zero before each step and
    has the step's direction after it. The stand-in and its state are float32 whatever the matrix is.

    A step is `refresh` where it `is_due`, `take` and `update`.
    """

    factor = 1.0
    reads_gradient: ClassVar[bool] = False  # whether `direction` reads the matrix's own, so that it stays until then

    def __init__(self, settings: Any, plan: Train, arch: Architecture, name: str, matrix: Tensor):
        self.rank, self.interval, self.scale = settings.rank, settings.update_interval, settings.scale
        self.left = matrix.shape[-2] <= matrix.shape[-1]
        self.param_groups = [{"params": [matrix], "lr": plan.learning_rate, "weight_decay": plan.weight_decay}]
        self.stand_in = torch.nn.Parameter(torch.empty(0, device=matrix.device))
        self.inner = build({name: self.stand_in}, replace(plan, learning_rate=1.0, weight_decay=0.0), arch)
        self.steps = 0
        self.projector: Tensor | None = None
        self.low: Tensor | None = None  # this step's gradient, projected

    @abstractmethod
    def draw(self, gradient: Tensor) -> Tensor:
        """The projector, (…, side, rank) with `side` the shorter of the gradient's two."""

    @abstractmethod
    def direction(self, low: Tensor, normalized: Tensor) -> Tensor:
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
        self.take()
        self.update()

    @torch.no_grad()
    def take(self) -> None:
        """Projects the matrix's gradient, if it has one, with the projector that is there."""
        if self.matrix.grad is None:
            return
        self.low = self.project(self.matrix.grad.float())
        if not self.reads_gradient:
            self.matrix.grad = None

    @torch.no_grad()
    def update(self) -> None:
        """Moves the matrix by what was taken."""
        (group,), matrix = self.param_groups, self.matrix
        low, self.low = self.low, None
        if low is None:
            return
        self.steps += 1
        direction = self.direction(low, self._through_inner(low))
        matrix.grad = None
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
