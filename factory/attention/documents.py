"""Whether a row holds several documents, told to transformers by who made the batch.

transformers looks at the positions before each pass: on a GPU it waits until all before is computed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from factory.ahead import runs_ahead

_ASKED = "find_packed_sequence_indices"  # of transformers.masking_utils


@contextmanager
def known(batch: dict[str, Any]) -> Iterator[None]:
    """Of this batch, while the model is called with it; on a CPU, which waits for nothing, transformers looks."""
    if not runs_ahead(batch["input_ids"].device.type):
        yield
        return
    from transformers import masking_utils

    theirs = getattr(masking_utils, _ASKED)
    setattr(masking_utils, _ASKED, numbered if "position_ids" in batch else lambda _positions: None)
    try:
        yield
    finally:
        setattr(masking_utils, _ASKED, theirs)


def numbered(positions: Tensor) -> Tensor:
    """positions: (rows, length), each document's from 0 on. Of each token, its document's number in its row."""
    return (positions.diff(prepend=positions[:, :1] - 1) != 1).cumsum(-1)
