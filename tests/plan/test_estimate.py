"""Parameters to the last one, memory that follows from them, steps that the loop will take."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import compiled

from factory.architecture import architecture
from factory.config import registry
from factory.plan.plan import Estimate
from factory.schedules import total_steps

GPU = "hardware=h100_80gb"
PACKED = ("stage=pt", "data.max_length=512")


def estimate(*overrides: str) -> Estimate:
    return compiled(*overrides, training=False).estimate


@pytest.mark.parametrize(
    ("overrides", "trainable"),
    [
        ("method=lora method.rank=8", 2_442_240),
        ("method=lora method.rank=128", 39_075_840),
        ("method=qlora method.rank=8", 2_442_240),
        ("method=freeze method.num_layers=3", 10_620_288),
        ("method=freeze method.layers=[0,29,0]", 2 * 3_540_096),
        ("method=full", 134_515_008),
        ("method=galore", 134_515_008),
        ("method=lora method.target_modules=[q_proj,v_proj]", 30 * 8 * (2 * 576 + 576 + 192)),
    ],
)
def test_smollm2_trains_exactly(overrides: str, trainable: int) -> None:
    found = estimate(*overrides.split()).parameters
    assert (found.total, found.trainable) == (134_515_008, trainable)
    assert sum(found.trainable_by_module.values()) == trainable


@pytest.mark.parametrize("method", [name for name in registry.names("methods") if name != "none"])
@pytest.mark.parametrize("option", ["smollm2_135m", "qwen2.5_0.5b", "qwen3_0.6b"])
def test_trainable_tensors_are_the_models_or_beside_them(method: str, option: str) -> None:
    plan = compiled(f"model={option}", f"method={method}", training=False)
    arch = architecture(plan.steps.load.config)
    found = plan.estimate.parameters
    assert found.total == arch.parameters()
    assert set(found.trainable_by_module) <= {
        name.removesuffix(".weight").removesuffix(".bias") for name in arch.blocks[0].tensors
    } | {"embed_tokens", "norm", "lm_head"}


@pytest.mark.parametrize(
    ("words", "modules"),
    [
        ("model=gpt_oss_20b method.target_experts=true", "q_proj k_proj v_proj o_proj experts"),
        ("model=qwen2.5_vl_7b method.parts=[vision] data=demo_images", "qkv proj gate_proj up_proj down_proj"),
        ("model=llava1.5_7b method=full method.parts=[projector] data=demo_images", "linear_1 linear_2"),
    ],
)
def test_what_is_trained_is_told_by_module(words: str, modules: str) -> None:
    found = compiled("hardware=h100_80gb", *words.split(), training=False).estimate.parameters
    assert [name.rpartition(".")[2] for name in found.trainable_by_module] == modules.split()
    assert sum(found.trainable_by_module.values()) == found.trainable


def test_memory_of_full_training_is_a_multiple_of_the_parameters() -> None:
    mixed, pure = (estimate("model=llama2_7b", "method=full", GPU, f"precision={p}") for p in ("bf16", "pure_bf16"))
    count = mixed.parameters.total
    assert (mixed.memory.weights, mixed.memory.gradients, mixed.memory.optimizer) == (4 * count, 4 * count, 8 * count)
    assert (pure.memory.weights, pure.memory.gradients) == (2 * count, 2 * count)
    small = estimate("model=llama2_7b", "method=full", GPU, "stage.optimizer=adamw_8bit").memory
    constants = 1 + 4 / 256  # a float32 for each block of 256 (Dettmers et al. 2022, section 2.1)
    assert small.optimizer == pytest.approx(mixed.memory.optimizer / 4 * constants, rel=1e-4)


@pytest.mark.parametrize(("double", "bits"), [("true", 4.127), ("false", 4.5)])  # QLoRA, section 3
def test_quantized_weights_take_the_papers_bits(double: str, bits: float) -> None:
    overrides = ("model=llama2_7b", "method=qlora", GPU, f"method.quantization.double_quantization={double}")
    plan = compiled(*overrides, training=False)
    arch = architecture(plan.steps.load.config)
    linears = sum(out * inner for out, inner in arch.linears().values())
    rest = 2 * (arch.parameters() - linears)  # embedding, head and norms in bfloat16
    adapters = 4 * plan.estimate.parameters.trainable
    assert plan.estimate.memory.weights == pytest.approx(linears * bits / 8 + rest + adapters, rel=1e-4)


def test_frozen_weights_are_held_in_the_frozen_type() -> None:
    lora = estimate("model=llama2_7b", GPU)
    assert lora.memory.weights == 2 * lora.parameters.total + 4 * lora.parameters.trainable
    freeze = estimate("model=llama2_7b", GPU, "method=freeze")
    assert freeze.memory.weights == 2 * freeze.parameters.total + 2 * freeze.parameters.trainable


def test_the_total_is_the_highest_moment_and_a_cpu_has_its_libraries() -> None:
    cpu, gpu = (estimate(f"hardware={hardware}").memory for hardware in ("cpu", "h100_80gb"))
    assert (gpu.runtime, gpu.slack) == (0, 0)
    assert cpu.runtime > 300 * 2**20
    for found in (cpu, gpu):
        assert found.total == max(found.instants.values()) and found.capacity is not None
        assert found.fits == (found.total <= found.capacity)
        assert min(found.instants.values()) >= found.weights + found.optimizer + found.runtime
    assert cpu.uncalibrated == ()
    assert gpu.uncalibrated == ("GPUs",)


def test_a_torch_for_cuda_takes_its_libraries_memory_on_a_cpu_too(machine: Callable[..., None]) -> None:
    def runtime(hardware: str, **built: str) -> int:
        machine(packages={"torch": "2.15.0", **built})
        return estimate(hardware).memory.runtime

    before = runtime("hardware=cpu")
    assert runtime("hardware=cpu", cuda="13.2") == before + 390 * 2**20
    assert runtime(GPU, cuda="13.2") == 0


@pytest.mark.parametrize(("stage", "sequences"), [("dpo", 2), ("orpo", 2), ("rm", 2), ("kto", 1)])
def test_a_pair_is_two_sequences(stage: str, sequences: int) -> None:
    """In memory and in FLOPs. KTO's mismatched answers go forward only, without a gradient."""
    shape = (GPU, "data.max_length=64", "method=lora")
    sft = estimate(*shape, "stage=sft", f"stage.batch_size={4 * sequences}")
    found = estimate(*shape, f"stage={stage}", "stage.batch_size=4")
    assert found.memory.activations == pytest.approx(sft.memory.activations, rel=0.02)
    extra = 1.5 if stage == "kto" else 1.0
    assert found.flops_per_step == pytest.approx(extra * sft.flops_per_step, rel=0.02)


def test_accumulated_gradients_are_there_from_the_start() -> None:
    one, two = (estimate(GPU, *PACKED, "method=full", f"stage.gradient_accumulation_steps={n}").memory for n in (1, 2))
    assert two.instants["forward"] == one.instants["forward"] + one.gradients


@pytest.mark.parametrize("hardware", ["cpu", "h100_80gb"])
def test_a_model_of_70_billion_is_planned_within_a_second(hardware: str) -> None:
    from time import process_time

    start = process_time()
    found = estimate("model=llama2_70b", "method=lora", f"hardware={hardware}")
    assert process_time() - start < 1.5  # a second on a quiet core
    assert found.memory.weights > 2 * 68e9


@pytest.mark.parametrize("method", ["lora", "full", "galore", "dora"])
def test_memory_never_falls_with_more_tokens(method: str) -> None:
    """To the byte on a GPU; a CPU's heap may be laid out better by chance (0.3 % seen)."""
    base = ("stage=pt", f"method={method}", "data.max_length=128", "stage.batch_size=1")
    for changes in (["stage.batch_size=1", "stage.batch_size=3", "stage.batch_size=8"], ["data.max_length=300"]):
        totals = [estimate(GPU, *base, *found).memory.total for found in ((), *((change,) for change in changes))]
        assert totals == sorted(totals)
    small, large = (estimate("hardware=cpu", *base, f"stage.batch_size={size}").memory.total for size in (2, 3))
    assert small < 1.01 * large


@pytest.mark.parametrize(
    ("part", "base", "steps"),
    [
        ("activations", PACKED, ["stage.batch_size=1", "stage.batch_size=4", "stage.batch_size=16"]),
        ("activations", ("stage=pt",), ["data.max_length=128", "data.max_length=512", "data.max_length=2048"]),
        ("activations", PACKED, ["compute.activation_checkpointing=true", "compute.activation_checkpointing=false"]),
        ("activations", PACKED, ["compute.attention=sdpa", "compute.attention=eager"]),
        ("optimizer", (), ["method.rank=8", "method.rank=16", "method.rank=128"]),
        ("gradients", (), ["method.rank=8", "method.rank=128"]),
        ("optimizer", ("method=galore",), ["method.rank=8", "method.rank=64", "method.rank=192"]),
        ("optimizer", (), ["method=lora", "method=freeze", "method=galore", "method=full"]),
        ("weights", (), ["method=qlora", "method=lora", "method=full"]),
        ("weights", ("method=freeze",), ["method.num_layers=1", "method.num_layers=30"]),
        ("total", (), ["method=freeze", "method=qlora", "method=lora", "method=full"]),  # as measured on this model
        ("activations", ("method=freeze",), ["method.layers=[29]", "method.layers=[20]", "method.layers=[0]"]),
    ],
)
def test_memory_grows_with(part: str, base: tuple[str, ...], steps: list[str]) -> None:
    found = [getattr(estimate(GPU, *base, step).memory, part) for step in steps]
    assert found == sorted(set(found)), dict(zip(steps, found, strict=True))


def test_gradients_and_optimizer_do_not_depend_on_the_batch() -> None:
    one, many = (estimate(*PACKED, f"stage.batch_size={size}").memory for size in (1, 16))
    assert (one.weights, one.gradients, one.optimizer) == (many.weights, many.gradients, many.optimizer)


@pytest.mark.parametrize(("epochs", "batch", "accumulation"), [(1, 4, 1), (2, 4, 2), (0.5, 3, 2), (0.01, 4, 1)])
def test_steps_are_at_most_those_of_all_rows(epochs: float, batch: int, accumulation: int) -> None:
    found = estimate(
        "data.max_samples=40",
        f"stage.num_epochs={epochs}",
        f"stage.batch_size={batch}",
        f"stage.gradient_accumulation_steps={accumulation}",
    ).steps
    assert found.low <= found.high == total_steps(36, batch, accumulation, epochs, None)


def test_steps_are_exact_or_a_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of data that were not prepared before."""
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path))
    exact = estimate("stage.max_steps=7", "stage.num_epochs=9").steps
    assert (exact.low, exact.high) == (7, 7)
    for overrides in ((), ("stage=pt",), ("data.packing=true",)):
        steps = estimate(*overrides).steps
        assert 1 <= steps.low < steps.high


def test_flops_are_of_the_linear_layers() -> None:
    """Kaplan et al. 2020: 2 per parameter forward, and backward 2 for what comes through and 2 for what is trained."""
    base = ("model=llama2_7b", GPU, *PACKED, "stage.batch_size=2", "compute.activation_checkpointing=false")
    full, lora = estimate(*base, "method=full"), estimate(*base, "method=lora")
    tokens = 2 * 512
    assert full.flops_per_step == pytest.approx(6 * full.parameters.total * tokens, rel=0.05)
    assert lora.flops_per_step == pytest.approx(4 * lora.parameters.total * tokens, rel=0.05)
    doubled = estimate(*base, "method=full", "stage.gradient_accumulation_steps=2")
    assert doubled.flops_per_step == 2 * full.flops_per_step


def test_muons_own_products_are_of_a_step() -> None:
    """However many tokens it has; each process makes them."""

    def flops(*words: str) -> int:
        return compiled("hardware=cpu", "stage=pt", "method=full", *words, training=False).estimate.flops_per_step

    # a layer of SmolLM2-135M: q, k, v, o, and the three of its MLP
    sides = [(576, 576), (192, 576), (192, 576), (576, 576), (576, 1536), (576, 1536), (576, 1536)]
    own = 30 * sum(5 * (4 * small**2 * large + 2 * small**3) for small, large in sides)
    for more, times in (
        ((), 1),
        (("stage.gradient_accumulation_steps=4",), 1),
        (("hardware.num_processes=2", "hardware.strategy=ddp"), 2),
    ):
        assert flops("stage.optimizer=muon", *more) - flops("stage.optimizer=adamw", *more) == times * own


def test_rows_with_images_may_be_as_long_as_rows_may_be() -> None:
    """How many tokens an image has is its processor's to say: 576 in LLaVA-1.5, and rows were estimated with fewer."""
    words = ("model=llava1.5_7b", GPU, "data=demo_images")
    short, long = (estimate(*words, f"data.max_length={length}") for length in (1024, 2048))
    assert short.tokens_per_step == 4 * 1024 and long.tokens_per_step == 4 * 2048
    assert long.memory.activations > 1.5 * short.memory.activations
    assert short.tokens is not None and short.tokens.high is not None and short.steps.high is not None
    assert 47 * 576 < short.tokens.high <= short.steps.high * short.tokens_per_step
    text = estimate("model=llava1.5_7b", GPU, "data=demo", "data.max_length=1024")
    assert text.tokens_per_step < 4 * 1024
