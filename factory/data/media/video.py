"""A video's place to some of its frames, evenly in time, as RGB."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.data.media.read import UNREADABLE, container, decodable, opened, too_large
from factory.data.record import BadRow

MOST_OF_ALL = 2**30  # pixels of the frames that are seen, 3 GiB of them: 128 of 3840 x 2160


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """`frames` (n, height, width, 3) of the `count` that there are, by their `numbers`, at `rate` of them a second."""

    frames: NDArray[np.uint8]
    numbers: tuple[int, ...]
    count: int
    rate: float

    def metadata(self) -> Any:
        """As transformers' processors read it."""
        from transformers.video_utils import VideoMetadata

        _, height, width, _ = self.frames.shape
        return VideoMetadata(
            total_num_frames=self.count,
            fps=self.rate,
            width=width,
            height=height,
            duration=self.count / self.rate,
            frames_indices=list(self.numbers),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """What is seen of a video: `fps` frames a second, at most `most`; without `fps` so many, evenly."""

    fps: float | None
    most: int


def read_video(place: str, frames: Frames) -> Video:
    """Turned upright as its camera noted. Raises BadRow. `place`: a path, file: URL or data: URL."""
    from av.error import FFmpegError

    try:
        with opened("video", place) as source:
            count, rate, pixels = _measured(source)
            while count:
                numbers = chosen(count, rate, frames)
                if pixels * len(numbers) > MOST_OF_ALL:
                    raise too_large("video")
                found, there = _decoded(source, numbers)
                if there > numbers[-1]:
                    return Video(found, numbers, count, rate)
                count = there  # some packets give no frame, as where a film begins between two whole pictures
    except FFmpegError:
        pass
    raise BadRow(f"a video {UNREADABLE}")


def chosen(count: int, rate: float, frames: Frames) -> tuple[int, ...]:
    """Which frames are seen: `frames.fps` a second, at most `frames.most`, from the first to the last.

    Without `fps` they are `most`, some of them twice where the video has fewer. One alone would not move.
    """
    wanted = frames.most
    if frames.fps is not None:
        wanted = min(max(int(count / rate * frames.fps), 2), frames.most, count)
    return tuple(np.linspace(0, count - 1, wanted).astype(int).tolist())


def _measured(source: Any) -> tuple[int, float, int]:
    """How many frames there are, how many a second, and pixels of one: not all files say the first, some wrongly."""
    with container(source) as film:
        stream = decodable(film.streams.video)
        pixels = stream.width * stream.height
        count = sum(packet.size > 0 and not packet.is_discard for packet in film.demux(stream))
        rate = stream.average_rate or stream.guessed_rate or Fraction(0)
    return (count if rate else 0), float(rate), pixels


def _decoded(source: Any, numbers: tuple[int, ...]) -> tuple[NDArray[np.uint8], int]:
    """The frames of these numbers, and how many were decoded: fewer than the last's number where there is none."""
    places, found, count = np.array(numbers), np.empty(0, np.uint8), 0
    with container(source) as film:
        for number, frame in enumerate(film.decode(decodable(film.streams.video))):
            count = number + 1
            if (wanted := places == number).any():
                shown = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                if not len(found):
                    found = np.empty((len(numbers), *shown.shape), np.uint8)
                found[wanted] = shown
            if number == numbers[-1]:
                break
    return found, count
