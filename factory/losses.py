"""Losses that never hold the logits of all tokens at once."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from factory.data.encode import IGNORED
from factory.plan import LOSS_CHUNK

_MULTIPLE = 32  # a chunk's rows are padded to this: few shapes, so few kernels that a CPU compiles and keeps


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropies of `hidden @ weight.T`, its gradients computed chunk by chunk in the forward pass.

    hidden: (tokens, width); weight: (vocabulary, width); target: (tokens). Logits are taken in `dtype`, their
    softmax in float32. With z = hidden @ weight.T, d loss / d z = softmax(z) - onehot(target).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
        narrow = weight.to(dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight: Tensor | None = None
        size = LOSS_CHUNK * (2 if needs_weight else 1)  # each chunk passes over the weight's gradient: fewer are faster
        total = hidden.new_zeros((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        for start in range(0, len(target), size):
            rows, count = slice(start, start + size), min(size, len(target) - start)
            part = functional.pad(hidden[rows].to(dtype), (0, 0, 0, -count % _MULTIPLE))
            wanted = functional.pad(target[rows], (0, -count % _MULTIPLE), value=IGNORED)
            logits = (part @ narrow.T).to(total.dtype)
            total += functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
            if not needs_hidden and not needs_weight:
                continue
            slope = torch.softmax(logits, dim=-1, out=logits)
            slope[torch.arange(count, device=slope.device), wanted[:count]] -= 1
            slope[count:] = 0
            slope = slope.to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (slope @ narrow)[:count]
            if needs_weight:
                product = slope.T @ part
                grad_weight = product.to(weight.dtype) if grad_weight is None else grad_weight.add_(product)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden.mul_(grad.to(grad_hidden.dtype)),
            None if grad_weight is None else grad_weight.mul_(grad.to(grad_weight.dtype)),
            None,
            None,
        )


def causal_lm(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Sum over the trained tokens of -log p(token | tokens before it). Labels of -100 are not trained.

    Only the trained positions get logits: the decoder runs on all tokens, the head on those alone.
    """
    labels = batch["labels"][:, 1:]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    hidden = inner.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels != IGNORED
    head = inner.get_output_embeddings().weight
    if not torch.is_grad_enabled():  # autograd.Function sees what requires a gradient, not whether one is wanted
        head = head.detach()
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if dtype == torch.float16:  # the slopes are taken before the loss is scaled, and would vanish
        dtype = torch.float32
    with torch.autocast(device, enabled=False):
        return LinearCrossEntropy.apply(hidden[wanted], head, labels[wanted], dtype)  # type: ignore[no-any-return]
