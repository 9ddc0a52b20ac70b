"""Named chat templates, a YAML file each: for base models, and for those whose own template is broken."""

from functools import cache
from pathlib import Path

from factory.templates.types import Template, ToolText

__all__ = ["Template", "ToolText", "names", "read", "template", "tool_names", "tool_text"]

_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def tool_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (_FOLDER / "tools").glob("*.yaml")))


@cache
def template(name: str) -> Template:
    from factory.templates import types

    return types.read(Template, _FOLDER / f"{name}.yaml")


@cache
def tool_text(name: str) -> ToolText:
    from factory.templates import types

    return types.read(ToolText, _FOLDER / "tools" / f"{name}.yaml")


@cache
def read(name: str) -> str:
    """The template as jinja, in the form that tokenizers carry."""
    from factory.templates.chat import chat_template

    made = template(name)
    return chat_template(made, tool_text(made.tools))
