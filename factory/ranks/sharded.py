"""Weights of which each rank reads its share: transformers gives slices of the files as DTensors, split by rows."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from factory.architecture import architecture
from factory.plan.plan import Plan
from factory.steps.walk import model_class


def distributed(plan: Plan) -> Any:
    """Return the `distributed_config` with which `from_pretrained` reads this rank's slices only."""
    from transformers.distributed.configuration_utils import DistributedConfig

    layers = f"{architecture(plan.steps.load.config).layers_at}.*"
    return DistributedConfig(fsdp_size=plan.settings.hardware.num_processes, fsdp_plan={layers: "free_full_weight"})


def without_hooks(read: Any) -> Any:
    """Return the model with the tensors of one that `distributed` has read, which gathers itself when it is called.

    Adapters must be attached before layers are split for training, so the model is built again, without storage.
    """
    del read.config.distributed_config
    with torch.device("meta"):
        model = model_class(read.config).from_config(read.config, dtype=read.dtype)
    for path, module in read.named_modules():
        own = model.get_submodule(path)
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            setattr(own, name, parameter)
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            setattr(own, name, buffer)
    model.generation_config = read.generation_config
    return model.eval()


def shares(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, Any]]:
    """Yield each place of a parameter that is a share: its module, its name there, itself. Children come first."""
    for module in reversed(list(model.modules())):
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if isinstance(parameter, DTensor):
                yield module, name, parameter
