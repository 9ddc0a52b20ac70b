"""Fixtures: a tiny model's folder, and runs of the executor inside the test's own process."""

import gc
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# before torch is imported anywhere: two processes that spin for each other's cores are ten times as slow
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import grids
import pytest
import tiny
from commands import Command

from factory import cli
from factory.config import compose
from factory.config.refusal import Refusal, UserError
from factory.config.settings import Stage
from factory.plan.inspect import machine as look
from factory.plan.plan import Plan, Ranks, Train, to_yaml
from factory.run.folder import RunFolder, last_logged

pytest_plugins = ["boards"]  # fixtures of a folder's own conftest.py would hide this module, which tests import from


# the files that take longest, 15 s and more of a process: of two processes the one that ends last shall have little
# left. Those that start processes of their own (the first, the fifth …) stand apart: two at once wait for each other.
LONGEST = (
    "run/test_launch.py",
    "plan/test_rules.py",
    "estimate/test_step.py",
    "export/test_own_base.py",
    "test_compatibility.py",
    "ranks/test_equal.py",
    "test_covering.py",
    "execute/test_loop.py",
    "stages/test_judged_runs.py",
    "ranks/test_launched.py",
    "test_dead_keys.py",
    "config/test_compose.py",
    "run/test_chain.py",
    "stages/test_rm.py",
    "plan/inspect/test_walked.py",
    "stages/test_ppo.py",
    "rollouts/test_roles.py",
    "run/test_sweep.py",
    "methods/adapters/test_adalora.py",
    "execute/test_checkpoint.py",
    "doctor/test_doctor.py",
    "models/test_options.py",
    "export/test_export_rules.py",
    "board/test_runs.py",
)


@pytest.hookimpl(tryfirst=True)  # before those with a mark are deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    grids.thin(items)
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def empty_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder from now on, with nothing in it."""
    folder.mkdir()
    monkeypatch.setenv("FACTORY_CACHE", str(folder))
    return folder


@pytest.fixture
def hangup() -> Iterator[None]:
    """It does what it does where nobody has said otherwise, as nohup has: here, and to what is started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect() -> None:
    """A run collects garbage before it reads what it saved: what outlives a module of tests is not looked through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer llama: context 256, 512 tokens, ChatML."""
    return tiny.save(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, whose modules end with the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@lru_cache(256)
def composed(overrides: tuple[str, ...], verb: str = "train") -> compose.Composed:
    """A tree of packaged options: many tests compose the same."""
    return compose.compose(compose.CommandLine(overrides=overrides, verb=verb))


AS_TRANSFORMERS = ("compute.attention=sdpa", "compute.kernels=none")  # to the last bit


def compiled(*overrides: str, training: bool = True, verb: str = "train") -> Plan:
    """The plan of a command line. Raises UserError."""
    line = compose.parse(list(overrides), verb)
    tree = compose.compose(line) if line.config_dirs else composed(line.overrides, verb)
    return cli._compiled(tree, training=training, verb=verb)


def refusals(*overrides: str, training: bool = True) -> list[Refusal]:
    """What a command line is refused for, empty where it compiles."""
    try:
        compiled(*overrides, training=training)
    except UserError as error:
        return list(error.refusals)
    return []


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def rules(self) -> list[str]:
        return re.findall(r"^\[([\w-]+)\]", self.err, re.MULTILINE)


@pytest.fixture
def command(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command line, within this process."""

    def command(*arguments: str) -> Said:
        code = cli.main(list(arguments))
        return Said(code, *capsys.readouterr())

    return command


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends that the machine has other memory, GPUs or packages."""

    def machine(**changes: Any) -> None:
        pretended = replace(look.look_at_machine(), **changes)
        monkeypatch.setattr(look, "look_at_machine", lambda: pretended)

    return machine


@pytest.fixture
def started(where: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands, none of which outlives the test."""
    commands: list[Command] = []

    def start(*arguments: str, **environment: str) -> Command:
        commands.append(Command(where, *arguments, **environment))
        return commands[-1]

    yield start
    for command in commands:
        command.process.kill()
        command.process.wait()


@dataclass
class Done:
    run: Any
    result: dict[str, Any]
    # of a run that trains; `start`: every parameter as it was before the first step
    model: Any = None
    dataset: Any = None
    start: dict[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run.folder.metrics.read_text().splitlines()]

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.metrics]


@pytest.fixture
def execute(here: Path, tiny_model: Path) -> Callable[..., Done]:
    """Compiles and walks a plan in this process, on the tiny model unless told otherwise."""

    def execute(
        *overrides: str, folder: str = "run", resume_from: Path | None = None, plan: Plan | None = None
    ) -> Done:
        from known_warnings import unknown

        from factory.execute import executor
        from factory.execute.context import Run
        from factory.execute.heard import hearing
        from factory.steps import train

        base = ("evaluate.samples=0", "hardware=cpu", "tracking=none", "checks=full")
        if not any(text.startswith("model.path=") for text in overrides):
            base += (f"model.path={tiny_model}",)
        plan = plan or compiled(*base, *overrides)
        where = RunFolder(folder)
        where.path.mkdir(parents=True, exist_ok=True)
        where.plan.write_text(to_yaml(plan))
        where.forget_metrics_after(last_logged(resume_from))  # as the parent does
        run = Run(plan=plan, folder=where, resume_from=resume_from)
        kept: dict[str, Any] = {}
        original = train.train

        def keeping(run: Any, model: Any, **values: Any) -> Any:
            start = {name: value.detach().clone() for name, value in model.named_parameters()}
            kept.update(model=model, dataset=values["dataset"], start=start)
            return original(run, model=model, **values)

        train.train = keeping
        try:
            with warnings.catch_warnings(), hearing(run.heard):
                warnings.simplefilter("always")
                result = executor.walk(run)
        finally:
            train.train = original
        assert not unknown(run.heard.first), "libraries warn: mend the cause, or name it in tests/known_warnings.py"
        return Done(run, result, **kept)

    return execute


def planned_train(**changes: Any) -> Any:
    """What of a plan an optimizer and the watch over updates read: settings of the stage, and what `train` resolved."""
    stage: dict[str, Any] = {
        "name": "sft",
        "learning_rate": 1e-2,
        "num_epochs": 1.0,
        "max_steps": None,
        "batch_size": 1,
        "gradient_accumulation_steps": 1,
        "optimizer": "adamw",
        "lr_scheduler": "constant",
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": None,
        "logging_steps": 1,
        "save_steps": None,
        "save_total_limit": 1,
        "eval_steps": None,
        "load_best_model_at_end": False,
        "metric_for_best_model": "loss",
        "early_stopping_patience": None,
        "early_stopping_threshold": 0.0,
        "on_bad_update": "stop",
        "spike_factor": None,
        "spike_norm": None,
        "max_skipped_updates": 10,
        "resume": None,
    }
    ranks = Ranks(sharded_loading=False, configuration={}, by_node=("node 0: rank 0",))
    own = {name: changes[name] for name in changes if name not in stage}
    train = Train(**{"own": {}, "reference": None, "autocast": None, "threads": 1, "ranks": ranks, **own})
    said = Stage(**{name: changes.get(name, value) for name, value in stage.items()})
    hardware = SimpleNamespace(strategy="none", num_processes=1)
    return SimpleNamespace(settings=SimpleNamespace(stage=said, hardware=hardware), steps=SimpleNamespace(train=train))


@pytest.fixture
def train_plan() -> Callable[..., Any]:
    return planned_train


@pytest.fixture
def scoring(here: Path) -> str:
    """The override that scores answers by a function in a file beside the run."""
    from rolling import LETTERS

    (here / "letters_scoring.py").write_text(LETTERS)
    return "stage.reward=letters_scoring:letters"


@pytest.fixture
def judge(execute: Callable[..., Done]) -> Path:
    """The folder of a finished run of a reward model, with an adapter."""
    from rolling import LORA, RM

    return execute(*LORA, *RM, folder="rm").run.folder.path.resolve()
