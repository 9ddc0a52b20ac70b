"""How values are written for people."""

import os
import shutil
import sys


def size(count: float | None) -> str:
    """Bytes."""
    if count is None:
        return "-"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB".replace(".0 ", " ")


def program(name: str) -> str:
    """How the program is called from here: by its name, or through this Python where it is not on the PATH."""
    return name if shutil.which(name) else f"{os.path.relpath(sys.executable)} -m {name}"
