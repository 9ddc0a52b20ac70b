"""Engine: what an optimizer update is made of, and what of it a checkpoint holds."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from factory.architecture import Architecture
from factory.config import registry
from factory.config.settings import Strategy
from factory.data import batches
from factory.execute import checkpoint
from factory.execute.context import Run
from factory.methods.parts import beside_text
from factory.optimizers.run import divides_gradients, make_states
from factory.optimizers.several import Hooked
from factory.plan.plan import stage_keys
from factory.stages.loss import REFERENCE_POINT, Metrics, Watched
from factory.stages.rows import unit
from factory.steps.feed import autocast

# the engine of each strategy, as module:class: imported when it is built
_ENGINES: dict[Strategy, str] = {
    "none": "factory.steps.engine:Engine",
    "ddp": "factory.ranks.ddp:Ddp",
    "fsdp": "factory.ranks.fsdp:Fsdp",
    **dict.fromkeys(("zero1", "zero2", "zero3"), "factory.ranks.zero:Zero"),
}


def engine(run: Run, model: Any, arch: Architecture) -> "Engine":
    """The one of the plan's strategy."""
    return resolve_name(_ENGINES[run.plan.settings.hardware.strategy])(run, model, arch)


def reaching(value: Any, parameters: Iterable[Any]) -> Any:
    """The same tensor, from which all of these that train get a gradient, of zeros at least."""
    nothing = (each.flatten()[:0].sum().to(value.dtype) for each in parameters if each.requires_grad)
    return value + sum(nothing, value.new_zeros(()))


class Engine:
    """Of one process. An update is `begin`, `accumulate`, `clip` and `apply` (or `drop`), in this order.

    None of these reads what it computes, so that a GPU is asked for more than it has done; `means` does. `trained` are
    the tensors that require a gradient, by name; `beside_text` the names of those that no text alone reaches.
    """

    def __init__(self, run: Run, model: Any, arch: Architecture):
        import torch

        self._run, self._own, self.model = run, stage_keys(run.plan), model
        self._method, self._settings = registry.run("methods", run.plan.settings.method.name), run.plan.settings.method
        self.optimizer = self._method.optimizer(model, self._settings, run.plan, arch)
        self._stage = registry.run("stages", run.plan.settings.stage.name)
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.beside_text = beside_text(self.trained, arch)
        self.skips_overflows = run.plan.steps.train.autocast == "float16"  # the scaler does, and lowers its scale
        self._scaler = torch.amp.GradScaler(run.plan.steps.load.device, enabled=self.skips_overflows)

    def restore(self) -> dict[str, Any] | None:
        """The loop's state in the checkpoint that the run resumes from, all else put back; None where there is none."""
        found = checkpoint.restore(self._run, self.read, self._scaler)
        if found is None:
            make_states(self.optimizer)
        return found

    def save(self, state: dict[str, Any], *, keep: int | None = None) -> None:
        """`keep` is a step whose checkpoint is not pruned."""
        with self._run.world.waiting(long=True):  # rank 0 writes
            checkpoint.save(self._run, self.write, self.needed, self._scaler, state, keep=keep)

    def write(self, folder: Path) -> None:
        """The trained tensors and the optimizer's state."""
        if self._run.world.leads:
            checkpoint.write_trained(folder, self.trained)
            checkpoint.write_optimizer(folder, self.optimizer.state_dict())

    def needed(self) -> int:
        """The bytes that `write` takes on a disk."""
        return checkpoint.bytes_of_whole_tensors(self.trained, self.optimizer.state_dict())

    def read(self, folder: Path) -> None:
        """What `write` wrote. Raises UserError where it holds other tensors."""
        import torch

        trained, state = checkpoint.read_whole_tensors(folder, self.trained)
        with torch.no_grad():
            for name, value in self.trained.items():
                value.copy_(trained[name])
        self.optimizer.load_state_dict(state)

    def begin(self, step: int, total: int, rate: float) -> None:
        """Of step `step` of `total`, counted from 0, with this learning rate."""
        if begin_step := registry.hook(self._method, "begin_step"):
            begin_step(self.optimizer, self._settings, step, total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_ratio", 1.0)

    def accumulate(self, step: batches.Step) -> tuple[Any, Watched]:
        """Gradients of the mean loss over the units of all micro-batches; returns that mean, a tensor of one number.

        And what this rank has watched, as `means` reads it.
        """
        import torch

        total, watched = torch.zeros((), device=self._run.plan.steps.load.device), Watched()
        units = step.trained if unit(self._run.plan) == "tokens" else step.samples
        for number, batch in enumerate(self._with_reference_point(step), start=1):
            counted, last = number <= len(step.batches) - step.idle, number == len(step.batches)
            loss, metrics = self._pass(batch, units, counted=counted, last=last)
            if counted:
                total += loss
                watched.add(metrics)
        self._penalize()
        return total, watched

    def _with_reference_point(self, step: batches.Step) -> list[dict[str, Any]]:
        """Return the micro-batches with sums over all of them, on all ranks, that the stage's loss is measured from.

        Only kto has them (`stages.kto.run.reference_point`). Idle micro-batches are computed and not counted.
        """
        import torch

        measure = registry.hook(self._stage, REFERENCE_POINT)
        if measure is None:
            return step.batches
        sums = torch.zeros(2, device=self._run.plan.steps.load.device)
        with torch.no_grad(), autocast(self._run.plan):
            for number, batch in enumerate(step.batches):
                found = torch.stack(self._run.way.call(partial(measure, self.model, batch)))
                sums += found if number < len(step.batches) - step.idle else 0
        total, number = self._of_all(sums).unbind()
        return [{**batch, REFERENCE_POINT: (total, number)} for batch in step.batches]

    def _of_all(self, sums: Any) -> Any:
        """Return the sums over the ranks, on the device."""
        return sums

    def _pass(self, batch: dict[str, Any], units: float, *, counted: bool, last: bool) -> tuple[Any, dict[str, Any]]:
        """Adds the gradients of a micro-batch's part of the mean; returns that part, and what is watched."""
        with autocast(self._run.plan):
            total, metrics = self._terms(batch)
            loss = total / units
        self._scaler.scale(loss).backward()
        return loss.detach(), metrics

    def _terms(self, batch: dict[str, Any]) -> tuple[Any, Metrics]:
        """The stage's loss. Of a text that reaches nothing of what trains the gradients are zeros: other ranks wait."""
        total, metrics = self._stage.loss(self.model, batch, self._own).parts()
        return total if total.requires_grad else reaching(total, self.model.parameters()), metrics

    def _penalty(self) -> Any:
        """Its gradient is added, its value is not the loss shown; None of most methods."""
        penalty = registry.hook(self._method, "penalty")
        return penalty(self.model, self._settings) if penalty else None

    def _penalize(self) -> None:
        if (penalty := self._penalty()) is not None:
            self._scaler.scale(penalty).backward()

    def means(self, watched: Watched) -> dict[str, float]:
        """Return the means of what `accumulate` has watched, of all ranks together."""
        return watched.means()

    def clip(self) -> Any:
        """The norm of all gradients together, before they are clipped to the plan's: a tensor of one number."""
        import torch

        self._scaler.unscale_(self.optimizer)
        if isinstance(self.optimizer, Hooked):
            return self.optimizer.clip(self._limit)
        if divides_gradients(self.optimizer) and not self.skips_overflows:
            return self._clip_in_the_step()
        return torch.nn.utils.clip_grad_norm_(self.trained.values(), self._limit)

    def _clip_in_the_step(self) -> Any:
        """As torch.nn.utils.clip_grad_norm_ does, its small number included, but in the optimizer's own pass."""
        import torch

        gradients = [each.grad for each in self.trained.values() if each.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.optimizer.grad_scale = ((norm.float() + 1e-6) / self._limit).clamp(min=1)
        return norm

    @property
    def _limit(self) -> float:
        limit = self._run.plan.settings.stage.max_grad_norm
        return float("inf") if limit is None else limit

    def has_gradient(self, name: str) -> bool:
        if isinstance(self.optimizer, Hooked):
            return self.optimizer.has_gradient(name)
        gradient = self.trained[name].grad
        return gradient is not None and bool(gradient.any())

    @property
    def leaves_out(self) -> bool:
        """Whether `apply` can be told what would leave an update out, before anybody has read it."""
        return divides_gradients(self.optimizer) and not self.skips_overflows

    def apply(self, unless: Any = None) -> None:
        """Moves the weights, and forgets the gradients. `unless`: where this tensor is true nothing moves."""
        if unless is not None:
            self.optimizer.found_inf = unless.float()
        self._scaler.step(self.optimizer)
        if unless is not None:
            self.optimizer.found_inf = None
        self._scaler.update()
        self.optimizer.zero_grad()

    def drop(self) -> None:
        """Forgets the gradients, and no weight moves."""
        self._scaler.update()
        self.optimizer.zero_grad()

    def finish(self) -> None:
        self._mark()

    def go_back(self, folder: Path) -> None:
        """To a checkpoint, when the training is over."""
        self.read(folder)
        self._mark()

    def _mark(self) -> None:
        for parameter in self.trained.values():  # a method's `begin_step`, or its state, may have marked less
            parameter.requires_grad_(True)
