"""An image's place to its pixels, or why there are none."""

import base64
import io
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from factory.data.record import BadRow

# as much as PIL warns of: a file of some kilobytes may unfold to gigabytes
MOST_PIXELS = 89_478_485
MISSING, UNREADABLE, ADDRESS = (
    "an image is missing",
    "an image cannot be read",
    "an image is at an address, and none is fetched",
)
_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DATA = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)


def read_image(place: str) -> Any:
    """The image in RGB, turned upright as its camera noted. Raises BadRow. `place`: a path, file: URL or data: URL."""
    from PIL import Image, ImageOps

    try:
        source = _source(place)
        if isinstance(source, Path) and source.exists() and not source.is_file():
            raise BadRow(UNREADABLE)  # a pipe would be waited for, a device read without an end
        with Image.open(source) as image:
            if image.width * image.height > MOST_PIXELS:
                raise BadRow("an image has too many pixels")
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except BadRow:
        raise
    except FileNotFoundError:
        raise BadRow(MISSING) from None
    except Image.DecompressionBombError:
        raise BadRow("an image has too many pixels") from None
    # what decoders raise of broken files
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError):
        raise BadRow(UNREADABLE) from None


def _source(place: str) -> Path | io.BytesIO:
    """Raises BadRow, and ValueError where a data: or file: URL is broken."""
    if found := _DATA.match(place):
        return io.BytesIO(base64.b64decode(place[found.end() :], validate=True))
    if _ADDRESS.match(place):
        raise BadRow(ADDRESS)
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
