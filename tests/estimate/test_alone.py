"""Who imports less, and that its estimate is of that process."""

from dataclasses import replace

import pytest
from conftest import compiled

from factory.estimate.runtime import is_alone

ON_A_CPU = ("hardware=cpu", "tracking=none", "method=lora")


@pytest.mark.parametrize(
    ("overrides", "alone"),
    [
        ("", True),
        ("method=qlora", True),
        ("method=full stage.optimizer=adamw_8bit", True),
        ("hardware.num_processes=2 hardware.strategy=ddp", False),
        ("compute.compile=true precision=fp32", False),
    ],
)
def test_a_process_is_alone(overrides: str, alone: bool) -> None:
    assert is_alone(compiled(*ON_A_CPU, *overrides.split()).steps) == alone


def test_what_compiles_as_it_likes_or_sees_is_not() -> None:
    """As if it were planned: what other quantizers and models need is not here."""
    steps = compiled(*ON_A_CPU, "method.quantization.bits=8").steps
    assert is_alone(steps)
    assert not is_alone(replace(steps, quantize=replace(steps.quantize, method="hqq")))
    for said in (
        {"model_type": "qwen2_vl"},
        {"model_type": "unheard_of"},
        {"quantization_config": {"quant_method": "gptq"}},
    ):
        assert not is_alone(replace(steps, load=replace(steps.load, config={**steps.load.config, **said})))


def test_one_that_is_not_holds_more_before_its_first_weight() -> None:
    one, other = (
        compiled(*ON_A_CPU, *way.split()).estimate.memory.runtime
        for way in ("compute.compile=false precision=fp32", "compute.compile=true precision=fp32")
    )
    assert other - one > 50 * 2**20
