"""How an optional part is installed."""

from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def install(extra: str, *others: str) -> str:
    """The command for these extras of this project, where it was installed from: on PyPI its name is another's."""
    place = _ROOT if (_ROOT / "pyproject.toml").is_file() else "factory"
    return f"pip install '{place}[{extra}]'" + "".join(f" or '{place}[{other}]'" for other in others)
