from typing import Any

import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.methods.adalora.spec import Settings, phases
from factory.methods.lora.run import any_transposed, wrap
from factory.methods.lora.run import go_on as load
from factory.methods.lora.run import save as export
from factory.optimizers.run import plain
from factory.optimizers.several import Several
from factory.plan.plan import Attach, Compiled

__all__ = ["attach", "begin_step", "export", "go_on", "optimizer", "penalty"]


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    """How many steps there are is known when the data is: `begin_step` says it before the first."""
    turned = any_transposed(model, settings, arch)
    own = {"deltaT": settings.update_interval, "orth_reg_weight": settings.orthogonality, "total_step": 1}
    model = wrap(model, settings, plan, arch, lora_dropout=settings.dropout, fan_in_fan_out=turned, **own)
    _freeze_constants(model)
    return model


def _freeze_constants(model: Any) -> None:
    for name, value in model.named_parameters():
        # the first rank, which PEFT lets train where it casts it to the base's type; and of layers that kept nothing
        if ".ranknum." in name or value.numel() == 0:
            value.requires_grad_(False)


def go_on(model: Any, path: str) -> Any:
    """Loads a saved adapter. Of a pruned one the matrices become as small as they were saved, by PEFT's own resizing.

    PEFT makes them anew in the base's type, in which what is loaded would be rounded.
    """
    from peft import AdaLoraConfig

    there: Any = AdaLoraConfig.from_pretrained(path)
    if not there.rank_pattern:
        return load(model, path)
    types = {name: value.dtype for name, value in model.named_parameters()}
    model.base_model.resize_modules_by_rank_pattern(there.rank_pattern, "default")
    for name, value in model.named_parameters():
        if value.dtype != types[name]:
            value.data = value.data.to(types[name])
    _freeze_constants(model)
    load(model, path)
    model.peft_config["default"].rank_pattern = there.rank_pattern  # which PEFT reads a pruned adapter by
    return model


class Allocating(Several):
    """Any optimizer, after each step of which PEFT's allocator sets the least important singular values to zero.

    The paper's algorithm 1: importance is of gradients, as it was before the step, times weights.
    """

    def __init__(self, model: Any, inner: Any):
        super().__init__([inner])
        self.adapted, self.allocator = model.base_model.model, model.base_model.rankallocator
        self.config = self.allocator.peft_config
        self.now, self.settled = 0, False

    def step(self) -> None:
        super().step()
        if self.settled:
            self.allocator.mask_using_rank_pattern(self.adapted, self.config.rank_pattern)
            return
        for name, value in self.adapted.named_parameters():
            if "lora_" in name and value.grad is None:  # of a part that no row of this step has reached
                value.grad = torch.zeros_like(value)
        self.allocator.update_ipt(self.adapted)
        budget, chooses = self.allocator.budget_schedule(self.now)
        self.settled = self.now >= self.config.total_step - self.config.tfinal
        masks = chooses or self.settled
        # what was zero trains on until the next choice, and is saved whole till then
        self.config.rank_pattern = self.allocator.mask_to_budget(self.adapted, budget) if masks else None

    def state_dict(self) -> dict[str, Any]:
        means = {"importance": self.allocator.exp_avg_ipt, "deviation": self.allocator.exp_avg_unc}
        return {**super().state_dict(), **means, "kept": self.config.rank_pattern, "settled": self.settled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        places = {name: value.device for name, value in self.adapted.named_parameters()}
        importance, deviation = (
            {name: value.to(places[name]) for name, value in state[means].items()}  # a checkpoint is read to the CPU
            for means in ("importance", "deviation")
        )
        self.allocator.exp_avg_ipt, self.allocator.exp_avg_unc = importance, deviation
        self.allocator.ipt = dict(importance)  # its names: the values are new in each step
        self.config.rank_pattern, self.settled = state["kept"], state["settled"]


def optimizer(model: Any, settings: Settings, plan: Compiled, arch: Architecture) -> Any:
    inner = plain(model, settings, plan, arch)
    return Allocating(model, inner) if settings.ranks is None else inner


def begin_step(optimizer: Any, settings: Settings, step: int, total: int) -> None:
    if settings.ranks is not None:
        return
    config, (first, last) = optimizer.config, phases(settings, total)
    config.total_step, config.tinit, config.tfinal = total, first, total - last
    optimizer.now = step + 1


def penalty(model: Any, settings: Settings) -> Tensor:
    """Return how far P and Q are from orthogonal, on average (equation 4, its norms not squared as in its code).

    Matrices of one shape are multiplied together; nothing is built off their device.
    """
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for name, value in model.named_parameters():
        if value.numel() and (".lora_A." in name or ".lora_B." in name):
            rows = value if ".lora_A." in name else value.mT  # (rank, in or out)
            by_shape.setdefault(tuple(rows.shape), []).append(rows)
    norms = list[Tensor]()
    for (rank, _), rows in by_shape.items():
        stacked = torch.stack(rows)
        identity = torch.eye(rank, dtype=stacked.dtype, device=stacked.device)
        norms.append(torch.linalg.matrix_norm(stacked @ stacked.mT - identity))
    return settings.orthogonality * torch.cat(norms).mean()
