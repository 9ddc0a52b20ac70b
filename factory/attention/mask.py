"""What a token may see, for attention functions that never hold a mask of whole sequences."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers.masking_utils import and_masks, padding_mask_function, sdpa_mask

# what some families hand to their attention function, and a function of ours would leave out without a word
FOREIGN = ("softcap", "position_bias", "s_aux")


class Mask:
    """What a token may see, computed only where it is read, and once for all layers."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        """The arguments are those of transformers' `sdpa_mask`."""
        self._made: dict[Any, Any] = {}
        self.arguments = arguments

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def full(self) -> torch.Tensor | None:
        """Return (batch, 1, queries, keys), true where seen. None: plainly causal."""
        return self.once("full", partial(sdpa_mask, **self.arguments))

    def seen(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Return which keys the queries see: both are indices that broadcast. Before their shape stands the batch's."""
        assert not self.arguments["use_vmap"], "a mask function that is not made of indices"
        batch, places = self.arguments["batch_size"], torch.broadcast_shapes(queries.shape, keys.shape)
        rows = torch.arange(batch, device=self.arguments["device"]).view(batch, *(1 for _ in places))
        function: Callable[..., torch.Tensor] = self.arguments["mask_function"]
        padding = self.arguments["attention_mask"]
        if padding is not None:
            function = and_masks(function, padding_mask_function(padding))
        return function(rows, torch.zeros_like(rows), queries[None], keys[None]).expand(batch, *places)

    @property
    def device(self) -> Any:
        return self.arguments["device"]


def mask(*, allow_is_causal_skip: bool = True, local_size: int | None = None, **arguments: Any) -> Mask | None:
    """In transformers' mask interface. None: plainly causal, so that a kernel needs no mask."""
    plain = arguments["attention_mask"] is None and arguments["q_length"] == arguments["kv_length"]
    if plain and allow_is_causal_skip and local_size is None:
        return None
    return Mask({**arguments, "allow_is_causal_skip": allow_is_causal_skip, "local_size": local_size})


def whole(mask: Mask | torch.Tensor | None) -> torch.Tensor | None:
    """As torch's own kernel takes it."""
    return mask.full() if isinstance(mask, Mask) else mask


def added(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where seen and -inf elsewhere: kernels copy a mask of truth values."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
