"""What is read of tensors while something is computed with them."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"_local_scalar_dense", "nonzero", "equal", "bincount", "masked_select", "_unique2", "unique_consecutive"}


class Reads(TorchDispatchMode):
    """The operations that wait for a GPU, as they have to tell a number or a size."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.operations = list[str](), 0
        self.numbers = set[int]()  # where those that were read lie

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        if name in READS or any(mask is not None and mask.dtype == torch.bool for mask in masks):
            self.seen.append(name)
            self.numbers.add(args[0].data_ptr())
        self.operations += 1
        return func(*args, **(kwargs or {}))
