"""Fixtures: a tiny model's folder, and runs of the executor inside the test's own process."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# before torch is imported anywhere: two processes that spin for each other's cores are ten times as slow
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import tiny

from factory import cli, compose
from factory.plan import Plan, to_yaml
from factory.run.folder import RunFolder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer llama: context 256, 512 tokens, ChatML."""
    return tiny.save(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compiled(*overrides: str, training: bool = True) -> Plan:
    """The plan of a command line. Raises UserError."""
    composed = compose.compose(compose.parse(list(overrides)))
    return cli._compiled(composed, training=training)


@dataclass
class Done:
    run: Any
    result: dict[str, Any]
    model: Any


@pytest.fixture
def execute(here: Path, tiny_model: Path) -> Callable[..., Done]:
    """Compiles and walks a plan in this process, on the tiny model unless told otherwise."""

    def execute(
        *overrides: str, folder: str = "run", resume_from: Path | None = None, plan: Plan | None = None
    ) -> Done:
        import time

        from factory.execute import executor
        from factory.execute.context import Run
        from factory.steps import train

        base = ("evaluate.samples=0", "hardware=cpu", "tracking=none")
        if not any(text.startswith("model.path=") for text in overrides):
            base += (f"model.path={tiny_model}",)
        plan = plan or compiled(*base, *overrides)
        where = RunFolder(folder)
        where.path.mkdir(parents=True, exist_ok=True)
        where.plan.write_text(to_yaml(plan))
        run = Run(plan=plan, folder=where, resume_from=resume_from, started=time.time())
        kept: dict[str, Any] = {}
        original = train.train

        def keeping(run: Any, model: Any, **values: Any) -> Any:
            kept["model"] = model
            return original(run, model=model, **values)

        train.train = keeping
        try:
            result = executor.walk(run)
        finally:
            train.train = original
        return Done(run, result, kept["model"])

    return execute
