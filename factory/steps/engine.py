"""Engine: what an optimizer update is made of, and what of it a checkpoint holds."""

from pathlib import Path
from typing import Any

from factory import registry
from factory.architecture import Architecture
from factory.data import batches
from factory.execute import checkpoint
from factory.execute.context import Run
from factory.optimizers.several import Hooked
from factory.stages.loss import Watched
from factory.steps.attach import method_settings
from factory.steps.feed import autocast, unit
from factory.steps.reference import Reference


class Engine:
    """Of one process. An update is `begin`, `accumulate`, `clip` and `apply` (or `drop`), in this order.

    `trained` are the tensors that require a gradient, by name.
    """

    def __init__(self, run: Run, model: Any, arch: Architecture):
        import torch

        self._run, self._plan, self.model = run, run.plan.steps.train, model
        self._method, self._settings = registry.run("methods", run.plan.steps.attach.method), method_settings(run)
        self.optimizer = self._method.optimizer(model, self._settings, self._plan, arch)
        self._stage = registry.run("stages", self._plan.stage)
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.skips_overflows = self._plan.autocast == "float16"  # the scaler does, and lowers its scale
        self._scaler = torch.amp.GradScaler(run.plan.steps.load.device, enabled=self.skips_overflows)

    def restore(self) -> dict[str, Any] | None:
        """The loop's state in the checkpoint that the run resumes from, all else put back; None where there is none."""
        return checkpoint.restore(self._run, self.trained, self.optimizer, self._scaler)

    def save(self, state: dict[str, Any], *, keep: int | None = None) -> None:
        """`keep` is a step whose checkpoint is not pruned."""
        checkpoint.save(self._run, self.trained, self.optimizer, self._scaler, state, keep=keep)

    def load(self, path: Path) -> None:
        """Puts a checkpoint's weights back, and what the optimizer knows of them."""
        checkpoint.load(path, self.trained, self.optimizer)

    def begin(self, step: int, total: int, rate: float) -> None:
        """Of step `step` of `total`, counted from 0, with this learning rate."""
        if begin_step := registry.hook(self._method, "begin_step"):
            begin_step(self.optimizer, self._settings, step, total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_ratio", 1.0)

    def accumulate(self, step: batches.Step, reference: Reference | None) -> tuple[float, dict[str, float]]:
        """Gradients of the mean loss over the units of all micro-batches; returns that mean, and what is watched."""
        import torch

        total, watched = torch.zeros((), device=self._run.plan.steps.load.device), Watched()
        units = step.trained if unit(self._run.plan) == "tokens" else step.samples
        for batch in step.batches:
            if reference is not None:
                batch["reference"] = reference.of(batch)
            with autocast(self._run.plan):
                found = self._stage.loss(self.model, batch, self._plan.own)
                loss = found.total / units
            self._scaler.scale(loss).backward()
            total += loss.detach()
            watched.add(found.metrics)
        if penalty := registry.hook(self._method, "penalty"):  # its gradient is added, its value is not the loss shown
            self._scaler.scale(penalty(self.model, self._settings)).backward()
        return total.item(), watched.means()

    def clip(self) -> float:
        """The norm of all gradients together, before they are clipped to the plan's."""
        import torch

        self._scaler.unscale_(self.optimizer)
        limit = float("inf") if self._plan.max_grad_norm is None else self._plan.max_grad_norm
        if isinstance(self.optimizer, Hooked):
            return self.optimizer.clip(limit).item()
        return torch.nn.utils.clip_grad_norm_(self.trained.values(), limit).item()

    def has_gradient(self, name: str) -> bool:
        if isinstance(self.optimizer, Hooked):
            return self.optimizer.has_gradient(name)
        gradient = self.trained[name].grad
        return gradient is not None and bool(gradient.any())

    def apply(self) -> None:
        """Moves the weights, and forgets the gradients."""
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def drop(self) -> None:
        """Forgets the gradients, and no weight moves."""
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def finish(self) -> None:
        for parameter in self.trained.values():  # a method's `begin_step` may have marked less
            parameter.requires_grad_(True)
