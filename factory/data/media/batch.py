"""What is shown in a batch as its model takes it: by the processor, when the batch is made."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.config.refusal import refuse
from factory.data.media.processor import Processor
from factory.data.record import MEDIA, BadRow, Medium

_media_changed = partial(
    refuse,
    "media-changed",
    because="its row was prepared when it was another, and its tokens would not be those of what is there now",
    fix="put it back, or remove the folder `data` in FACTORY_CACHE, so that the rows are prepared again",
)

# what the processor makes of the text that it is given here, which is not the batch's
_OF_TEXT = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "labels",
    "cross_attention_mask",
    "text_replacement_offsets",
)
Made = dict[str, Any]
Rows = Sequence[tuple[Medium, ...]]


class Inputs:
    """Of one processor, which `make` gives when the first image, video or sound comes."""

    def __init__(self, make: Callable[[], Processor]):
        self._make = make

    @cached_property
    def processor(self) -> Processor:
        return self._make()

    def __call__(self, rows: Rows, ids: NDArray[np.int64], trained: NDArray[np.bool_] | None = None) -> Made:
        """The tensors that the model takes beside `input_ids`; none where no row has anything.

        rows: what each one shows, in the order of its tokens; ids and trained: (rows, length), padded; trained None:
        all is prompt. Raises UserError where something is not what it was when its row was prepared.
        """
        seen = [number for number, media in enumerate(rows) if media]
        if not seen:
            return {}
        shown, counts = [rows[number] for number in seen], np.zeros(len(seen), np.int64)
        found = self._found(shown, counts)
        self._check(shown, counts, ids[seen])
        asked, more = found.pop("mm_token_type_ids", None), _MORE.get(self.processor.name)
        if more:
            return more(self.processor, found, seen, ids, trained)
        return found if asked is None else found | {"mm_token_type_ids": _kinds(self.processor, ids)}

    def _found(self, rows: Rows, counts: NDArray[np.int64]) -> Made:
        """`counts` are raised by the tokens that each row's media have."""
        kinds = {medium.kind for media in rows for medium in media}
        joined = _JOINED.get(self.processor.name)
        if joined and "video" in kinds:
            apart = [[self._of_kind(medium.kind, [(medium,)], counts[at : at + 1]) for medium in media]
                     for at, media in enumerate(rows)]  # fmt: skip
            return joined(apart)
        found: Made = {}
        for kind in MEDIA.values():
            if kind in kinds:
                found |= self._of_kind(kind, rows, counts)
        return found

    def _of_kind(self, kind: str, rows: Rows, counts: NDArray[np.int64]) -> Made:
        own = [[medium for medium in media if medium.kind == kind] for media in rows]
        having = [number for number, media in enumerate(own) if media]
        texts = [self.processor.tokens[kind] * len(own[number]) for number in having]
        shown = [[self._again(medium) for medium in own[number]] for number in having]
        try:
            made = self.processor(kind, texts, shown, return_tensors="pt", padding=True)
        except BadRow as error:  # each alone was taken when its row was prepared
            raise refuse(
                "media-of-a-batch",
                "stage.batch_size",
                f"{len(having):,} rows with {kind}s: {error}",
                because="some processors make one tensor of all videos of a batch, so these must be of one length",
                fix=(
                    "set data.video_fps=null, which sees data.video_frames of each, or stage.batch_size=1 and "
                    "evaluate.batch_size=1"
                ),
            ) from None
        counts[having] += self._count(made["input_ids"].numpy())
        return {name: value for name, value in made.items() if name not in _OF_TEXT}

    def _again(self, medium: Medium) -> Any:
        """What could be read when its row was prepared."""
        try:
            return self.processor.read(medium)
        except BadRow as error:
            raise _media_changed("data", f"{medium.place[:200]}: {error}") from None

    def _count(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        return np.isin(ids, self.processor.ids).sum(axis=1)

    def _check(self, rows: Rows, counts: NDArray[np.int64], ids: NDArray[Any]) -> None:
        for media, one, other in zip(rows, counts.tolist(), self._count(ids).tolist(), strict=True):
            if one != other:
                places = ", ".join(medium.place for medium in media)[:200]
                raise _media_changed("data", f"{places}: {one:,} tokens now, {other:,} in the prepared row")


def _side_by_side(rows: list[list[Made]]) -> Made:
    """InternVL's tiles of images and frames of videos, which are alike to it: one list, in the order of the tokens."""
    import torch

    made = [each for row in rows for each in row]
    return {name: torch.cat([each[name] for each in made]) for name in made[0]}


def _row_by_row(rows: list[list[Made]]) -> Made:
    """SmolVLM's likewise, but each row has its own list; what a row has less than another is zero."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    names = rows[0][0].keys()
    whole = {name: [torch.cat([each[name] for each in row], dim=1)[0] for row in rows] for name in names}
    return {name: pad_sequence(values, batch_first=True) for name, values in whole.items()}


# of models to which a video is as many images: what is made of each alone becomes what is made of all
_JOINED: Mapping[str, Callable[[list[list[Made]]], Made]] = {
    "InternVLProcessor": _side_by_side,
    "SmolVLMProcessor": _row_by_row,
}


def _kinds(processor: Processor, ids: NDArray[np.int64]) -> Any:
    """Which tokens are an image's, a video's, a sound's: (rows, length)."""
    import torch

    return torch.tensor(processor.own.create_mm_token_type_ids(ids.tolist()))


def _gemma3(processor: Processor, found: Made, seen: Sequence[int], ids: NDArray[np.int64], trained: Any) -> Made:
    return found | {"token_type_ids": _kinds(processor, ids)}


def _paligemma(processor: Processor, found: Made, seen: Sequence[int], ids: NDArray[np.int64], trained: Any) -> Made:
    """0 up to the first trained token: what comes before is seen in both directions (Beyer et al. 2024, figure 2).

    A row without an image reads as it does among others of its kind, in one direction.
    """
    import torch

    after = np.zeros_like(ids) if trained is None else (np.cumsum(trained, axis=1) > 0).astype(np.int64)
    after[np.setdiff1d(np.arange(len(ids)), seen)] = 1
    return found | {"token_type_ids": torch.from_numpy(after)}


def _mllama(processor: Processor, found: Made, seen: Sequence[int], ids: NDArray[np.int64], trained: Any) -> Made:
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
    images = [get_cross_attention_token_mask(row, processor.own.image_token_id) for row in ids.tolist()]
    tiles = whole["aspect_ratio_mask"].sum(-1).tolist()
    mask = convert_sparse_cross_attention_mask_to_dense(
        images, tiles, processor.own.image_processor.max_image_tiles, ids.shape[1]
    )
    return whole | {"cross_attention_mask": torch.from_numpy(mask)}


_MORE: dict[str, Callable[[Processor, Made, Sequence[int], NDArray[np.int64], Any], Made]] = {
    "Gemma3Processor": _gemma3,
    "PaliGemmaProcessor": _paligemma,
    "MllamaProcessor": _mllama,
}
