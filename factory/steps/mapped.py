"""Weights that are copied out of their file as they are read, into another type: the file's pages stay no longer."""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def let_go_of() -> Iterator[None]:
    """Around transformers' reading of weights, which maps their files into memory and converts a tensor at a time.

    A page that was read stays resident until the last tensor is made: of bfloat16 read as float32 half as much again.
    """
    from transformers import core_model_loading as loading

    make = getattr(loading, "_materialize_copy", None)
    if make is None or sys.platform != "linux":
        yield
        return

    def copy(saved: Any, device: Any = None, dtype: Any = None) -> Any:
        import torch

        if isinstance(saved, torch.Tensor):  # in memory, where others may read it
            return make(saved, device, dtype)
        part = saved[...]
        made = make(part, device, dtype)
        if part.device.type == made.device.type == "cpu" and made.dtype != part.dtype:
            _let_go(part)
        return made

    loading._materialize_copy = copy
    try:
        yield
    finally:
        loading._materialize_copy = make


def _let_go(part: Any) -> None:
    """Of the whole pages of a tensor that is not read again; the file has them still."""
    start, page = part.data_ptr(), mmap.PAGESIZE
    first, past = -(-start // page) * page, (start + part.nbytes) // page * page
    if part.is_contiguous() and past > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(past - first), mmap.MADV_DONTNEED)
