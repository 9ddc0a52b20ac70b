"""Files as base64 by their names, to be hashed and sent to another process, and back on a disk."""

import base64
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def saved(tokenizer: Any, leave: str = "") -> dict[str, str]:
    """All that a transformers tokenizer saves, but for what is named `leave`."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != leave)
        return {str(path.relative_to(folder)): encoded(path.read_bytes()) for path in paths}


def decoded(files: Mapping[str, str]) -> dict[str, bytes]:
    return {name: base64.b64decode(content) for name, content in files.items()}


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
