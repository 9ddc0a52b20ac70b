"""What can become of a file on a disk."""

from pathlib import Path


def flip(file: Path) -> None:
    """One bit in its middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
