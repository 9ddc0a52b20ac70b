"""New decoder layers that start as the identity are trained between the old ones (LLaMA Pro, Wu et al. 2024).

arXiv 2401.02415, section 3.2: the layers are split into groups, and each group's last layer is copied behind it with
the matrices that write to the residual stream set to zero.
"""

from dataclasses import replace

from pydantic import Field

from factory.architecture import Architecture, Shape, text_numbers
from factory.config.settings import Method
from factory.methods.full.spec import optimizer_bytes
from factory.plan.rule import Broken, Case, rule

__all__ = ["Settings", "expanded", "optimizer_bytes", "trainable"]

NUMBERS = ("mlp_only_layers", "rope_scaling_layers", "kv_source_layers")  # of config.json: lists of layers' numbers
RESIDUAL = ("o_proj", "down_proj")  # what writes to the residual stream, of attention and of the MLP


class Settings(Method):
    num_new_layers: int = Field(
        description="how many layers to add, evenly spread; it divides the model's own number", ge=1
    )


def order(method: Settings, layers: int) -> list[tuple[int, bool]]:
    """The layers after the expansion as (the old layer, whether it is a copy)."""
    group = max(1, layers // method.num_new_layers)
    found = []
    for index in range(layers):
        found.append((index, False))
        if (index + 1) % group == 0:
            found.append((index, True))
    return found


def expanded(method: Settings, arch: Architecture) -> Architecture:
    return replace(arch, blocks=tuple(arch.blocks[old] for old, _ in order(method, arch.layers)))


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    larger = expanded(method, arch)
    new = [index for index, (_, copy) in enumerate(order(method, arch.layers)) if copy]
    return {name: shape for index in new for name, shape in larger.layer_tensors(index).items()}


def is_residual(tensor: str) -> bool:
    """Whether the tensor, named within a layer, is of what writes to the residual stream."""
    return not set(RESIDUAL).isdisjoint(word.removesuffix("_bias") for word in tensor.split("."))


@rule(
    "llama-pro-architecture",
    keys=("model.path", "method.name", "method.num_new_layers"),
    reason="a new layer must change nothing before it is trained, and config.json must describe it",
    fix="choose a model of the llama kind, or method=freeze",
)
def llama_pro_architecture(case: Case) -> str | Broken | None:
    """Layers alike that nothing tells by their numbers, of an attention and MLPs that end in the known matrices."""
    new, layers = case.settings.method.num_new_layers, case.arch.layers
    if layers % new:
        return Broken(
            key="method.num_new_layers",
            message=f"the model has {layers} layers, which {new} does not divide",
            reason="one layer is added behind each of so many groups of equal size",
            fix="set method.num_new_layers to a divisor of the model's number of layers",
        )
    first, arch, config = case.arch.blocks[0], case.arch, text_numbers(case.model.config)
    if config.get("scale_depth"):
        return "what its layers add is scaled by their number"
    # of a list of all of them, as some classes write that say nothing else by it, the new ones can be added
    some = any(config.get(name) not in (None, [], [*range(arch.layers)]) for name in NUMBERS)
    if config.get("model_type") == "llama4_text" or some:
        return "its config.json has lists of its layers' numbers"
    if any(block.tensors != first.tensors for block in arch.blocks):
        return "its layers differ from each other"
    mixers = {name.partition(".")[0] for name in (*first.linears, *first.experts)}
    ending = {name.partition(".")[0] for name in first.tensors if is_residual(name)}
    return None if mixers == ending and len(mixers) > 1 else f"its layers do not end in {' and '.join(RESIDUAL)}"
