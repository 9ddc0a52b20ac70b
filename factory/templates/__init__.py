"""Named chat templates, a YAML file each: for base models, and for those whose own template is broken."""

from functools import cache
from pathlib import Path

from factory.config import own
from factory.config.refusal import UserError, refuse
from factory.templates import types
from factory.templates.types import Template, ToolText

__all__ = ["MISSING", "Template", "ToolText", "names", "needed", "read", "template", "tool_names", "tool_text"]

_FOLDER = Path(__file__).parent
MISSING = "the tokenizer of this model has no chat template"


def names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def tool_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (_FOLDER / "tools").glob("*.yaml")))


def is_file(name: str) -> bool:
    """Whether it is the path of a file of the user's, not the name of a packaged one."""
    return name.endswith(".yaml") or is_jinja(name)


def is_jinja(name: str) -> bool:
    """Whether it is the path of a template as tokenizers carry it: that of a saved model, for one."""
    return name.endswith(".jinja")


def needed(verb: str, kind: str) -> bool:
    """Whether rows of this kind need one: without it a model is served for completions, and exported as it is."""
    return kind != "text" and verb not in ("serve", "export")


def template(name: str) -> Template:
    """A packaged one by its name, one of the user's by its path. Raises UserError where this cannot be one."""
    return _own(name, own.digest(name)) if is_file(name) else _packaged(name)


def stops(name: str) -> tuple[str, ...]:
    """The tokens that a template in YAML says an answer ends with, beside the end of text."""
    return () if name == "auto" or is_jinja(name) else template(name).stop


@cache
def _packaged(name: str) -> Template:
    return types.read(Template, _FOLDER / f"{name}.yaml")


@cache
def _own(path: str, sha256: str) -> Template:
    """Read again when it has changed."""
    try:
        made = types.read(Template, Path(path))
        assert made.tools in tool_names(), f"tools: the formats are {', '.join(tool_names())}"
        return made
    except OSError as error:
        wrong = f"it cannot be read ({error.strerror})"
    except UserError as error:
        wrong = "; ".join(f"{each.setting}: {each.wrong}" for each in error.refusals)
    except (AssertionError, ValueError) as error:
        wrong = " ".join(str(error).split())
    raise _unusable(path, wrong)


def _unusable(path: str, wrong: str) -> UserError:
    return refuse(
        "own-template",
        f"model.template={path}",
        wrong,
        because=(
            "a chat template of your own is a YAML file of the texts around each turn, or jinja as tokenizers have it"
        ),
        fix="correct the file; docs/contributing.md has a whole one",
    )


@cache
def tool_text(name: str) -> ToolText:
    return types.read(ToolText, _FOLDER / "tools" / f"{name}.yaml")


def read(name: str) -> str:
    """The template as jinja, in the form that tokenizers carry. Raises UserError."""
    if is_jinja(name):
        try:
            return Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise _unusable(name, f"it cannot be read ({error.strerror})") from None
        except ValueError:
            raise _unusable(name, "it is no text") from None
    from factory.templates.chat import chat_template

    made = template(name)
    return chat_template(made, tool_text(made.tools))
