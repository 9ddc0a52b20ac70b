"""A batch's images as its model takes them: by the processor, when the batch is made."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.data.images.read import read_image
from factory.data.record import BadRow
from factory.refusal import refuse

# what the processor makes of the text that it is given here, which is not the batch's
_OF_TEXT = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "labels",
    "cross_attention_mask",
    "text_replacement_offsets",
)


class Pictures:
    """Of one processor, which `make` gives when the first image comes."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make

    @cached_property
    def processor(self) -> Any:
        return self._make()

    def inputs(
        self, rows: Sequence[tuple[str, ...]], ids: NDArray[np.int64], trained: NDArray[np.bool_] | None = None
    ) -> dict[str, Any]:
        """The tensors that the model takes beside `input_ids`; none where no row has an image.

        rows: each one's images; ids and trained: (rows, length), padded; trained None: all is prompt. Raises UserError
        where an image is not what it was when its row was prepared.
        """
        seen = [number for number, places in enumerate(rows) if places]
        if not seen:
            return {}
        made = self.processor(
            text=[self.processor.image_token * len(rows[number]) for number in seen],
            images=[[_again(place) for place in rows[number]] for number in seen],
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        )
        self._check([rows[number] for number in seen], made["input_ids"].numpy(), ids[seen])
        found = {name: value for name, value in made.items() if name not in _OF_TEXT}
        more = _MORE.get(type(self.processor).__name__)
        if more:
            return more(self.processor, found, seen, ids, trained)
        if "mm_token_type_ids" in made:
            found["mm_token_type_ids"] = _kinds(self.processor, ids)
        return found

    def _check(self, rows: Sequence[tuple[str, ...]], made: NDArray[Any], ids: NDArray[Any]) -> None:
        marks = [token for token in self.processor.image_token_ids if token is not None]
        wanted, there = (np.isin(each, marks).sum(axis=1) for each in (made, ids))
        for places, one, other in zip(rows, wanted.tolist(), there.tolist(), strict=True):
            if one != other:
                wrong = f"{', '.join(places)[:200]}: {one:,} tokens now, {other:,} in the prepared row"
                raise refuse("image-changed", "data", wrong)


def _again(place: str) -> Any:
    """An image that could be read when its row was prepared."""
    try:
        return read_image(place)
    except BadRow as error:
        raise refuse("image-changed", "data", f"{place[:200]}: {error}") from None


def _kinds(processor: Any, ids: NDArray[np.int64]) -> Any:
    """Which tokens are an image's: (rows, length)."""
    import torch

    return torch.tensor(processor.create_mm_token_type_ids(ids.tolist()))


Made = dict[str, Any]


def _gemma3(processor: Any, found: Made, seen: Sequence[int], ids: NDArray[np.int64], trained: Any) -> Made:
    return found | {"token_type_ids": _kinds(processor, ids)}


def _paligemma(processor: Any, found: Made, seen: Sequence[int], ids: NDArray[np.int64], trained: Any) -> Made:
    """0 up to the first trained token: what comes before is seen in both directions (Beyer et al. 2024, figure 2)."""
    import torch

    after = np.zeros_like(ids) if trained is None else (np.cumsum(trained, axis=1) > 0).astype(np.int64)
    return found | {"token_type_ids": torch.from_numpy(after)}


def _mllama(processor: Any, found: Made, seen: Sequence[int], ids: NDArray[np.int64], trained: Any) -> Made:
    """Every row has room for as many images as the row with the most; `cross_attention_mask` says who sees which.

    It is (rows, length, images, tiles), 1 where a token sees a tile.
    """
    import torch
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    whole: Made = {}
    for name, value in found.items():
        if name == "num_tiles":
            continue
        whole[name] = value.new_zeros(len(ids), *value.shape[1:])
        if name == "aspect_ratio_mask":
            whole[name][..., 0] = 1  # of an image that is not there, as the processor has it
        whole[name][seen] = value
    images = [get_cross_attention_token_mask(row, processor.image_token_id) for row in ids.tolist()]
    tiles = whole["aspect_ratio_mask"].sum(-1).tolist()
    mask = convert_sparse_cross_attention_mask_to_dense(
        images, tiles, processor.image_processor.max_image_tiles, ids.shape[1]
    )
    return whole | {"cross_attention_mask": torch.from_numpy(mask)}


_MORE: dict[str, Callable[[Any, Made, Sequence[int], NDArray[np.int64], Any], Made]] = {
    "Gemma3Processor": _gemma3,
    "PaliGemmaProcessor": _paligemma,
    "MllamaProcessor": _mllama,
}
