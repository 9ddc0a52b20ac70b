"""A real MLflow server that is killed in the middle of a run, and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import SMALL, Command, metrics, steps, wait_for

from factory.run.folder import RunFolder, read_json

pytestmark = pytest.mark.slow


class Server:
    """`mlflow server` on a port of its own, which it keeps."""

    def __init__(self, where: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri, self._where = f"http://127.0.0.1:{self._port}", where
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["server", "--workers", "1", "--port", str(self._port), "--backend-store-uri", "sqlite:///server.db"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, "--artifacts-destination", str(self._where / "artifacts")],
            cwd=self._where,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self._answers, 240)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def signal(self, number: int) -> None:
        """To it and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, number)
            if number == signal.SIGKILL:
                self._process.wait()
                self._process = None


@pytest.fixture
def where(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def server(where: Path) -> Iterator[Server]:
    made = Server(where)
    yield made
    made.signal(signal.SIGKILL)


def history(server: Server, run_id: str, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return [(point.step, point.value) for point in MlflowClient(server.uri).get_metric_history(run_id, name)]


def test_a_server_that_dies_and_returns_gets_it_all(
    server: Server, where: Path, tiny_model: Path, started: Callable[..., Command]
) -> None:
    options = (
        *SMALL,
        f"model.path={tiny_model}",
        f"tracking.uri={server.uri}",
        "tracking.system_metrics=true",
        "tracking.system_metrics_seconds=0.5",
    )
    server.start()
    folder = RunFolder(where / "run")
    command = started(*options, "stage.max_steps=100000", "stage.save_steps=20", "hydra.run.dir=run")
    wait_for(lambda: (read_json(folder.tracking) or {}).get("step", 0) > 3, 240)
    server.signal(signal.SIGKILL)
    wait_for(lambda: "cannot be reached" in command.output.read_text(), 240)
    server.start()
    wait_for(lambda: "answers again" in command.output.read_text(), 240)
    server.signal(signal.SIGSTOP)  # it takes connections and says nothing
    at = steps(folder.path)
    wait_for(lambda: steps(folder.path) > at + 5, 240)
    begun = time.monotonic()
    command.process.send_signal(signal.SIGINT)
    command.process.wait(200)
    text = " ".join(command.output.read_text().split())
    assert time.monotonic() - begun < 120
    assert command.process.returncode == 130 and "Traceback" not in text
    told = json.loads(folder.report.read_text())["tracking"]
    assert told["unsent"] > 5 and f"did not get {told['unsent']:,} of" in text
    server.signal(signal.SIGCONT)
    for _ in range(2):
        assert subprocess.run([sys.executable, "-m", "factory", "track", "run"], cwd=where).returncode == 0
    assert json.loads(folder.report.read_text())["tracking"]["unsent"] == 0
    wanted = [(line["step"], line["loss"]) for line in metrics(folder.path)]
    assert history(server, told["run_id"], "loss") == wanted
    samples = folder.system.read_text().splitlines()
    assert len(history(server, told["run_id"], "system/cpu_utilization_percentage")) == len(samples)
