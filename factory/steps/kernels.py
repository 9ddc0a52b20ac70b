"""How a built model computes: replacement kernels, recomputed activations, compiled layers."""

from functools import partial
from typing import Any

from factory.architecture import Architecture
from factory.plan import Patch
from factory.refusal import refuse


def replace_kernels(model: Any, plan: Patch) -> None:
    """Liger's kernels in place of the model's own. Raises UserError where it has none for this architecture."""
    if plan.kernels != "liger":
        return
    from liger_kernel.transformers import monkey_patch  # type: ignore[import-not-found]  # an extra

    kind = model.config.model_type
    if kind not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:  # the library itself would say nothing
        raise refuse("kernels", "compute.kernels=liger", f"it has no kernels for {kind}")
    monkey_patch._apply_liger_kernel_to_instance(model=model)


def recompute(model: Any, plan: Patch) -> None:
    """Activations are dropped after the forward pass and computed again; `selective` keeps the results of matmuls."""
    if not plan.activation_checkpointing:
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if plan.activation_checkpointing == "selective":
        from torch.utils.checkpoint import create_selective_checkpoint_contexts

        options["context_fn"] = partial(create_selective_checkpoint_contexts, _dear())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model.disable_input_require_grads()  # made for reentrant ones: with them all that is frozen is walked back too


def _dear() -> list[Any]:
    """The operations that take most of a layer's time: what they give is kept."""
    import torch

    aten = torch.ops.aten
    return [
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    ]


def compile_layers(model: Any, plan: Patch, arch: Architecture) -> None:
    """Each decoder layer alone: of the whole model, transformers would always build the mask of packed sequences."""
    if not plan.compile:
        return
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    for layer in inner.get_submodule(arch.layers_at):
        layer.compile()
