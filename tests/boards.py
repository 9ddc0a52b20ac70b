"""A board's server of the module's own, and its page in Chromium."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import browsing
import pytest

CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's working folder."""
    return tmp_path_factory.mktemp("board")


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Any]:
    with (place / "printed").open("wb") as out:
        started = subprocess.Popen(
            [sys.executable, "-m", "factory", "board", "board.port=0"], cwd=place, stdout=out, stderr=out
        )
    yield started
    started.terminate()
    started.wait()


@pytest.fixture(scope="module")
def address(server: Any, place: Path) -> str:
    printed = place / "printed"
    while (found := re.search(r"http://[\d.:]+", printed.read_text())) is None:
        assert server.poll() is None, printed.read_text()
        time.sleep(0.2)
    return found[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    with browsing.opened(browser, address) as made:
        yield made
