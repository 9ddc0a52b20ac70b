"""4-bit weights on a CPU are read as they were rounded, whatever their rows' length."""

import pytest
import torch

from factory.quantizers.cpu import read_blocks_across_rows


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("inputs", [32, 64, 80, 96, 100, 576, 4304])
def test_the_error_is_that_of_rounding(inputs: int, kind: str) -> None:
    from bitsandbytes import functional

    read_blocks_across_rows()
    torch.manual_seed(0)
    weight = torch.randn(64, inputs)
    quantized, state = functional.quantize_4bit(weight, quant_type=kind)
    read = functional.dequantize_4bit(quantized, state)
    nearest = weight.reshape(-1, 64) / weight.reshape(-1, 64).abs().amax(1, keepdim=True)
    apart = (nearest[:, :, None] - state.code).abs().amin(2) * weight.reshape(-1, 64).abs().amax(1, keepdim=True)
    assert (read - weight).norm().item() == pytest.approx(apart.norm().item(), rel=1e-3)
