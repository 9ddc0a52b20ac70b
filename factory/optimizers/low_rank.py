"""The part that GaLore and APOLLO share: an optimizer whose state is of matrices' low-rank projections."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.optimizers.run import build, trained
from factory.optimizers.several import Hooked, Layerwise, Several
from factory.plan.plan import Compiled

AT_ONCE = 2**24  # elements of the matrices whose projectors are drawn together: LAPACK takes some five times as much
MULTIPLIED = 2**22  # elements of the matrices that are stacked for one product with their projectors
STEPPED = 2**28  # elements of the matrices whose projected gradients go through the inner optimizer together


def around(
    kind: "type[LowRank]",
    projected: Callable[[Architecture], set[str]],
    in_the_pass: Callable[[Any, Compiled], bool] = lambda settings, plan: False,
) -> Callable[..., Any]:
    """Return a method's `optimizer`: one of this kind for the projected tensors, and the plain one for the others.

    `in_the_pass`: whether gradients are projected within the backward pass.
    """

    def optimizer(model: Any, settings: Any, plan: Compiled, arch: Architecture) -> Any:
        named, wanted = trained(model), projected(arch)
        low = {name: value for name, value in named.items() if name in wanted}
        rest = {name: value for name, value in named.items() if name not in wanted}
        if settings.layerwise:
            each = {name: kind(settings, plan, arch, {name: value}) for name, value in low.items()}
            each |= {name: build({name: value}, plan.settings.stage, arch) for name, value in rest.items()}
            return Layerwise(each, settings.max_grad_norm_per_tensor)
        matrices = kind(settings, plan, arch, low)
        others = [build(rest, plan.settings.stage, arch)] if rest else []
        if in_the_pass(settings, plan):
            return ProjectedInThePass(others, rest, matrices)
        return Several([*others, matrices])

    return optimizer


class ProjectedInThePass(Hooked):
    """Projects each gradient as soon as it is whole, and keeps the norm of the whole one.

    Clipping multiplies all gradients by one number, which works on projected ones as well (algorithm 2 of GaLore is
    linear in the gradient until its inner optimizer). At most `AT_ONCE` elements wait for a projector.
    """

    def __init__(self, others: list[Any], rest: dict[str, Tensor], low: "LowRank"):
        super().__init__([*others, low])
        self._rest, self._low = rest, low
        self._norms: dict[str, Tensor] = {}
        self._waiting: list[str] = []
        self.take_from(low.matrices)

    def _take(self, name: str, tensor: Tensor) -> None:
        assert tensor.grad is not None and name not in self._low.low, f"{name} has two gradients in a step"
        self._norms[name] = torch.nn.utils.get_total_norm([tensor.grad])
        if not self._low.is_due(name):
            self._low.take([name])
            return
        self._waiting.append(name)
        if sum(self._low.matrices[each].numel() for each in self._waiting) >= AT_ONCE:
            self._draw()

    def _draw(self) -> None:
        self._low.refresh(self._waiting)
        self._low.take(self._waiting)
        self._waiting = []

    def has_gradient(self, name: str) -> bool:
        if name in self._low.matrices:
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
            scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
            for gradient in (*others, *self._low.low.values()):
                gradient.mul_(scale)
        return total

    def step(self) -> None:
        self._draw()
        super().step()

    def zero_grad(self) -> None:
        super().zero_grad()
        self._norms, self._waiting = {}, []
        self._low.low.clear()


class LowRank(ABC):
    """The optimizer of matrices (…, m, n), whose gradients it sees at (…, rank, n) or (…, m, rank).

    The shorter side is projected; leading dimensions, as of stacked experts, are matrices of their own. The projected
    gradients go through one optimizer of `stage.optimizer`, as those of stand-ins that are zero before each step and
    have the step's direction after it. Stand-ins and their state are float32 whatever the matrices are.

    A step is `refresh` of those that are due, `take` and `update`. Matrices of one shape are multiplied together.
    """

    factor = 1.0
    reads_gradient: ClassVar[bool] = False  # whether `direction` reads the matrix's own, so that it stays until then

    def __init__(self, settings: Any, plan: Compiled, arch: Architecture, matrices: dict[str, Tensor]):
        self.rank, self.interval, self.scale = settings.rank, settings.update_interval, settings.scale
        self.matrices = matrices
        stage = plan.settings.stage
        group = {"params": list(matrices.values()), "lr": stage.learning_rate, "weight_decay": stage.weight_decay}
        self.param_groups: list[dict[str, Any]] = [group]
        self.stand_ins = {
            name: torch.nn.Parameter(torch.empty(0, device=value.device)) for name, value in matrices.items()
        }
        self.inner = build(
            {**self.stand_ins}, stage.model_copy(update={"learning_rate": 1.0, "weight_decay": 0.0}), arch
        )
        self.steps = dict.fromkeys(matrices, 0)
        self.projectors: dict[str, Tensor] = {}
        self.low: dict[str, Tensor] = {}  # this step's gradients, projected

    @abstractmethod
    def draw(self, gradient: Tensor) -> Tensor:
        """Return the projector, (…, side, rank) with `side` the shorter of the gradient's two."""

    @abstractmethod
    def direction(self, names: list[str], low: Tensor, normalized: Tensor) -> Tensor:
        """Return what is subtracted from these matrices of one shape, times the rate and `factor`: (names, …, m, n).

        `normalized` is the inner optimizer's answer to `low`, both (names, …) at the projected size.
        """

    def is_due(self, name: str) -> bool:
        """Return whether the matrix's next step takes a new projector."""
        return self.steps[name] % self.interval == 0

    @torch.no_grad()
    def refresh(self, names: list[str]) -> None:
        """Draw projectors of these matrices' gradients."""
        for name in names:
            self.projectors[name] = self.draw(gradient_of(self.matrices[name]))

    def step(self) -> None:
        there = [name for name, matrix in self.matrices.items() if matrix.grad is not None and name not in self.low]
        self.refresh([name for name in there if self.is_due(name)])
        self.take(there)
        self.update()

    @torch.no_grad()
    def take(self, names: list[str]) -> None:
        """Project these matrices' gradients."""
        for batch in self._by_shape(names, MULTIPLIED):
            gradients, projectors = (
                stacked([gradient_of(self.matrices[name]) for name in batch]),
                self.projectors_of(batch),
            )
            low = projectors.mT @ gradients if is_wide(gradients) else gradients @ projectors
            self.low.update(zip(batch, low, strict=True))
            if not self.reads_gradient:
                for name in batch:
                    self.matrices[name].grad = None

    @torch.no_grad()
    def update(self) -> None:
        """Move the matrices by what was taken."""
        for names in self._by_shape(self.low, STEPPED):
            for name in names:
                stand_in, low = self.stand_ins[name], self.low[name]
                stand_in.data, stand_in.grad = torch.zeros_like(low), low
                self.steps[name] += 1
            self.inner.step()
            for batch in self._by_shape(names, MULTIPLIED):
                self._move(batch)
        self.low.clear()

    def _move(self, names: list[str]) -> None:
        (group,) = self.param_groups
        low = stacked([self.low[name] for name in names])
        normalized = stacked([self.stand_ins[name].data for name in names]).neg_()
        for name, direction in zip(names, self.direction(names, low, normalized), strict=True):
            matrix, stand_in = self.matrices[name], self.stand_ins[name]
            stand_in.data, stand_in.grad, matrix.grad = low.new_empty(0), None, None
            if group["weight_decay"]:
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(direction, alpha=-group["lr"] * self.factor)

    def projectors_of(self, names: list[str]) -> Tensor:
        """Return the projectors of these matrices of one shape: (names, …, side, rank)."""
        return stacked([self.projectors[name] for name in names])

    def _by_shape(self, names: Iterable[str], most: int) -> Iterator[list[str]]:
        """Yield these names in groups of one shape, of `most` elements of the matrices or one of them."""
        groups: dict[Any, list[str]] = {}
        for name in names:
            groups.setdefault((self.matrices[name].shape, self.matrices[name].device), []).append(name)
        for (shape, _), group in groups.items():
            size = max(1, most // shape.numel())
            yield from (group[start : start + size] for start in range(0, len(group), size))

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "steps": self.steps, "projectors": self.projectors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.steps = dict(state["steps"])
        self.projectors = {name: value.to(self.matrices[name].device) for name, value in state["projectors"].items()}


def gradient_of(matrix: Tensor) -> Tensor:
    """Return the matrix's gradient in float32."""
    assert matrix.grad is not None
    return matrix.grad.float()


def stacked(values: list[Tensor]) -> Tensor:
    """Return tensors of one shape as one; a single tensor is not copied."""
    return torch.stack(values) if len(values) > 1 else values[0][None]


def is_wide(matrix: Tensor) -> bool:
    """Return whether rows are the shorter side, which is projected."""
    return matrix.shape[-2] <= matrix.shape[-1]
