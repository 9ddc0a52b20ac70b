"""Where an image, a video or a sound is kept, and why it cannot be had."""

import base64
import io
import re
import struct
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
_URL = re.compile(rf"data:|file:|{_ADDRESS.pattern}", re.IGNORECASE)
# what decoders raise of broken files
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error)
# what may be behind a place, whatever its name says; PIL knows others, and EPS is a program that it has Ghostscript run
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF")
# how a camera was held: EXIF's orientation, and what turns such a picture upright
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def read_image(place: str) -> Any:
    """The image in RGB, turned upright as its camera noted. Raises BadRow. `place`: a path, file: URL or data: URL."""
    from PIL import Image

    try:
        with opened("image", place) as source, Image.open(source, formats=_formats()) as image:
            if image.width * image.height > MOST_PIXELS:
                raise too_large("image")
            image.load()
            return _rgb(_upright(image), image.format)
    except Image.DecompressionBombError:
        raise too_large("image") from None


def _formats() -> list[str]:
    """Those that this PIL has: one that it has not (AVIF before 11.3) would be an error of every file."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


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
    except _BROKEN:
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
        # a mail's base64 and that of many tools has a line's end every 76 letters
        return io.BytesIO(base64.b64decode("".join(place[found.end() :].split()), validate=True))
    if _ADDRESS.match(place):
        raise BadRow(f"{NAMED[kind]} {ADDRESS}")
    return file_of(place)


def is_url(place: str) -> bool:
    """Whether it says by itself where it is: a path may have a colon too."""
    return _URL.match(place) is not None


def file_of(place: str) -> Path:
    """Of a path or a file: URL. Raises ValueError where such a URL cannot be taken apart."""
    return Path(unquote(urlsplit(place).path) if place[:5].lower() == "file:" else place)


def _upright(image: Any) -> Any:
    """As PIL's exif_transpose turns it, which fails where the rest of the note is broken: no viewer minds that."""
    from PIL import ExifTags, Image

    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except _BROKEN:
        return image
    return image if turn is None else image.transpose(Image.Transpose[turn])


def _rgb(image: Any, format: str | None) -> Any:
    """What is transparent on white, as transformers' processors lay it: PIL would show what colour is hidden there.

    And it would cut 16 bits a pixel to their lowest eight. Raises BadRow where nothing says what white is.
    """
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and format not in ("PPM", "PNG")):
        raise BadRow(f"{NAMED['image']} {UNREADABLE}")
    if image.mode.startswith("I"):  # PPM's, and PNG's of an older PIL, are of 16 bits in 32
        import numpy as np

        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
