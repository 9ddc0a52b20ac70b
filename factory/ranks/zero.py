"""zero1, zero2, zero3: DeepSpeed splits optimizer, gradients, weights (Rajbhandari et al. 2020, arXiv 1910.02054).

DeepSpeed is called directly: its configuration is the plan's, and what accelerate would add is another one.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from factory.architecture import Architecture
from factory.config import registry
from factory.execute.context import Run
from factory.execute.memory import give_back
from factory.plan import heads
from factory.ranks.sharded import shares
from factory.ranks.shared import Root, Shared, about_bytes, swapped
from factory.ranks.spec import ZERO
from factory.ranks.ways import Way
from factory.ranks.world import PATIENCE
from factory.steps.kernels import unwrapped

_TAG = "zero"  # DeepSpeed's name of a folder in its checkpoints


class Zero(Shared):
    def __init__(self, run: Run, model: Any, arch: Architecture):
        super().__init__(run, model, arch)
        hardware = run.plan.settings.hardware
        self._stage_number = ZERO.index(hardware.strategy) + 1
        if self._stage_number == 3:
            assert isinstance(run.way, Zero3), "the model was not split when it was attached"
            self._engine = run.way.engine
        else:
            self._engine = _engine(run, Root(model), self.optimizer)
        self.optimizer = self._engine.optimizer
        self.root = self._engine
        _wait_at_most(timedelta(seconds=hardware.rank_timeout))

    def write(self, folder: Path) -> None:
        with _patient(self._run.plan.settings.hardware.rank_timeout):
            self._engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=True)

    def read(self, folder: Path) -> None:
        with _patient(self._run.plan.settings.hardware.rank_timeout):
            path, _ = self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
        assert path is not None, f"DeepSpeed found nothing in {folder}"

    def needed(self) -> int:
        return about_bytes(self.trained)

    def _syncing(self, last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def _backward(self, loss: Any, *, last: bool) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def clip(self) -> Any:
        """DeepSpeed clips in its step; the norm is the one that it will take."""
        groups = self.optimizer._get_norm_groups() if self._stage_number == 3 else [self.optimizer.scaled_global_norm()]
        norms = torch.stack([torch.as_tensor(norm, dtype=torch.float64) for norm in groups])
        return norms.norm().where((norms >= 0).all(), torch.nan)  # -1 stands for what is not finite

    def has_gradient(self, name: str) -> bool:
        from deepspeed.utils import safe_get_full_grad  # pyright: ignore[reportMissingImports]

        gradient = safe_get_full_grad(self.trained[name])
        return gradient is not None and bool(gradient.any())

    @property
    def leaves_out(self) -> bool:
        """Its engine reads in each step whether the gradients are finite, and takes no other word for it."""
        return False

    def apply(self, unless: Any = None) -> None:
        assert unless is None, "DeepSpeed decides by itself"
        self._engine.step()


class Zero3(Way):
    """Of a model that DeepSpeed splits over the ranks, as soon as it is attached."""

    differentiates = False  # DeepSpeed takes every gradient for a part of an update

    def __init__(self, run: Run, model: Any, arch: Architecture):
        _partition(run, model)
        method, settings = registry.run("methods", run.plan.settings.method.name), run.plan.settings.method
        root = Root(model)
        self.engine = _engine(run, root, method.optimizer(model, settings, run.plan, arch))
        for parameter in _used_from_outside(run, model, arch):
            _deepspeed(run).zero.register_external_parameter(root, parameter)

    def call(self, function: Callable[[], Any]) -> Any:
        return self.engine(lambda: (function(),))[0]  # DeepSpeed looks for tensors in tuples

    @contextmanager
    def whole(self, model: Any, names: Iterable[str]) -> Iterator[None]:
        from deepspeed import zero  # pyright: ignore[reportMissingImports]

        def gathered(parameter: Any) -> Any:
            with zero.GatheredParameters([parameter]):
                return parameter.detach().cpu().clone() if torch.distributed.get_rank() == 0 else None

        with swapped(model, names, gathered):
            yield


def _deepspeed(run: Run) -> Any:
    os.environ.setdefault("LOCAL_RANK", str(run.world.local_rank))  # no launcher sets it for one process
    import deepspeed  # pyright: ignore[reportMissingImports]

    if run.plan.steps.load.device == "cpu":
        # what it would compile at its first start on a CPU only serves tensor-parallel inference
        deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue]
    return deepspeed


def _partition(run: Run, model: Any) -> None:
    """Turn the shares that a rank has read into DeepSpeed's partitions, one whole parameter at a time."""
    deepspeed, whole = _deepspeed(run), dict[int, torch.nn.Parameter]()
    deepspeed.init_distributed(dist_init_required=False)  # over the groups that there are
    for module, name, share in shares(model):
        if id(share) in whole:  # a tied head
            setattr(module, name, whole[id(share)])
            continue
        full = torch.nn.Parameter(share.detach().full_tensor(), requires_grad=share.requires_grad)
        whole[id(share)] = full
        setattr(module, name, full)
        deepspeed.zero.Init(
            module=torch.nn.ParameterList([full]),
            config_dict_or_path=dict(run.plan.steps.train.ranks.configuration),
        )


def _engine(run: Run, root: Root, optimizer: Any) -> Any:
    """Return DeepSpeed's engine of the plan's configuration."""
    deepspeed, planned = _deepspeed(run), run.plan.steps.train.ranks
    if run.plan.settings.hardware.offload and type(optimizer) is torch.optim.AdamW:
        faster = cpu_adamw(optimizer)
        if run.world.any(faster is None):
            run.emit("note", text="Offloaded states are stepped by torch's AdamW: DeepSpeed's op cannot be built.")
        else:
            optimizer = faster
    engine: Any
    engine, *_ = deepspeed.initialize(
        model=root, optimizer=optimizer, config=dict(planned.configuration), dist_init_required=False
    )
    assert engine.zero_optimization_stage() == ZERO.index(run.plan.settings.hardware.strategy) + 1, (
        "DeepSpeed chose another stage"
    )
    give_back()
    return engine


def cpu_adamw(optimizer: torch.optim.AdamW) -> Any:
    """Return DeepSpeedCPUAdam over the same parameter groups; None where its op is neither installed nor can be built.

    It is built at its first use, which needs a compiler.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam  # pyright: ignore[reportMissingImports]

    constants = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps")}
    groups = [
        {name: group[name] for name in ("params", "weight_decay", "lr_ratio")} for group in optimizer.param_groups
    ]
    try:
        return DeepSpeedCPUAdam(groups, adamw_mode=True, **constants)
    except RuntimeError:
        return None


@contextmanager
def _patient(seconds: int) -> Iterator[None]:
    """DeepSpeed's ranks wait for each other's files where they wait for gradients, which come within these seconds."""
    _wait_at_most(PATIENCE)
    try:
        yield
    finally:
        _wait_at_most(timedelta(seconds=seconds))


def _wait_at_most(time: timedelta) -> None:
    """DeepSpeed's ranks talk in torch's group and in one of its own, which it makes with torch's default timeout."""
    from deepspeed.utils import groups  # pyright: ignore[reportMissingImports]

    both: tuple[Any, ...] = (None, groups._clone_world_group())
    for group in both:
        torch.distributed.distributed_c10d._set_pg_timeout(time, group)


def _used_from_outside(run: Run, model: Any, arch: Architecture) -> list[Any]:
    """Parameters that a loss reads without calling their module: of the language model's head, and the stage's own."""
    head = unwrapped(model).get_output_embeddings()
    own = [model.get_parameter(name) for name in heads.heads(run.plan.settings.stage.name, arch)]
    return [*(head.parameters() if head is not None else ()), *own]
