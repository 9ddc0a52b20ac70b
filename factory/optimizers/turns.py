"""What BAdam's two modes share: some of the weights have their turn, and each turn's optimizer starts from nothing."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.optimizers.run import build, trained
from factory.optimizers.several import Hooked
from factory.plan.plan import Compiled


class Turns(Hooked):
    """Steps copies of what has its turn, and writes each step back: only these have gradients and a state.

    A copy is of the type that is stepped, the weights may lie in another: they follow it, rounded by chance, and a step
    too small for their type is not lost, when the turn is over neither. A tensor may be its own copy.
    """

    def __init__(self, model: Any, plan: Compiled, arch: Architecture):
        super().__init__([])
        self.tensors = trained(model)
        self.plan, self.arch = plan, arch
        self.turn = -1
        self.copies: dict[str, Tensor] = {}
        self.alive: dict[str, Tensor] = {}  # whether a copied tensor's last gradient was not zero, all of it
        self.take_from(self.tensors)

    @abstractmethod
    def chosen(self, turn: int) -> set[str]:
        """The tensors that have a turn, or parts of which."""

    @abstractmethod
    def part(self, name: str, whole: Tensor) -> Tensor:
        """What of the tensor, or of its gradient, has this turn, in the type that is stepped."""

    @abstractmethod
    def write(self, name: str, tensor: Tensor) -> None:
        """Puts the copy back into its tensor."""

    def begin(self, turn: int) -> None:
        """Copies what has its turn, unless it has it already."""
        if turn == self.turn:
            return
        self.turn, chosen = turn, self.chosen(turn)
        self.copies = {}
        for name, tensor in self.tensors.items():
            tensor.requires_grad_(name in chosen)
            if name in chosen:
                part = self.part(name, tensor.detach())
                own = part.data_ptr() == tensor.data_ptr()
                self.copies[name] = tensor if own else torch.nn.Parameter(part)
        self.optimizers = [build(self.copies, self.plan.settings.stage, self.arch)]

    def _take(self, name: str, tensor: Tensor) -> None:
        """Gives the copy its gradient, added up over the micro-steps in its own type, and frees the tensor's."""
        copy = self.copies[name]
        assert tensor.grad is not None
        if copy is tensor:
            return
        self.alive[name] = tensor.grad.any()
        part = self.part(name, tensor.grad)
        copy.grad = part if copy.grad is None else copy.grad.add_(part)
        tensor.grad = None

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        for name, copy in self.copies.items():
            if copy is not self.tensors[name]:
                self.write(name, self.tensors[name])

    def has_gradient(self, name: str) -> bool:
        copy = self.copies.get(name)
        if copy is None or copy.grad is None:
            return False
        return bool(copy.grad.any() if copy is self.tensors[name] else self.alive[name])

    def clip(self, max_norm: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(list(self.copies.values()), max_norm)

    def state_dict(self) -> dict[str, Any]:
        copies = {name: copy.detach() for name, copy in self.copies.items() if copy is not self.tensors[name]}
        return {"turn": self.turn, "copies": copies, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin(state["turn"])
        for name, copy in state["copies"].items():
            self.copies[name].data.copy_(copy)
        super().load_state_dict(state)
