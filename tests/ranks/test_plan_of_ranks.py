"""What a plan says of several processes, without starting any."""

import json
import os
import signal
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from conftest import compiled
from hypothesis import given
from hypothesis import strategies as st

from factory.execute.__main__ import INTERRUPTED
from factory.execute.context import Run, append
from factory.plan.plan import read_plan, to_yaml
from factory.ranks.__main__ import Death, _pass_on_signals, deaths, died, hung, stopped
from factory.ranks.outer import _shown, run_as_rank
from factory.ranks.world import VARIABLES, World, from_environment, lost_another
from factory.run.folder import MANIFEST, RunFolder, at_step
from factory.run.screen import Screen

BASE = ("hardware=cpu", "tracking=none", "evaluate.samples=0", "stage.max_steps=2")


def plan(model: Path, strategy: str, processes: int = 2, *overrides: str) -> Any:
    shape = (f"hardware.num_processes={processes}", f"hardware.strategy={strategy}")
    return compiled(*BASE, f"model.path={model}", *shape, *overrides, training=False)


@given(st.integers(0, 40), st.integers(1, 7))
def test_each_item_is_counted_once_and_all_have_as_many(items: int, ranks: int) -> None:
    shares = [World(rank=rank, size=ranks).share(list(range(items))) for rank in range(ranks)]
    assert sorted(item for own, idle in shares for item in own[: len(own) - idle]) == list(range(items))
    assert len({len(own) for own, _ in shares}) == 1
    assert all(idle <= 1 for _, idle in shares)


def test_a_rank_is_who_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert from_environment() == World()
    monkeypatch.setenv("RANK", "3")
    assert from_environment() == World()  # not all that a launcher gives
    for name, value in zip(VARIABLES, ("3", "8", "1", "host", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    assert from_environment() == World(rank=3, size=8, local_rank=1)


@pytest.mark.parametrize(("shown", "card"), [(1, 0), (8, 3)])
def test_libraries_are_told_the_card_that_a_rank_has(shown: int, card: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher may show each rank its own card alone, whose number is 0 then."""
    chosen = list[int]()
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: shown)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "new_group", lambda **_: None)
    world = World(rank=3, size=8, local_rank=3)
    world.join("cuda", SimpleNamespace(strategy="fsdp", num_processes=8, rank_timeout=600))
    assert chosen == [card] and os.environ["LOCAL_RANK"] == str(card) and world.local_rank == 3


def test_the_digest_is_of_the_steps_micro_batches(tiny_model: Path) -> None:
    def of(strategy: str, processes: int, micro_batches: int) -> Any:
        accumulated = f"stage.gradient_accumulation_steps={micro_batches}"
        return plan(tiny_model, strategy, processes, accumulated, "compute.kernels=none")

    one, two = of("none", 1, 4), of("ddp", 2, 2)
    assert one.digest() == two.digest() == of("fsdp", 4, 1).digest()
    assert one.digest() != of("ddp", 2, 4).digest()
    assert one.estimate.flops_per_step == two.estimate.flops_per_step


def test_what_is_split_is_divided(tiny_model: Path) -> None:
    full = ("method=full", "precision=fp32")
    one = plan(tiny_model, "none", 1, *full).estimate.memory
    found = {
        name: plan(tiny_model, name, 4, *full).estimate.memory for name in ("ddp", "zero1", "zero2", "zero3", "fsdp")
    }
    divided = {
        name: tuple(part for part in ("optimizer", "gradients") if getattr(memory, part) * 4 == getattr(one, part))
        for name, memory in found.items()
    }
    both = ("optimizer", "gradients")
    assert divided == {"ddp": (), "zero1": ("optimizer",), "zero2": both, "zero3": both, "fsdp": both}
    assert found["ddp"].weights == found["zero2"].weights == one.weights
    assert one.weights / 4 < found["fsdp"].weights <= one.weights
    assert found["ddp"].capacity == pytest.approx(one.capacity / 4, rel=0.2)


def test_deepspeeds_buckets_are_of_the_models_size(tiny_model: Path, tmp_path: Path) -> None:
    mixtral = tiny.save(tmp_path / "mixtral", model_type="mixtral", num_local_experts=4)
    made = plan(mixtral, "zero3", 2, "method=full", "stage.batch_size=3", "stage.max_grad_norm=0.5")
    given = made.steps.train.ranks.configuration
    zero = given["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == 65_536  # the least
    assert zero["leaf_module"] == {"names": ["model.layers.0.mlp", "model.layers.1.mlp"]}
    accumulation = made.settings.stage.gradient_accumulation_steps
    assert given["train_batch_size"] == prod((3, accumulation, 2))
    assert given["gradient_clipping"] == 0.5
    named = compiled("hardware.num_processes=2", "hardware.strategy=zero2", "method=full", training=False)
    zero = named.steps.train.ranks.configuration["zero_optimization"]
    assert zero["reduce_bucket_size"] == 3_540_096  # SmolLM2-135M's layer
    assert "leaf_module" not in plan(tiny_model, "zero2").steps.train.ranks.configuration["zero_optimization"]


def test_a_layer_that_the_method_adds_is_split_as_others(tmp_path: Path) -> None:
    mixtral = tiny.save(tmp_path / "mixtral", model_type="mixtral", num_local_experts=4)
    added, layers = ("method=llama_pro", "method.num_new_layers=2"), [f"model.layers.{index}" for index in range(4)]
    zero3, fsdp = (plan(mixtral, name, 2, *added).steps.train.ranks.configuration for name in ("zero3", "fsdp"))
    assert fsdp["units"] == layers
    assert zero3["zero_optimization"]["leaf_module"]["names"] == [f"{name}.mlp" for name in layers]


def test_each_node_is_named(tiny_model: Path) -> None:
    said = plan(tiny_model, "ddp", 4, "hardware.num_nodes=2").steps.train.ranks.by_node
    assert [text.partition(";")[0] for text in said] == ["node 0: ranks 0 to 1", "node 1: ranks 2 to 3"]
    assert "rank 0 writes" in said[0]


def test_a_plan_is_printed_as_the_file_that_is_replayed(
    tiny_model: Path, command: Callable[..., Any], here: Path
) -> None:
    shape = ("hardware.num_processes=2", "hardware.strategy=fsdp", f"model.path={tiny_model}")
    (here / "plan.yaml").write_text(command("plan", *BASE, *shape, "plan.format=yaml").out)
    made = read_plan(here / "plan.yaml")
    assert made.steps.train.ranks.configuration["units"] == ["model.layers.0", "model.layers.1"]
    assert made.digest() == plan(tiny_model, "fsdp").digest()


# --- under an outer launcher


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, as if torchrun had started it as the only one."""
    for name, value in zip(VARIABLES, ("0", "1", "0", "localhost", "29500"), strict=True):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("rank")
@pytest.mark.parametrize("arguments", [(), ("train",), ("resume", "run"), ("-m", "seed=1,2")])
def test_a_rank_only_replays_a_plan(arguments: tuple[str, ...], command: Callable[..., Any]) -> None:
    said = command(*arguments)
    assert (said.code, said.rules) == (2, ["outer-launcher"])


def test_a_run_that_goes_on_shows_what_is_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path)

    def log(step: int) -> None:
        line = {"step": step, "time": step, "loss": 1.0, "learning_rate": 1e-3, "tokens_per_second": 1, "memory": 1}
        append(folder.metrics, line)

    log(1)
    with _shown(compiled("tracking=none", training=False), folder, Screen()):
        log(2)
    shown = capsys.readouterr().out
    assert "step     2" in shown and "step     1" not in shown


def test_what_is_said_is_in_the_log_and_a_traceback_where_it_is(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No parent writes run.log from what the process prints, which its launcher has."""
    folder = RunFolder(tmp_path / "run")
    saved = at_step(folder.checkpoints, 3)
    saved.mkdir(parents=True)
    (saved / "state.json").write_text('{"step": 3}')
    (saved / MANIFEST).write_text('{"files": {}}')
    made = plan(tiny_model, "none", 1)

    def fails(run: Run) -> None:
        run.emit("note", text="a note")
        raise RuntimeError("a bug")

    monkeypatch.setattr("factory.execute.__main__._walked", fails)
    assert run_as_rank(made, folder, World()) == 1
    log, told = folder.log.read_text(), "[crashed] RuntimeError: a bug\n  the traceback is in what rank 0 printed\n"
    assert f"Continuing from {saved}\n" in log and made.digest() in log and "a note\n" in log and log.endswith(told)
    printed = capfd.readouterr()
    assert "Traceback" in printed.err and told in printed.out


@pytest.mark.usefixtures("rank")
def test_a_rank_needs_a_folder_and_as_many_others_as_planned(
    tiny_model: Path, command: Callable[..., Any], here: Path
) -> None:
    (here / "plan.yaml").write_text(to_yaml(plan(tiny_model, "ddp")))
    assert command("train", "--from-plan=plan.yaml").rules == ["rank-folder"]
    said = command("train", "--from-plan=plan.yaml", "hydra.run.dir=run")
    assert (said.code, said.rules) == (2, ["ranks-of-plan"])


def test_a_plan_of_several_nodes_needs_a_launcher(tiny_model: Path, command: Callable[..., Any], here: Path) -> None:
    (here / "plan.yaml").write_text(to_yaml(plan(tiny_model, "ddp", 2, "hardware.num_nodes=2")))
    said = command("train", "--from-plan=plan.yaml", "hydra.run.dir=run")
    assert (said.code, said.rules) == (2, ["nodes-need-launcher"])


# --- who is asked to stop


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_before_there_are_ranks_the_launcher_ends(asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = []
    monkeypatch.setattr("factory.ranks.__main__.answer", answers.append)
    passed, children = _pass_on_signals(), list[Any]()
    monkeypatch.setattr("psutil.Process.children", lambda _self: children)
    with pytest.raises(SystemExit) as ended:
        answers[0](asked, None)
    assert ended.value.code == INTERRUPTED and passed == [asked]
    told: list[int] = []
    children.append(SimpleNamespace(send_signal=told.append))
    answers[0](asked, None)
    assert told == [asked]


@pytest.mark.parametrize(
    ("found", "passed", "told"),
    [
        ([(0, signal.SIGTERM, ""), (1, signal.SIGTERM, "")], [signal.SIGTERM], True),
        ([(0, signal.SIGTERM, ""), (1, None, "Connection closed by peer")], [signal.SIGTERM], True),
        ([(0, signal.SIGINT, ""), (1, signal.SIGKILL, "")], [signal.SIGINT], True),
        ([(0, signal.SIGTERM, ""), (1, signal.SIGTERM, "")], [], False),
        ([(0, signal.SIGKILL, "")], [signal.SIGTERM], False),
        ([(0, signal.SIGTERM, ""), (1, None, "ImportError: no")], [signal.SIGTERM], False),
    ],
)
def test_ranks_that_did_not_listen_yet_are_stopped(
    found: list[tuple[int, int | None, str]], passed: list[int], told: bool
) -> None:
    assert stopped([Death(*each, time=0) for each in found], passed) is told


@pytest.mark.parametrize("local_rank", [0, 1])
def test_who_follows_its_nodes_first_does_not_stop_alone(
    local_rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_, **__: None)  # all others say nothing
    world = World(rank=local_rank, size=2, local_rank=local_rank, _group=True)
    run = Run(compiled(training=False), RunFolder(tmp_path), None, world, stopping=True)
    with world.node_leader_first():
        assert run.asked_to_stop() is (local_rank == 0)
    assert run.asked_to_stop()


# --- who died first

CLOSED = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:45725"


def failure(code: int, at: int = 10) -> Any:
    return SimpleNamespace(exitcode=code, timestamp=at, message="")


def wrote(folder: Path, rank: int, error: str, at: int) -> None:
    file = folder / "run" / "attempt_0" / str(rank) / "error.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"message": {"message": error, "extraInfo": {"timestamp": str(at)}}}))


def test_the_killed_one_comes_before_those_that_lost_it(tmp_path: Path) -> None:
    wrote(tmp_path, 0, CLOSED, 5)
    found = deaths({0: failure(1), 1: failure(-9, at=20)}, tmp_path)
    assert "Rank 1 of 2 was killed (SIGKILL)" in died(found, 2, Path("run.log"))


def test_an_error_of_its_own_comes_before_the_loss_of_another(tmp_path: Path) -> None:
    wrote(tmp_path, 0, CLOSED, 5)
    wrote(tmp_path, 1, "IndexError: list index out of range", 6)
    found = deaths({0: failure(1)}, tmp_path)  # rank 1 has not ended yet
    assert "Rank 1 of 2: IndexError: list index out of range" in died(found, 2, Path("run.log"))


def test_a_rank_that_ended_without_a_word_is_told_too(tmp_path: Path) -> None:
    assert "Rank 3 of 4: it ended without a word" in died(deaths({3: failure(7)}, tmp_path), 4, Path("run.log"))


def test_a_lost_rank_is_known_by_the_librarys_words() -> None:
    assert lost_another(CLOSED) and not lost_another("ValueError: no")


CLOSED, LATE = (
    "RuntimeError: Connection closed by peer [127.0.0.1]:40",
    "RuntimeError: Timed out waiting 600000ms for recv",
)
KILLED, ABORTED = signal.SIGKILL, signal.SIGABRT
WATCHDOG = "[rank0]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, Timeout(ms)=600000)"


@pytest.mark.parametrize(
    ("found", "log", "told"),
    [
        ([(0, None, LATE), (1, KILLED, ""), (2, None, LATE)], "", "rank 1 of 3 hung"),
        ([(0, None, LATE), (2, None, CLOSED)], "", "rank 1 of 3 hung"),  # not even SIGKILL ended it
        ([(1, None, LATE), (0, KILLED, ""), (2, KILLED, "")], "", "ranks 0, 2 of 3 hung"),
        (
            [(0, None, LATE), (1, None, CLOSED), (2, None, LATE)],
            "",
            "ranks 0, 2 of 3 waited, and another came too late",
        ),
        ([(0, ABORTED, ""), (2, ABORTED, ""), (1, KILLED, "")], WATCHDOG, "rank 1 of 3 hung"),
        ([(0, ABORTED, ""), (2, KILLED, ""), (1, KILLED, "")], "terminate called", None),
        ([(0, ABORTED, ""), (1, KILLED, "")], "the hub: The read operation timed out; terminate called", None),
        ([(0, None, CLOSED), (2, None, CLOSED), (1, KILLED, "")], "", None),
        ([(0, None, LATE), (1, None, "IndexError: list index out of range")], "", None),
    ],
)
def test_who_said_nothing_while_others_waited_hung(
    found: list[tuple[int, int | None, str]], log: str, told: str | None, tmp_path: Path
) -> None:
    before = WATCHDOG.encode()  # of another attempt
    (tmp_path / "run.log").write_bytes(before + log.encode())
    hardware = SimpleNamespace(num_processes=3, rank_timeout=600)
    text = hung([Death(*each, time=0) for each in found], hardware, tmp_path / "run.log", len(before))
    assert text is None if told is None else str(text).startswith(f"[rank-hung] hardware.rank_timeout=600: {told}.")
