"""What pyproject.toml says, and what must agree with it."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

import factory

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_version_has_one_home(project: dict[str, Any]) -> None:
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert ROOT / project["tool"]["hatch"]["version"]["path"] == ROOT / "factory" / "__init__.py"
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "pyproject.toml", ROOT / "Makefile")}
    assert not [path for path, text in texts.items() if f'"{factory.__version__}"' in text]


def test_a_wheel_has_the_options_and_the_recipes(project: dict[str, Any]) -> None:
    """The files one by one: tests/slow/test_release.py."""
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["factory"]
    assert wheel["force-include"] == {"conf": "factory/conf", "recipes": "factory/recipes"}
