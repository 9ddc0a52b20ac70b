"""A sound's place to its wave."""

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.data.media.read import UNREADABLE, container, decodable, opened
from factory.data.record import BadRow


def read_audio(place: str, rate: int, seconds: float | None) -> NDArray[np.float32]:
    """One channel, `rate` numbers a second. Raises BadRow, of a longer one than a model hears (`seconds`) too."""
    from av.error import FFmpegError

    try:
        with opened("audio", place) as source, container(source) as sound:
            found = _decoded(sound, rate, seconds)
    except FFmpegError:
        raise BadRow(f"an audio {UNREADABLE}") from None
    if not len(found):
        raise BadRow(f"an audio {UNREADABLE}")
    return found


def _decoded(sound: Any, rate: int, seconds: float | None) -> NDArray[np.float32]:
    import av

    stream = decodable(sound.streams.audio)
    resampler = av.AudioResampler(format="fltp", rate=rate)
    pieces, size = list[NDArray[np.float32]](), 0
    for frame in chain(sound.decode(stream), [None]):  # None: what the resampler still holds
        for made in resampler.resample(frame):
            pieces.append(made.to_ndarray().mean(axis=0, dtype=np.float32))  # of (channels, samples)
            size += len(pieces[-1])
        if seconds is not None and size > seconds * rate:
            raise BadRow(f"an audio is longer than the {seconds:g} seconds that the model hears")
    return np.concatenate(pieces)
