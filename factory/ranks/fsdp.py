"""fsdp: torch's `fully_shard` (FSDP2) splits weights, gradients and optimizer, on GPUs and CPUs alike.

The model is split once it is attached, before anything is computed with it: each layer is a unit that is gathered when
it is called, and all outside of the layers is gathered for the whole pass.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from factory.architecture import Architecture
from factory.execute import checkpoint
from factory.execute.context import Run
from factory.execute.memory import give_back
from factory.optimizers.several import Several
from factory.ranks.sharded import shares
from factory.ranks.shared import Root, Shared, about_bytes, swapped
from factory.ranks.ways import Way
from factory.steps.engine import reaching
from factory.steps.kernels import unwrapped


class Split(Way):
    """Of a model that is split over the ranks."""

    def __init__(self, run: Run, model: Any):
        planned, device = run.plan.steps.train.ranks, run.plan.steps.load.device
        given, read = planned.configuration, list(shares(model))
        offloaded = given["offload"] == "cpu"
        options: dict[str, Any] = {
            "mesh": read[0][2].device_mesh
            if read
            else init_device_mesh(device, (run.plan.settings.hardware.num_processes,)),
            "reshard_after_forward": given["reshard_after_forward"],
            "offload_policy": CPUOffloadPolicy() if offloaded else OffloadPolicy(),
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=_dtype(given["param_dtype"]),
                reduce_dtype=_dtype(given["reduce_dtype"]),
                cast_forward_inputs=False,  # autocast does, for the operations that need it
            ),
        }
        empty = {id(share): _empty(share) for _, _, share in read}  # fully_shard splits whole tensors only
        for module, name, share in read:
            setattr(module, name, empty[id(share)])
        for name in given["units"]:
            fully_shard(unwrapped(model).get_submodule(name), **options)
        self.root: Any = Root(model)
        fully_shard(self.root, **options)
        kept = {id(share): _on_host(share) if offloaded else share for _, _, share in read}
        for module, name, share in read:
            setattr(module, name, kept[id(share)])
        give_back()
        whole = [name for name, value in model.named_parameters() if not isinstance(value, DTensor)]
        assert not whole, f"not split: {whole[:3]}"

    def call(self, function: Callable[[], Any]) -> Any:
        return self.root(function)

    @contextmanager
    def whole(self, model: Any, names: Iterable[str]) -> Iterator[None]:
        def gathered(parameter: Any) -> Any:
            value = _whole(parameter.detach())
            return value.cpu() if torch.distributed.get_rank() == 0 else None

        with swapped(model, names, gathered):
            yield


class Fsdp(Shared):
    def __init__(self, run: Run, model: Any, arch: Architecture):
        super().__init__(run, model, arch)
        assert isinstance(run.way, Split), "the model was not split when it was attached"
        self._split = run.way
        self.root = run.way.root
        if self.beside_text:
            unwrapped(model).get_input_embeddings().register_forward_hook(self._reach)

    def _reach(self, _embedding: Any, _given: Any, made: torch.Tensor) -> torch.Tensor:
        """A text goes back through all layers, as images do, and gives as many gradients: other ranks wait for both."""
        outside = (value for value in self.model.parameters() if not isinstance(value, DTensor))  # whole in this pass
        return reaching(made, outside) if torch.is_grad_enabled() else made

    @contextmanager
    def _syncing(self, last: bool) -> Iterator[None]:
        """Each micro-batch's gradients are shared: kept whole until the last, they would be as large as ddp's."""
        self._split.root.set_is_last_backward(last)
        yield

    @property
    def leaves_out(self) -> bool:
        """What is offloaded steps on the CPU, which waits for nothing that a GPU still computes."""
        return super().leaves_out and not self._run.plan.settings.hardware.offload

    def clip(self) -> Any:
        return _whole(torch.nn.utils.clip_grad_norm_(self.trained.values(), self._limit))

    def has_gradient(self, name: str) -> bool:
        gradient = self.trained[name].grad
        return gradient is not None and self._world.any(bool(gradient.to_local().any()))

    def write(self, folder: Path) -> None:
        """As one process writes them; rank 0 holds the weights whole, and then the optimizer's state."""
        for write, split in (
            (checkpoint.write_trained, dict(self.trained)),
            (checkpoint.write_optimizer, self.optimizer.state_dict()),
        ):
            whole = tree_map(self._kept, split)
            if self._world.leads:
                write(folder, whole)
            self._world.wait()  # longer than for what is gathered next
            del whole
            give_back()

    def _kept(self, value: Any) -> Any:
        """A tensor made whole, one at a time: on rank 0 it is kept, in the CPU's memory."""
        whole = _whole(value.detach()) if isinstance(value, torch.Tensor) else value
        if not isinstance(whole, torch.Tensor):
            return whole
        return whole.cpu() if self._world.leads else None

    def needed(self) -> int:
        return about_bytes(self.trained)

    def read(self, folder: Path) -> None:
        trained, state = checkpoint.read_whole_tensors(folder, self.trained)
        with torch.no_grad():
            for name, value in self.trained.items():
                value.copy_(_as(value, trained[name]))
        _split_state(self.optimizer, state)
        self.optimizer.load_state_dict(state)


def _split_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Splits an optimizer's whole state as its parameters are, in place."""
    if isinstance(optimizer, Several):
        for inner, own in zip(optimizer.optimizers, state["optimizers"], strict=True):
            _split_state(inner, own)
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, own in state["state"].items():
        like = parameters[number]
        for name, value in own.items():
            if isinstance(value, torch.Tensor) and value.shape == like.shape:
                own[name] = _as(like, value)


def _as(like: DTensor, value: torch.Tensor) -> DTensor:
    """A whole tensor, which each rank has read for itself, split as another."""
    moved = value.to(like.device, like.dtype)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def _empty(share: DTensor) -> torch.nn.Parameter:
    whole = torch.empty(share.shape, dtype=share.dtype, device="meta")
    return torch.nn.Parameter(whole, requires_grad=share.requires_grad)


def _on_host(share: DTensor) -> torch.nn.Parameter:
    """Return a share that lies in the host's memory, as CPUOffloadPolicy has them."""
    local = share.to_local().detach().cpu()  # from_local would move it to the mesh's device again
    moved: Any = DTensor(local, share._spec, requires_grad=False)  # pyright: ignore[reportCallIssue]
    return torch.nn.Parameter(moved, requires_grad=share.requires_grad)


def _dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else getattr(torch, name)


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value
