"""Who asks a GPU for work is ahead of it, as long as nobody reads what it computes."""

from collections.abc import Callable
from typing import Any


def runs_ahead(device: str) -> bool:
    """Whether to read a number waits for all that the device was asked for before."""
    return device.partition(":")[0] == "cuda"


def card(device: str) -> str:
    """The device of this thread with its number: other threads begin with the first (torch.cuda.set_device)."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{torch.cuda.current_device()}"


def moved(value: Any, device: str) -> Any:
    """A tensor of the CPU on the device. A GPU copies it in its turn, and nobody waits for that."""
    return value.pin_memory().to(device, non_blocking=True) if runs_ahead(device) else value.to(device)


def sent(value: Any) -> Any:
    """A tensor on its way to the CPU, where it is there once `arrival` says so; a number as it is.

    Read without that, it would be copied in its turn too: after all that was asked for meanwhile.
    """
    return value.detach().to("cpu", non_blocking=True) if hasattr(value, "detach") else value


def arrival(device: str) -> Callable[[], None]:
    """Waits, when it is called, for what was asked of the device until now, and for nothing after it."""
    if not runs_ahead(device):
        return lambda: None
    import torch

    event = torch.cuda.Event()
    event.record()
    return event.synchronize
