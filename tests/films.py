"""Videos of which every pixel of every frame is known."""

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

RATE = 8  # frames a second
# frames, height, width
SIZES = {"short": (10, 24, 40), "long": (24, 24, 24), "wide": (24, 12, 32), "next": (12, 16, 24)}


def frames(name: str) -> NDArray[np.uint8]:
    """(frames, height, width, 3), random and none like another."""
    return np.random.default_rng(len(name)).integers(0, 256, (*SIZES[name], 3), np.uint8)


def save(path: Path, shown: NDArray[np.uint8], rate: int = RATE, codec: str = "ffv1", pixels: str = "bgr0") -> str:
    """By a codec that loses nothing, unless another is named."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *shown.shape[1:3], pixels
        for each in shown:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(each, format="rgb24")))
        film.mux(stream.encode())
    return str(path)
