"""bitsandbytes' paged optimizers: their large states lie in managed memory, which can leave the GPU.

Its own `load_state_dict` would make plain tensors of the GPU of them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from bitsandbytes.optim import adamw, ademamix, lion
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch import Tensor

from factory.optimizers.spec import PAGED_FROM


class _Paged(Optimizer8bit):
    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """Each large state into a page, so that no GPU need have room for all of them; what else there is to the GPU.

        Pages that are there already are written to: bitsandbytes frees none.
        """
        assert move_to_device, "what is paged has its own place"
        there = self.state
        super().load_state_dict(state_dict, move_to_device=False)
        for parameter, state in self.state.items():
            pages = set(_large(state))
            for name, value in state.items():
                if name in pages:
                    state[name] = self._page(there.get(parameter, {}).get(name), value, parameter.device)
                elif isinstance(value, Tensor):
                    state[name] = value.to(parameter.device)

    def _page(self, page: Tensor | None, value: Tensor, device: torch.device) -> Tensor:
        if page is None:
            like = torch.empty((), device=device).expand(value.shape)  # it takes nothing there
            page = self.get_state_buffer(like, dtype=value.dtype)
        return page.copy_(value)


def _large(state: dict[str, Any]) -> Iterator[str]:
    """Of a tensor's state, the names of what is paged on a GPU: all that is as large as a tensor of `PAGED_FROM`."""
    names = [name for name in ("state1", "state2") if name in state]
    # the tensor's size is the last one's: AdEMAMix has two states in its first
    if names and state[names[-1]].numel() >= PAGED_FROM:
        yield from names


class PagedAdamW(_Paged, adamw.PagedAdamW): ...


class PagedAdamW8bit(_Paged, adamw.PagedAdamW8bit): ...


class PagedAdEMAMix(_Paged, ademamix.PagedAdEMAMix): ...


class PagedAdEMAMix8bit(_Paged, ademamix.PagedAdEMAMix8bit): ...


class PagedLion(_Paged, lion.PagedLion): ...


class PagedLion8bit(_Paged, lion.PagedLion8bit): ...
