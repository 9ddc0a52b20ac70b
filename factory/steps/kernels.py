"""How a built model computes: replacement kernels, recomputed activations, compiled layers."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import cycle
from typing import Any

from factory.architecture import Architecture
from factory.config.refusal import refuse
from factory.estimate.heap import gives_back
from factory.execute.memory import give_back
from factory.kernels import LIGER_WITHOUT_ROPE
from factory.plan.plan import Compiled, Patch

# of a checkpointed layer: what it runs in at first, and when it runs again
Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


def replace_kernels(model: Any, plan: Patch) -> None:
    """Put Liger's RMSNorm, gated MLP and rotary positions in a built model, by the library's public functions.

    Its losses are left out: the loop's own is computed in chunks. So is its rotary kernel under selective
    recomputation: it writes over queries and keys, which are then the kept results of matrix products, and would rotate
    them twice.
    """
    if plan.kernels != "liger":
        return
    from liger_kernel import transformers  # type: ignore[import-not-found]  # an extra

    kind = model.config.model_type
    rotates = plan.activation_checkpointing != "selective" and kind not in LIGER_WITHOUT_ROPE
    replace = getattr(transformers, f"apply_liger_kernel_to_{kind}")
    replace(model=model, rope=rotates, cross_entropy=False, fused_linear_cross_entropy=False)


def recompute(model: Any, plan: Compiled, arch: Architecture) -> None:
    """Activations are dropped after the forward pass and computed again; `selective` keeps the results of matmuls."""
    patch, device = plan.steps.patch, plan.steps.load.device
    if not patch.activation_checkpointing:
        return
    from transformers.modeling_layers import GradientCheckpointingLayer

    selective = partial(_selective, _dear(model))
    contexts = selective if patch.activation_checkpointing == "selective" else _plain
    layers = unwrapped(model).get_submodule(arch.layers_at)
    recomputed = patch.recomputed(len(layers))
    turns = gives_back(patch, len(layers), compiled=plan.settings.compute.compile) if device == "cpu" else range(0)
    options: dict[str, Any] = {"use_reentrant": False}
    if turns:
        layers[-1].register_forward_hook(lambda *_: give_back())
        places = cycle(range(recomputed))  # layers run in their order (an image's tower, before them, in its own)
        options["context_fn"] = lambda: _with_room(contexts()) if next(places) in turns else contexts()
    elif contexts is selective:
        options["context_fn"] = contexts
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    for layer in layers[recomputed:]:
        if not isinstance(layer, GradientCheckpointingLayer):
            raise refuse(
                "recomputation",
                f"compute.recomputed_layers={recomputed}",
                f"the code of {arch.kind} says for all of its layers at once whether they are recomputed",
                because="other layers than these would be recomputed, or none",
                fix="set compute.recomputed_layers=auto, and compute.activation_checkpointing=auto or true",
            )
        layer.gradient_checkpointing = False
    model.disable_input_require_grads()  # made for reentrant ones: with them all that is frozen is walked back too


def without_dropout(model: Any) -> None:
    """Puts the model in evaluation, its layers recomputing as in training: transformers has each do so where it trains.

    A layer that drops out by itself, as OPT's, and not by a module, does not recompute then.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    multiplying_as_trained(model)
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            said = vars(layer) | vars(getattr(layer, "config", layer))  # Falcon's reads its share there
            layer.training = not any("drop" in name and value for name, value in said.items())


def drop_nothing(model: Any) -> bool:
    """Sets to 0 what the model drops out by its own config, which stays as it is; returns whether there was any.

    Of a loss that is measured from a reference: that is read without dropout, so a policy that drops out would differ
    from it before anything is learnt. TRL's trainers do so too (`disable_dropout`).
    """
    found = False
    for module in model.modules():
        shares = [name for name, value in vars(module).items() if isinstance(value, float) and value]
        for name in shares:
            if "drop" in name or (name == "p" and "Dropout" in type(module).__name__):
                setattr(module, name, 0.0)
                found = True
    return found


def multiplying_as_trained(model: Any) -> None:
    """Puts the model in evaluation, for numbers that a loss compares with its own: layers of 8 bits multiply alike.

    On a CPU they do so by their weights made wide, where evaluation would round what comes in.
    """
    model.eval()
    for layer in _of_8_bits(model):
        layer.training = True


@contextmanager
def rounded_by_row(model: Any) -> Iterator[None]:
    """Layers of 8 bits round each row by itself, whatever is beside it.

    Else they leave the columns wide in which any row has an outlier (Dettmers et al. 2022, section 3.2).
    """
    states = [(layer.state, layer.state.threshold) for layer in _of_8_bits(model)]
    for state, _ in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in states:
            state.threshold = threshold


@contextmanager
def whole_float32() -> Iterator[None]:
    """Compute products of float32 without TF32, whose error can be larger than what a check looks for."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _of_8_bits(model: Any) -> list[Any]:
    """Of bitsandbytes. PEFT's layers beside them have the same name, and no state."""
    return [layer for layer in model.modules() if type(layer).__name__ == "Linear8bitLt" and "state" in vars(layer)]


def _plain() -> Contexts:
    return nullcontext(), nullcontext()


def _selective(kept: list[Any]) -> Contexts:
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    return create_selective_checkpoint_contexts(kept)


def _with_room(contexts: Contexts) -> Contexts:
    first, again = (_after_giving_back(context) for context in contexts)
    return first, again


@contextmanager
def _after_giving_back(context: AbstractContextManager[Any]) -> Iterator[None]:
    give_back()
    with context:
        yield


def _dear(model: Any) -> list[Any]:
    """The operations that take most of a layer's time: what they give is kept.

    Attention that drops out is made again: kept, it would not draw, and what drops out after it would draw its numbers.
    """
    import torch

    aten = torch.ops.aten
    products = [aten.mm.default, aten.addmm.default, aten.bmm.default]
    if any(map(_drops_attention_out, model.modules())):
        return products
    return [
        *products,
        *_variable_length(),
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    ]


# the operations of torch's variable-length attention (torch 2.13), flash-attn (2.7 and later) and flash-attn-3
_VARIABLE_LENGTH = (
    ("torch_attn", "_varlen_attn"),
    ("flash_attn", "_flash_attn_forward"),
    ("flash_attn", "_flash_attn_varlen_forward"),
    ("flash_attn_3", "_flash_attn_forward"),
    ("flash_attn_3", "fwd"),
)


def _variable_length() -> list[Any]:
    """Return those of the operations that are registered in this process: a library registers its own when imported."""
    import torch

    named = ((getattr(torch.ops, library), name) for library, name in _VARIABLE_LENGTH)
    return [getattr(library, name).default for library, name in named if hasattr(library, name)]


def _drops_attention_out(module: Any) -> bool:
    """By what transformers calls it there: a share, or a module that has one."""
    said = {**vars(module), **dict(module.named_children())}.items()
    return any("att" in name and "drop" in name and getattr(value, "p", value) for name, value in said)


def compile_layers(model: Any, arch: Architecture) -> None:
    """Each decoder layer alone: of the whole model, transformers would always build the mask of packed sequences."""
    for layer in unwrapped(model).get_submodule(arch.layers_at):
        layer.compile()


def unwrapped(model: Any) -> Any:
    """The model below PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
