"""Named chat templates, one jinja file each, in the form that tokenizers carry."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.jinja")))


def read(name: str) -> str:
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")
