from copy import deepcopy
from typing import Any

from factory.architecture import Architecture
from factory.methods.llama_pro.spec import NUMBERS, Settings, is_residual, order, trainable
from factory.methods.marking import marks
from factory.optimizers.run import plain as optimizer
from factory.plan.plan import Attach

__all__ = ["attach", "optimizer"]

# lists of config.json that are as long as there are layers by chance alone; every other one has an entry for each, and
# those of NUMBERS have all layers' numbers then
_OF_NO_LAYER = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id")


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    import torch

    old = model.get_submodule(arch.layers_at)
    layers = []
    for place, (index, copy) in enumerate(order(settings, arch.layers)):
        layer = _identity(old[index]) if copy else old[index]
        for module in layer.modules():
            if "layer_idx" in vars(module):  # attention's place in the cache of keys and values
                module.layer_idx = place
        layers.append(layer)
    parent, _, name = arch.layers_at.rpartition(".")
    setattr(model.get_submodule(parent), name, torch.nn.ModuleList(layers))
    describe(model.config.get_text_config(), settings, arch)
    return marks(trainable)(model, settings, plan, arch)


def _identity(layer: Any) -> Any:
    """A copy that adds nothing to the residual stream."""
    import torch

    # one config for all layers: what is set in it later, as the kernel of attention, is theirs too
    configs = (module.config for module in layer.modules() if hasattr(module, "config"))
    new = deepcopy(layer, {id(config): config for config in configs})
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if is_residual(name):
                parameter.zero_()
    return new


def describe(config: Any, settings: Settings, arch: Architecture) -> None:
    """Makes config.json say what the model has now."""
    places = order(settings, arch.layers)
    for name, entries in list(vars(config).items()):
        if name not in _OF_NO_LAYER and isinstance(entries, list | tuple) and len(entries) == arch.layers:
            extended = range(len(places)) if name in NUMBERS else (entries[index] for index, _ in places)
            setattr(config, name, type(entries)(extended))
    config.num_hidden_layers = len(places)
