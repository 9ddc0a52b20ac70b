"""What `make release` builds holds all that the package reads, and works from any folder."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import factory

ROOT = Path(__file__).parents[2]
# folders of the checkout, and where the wheel has them
PARTS = {"factory": "factory", "conf": "factory/conf", "recipes": "factory/recipes"}

pytestmark = pytest.mark.slow


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(folder))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True)
    return folder


def test_each_file_is_in_both(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name.startswith(f"factory-{factory.__version__}-")
    there = {f"{inside}/{name}" for folder, inside in PARTS.items() for name in _files(ROOT / folder)}
    packed = zipfile.ZipFile(wheel).namelist()
    assert {name for name in packed if ".dist-info/" not in name} == there
    assert any(name.endswith(".dist-info/licenses/docs/LICENSE.txt") for name in packed)
    for kind in (".css", ".html", ".js", ".jsonl", "words/zh.yaml", "templates/chatml.yaml"):
        assert any(name.endswith(kind) for name in there), kind
    with tarfile.open(sdist) as file:
        found = {name.partition("/")[2] for name in file.getnames()}
    assert {f"{folder}/{name}" for folder in PARTS for name in _files(ROOT / folder)} <= found


def test_it_works_from_any_folder(built: Path, tmp_path: Path) -> None:
    """Beside the packages that are here; the home is new, and no checkout is in reach."""
    where, home, elsewhere = tmp_path / "site", tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(where), str(wheel)]
    subprocess.run(install, check=True)

    def said(*words: str) -> str:
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(where), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    conf = said(sys.executable, "-c", "from factory import groups; print(groups.CONF)").strip()
    assert conf == str(where / "factory" / "conf")
    command = str(where / "bin" / "factory")
    assert "134,515,008 parameters" in said(command, "plan")
    assert "smoke" in said(command, "--help")
    said(command, "recipe=smoke", "stage.max_steps=2", "tracking=none", "hydra.run.dir=run")
    assert (elsewhere / "run" / "report.json").is_file() and (elsewhere / "run" / "model").is_dir()
