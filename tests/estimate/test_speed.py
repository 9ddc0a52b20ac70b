"""A run's time: only from what was measured on its device, as a range that is as wide as the two are unlike."""

from contextlib import chdir
from dataclasses import replace

import pytest
from conftest import compiled

from factory.config.words import between, duration
from factory.estimate import speed
from factory.estimate.speed import Like, bounds
from factory.plan.facts import Machine, Measured
from factory.plan.plan import Plan, Range

CPU = ("hardware=cpu", "hardware.threads=2", "stage=pt", "data.max_length=512", "precision=bf16", "stage.max_steps=10")
MACHINE = Machine(threads=2, available_bytes=2**33, cpu_bf16=True, gpus=(), packages={}, hub_token=False, cpu="EPYC")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    with chdir(tmp_path_factory.mktemp("unmeasured")):  # runs of this checkout are measured in its outputs/
        return compiled(*CPU, training=False)


def _run(plan: Plan, **changes: object) -> Measured:
    """As if the plan had run, at 100 GFLOP/s."""
    made = Measured(
        device=speed.device(MACHINE, plan),
        precision=speed.precision(plan),
        kind=speed.kind(plan),
        work=speed.work(plan.estimate),
        micro_batch=speed.micro_batch(plan.estimate, plan.settings),
        flops_per_second=1e11,
        start_seconds=2.0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def _speed(plan: Plan, *runs: Measured) -> tuple[float, float] | None:
    found = speed.speed(plan.estimate, plan, speed.device(MACHINE, plan), runs)
    work = speed.work(plan.estimate)
    return None if found is None else (found.low * work / 1e11, found.high * work / 1e11)


def test_nothing_is_said_where_nothing_was_measured(plan: Plan) -> None:
    assert plan.estimate.speed is None and plan.estimate.seconds is None
    assert _speed(plan) is None
    assert _speed(plan, _run(plan, device="EPYC, threads: 1"), _run(plan, precision="float32")) is None
    assert _speed(plan, _run(plan)) is not None


def test_the_range_is_wider_for_what_is_less_alike(plan: Plan) -> None:
    assert _speed(plan, _run(plan)) == pytest.approx((1 / 1.3, 1.3))
    assert _speed(plan, _run(plan, work=1.5 * _run(plan).work)) == pytest.approx((1 / 1.6, 1.6))
    assert _speed(plan, _run(plan, kind="sft, galore, whole")) == pytest.approx((1 / 2, 2.0))
    sixteen = 1.6 * (16 / 2) ** 0.25
    assert _speed(plan, _run(plan, work=16 * _run(plan).work)) == pytest.approx((1 / sixteen, sixteen))


def test_the_nearest_and_the_alike_count(plan: Plan) -> None:
    """Two of the same differ as they do; one of another kind, or far away, tells nothing beside them."""
    slower, faster = _run(plan, flops_per_second=5e10), _run(plan, flops_per_second=2e11)
    assert _speed(plan, slower, faster) == pytest.approx((0.5 / 1.3, 2.0 * 1.3))
    other = _run(plan, kind="sft, galore, whole", flops_per_second=1e9)
    far = _run(plan, work=100 * slower.work, flops_per_second=1e13)
    assert _speed(plan, slower, faster, other, far) == _speed(plan, slower, faster)


def test_what_is_measured_of_one_holds_for_itself(plan: Plan) -> None:
    run = _run(plan)
    span = bounds(run, Like(kind=run.kind, work=run.work, micro_batch=run.micro_batch))
    assert span.low < run.flops_per_second < span.high


def test_seconds_are_of_all_tokens_and_of_the_first_step(plan: Plan) -> None:
    """10 steps of 4 sequences of 512 tokens at 100 GFLOP/s."""
    tokens = 10 * 4 * 512
    assert plan.estimate.tokens == Range(low=tokens, high=tokens)
    found = speed.speed(plan.estimate, plan, speed.device(MACHINE, plan), (_run(plan),))
    seconds = speed.seconds(replace(plan.estimate, speed=found))
    exact = tokens * speed.work(plan.estimate) / 1e11
    assert exact == pytest.approx(10 * plan.estimate.flops_per_step / 1e11)
    assert seconds is not None
    assert (seconds.low, seconds.high) == pytest.approx((exact / 1.3, exact * 1.3 + 2.0))
    assert speed.seconds(replace(plan.estimate, speed=found, tokens=None)) is None
    assert speed.seconds(replace(plan.estimate, speed=found, tokens=Range(low=1, high=None))) is None


def test_of_answers_that_are_sampled_no_time_is_said() -> None:
    words = ("stage=grpo", "stage.reward=trl:think_format_reward", "stage.max_new_tokens=16", "hardware=cpu")
    plan = compiled(*words, training=False)
    assert plan.estimate.tokens is None
    assert _speed(plan, _run(plan)) is None


def _of(plan: Plan, optimizer: str, accumulation: int = 1) -> Plan:
    changed = {"optimizer": optimizer, "gradient_accumulation_steps": accumulation}
    plan = plan.with_settings(stage=plan.settings.stage.model_copy(update=changed))
    own = plan.estimate
    step = {"flops_per_step": own.flops_per_step * accumulation, "tokens_per_step": own.tokens_per_step * accumulation}
    return replace(plan, estimate=replace(own, **step))


def test_an_optimizer_that_multiplies_tells_of_no_other(plan: Plan) -> None:
    """Its products, most of a step's time, are none of a token's: nothing is said of one from the other."""
    adamw, muon = _of(plan, "adamw"), _of(plan, "muon")
    ran, slow = _run(adamw), _run(muon, flops_per_second=1e9)
    assert _speed(adamw, slow) is None and _speed(muon, ran) is None
    assert _speed(adamw, ran, slow) == _speed(adamw, ran)
    assert _speed(muon, ran, slow) == _speed(muon, slow) == pytest.approx((0.01 / 1.3, 0.01 * 1.3))
    assert _speed(_of(plan, "sgd"), ran, slow) == pytest.approx((1 / 2, 2.0))  # no products: another kind, like it
    assert _speed(_of(plan, "muon", 4), slow) == pytest.approx((0.01 / 2, 0.01 * 2))


def test_a_record_without_an_optimizer_counts_where_there_is_no_other(plan: Plan) -> None:
    """As runs wrote them before."""
    adamw = _of(plan, "adamw")
    old = _run(plan, kind="pt, lora, whole", flops_per_second=1e10)
    assert _speed(adamw, old) == pytest.approx((0.1 / 2, 0.1 * 2))
    assert _speed(_of(plan, "muon"), old) is None
    without_products = _run(_of(plan, "muon"), kind="pt, lora, whole, muon")
    assert _speed(_of(plan, "muon"), without_products) is _speed(adamw, without_products) is None
    other = _run(_of(plan, "sgd"))
    assert _speed(adamw, old, other) == _speed(adamw, other)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("method=lora stage=pt", "pt, lora, whole, adamw"),
        ("method=lora stage=pt stage.optimizer=sgd", "pt, lora, whole, sgd"),
        (
            "method=full stage=pt stage.optimizer=muon stage.gradient_accumulation_steps=8",
            "pt, full, whole, muon with its products after 8 micro-batches",
        ),
        ("method=lora stage=pt compute.attention=eager", "pt, lora, whole, eager attention, adamw"),
        ("method=qlora stage=dpo", "dpo, lora, 4 bits of bitsandbytes, adamw"),
        ("method.quantization.bits=4 stage=dpo", "dpo, lora, 4 bits of bitsandbytes, adamw"),
        ("method=full compute.compile=true precision=fp32", "sft, full, whole, compiled, adamw"),
    ],
)
def test_kinds_of_steps(words: str, kind: str) -> None:
    usual = {"compute.kernels": "none", "compute.attention": "sdpa", "precision": "fp32"}
    given = words.split()
    lines = [f"{name}={value}" for name, value in usual.items() if not any(f"{name}=" in word for word in given)]
    assert speed.kind(compiled("hardware=cpu", *lines, *given, training=False)) == kind


def test_a_card_that_is_not_here_is_not_the_one_that_is() -> None:
    plan = compiled("hardware=rtx4090", training=False)
    assert speed.device(MACHINE, plan, "RTX 4090") == "RTX 4090"
    assert speed.device(MACHINE, compiled(*CPU, training=False)) == "EPYC, threads: 2"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(4.56, 7.8, "4.6 to 7.8 s"), (32, 47, "32 to 47 s"), (50, 150, "50 s to 2.5 min"), (7200, 36_000, "2 to 10 h")],
)
def test_durations_are_said_with_one_unit_where_it_is_the_same(low: float, high: float, said: str) -> None:
    assert between(duration(low), duration(high)) == said
