"""The proofs of a run are green where all is right, and each is red where its own fault was planted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled
from rich.console import Console

from factory.estimate.runtime import LIBRARY_PAGES
from factory.execute import checkpoint
from factory.execute.checks import CHECKS, LEVELS
from factory.execute.report import ADVICE, comparable, memory_as_estimated, write_report
from factory.run.folder import MANIFEST
from factory.run.report_shown import report_panel
from factory.steps import proofs, train

MIB = 2**20
SHORT = ("stage.max_steps=2", "stage.batch_size=2", "data.max_samples=12", "stage.learning_rate=1e-2")
FROM_WEIGHTS = "method.rank=4 precision=bf16"
Execute = Callable[..., Any]


@pytest.mark.parametrize(
    "overrides",
    [
        "method=lora precision=fp32",
        "method=lora precision=pure_bf16 method.dropout=0.1",
        "method=qlora",
        "method=dora stage=dpo",
        f"method=pissa {FROM_WEIGHTS}",
        f"method=olora {FROM_WEIGHTS}",
        "method=loftq method.rank=4 precision=fp32",
        "method=pissa method.rank=4 method.quantization.bits=8",
        "method=adalora",
        "method=vera method.rank=4",
        "method=ia3",
        "method=lora stage=rm",
        "method=lora compute.attention=s2 compute.group_size=16",
        "method=lora model.rope_scaling=yarn data.max_length=300",
        "method=lora model.new_tokens=['<tool>'] model.pad_vocabulary_to=64",
        "method=full precision=fp32",
        "method=full precision=bf16 stage=rm",
        "method=freeze method.num_layers=1 precision=bf16",
        "method=badam precision=bf16 method.switch_interval=1",
        "method=galore method.rank=4 precision=pure_bf16",
        "method=llama_pro method.num_new_layers=1",
    ],
)
def test_a_sound_run_is_green(overrides: str, execute: Execute) -> None:
    checks = execute(*SHORT, *overrides.split()).run.checks
    assert not {name: check["detail"] for name, check in checks.items() if not check["passed"]}
    wanted = {"resume_point", "save_reload"} | ({"frozen_unchanged"} if "full" not in overrides else set())
    assert wanted - {"frozen_unchanged"} <= checks.keys()


def test_the_verdicts_say_what_they_compared(execute: Execute) -> None:
    checks = execute(*SHORT, "method=lora", "precision=fp32").run.checks
    assert checks["save_reload"]["detail"].startswith("28 of 28 trained tensors are the same, ")
    assert checks["frozen_unchanged"]["detail"].startswith("21 of 21 frozen tensors ")
    assert checks["resume_point"]["detail"].startswith("step-000002 of 2 steps opens, with 28 of 28 ")


def test_a_pruned_adapter_is_read_as_it_was_saved(execute: Execute) -> None:
    """PEFT alone would round it to the base's type, which moves single tokens of a real model by half a nat."""
    done = execute(*SHORT, "method=adalora", "precision=bf16")
    pattern = json.loads((done.run.folder.model / "adapter_config.json").read_text())["rank_pattern"]
    assert any(0 < sum(kept) < len(kept) for kept in pattern.values())
    assert done.run.checks["save_reload"]["detail"].endswith("losses of single tokens differ by 0 nats at most")


def test_nothing_is_said_of_frozen_tensors_where_there_are_none(execute: Execute) -> None:
    assert "frozen_unchanged" not in execute(*SHORT, "method=full", "precision=fp32").run.checks


def test_what_several_processes_do_not_prove_is_said(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("method=lora", "stage=dpo", "precision=fp32")
    checks = execute(*SHORT, *words).run.checks
    monkeypatch.setattr(proofs, "_alone", lambda run: False)
    left = execute(*SHORT, *words, folder="shared").run.checks
    said = {name for name, text in CHECKS.items() if "unless hardware.strategy is none" in text}
    assert checks.keys() - left.keys() == said - {"saved"}  # of checks=fast


# --- how many proofs are made


@pytest.mark.parametrize(
    ("level", "made", "left_out"),
    [
        ("full", {"frozen_unchanged", "save_reload", "merge", "resume_point", "logits_as_model"}, {"saved"}),
        ("fast", {"saved", "resume_point", "logits_as_model"}, {"frozen_unchanged", "save_reload", "merge"}),
        (
            "none",
            {"loss_mask", "tokens_accounted", "gradients_alive"},
            {"frozen_unchanged", "saved", "save_reload", "merge", "resume_point", "logits_as_model"},
        ),
    ],
)
def test_the_level_of_the_checks_is_in_plan_and_report(
    level: str, made: set[str], left_out: set[str], execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model is read a second time only by checks=full."""
    read, real = list[str](), proofs.read_saved
    monkeypatch.setattr(proofs, "read_saved", lambda run: read.append(level) or real(run))
    done = execute(*SHORT, "method=lora", "precision=fp32", f"checks={level}")
    assert made <= done.run.checks.keys() and not left_out & done.run.checks.keys()
    assert not _red(done) and read == (["full"] if level == "full" else [])
    assert done.run.plan.settings.checks == level
    assert done.run.plan.digest() == compiled_again(done, "checks=full").digest()
    write_report(done.run, "finished", done.result, None)
    report = json.loads(done.run.folder.report.read_text())
    assert report["checks_level"] == level
    console = Console(width=200)
    with console.capture() as shown:
        console.print(report_panel(report, Path("run")))
    assert f"{level}: {LEVELS[level]}" in shown.get()


def compiled_again(done: Any, *more: str) -> Any:
    return compiled(*(text for text in done.run.plan.overrides if not text.startswith("checks=")), *more)


@pytest.mark.parametrize(
    "overrides",
    [
        "method=lora precision=pure_bf16",
        "method=qlora",
        f"method=pissa {FROM_WEIGHTS}",
        "method=pissa method.rank=4 method.quantization.bits=8",
        "method=adalora precision=bf16",
        "method=vera method.rank=4",
        "method=ia3",
        "method=oft",
        "method=lora model.new_tokens=['<tool>']",
        "method=full precision=bf16",
        "method=full precision=bf16 stage=rm",
        "method=freeze method.num_layers=1 precision=fp32",
    ],
)
def test_what_is_saved_is_compared_without_a_second_model(overrides: str, execute: Execute) -> None:
    done = execute(*SHORT, *overrides.split(), "checks=fast")
    trained = sum(value.requires_grad for value in done.model.parameters())
    assert done.run.checks["saved"]["passed"], done.run.checks["saved"]
    count, _, of, *_ = done.run.checks["saved"]["detail"].split()
    assert count == of and int(count) >= trained


# --- planted faults


@pytest.fixture
def after_saving(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any, Any], None]], None]:
    """Lets something happen to the model or to the run's folder when the model has just been saved."""

    def after_saving(fault: Callable[[Any, Any], None]) -> None:
        real = train.save_model

        def saving(run: Any, model: Any, *rest: Any) -> None:
            real(run, model, *rest)
            fault(run, model)

        monkeypatch.setattr(train, "save_model", saving)

    return after_saving


def _red(done: Any) -> set[str]:
    return {name for name, check in done.run.checks.items() if not check["passed"]}


def test_a_frozen_tensor_that_moved(execute: Execute, after_saving: Any) -> None:
    import torch

    name = "base_model.model.model.layers.1.mlp.up_proj.base_layer.weight"

    def fault(run: Any, model: Any) -> None:
        with torch.no_grad():
            model.get_parameter(name)[3, 5] += 1e-6

    after_saving(fault)
    done = execute(*SHORT, "method=lora", "precision=fp32")
    assert "frozen_unchanged" in _red(done)
    assert done.run.checks["frozen_unchanged"]["detail"].endswith(f"; not {name}")


def _other_values(run: Any, _model: Any) -> None:
    from safetensors.torch import load_file, save_file

    file = next(file for file in run.folder.model.glob("*.safetensors") if "head" not in file.name)
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] += 0.5
    save_file(tensors, file, metadata={"format": "pt"})


def _other_scale(run: Any, _model: Any) -> None:
    file = run.folder.model / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 160}))


def _no_weights(run: Any, _model: Any) -> None:
    (run.folder.model / "adapter_model.safetensors").unlink()


def _half_the_weights(run: Any, _model: Any) -> None:
    file = run.folder.model / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _a_tensor_less(run: Any, _model: Any) -> None:
    from safetensors.torch import load_file, save_file

    file = run.folder.model / "adapter_model.safetensors"
    _, *rest = sorted(tensors := load_file(file))
    save_file({key: tensors[key] for key in rest}, file, metadata={"format": "pt"})


def _a_layer_less(run: Any, _model: Any) -> None:
    file = run.folder.model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 1}))


@pytest.mark.parametrize(
    ("fault", "overrides"),
    [
        (_other_values, "method=lora precision=fp32"),
        (_other_values, "method=full precision=bf16"),
        (_other_scale, "method=lora precision=fp32"),
        (_no_weights, "method=lora precision=fp32"),
        (_half_the_weights, "method=lora precision=fp32"),
        (_a_layer_less, "method=full precision=fp32"),
    ],
)
def test_what_was_saved_is_not_what_was_trained(
    fault: Any, overrides: str, execute: Execute, after_saving: Any
) -> None:
    after_saving(fault)
    assert _red(execute(*SHORT, *overrides.split())) == {"save_reload"}


@pytest.mark.parametrize(
    ("fault", "overrides"),
    [
        (_other_values, "method=lora precision=fp32"),
        (_other_values, "method=full precision=bf16"),
        (_no_weights, "method=lora precision=fp32"),
        (_half_the_weights, "method=lora precision=fp32"),
        (_a_tensor_less, "method=lora precision=fp32"),
    ],
)
def test_a_saved_tensor_is_not_the_trained_one(fault: Any, overrides: str, execute: Execute, after_saving: Any) -> None:
    after_saving(fault)
    assert _red(execute(*SHORT, *overrides.split(), "checks=fast")) == {"saved"}


def _checkpoint_fault(change: Callable[[Path], None]) -> Callable[[Any, Any], None]:
    """A change of the last checkpoint that its manifest does not show."""

    def fault(run: Any, _model: Any) -> None:
        last = run.folder.checkpoint()
        change(last)
        manifest = json.loads((last / MANIFEST).read_text())
        manifest["files"] = {name: (last / name).stat().st_size for name in manifest["files"]}
        (last / MANIFEST).write_text(json.dumps(manifest))

    return fault


def _break_header(folder: Path) -> None:
    file = folder / "trained.safetensors"
    file.write_bytes(b"\xff" * 16 + file.read_bytes()[16:])


def _break_optimizer(folder: Path) -> None:
    file = folder / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-64])


def _lose_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "trained.safetensors")
    del tensors[sorted(tensors)[0]]
    save_file(tensors, folder / "trained.safetensors")


def _another_step(folder: Path) -> None:
    state = checkpoint.state_of(folder)
    (folder / "state.json").write_text(json.dumps(state | {"step": 1}))


@pytest.mark.parametrize("change", [_break_header, _break_optimizer, _lose_a_tensor, _another_step])
def test_a_checkpoint_that_does_not_open(change: Callable[[Path], None], execute: Execute, after_saving: Any) -> None:
    after_saving(_checkpoint_fault(change))
    assert _red(execute(*SHORT, "method=lora", "precision=fp32")) == {"resume_point"}


def test_no_checkpoint_at_all(execute: Execute, after_saving: Any) -> None:
    import shutil

    after_saving(lambda run, model: shutil.rmtree(run.folder.checkpoints))
    assert _red(execute(*SHORT, "method=lora", "precision=fp32")) == {"resume_point"}


# --- advice


@pytest.mark.parametrize(
    ("reached", "passed"), [(1100, True), (900, True), (1101, False), (899, False), (1001, True), (999, True)]
)
def test_memory_as_estimated(reached: int, passed: bool) -> None:
    (check,) = memory_as_estimated({"peak_bytes": reached * MIB}, 1000 * MIB).values()
    assert check["passed"] is passed
    said = "about" if abs(reached - 1000) == 1 else f"10 % {'more' if reached > 1000 else 'less'} than"
    assert check["detail"].endswith(f" were reached, {said} the 1000 MiB estimated")
    assert memory_as_estimated({"peak_bytes": None}, 1000) == {}


def test_pages_of_libraries_beyond_the_usual_are_not_held_against_an_estimate() -> None:
    """An environment that was just written has more of them: no plan could tell."""
    memory = {"peak_bytes": 1150 * MIB, "library_pages_bytes": LIBRARY_PAGES + 70 * MIB}
    (check,) = memory_as_estimated(memory, 1000 * MIB, " for rows").values()
    assert check["passed"] and check["detail"] == (
        "1.05 GiB were reached, 8 % more than the 1000 MiB estimated for rows, "
        "beside 70 MiB that the libraries' files take more here than usual"
    )
    assert comparable({**memory, "library_pages_bytes": LIBRARY_PAGES - MIB}) == comparable({"peak_bytes": 1150 * MIB})
    assert not memory_as_estimated(memory, 970 * MIB)["memory_as_estimated"]["passed"]


def test_advice_is_never_red() -> None:
    check = {"passed": False, "detail": "far off"}
    report = {
        "parameters": {"trainable": 1, "total": 2},
        "memory": {"peak_bytes": 1, "estimated_bytes": 1},
        "checks": {ADVICE[0]: check, "loss_mask": check},
    }
    console = Console(width=100)
    with console.capture() as shown:
        console.print(report_panel(report, Path("run")))
    lines = shown.get().splitlines()
    assert ["off" in line for line in lines if ADVICE[0] in line] == [True]
    assert sum("RED" in line for line in lines) == 1


@pytest.mark.parametrize("perplexity", [True, False])
def test_only_what_was_estimated_is_held_against_the_estimate(perplexity: bool, execute: Any, tiny_model: Path) -> None:
    """A plan's estimate of an evaluation is that of the perplexity's batches."""
    words = ("method=none", f"evaluate.perplexity={str(perplexity).lower()}", "evaluate.generation=true")
    words += ("evaluate.max_samples=2", "evaluate.max_new_tokens=4", "data.max_length=200", "data.max_samples=40")
    place = (f"model.path={tiny_model}", "hardware=cpu", "tracking=none", "evaluate.samples=0")
    done = execute(plan=compiled(*place, *words, verb="evaluate"))
    write_report(done.run, "finished", done.result, None)
    report = json.loads(done.run.folder.report.read_text())
    steps = report["memory"]["by_step"]
    assert report["memory"]["peak_bytes"] == (steps["evaluate"] if perplexity else max(steps.values()))
    assert (report["memory"]["estimated_bytes"] is not None) == perplexity
    assert ("memory_as_estimated" in report["checks"]) == perplexity
    assert ("memory_error" in report.get("estimate", {})) == perplexity
    console = Console(width=100)
    with console.capture() as shown:
        console.print(report_panel(report, Path("run")))
    assert ("while measuring" in shown.get()) == perplexity


# --- the checksum


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_the_checksum_sees_any_change(dtype: str) -> None:
    import torch

    kind = getattr(torch, dtype)
    value = torch.arange(3 * 100_003).remainder(251).to(kind).view(3, -1)
    known = proofs.checksum(value)
    assert known == proofs.checksum(value.clone()) and known[0] == (3, 100_003)
    for row, column in ((0, 0), (1, 77), (2, 100_002)):
        changed = value.clone()
        changed[row, column] += 1
        assert proofs.checksum(changed) != known
    rows = torch.stack([value[1], value[0], value[2]])
    assert proofs.checksum(rows) != known
    assert proofs.checksum(value.view(-1)) != known  # another shape


def test_no_tensor_is_waited_for_on_the_way_to_the_checksums() -> None:
    """They are read together, as one tensor."""
    import torch
    from reads import Reads

    model = torch.nn.ModuleList(torch.nn.Linear(300, 700, dtype=torch.bfloat16) for _ in range(3))
    names = [name for name, _ in model.named_parameters()]
    with Reads() as reads:
        found = proofs.checksums(model, names)
    assert reads.operations and reads.seen == []
    assert found == {name: proofs.checksum(value) for name, value in model.named_parameters()}


def test_one_bit_of_a_tiny_tensor() -> None:
    import torch

    assert proofs.checksum(torch.tensor(1.0)) != proofs.checksum(torch.tensor(1.0000001))


def test_the_checksum_of_a_quantizers_own_kind_of_tensor() -> None:
    """By what it holds: torchao's refuses to be seen as bytes."""
    import torch

    class Held:
        shape = (2, 4)

        def __init__(self, scale: float = 0.5, first: int = 1):
            self.codes, self.scale = torch.arange(first, first + 8, dtype=torch.int8), torch.tensor([scale])

        def detach(self) -> "Held":
            return self

        def __tensor_flatten__(self) -> tuple[list[str], None]:
            return ["codes", "scale"], None

    known = proofs.checksum(Held())
    assert known == proofs.checksum(Held()) and known[0] == (2, 4)
    assert known != proofs.checksum(Held(scale=0.25))
    assert known != proofs.checksum(Held(first=2))


def test_layers_that_share_what_they_are_made_of_are_merged_one_by_one(execute: Callable[..., Any]) -> None:
    """Widening the projections that VeRA's layers share left the next ones with two types."""
    done = execute("method=vera", "precision=pure_bf16", "stage.max_steps=1")
    assert done.run.checks["merge"]["passed"], done.run.checks["merge"]
