"""The user's cache folder: what is made once and can be made again."""

import os
import re
from pathlib import Path

CONVERTED = re.compile("-[0-9a-f]{12}$")  # ends the name of the folder that a GGUF file was converted to


def folder() -> Path:
    """$FACTORY_CACHE, or `factory` in the system's."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "factory"
    return Path(os.environ.get("FACTORY_CACHE") or default)
