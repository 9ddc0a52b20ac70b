"""A sound's place to its wave."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.data.media.read import UNREADABLE, container, opened
from factory.data.record import BadRow


def read_audio(place: str, rate: int, seconds: float | None) -> NDArray[np.float32]:
    """One channel, `rate` numbers a second. Raises BadRow, of a longer one than a model hears (`seconds`) too."""
    from av.error import FFmpegError

    try:
        with opened("audio", place) as source, container(source) as sound:
            found = _decoded(sound, rate)
    except FFmpegError:
        raise BadRow(f"an audio {UNREADABLE}") from None
    if not len(found):
        raise BadRow(f"an audio {UNREADABLE}")
    if seconds is not None and len(found) > seconds * rate:
        raise BadRow(f"an audio is longer than the {seconds:g} seconds that the model hears")
    return found


def _decoded(sound: Any, rate: int) -> NDArray[np.float32]:
    import av

    stream = sound.streams.audio[0]
    resampler = av.AudioResampler(format="fltp", rate=rate)
    frames = [*sound.decode(stream), None]  # None: what the resampler still holds
    pieces = [made.to_ndarray() for frame in frames for made in resampler.resample(frame)]  # (channels, samples)
    return np.concatenate(pieces, axis=1).mean(axis=0)
