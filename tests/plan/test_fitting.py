"""What is recomputed where nobody said it: as little as fits, by what the machine has and not by what is free."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import AS_TRANSFORMERS, compiled
from pretended import H100, MACHINES

from factory.config.words import size
from factory.plan.facts import Machine
from factory.plan.inspect import machine as look
from factory.plan.plan import Plan

FULL = (
    *("model=llama2_7b", "method=full", "stage=pt", "stage.batch_size=4", "data.max_length=2048"),
    "compute.kernels=none",
)
KINDS = (False, "selective", True)


def asked(kind: Any) -> str:
    return f"compute.activation_checkpointing={str(kind).lower()}"


def layers(few: int) -> str:
    return f"compute.recomputed_layers={few}"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def change(name: str = "gpu", **values: Any) -> None:
        made: Machine = replace(MACHINES[name], **values)
        monkeypatch.setattr(look, "look_at_machine", lambda: made)

    change()
    return change


def plan(*overrides: str) -> Plan:
    return compiled(*FULL, *overrides, training=False)


def budget(count: int) -> str:
    return f"hardware.memory={count // 1024 + 1}KiB"


def roomy(count: int) -> str:
    """A budget of which a twentieth is left."""
    return budget(count * 20 // 19)


def needed(kind: Any, *overrides: str) -> int:
    return plan(asked(kind), *overrides).estimate.memory.total


def recomputed(made: Plan) -> Any:
    return made.steps.patch.activation_checkpointing


def said(made: Plan) -> list[str]:
    return [note for note in made.notes if note.startswith("compute.activation_checkpointing=auto")]


def test_as_little_as_fits(machine: Callable[..., None]) -> None:
    """Of what keeps most, what fits into the budget, of which a twentieth is left as estimates are not exact."""
    totals = [needed(kind) for kind in KINDS]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == 3
    for kind, total in zip(KINDS, totals, strict=True):
        made = plan(roomy(total))
        assert (recomputed(made), made.estimate.memory.fits) == (kind, True)
        assert bool(said(made)) == (kind is not False)
    least = plan(budget(totals[-1] - 2048))
    assert (recomputed(least), least.estimate.memory.fits) == (True, False)
    assert not any(made.steps.patch.recomputed_layers for made in (plan(roomy(totals[0])), least))
    (nearly,) = said(plan(budget(totals[0])))
    assert nearly.endswith("are for a run, less a twentieth as estimates are not exact")


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_of_as_few_layers_as_fit(device: str, machine: Callable[..., None]) -> None:
    """On a CPU, beside Factory's own layers, of none are the products kept."""
    machine(device)
    own = ("model=smollm2_135m", "hardware=cpu") if device == "cpu" else ()
    kept, least = needed(False, *own), needed(True, *own)
    kinds = set()
    for share in (0.01, 0.2, 0.4, 0.6, 0.8, 0.98):
        there = least + round(share * (kept - least))
        made = plan(*own, budget(there))
        kind, few = recomputed(made), made.steps.patch.recomputed_layers
        assert made.estimate.memory.fits
        kinds.add(kind)
        if few is None:
            assert needed(kind, *own) > 0.95 * there
            continue
        assert plan(*own, asked(kind), layers(few)).digest() == made.digest()
        assert (needed(kind, *own, layers(few - 1)) if few > 1 else kept) > 0.95 * there >= made.estimate.memory.total
    assert kinds == {"selective", True}


def test_a_number_of_layers_is_taken_as_it_is(machine: Callable[..., None]) -> None:
    totals = [needed(True, layers(few)) for few in (1, 16, 31, 32)]
    assert totals[0] > totals[1] > totals[2] == totals[3]  # what the last one keeps is there in any case
    whole = plan(asked(True), layers(32))
    assert whole.digest() == plan(asked(True)).digest()
    assert plan(layers(5)).digest() == plan(asked(True), layers(5)).digest()  # who names layers wants them recomputed
    work = [plan(asked(True), layers(few)).estimate.flops_per_step for few in (8, 16, 24)]
    assert work[1] - work[0] == pytest.approx(work[2] - work[1])


def test_layers_that_a_method_adds_count(machine: Callable[..., None]) -> None:
    grown = ("method=llama_pro", "method.num_new_layers=4")
    assert plan(asked(True), layers(36), *grown).digest() == plan(asked(True), *grown).digest()


def test_the_note_says_why(machine: Callable[..., None]) -> None:
    (note,) = said(plan("hardware=rtx4090", "method=lora"))
    assert note.startswith("compute.activation_checkpointing=auto: true for the first 27 of 32 layers, as with all act")
    assert "24.00 GiB are for a run" in note


def test_what_is_said_is_done(machine: Callable[..., None]) -> None:
    for kind in KINDS:
        made = plan(asked(kind), "hardware.memory=1GB")
        assert recomputed(made) == kind and not said(made)


def test_it_is_the_plan_that_says_so(machine: Callable[..., None]) -> None:
    """So a run goes on, and is compared, as one whose command said it."""
    card = ("hardware=rtx4090", "method=lora")
    assert recomputed(plan(*card)) is True and plan(*card).estimate.memory.fits
    assert plan(*card).digest() == plan(*card, asked(True), layers(27)).digest()


def test_what_is_free_decides_nothing(machine: Callable[..., None]) -> None:
    whole = needed(False)
    card = replace(H100, memory_bytes=whole * 10 // 9 + 10, free_bytes=2**30)
    machine(gpus=(card,))
    assert recomputed(plan()) is False
    assert not plan().estimate.memory.fits
    machine(gpus=(replace(card, memory_bytes=whole),))  # a tenth is not the run's
    assert recomputed(plan()) == "selective"
    machine(gpus=(card, replace(card, memory_bytes=whole)))
    assert recomputed(plan("hardware.num_processes=2", "hardware.strategy=ddp")) == "selective"


def test_a_budget_above_what_is_there_hides_no_machine(machine: Callable[..., None]) -> None:
    """A plan may be for another machine; who trains has this one."""
    small = ("model=smollm2_135m", "stage=pt", "hardware=single_gpu", "stage.batch_size=16")
    whole = compiled(*small, asked(False), training=False).estimate.memory.total
    machine(gpus=(replace(H100, memory_bytes=whole, free_bytes=whole),))
    words = (*small, "hardware.memory=80GB")
    assert recomputed(compiled(*words, training=False)) is False
    made = compiled(*words, training=True)
    assert recomputed(made) is not False and made.estimate.memory.fits


def test_a_card_that_is_not_here_says_nothing(machine: Callable[..., None]) -> None:
    machine("cpu")
    assert recomputed(plan("hardware=single_gpu")) is False


def test_of_a_nodes_memory_each_process_has_a_share(machine: Callable[..., None]) -> None:
    cpu = ("hardware=cpu", "method=lora", *AS_TRANSFORMERS)
    whole = needed(False, *cpu)
    machine("cpu", memory_bytes=whole * 10 // 9 + 10, available_bytes=2**30)
    assert recomputed(plan(*cpu)) is False
    assert recomputed(plan(*cpu, "hardware.num_processes=2", "hardware.strategy=ddp")) is not False
    machine("cpu", memory_bytes=None, available_bytes=whole - 1)  # where nobody says more
    assert recomputed(plan(*cpu)) is not False


def test_nothing_is_made_again_where_weights_alone_do_not_fit(machine: Callable[..., None]) -> None:
    memory = plan().estimate.memory
    exact = memory.weights + memory.gradients + memory.optimizer
    assert [recomputed(plan(budget(there))) for there in (exact + 2**20, exact - 2**20)] == [True, False]


def test_nothing_is_made_again_where_that_leaves_no_room(machine: Callable[..., None]) -> None:
    """Weights, gradients and states are most of it: with all activations kept it fits, though with little to spare."""
    machine("cpu")
    own = ("model=smollm2_135m", "hardware=cpu", "method=full", "data.max_length=128", "stage.batch_size=1")
    kept = needed(False, *own)
    assert needed(True, *own) > 0.96 * kept
    made = plan(*own, budget(kept))
    assert (recomputed(made), made.estimate.memory.fits, said(made)) == (False, True, [])


@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_where_nothing_goes_back_nothing_is_recomputed(
    verb: str, machine: Callable[..., None], tiny_model: Path
) -> None:
    machine("cpu", memory_bytes=2**20)
    own = ("export.dir=written",) if verb == "export" else ()
    made = compiled(f"model.path={tiny_model}", *own, training=False, verb=verb)
    assert recomputed(made) is False and not said(made)


def test_a_run_trains_as_its_plan_says(execute: Callable[..., Any]) -> None:
    """Losses are those of a run that keeps everything."""
    options = ("method=lora", "precision=fp32", "stage.max_steps=3", "stage.logging_steps=1", "hardware.memory=100MB")
    lean = execute(*options, folder="lean")
    kept = execute(*options, asked(False), folder="kept")
    assert recomputed(lean.run.plan) is True and recomputed(kept.run.plan) is False
    assert lean.losses == pytest.approx(kept.losses, rel=1e-6)
    assert all(check["passed"] for name, check in lean.run.checks.items() if name != "memory_as_estimated")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("method", ["hqq", "bitsandbytes"])
def test_weights_that_are_quantized_in_place_are_whole_before(method: str) -> None:
    """bitsandbytes quantizes each tensor as it is read."""
    words = ("model=qwen2.5_14b", "method.quantization.bits=4", f"method.quantization.method={method}")
    made = compiled(*words, "hardware=rtx4090", "method=lora", training=False)
    found, whole = made.estimate.memory, 2 * made.estimate.parameters.total
    assert found.capacity is not None
    refused = [text for text in made.warnings if text.startswith("[memory]")]
    if method == "bitsandbytes":
        assert found.total < found.capacity < whole and "reading" not in found.instants and not refused
        return
    assert found.instants["reading"] == found.total == whole > found.capacity
    assert len(refused) == 1 and "reading the weights takes" in refused[0]


def test_weights_that_are_split_when_training_begins_are_whole_before(machine: Callable[..., None]) -> None:
    """zero3's, for DoRA; fsdp takes its share of them out of the host's memory, and LoRA's ranks read a share each."""
    machine(packages={**MACHINES["gpu"].packages, "transformers": "5.23.0"})  # older ones read no shares
    words = ("model=llama2_70b", "method=lora", "hardware=h100_80gb", "hardware.num_processes=8")
    zero3, *others = (
        compiled(*words, f"hardware.strategy={strategy}", f"method.dora={dora}", training=False)
        for dora, strategy in (("true", "zero3"), ("true", "fsdp"), ("false", "zero3"), ("false", "fsdp"))
    )
    found, whole = zero3.estimate.memory, 2 * zero3.estimate.parameters.total
    assert found.capacity is not None
    assert found.total == found.instants["reading"] > whole > found.capacity
    assert any(text.startswith("[memory]") and "reading" in text for text in zero3.warnings)
    for other in others:
        assert other.estimate.memory.total < found.capacity
        assert not any(text.startswith("[memory]") for text in other.warnings)
    on_host, *shared = (other.estimate.memory.instants.get("reading") for other in others)
    assert on_host is None and shared == [pytest.approx(whole / 8, rel=0.01)] * 2


@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp"])
def test_what_is_offloaded_is_in_the_hosts_memory(strategy: str, machine: Callable[..., None]) -> None:
    words = ("model=llama3.1_8b", "method=full", "hardware=single_gpu", f"hardware.strategy={strategy}")

    def offloaded(there: int) -> Plan:
        machine(available_bytes=there)
        return compiled(*words, "hardware.offload=true", training=False)

    made = offloaded(2**40)
    found, count = made.estimate.memory, made.estimate.parameters.total
    assert (found.gradients, found.optimizer) == (0, 0)
    assert found.weights == 4 * count if strategy == "zero2" else found.weights < count
    moved = (12 if strategy == "zero2" else 16) * count
    assert f"hardware.offload: of each process {size(moved)} are in the host's memory" in made.notes
    for there, refused in ((moved, 0), (moved - 1, 1)):
        warnings = offloaded(there).warnings
        assert len([text for text in warnings if text.startswith("[memory] hardware.offload=true")]) == refused
    assert found.fits and not any(text.startswith("[memory]") for text in made.warnings)


@pytest.mark.parametrize("bits", [32, 8])
def test_what_is_paged_is_in_the_hosts_memory_and_not_on_the_card(bits: int, machine: Callable[..., None]) -> None:
    """Llama 3.1 8B on a card of 80 GB: weights and gradients in 16 bits fit, states of float32 beside them do not."""
    words = ("model=llama3.1_8b", "method=full", "hardware=single_gpu", "precision=pure_bf16")
    name = "paged_adamw" if bits == 32 else "paged_adamw_8bit"

    def paged(there: int, optimizer: str = name) -> Plan:
        machine(available_bytes=there)
        return compiled(*words, f"stage.optimizer={optimizer}", training=False)

    made = paged(2**40)
    found, count = made.estimate.memory, made.estimate.parameters.total
    norms = 65 * 4096  # tensors of 4,096 numbers: too few to be paged, and just enough for 8 bits
    constants = 2 * 4 / 256  # a number, of the blocks of both states
    if bits == 32:
        assert found.optimizer == 8 * norms
    else:
        assert found.optimizer == 2 * norms + constants * count
    moved = 2 * bits // 8 * (count - norms)
    assert f"stage.optimizer: of each process {size(moved)} are in the host's memory" in made.notes
    for there, refused in ((moved, 0), (moved - 1, 1)):
        warnings = paged(there).warnings
        assert len([text for text in warnings if text.startswith(f"[memory] stage.optimizer={name}")]) == refused
    assert not any(text.startswith("[memory]") for text in made.warnings)
    whole = paged(2**40, "adamw" if bits == 32 else "adamw_8bit")
    assert whole.estimate.memory.optimizer == (4 * count if bits == 32 else found.optimizer + moved)
    assert not any("in the host's memory" in text for text in whole.notes)
