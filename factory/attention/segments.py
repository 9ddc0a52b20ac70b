"""Causal attention within the sequences of a row, given by their lengths. No mask is built, of any length.

Sequences stand one after another: documents of a packed row, or the rows of a micro-batch that is not padded. The batch
says where each ends (`factory.data.batches`), as transformers' `FlashAttentionKwargs` or as a tuple of lengths.

- `varlen` calls torch's variable-length kernel: CUDA, 16 bits, compute capability 8.0 or above, heads of up to 256
  numbers in multiples of 8, no dropout (torch 2.13: torch/nn/attention/varlen.py and, in its source,
  aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, `mha_varlen_fwd`).
- `per_document` calls `scaled_dot_product_attention` for each sequence, on any device and in any type. On a CPU it
  costs what isolation saves; with many short sequences on a GPU it launches one kernel for each.

Both are registered without a mask function, for which transformers builds none and does not look at the positions
(transformers 5.24: masking_utils.py, `_preprocess_mask_arguments`): on a GPU that look would wait for all work before.
A model that generates or reads padded rows needs masks: `with_masks` gives it torch's kernel meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.attention import SEGMENTED, VARLEN
from factory.attention.mask import FOREIGN


def register(name: str) -> None:
    """Make `varlen` or `per_document` a name for `attn_implementation`, in this process."""
    if name == VARLEN:  # its operation is registered when it is imported, and recomputation must know it before
        pass
    AttentionInterface.register(name, varlen if name == VARLEN else per_document)


@contextmanager
def with_masks(model: Any) -> Iterator[None]:
    """Let a transformers model attend by torch's kernel with masks: it generates, or its rows are padded."""
    own = model.config._attn_implementation
    if own not in SEGMENTED:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def varlen(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return (batch, length, heads, dim) for queries, keys and values of (batch, heads, length, dim).

    cu_seq_lens_q: (sequences + 1), int32, where each begins among the batch * length tokens, and their number.
    """
    from torch.nn.attention.varlen import varlen_attn

    _assert_known(module, attention_mask, others)
    assert cu_seq_lens_q is not None and max_length_q is not None, "the batch says no lengths of its sequences"
    assert not dropout, "torch's variable-length attention has no dropout"
    device, (batch, _, length, dim), wide = query.device.type, query.shape, value.shape[-1]
    if torch.is_autocast_enabled(device):
        query, key, value = (each.to(torch.get_autocast_dtype(device)) for each in (query, key, value))
    if wide != dim:  # latent attention has narrower values
        value = pad(value, (0, dim - wide))
    query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
    # torch 2.11 takes fewer heads of keys without being asked
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
    output = varlen_attn(
        query,
        key,
        value,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        **grouped,
    )
    assert isinstance(output, Tensor)
    return output[..., :wide].unflatten(0, (batch, length)), None


def per_document(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    sequence_lengths: tuple[int, ...] | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return (batch, length, heads, dim), as `varlen`; sequence_lengths sum to batch * length."""
    _assert_known(module, attention_mask, others)
    assert sequence_lengths is not None, "the batch says no lengths of its sequences"
    batch, _, length, _ = query.shape
    rows = (each.transpose(0, 1).flatten(1, 2).unsqueeze(0) for each in (query, key, value))
    parts = zip(*(each.split(sequence_lengths, dim=2) for each in rows), strict=True)
    outputs = [
        sdpa_attention_forward(module, q, k, v, _window(q.shape[2], sliding_window, q.device), dropout, scaling)[0]
        for q, k, v in parts
    ]
    return torch.cat(outputs, dim=1).unflatten(1, (batch, length)).squeeze(0), None


@lru_cache(maxsize=8)  # all layers read the same
def _window(length: int, size: int | None, device: torch.device) -> Tensor | None:
    """Return which keys a query sees of a sequence that is longer than the window; None: all before it."""
    if size is None or length <= size:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - size)[None, None]


def _assert_known(module: torch.nn.Module, attention_mask: None, others: dict[str, Any]) -> None:
    foreign = [name for name in FOREIGN if others.get(name) is not None]
    assert not foreign, f"attention within sequences knows no {foreign}"
    assert attention_mask is None, "attention within sequences takes no mask"
    assert module.is_causal, "attention within sequences is causal"
    assert not others.get("use_cache"), "attention within sequences keeps no cache"
