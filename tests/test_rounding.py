"""What is narrowed by chance is all there on the average, and what a type has stays."""

import pytest
import torch

from factory.rounding import rounded, settle


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_small_change_is_there_on_the_average(dtype: torch.dtype, sign: int) -> None:
    torch.manual_seed(0)
    base = (0.02 * torch.randn(400, 500)).to(dtype).float()
    change = sign * 1e-6 * torch.rand(400, 500)

    def kept(made: torch.Tensor) -> float:
        return float(((made.float() - base) * change).sum() / change.square().sum())

    assert kept((base + change).to(dtype)) < 0.3
    assert kept(rounded(base + change, dtype)) == pytest.approx(1, abs=0.05)
    apart = (rounded(base + change, dtype).float() - base - change).abs()
    assert (apart < torch.finfo(dtype).eps * base.abs().clamp(min=torch.finfo(dtype).tiny)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_the_type_has_stays(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    torch.testing.assert_close(rounded(every.float(), dtype), every, rtol=0, atol=0, equal_nan=True)
    wide = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(wide, torch.float32), wide)
    assert torch.equal(rounded(wide, dtype), rounded(wide.clone(), dtype))
    assert torch.equal(rounded(wide.to(dtype), dtype), wide.to(dtype))


def test_a_place_decides_too() -> None:
    """Else a layer of equal numbers would go up or down as one."""
    for pieces in (torch.full((3 * 2**18,), 0.1), torch.full((1000,), -0.1)):
        made = rounded(pieces, torch.bfloat16).float()
        assert len(made.unique()) == 2
        for part in (made, made[: len(made) // 3], made[::2]):
            assert float(part.mean()) == pytest.approx(float(pieces[0]), rel=2**-6 / len(part) ** 0.5)


def test_nothing_waits_for_the_device() -> None:
    """A device without numbers can tell none."""
    assert rounded(torch.zeros(3, 2**21, device="meta"), torch.bfloat16).device.type == "meta"


def test_the_smallest_and_the_largest() -> None:
    tiny = torch.full((200_000,), 1e-9)
    for sign in (1, -1):
        assert float(rounded(sign * tiny, torch.float16).float().mean()) == pytest.approx(sign * 1e-9, rel=0.1)
    assert rounded(torch.tensor([7e4, -7e4]), torch.float16).tolist() == [float("inf"), -float("inf")]
    assert rounded(torch.zeros(0, 3), torch.float16).shape == (0, 3)


def test_settled_weights_are_there_in_the_narrow_type() -> None:
    torch.manual_seed(0)
    for value in (torch.randn(700, 900), torch.randn(900, 700).T, torch.randn(3), torch.tensor(0.1), torch.zeros(0)):
        before = value.clone()
        settle(value, torch.bfloat16)
        assert torch.equal(value.bfloat16().float(), value)
        torch.testing.assert_close(value, before, rtol=2**-7, atol=0)
