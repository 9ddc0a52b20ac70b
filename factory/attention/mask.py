"""What a token may see, for attention functions that never hold a mask of whole sequences."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary
from transformers.masking_utils import and_masks, padding_mask_function, sdpa_mask

# what some families hand to their attention function, and a function of ours would leave out without a word
FOREIGN = ("softcap", "position_bias", "s_aux")


class Mask(ABC):
    """What a token may see, worked out only where it is asked for, and once for all layers."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @abstractmethod
    def full(self) -> torch.Tensor | None:
        """(batch, 1, queries, keys), true where seen. None: plainly causal."""

    @abstractmethod
    def seen(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Which keys the queries see: both are indices that broadcast. Before their shape stands the batch's."""

    @property
    @abstractmethod
    def device(self) -> Any: ...


class Told(Mask):
    """As transformers says it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        """The arguments are those of transformers' `sdpa_mask`."""
        super().__init__()
        self.arguments = arguments

    def full(self) -> torch.Tensor | None:
        return self.once("full", partial(sdpa_mask, **self.arguments))

    def seen(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """The mask functions of transformers take indices that broadcast."""
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


class Spans(Mask):
    """Of rows in which two stretches may share what stands before both (`data.sharing`).

    spans: (batch, 1, 3, length). A token sees those before it and itself, as far as they are not before spans[0], or
    stand from spans[1] to before spans[2].
    """

    def __init__(self, spans: torch.Tensor) -> None:
        super().__init__()
        self.spans = spans

    def full(self) -> torch.Tensor:
        places = torch.arange(self.spans.shape[-1], device=self.device)
        return self.once("full", lambda: self.seen(places[:, None], places[None])[:, None])

    def seen(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        own, first, end = self.spans[:, 0, :, queries].unbind(1)
        return (keys <= queries) & ((keys >= own) | ((keys >= first) & (keys < end)))

    @property
    def device(self) -> Any:
        return self.spans.device


_spans: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of the batch that all layers are given


def spans(given: torch.Tensor) -> Spans | None:
    """What a batch says itself, which transformers passes on as it is; None where it is a mask of its making."""
    if given.dtype != torch.int64:
        return None
    if given not in _spans:
        _spans[given] = Spans(given.clone())  # what is kept must not keep the batch
    return _spans[given]


def mask(*, allow_is_causal_skip: bool = True, local_size: int | None = None, **arguments: Any) -> Mask | None:
    """In transformers' mask interface. None: plainly causal, so that a kernel needs no mask."""
    plain = arguments["attention_mask"] is None and arguments["q_length"] == arguments["kv_length"]
    if plain and allow_is_causal_skip and local_size is None:
        return None
    return Told({**arguments, "allow_is_causal_skip": allow_is_causal_skip, "local_size": local_size})


def whole(mask: Mask | torch.Tensor | None) -> torch.Tensor | None:
    """As torch's own kernel takes it."""
    if isinstance(mask, torch.Tensor):
        mask = spans(mask) or mask
    return mask.full() if isinstance(mask, Mask) else mask


def added(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where seen and -inf elsewhere: kernels copy a mask of truth values."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
