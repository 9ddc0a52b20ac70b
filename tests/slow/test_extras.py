"""Each extra of pyproject.toml can be installed beside what Factory needs: pip resolves it, and installs nothing.

python -m pytest -m network tests/slow/test_extras.py
"""

import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
BUILT_HERE = "flash-attn"  # by a setup.py that imports torch, and asks for CUDA unless it is told not to
WITHOUT_CUDA = {"CUDA_HOME": "/nowhere", "FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}

pytestmark = pytest.mark.network


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_resolves(extra: str) -> None:
    if extra == BUILT_HERE and find_spec("wheel") is None:
        pytest.skip("it is built with what is installed here, and the package wheel is not")
    wanted = ["--no-build-isolation", *EXTRAS[extra]] if extra == BUILT_HERE else [f"{ROOT}[{extra}]"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--disable-pip-version-check", *wanted],
        env=os.environ | WITHOUT_CUDA,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
