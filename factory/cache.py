"""The user's cache folder: what is made once and can be made again."""

import os
from pathlib import Path


def folder() -> Path:
    """$FACTORY_CACHE, or `factory` in the system's."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "factory"
    return Path(os.environ.get("FACTORY_CACHE") or default)
