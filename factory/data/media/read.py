"""Where an image, a video or a sound is kept, and why it cannot be had."""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from factory.data.record import MEDIA, BadRow

# as much as PIL warns of: a file of some kilobytes may unfold to gigabytes
MOST_PIXELS = 89_478_485
NAMED = {"image": "an image", "video": "a video", "audio": "an audio"}
# how a reason ends that is of the file alone: the row may be right, and the file be put there
MISSING, UNREADABLE, ADDRESS = "is missing", "cannot be read", "is at an address, and none is fetched"
UNSEEN = frozenset(f"{NAMED[kind]} {why}" for kind in MEDIA.values() for why in (MISSING, UNREADABLE, ADDRESS))
_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DATA = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)


def read_image(place: str) -> Any:
    """The image in RGB, turned upright as its camera noted. Raises BadRow. `place`: a path, file: URL or data: URL."""
    from PIL import Image, ImageOps

    try:
        with opened("image", place) as source, Image.open(source) as image:
            if image.width * image.height > MOST_PIXELS:
                raise too_large("image")
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise too_large("image") from None


@contextmanager
def opened(kind: str, place: str) -> Iterator[Path | io.BytesIO]:
    """What a decoder reads; what it raises of a broken file becomes a BadRow."""
    try:
        source = _source(kind, place)
        if isinstance(source, Path) and source.exists() and not source.is_file():
            raise BadRow(f"{NAMED[kind]} {UNREADABLE}")  # a pipe would be waited for, a device read without an end
        yield source
    except BadRow:
        raise
    except FileNotFoundError:
        raise BadRow(f"{NAMED[kind]} {MISSING}") from None
    # what decoders raise of broken files
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError):
        raise BadRow(f"{NAMED[kind]} {UNREADABLE}") from None


@contextmanager
def container(source: Path | io.BytesIO) -> Iterator[Any]:
    """PyAV's, from the source's start. Raises ImportError, and what PyAV does of a broken file.

    A file may be a playlist, which names other files and addresses: no protocol is allowed, so that none is read.
    """
    import av

    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        file.seek(0)
        with av.open(file, "r", options={"protocol_whitelist": "none"}) as found:
            yield found


def decodable(streams: Any) -> Any:
    """The first of a container's streams. Raises IndexError where there is none, ValueError where none decodes it."""
    if streams[0].codec_context is None:
        raise ValueError("no decoder")
    return streams[0]


def too_large(kind: str) -> BadRow:
    return BadRow(f"{NAMED[kind]} has too many pixels")


def _source(kind: str, place: str) -> Path | io.BytesIO:
    """Raises BadRow, and ValueError where a data: or file: URL is broken."""
    if found := _DATA.match(place):
        return io.BytesIO(base64.b64decode(place[found.end() :], validate=True))
    if _ADDRESS.match(place):
        raise BadRow(f"{NAMED[kind]} {ADDRESS}")
    return file_of(place)


def file_of(place: str) -> Path:
    """Of a path or a file: URL. Raises ValueError where such a URL cannot be taken apart."""
    return Path(unquote(urlsplit(place).path) if place[:5].lower() == "file:" else place)


def _rgb(image: Any) -> Any:
    """PIL would cut 16 bits a pixel to their lowest eight."""
    if image.mode.startswith("I;16"):
        import numpy as np
        from PIL import Image

        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
