"""Products with few rows in C give what float64 gives, whatever is turned, on one thread and on two."""

import pytest
import torch
from torch import Tensor

from factory.native import MOST_RANKS, kernels

pytestmark = pytest.mark.usefixtures("threads")

TYPES = [torch.float32, torch.bfloat16]
SHAPES = [  # rows, width, ranks: of several registers' worth, and of what is left over
    (0, 16, 2),
    (1, 16, 1),
    (3, 48, 3),
    (9, 32, MOST_RANKS),
    (13, 64, 7),
    (105, 576, 8),  # shared by threads
    (300, 192, 17),  # more than a block of rows
    (515, 96, 5),
]


def near(found: Tensor, *factors: Tensor, scale: float) -> None:
    """Their product: a sum is as far off as its terms are large, and what is of 16 bits is rounded once."""
    one, other = (each.double() for each in factors)
    exact, terms = scale * one @ other, abs(scale) * one.abs() @ other.abs()
    digits = 2e-6 * terms + (exact.abs() * 2**-8 if found.dtype == torch.bfloat16 else 0)
    assert ((found.double() - exact).abs() <= digits).all()


def beside(rows: int, ranks: int) -> Tensor:
    """Columns of a wider matrix, as those of one of several layers are."""
    return torch.randn(rows, ranks + 3)[:, 2 : 2 + ranks]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("rows", "width", "ranks"), SHAPES)
def test_few_rows(rows: int, width: int, ranks: int, turned: bool, dtype: torch.dtype) -> None:
    x, few, low = torch.randn(rows, width).to(dtype), torch.randn(ranks, width), beside(rows, ranks)
    given = few.T.contiguous() if turned else few

    down = beside(rows, ranks)
    around = down._base.clone()  # type: ignore[union-attr]
    kernels.few_down(x, given, 0.7, down, turned=turned)
    near(down, x, few.T, scale=0.7)
    around[:, 2 : 2 + ranks] = down
    assert torch.equal(down._base, around)  # type: ignore[arg-type]

    up = torch.empty(rows, width, dtype=dtype)
    kernels.few_up(low, given, -1.5, up, turned=turned)
    near(up, low, few, scale=-1.5)

    outer = torch.empty_like(given)
    kernels.few_outer(low, x, 0.3, outer, turned=turned)
    near(outer.T if turned else outer, low.T, x, scale=0.3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1])
def test_no_number_stays_none(bits: int, dtype: torch.dtype) -> None:
    """A run that has gone wrong must see it, whatever its NaN is made of."""
    none = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    x, few, low = torch.ones(5, 16, dtype=dtype), torch.ones(2, 16), torch.ones(5, 2)
    x[3, 7], few[1, 5], low[2, 0] = torch.nan, none, none
    down, outer, up = torch.empty(5, 2), torch.empty(2, 16), torch.empty(5, 16, dtype=dtype)
    kernels.few_down(x, few, 1.0, down)
    assert down.isnan().tolist() == [[False, True]] * 3 + [[True, True], [False, True]]
    kernels.few_up(low, few, 1.0, up)
    assert up.isnan().all(1).tolist() == [row == 2 for row in range(5)]
    assert up.isnan().all(0).tolist() == [column == 5 for column in range(16)]
    kernels.few_outer(low, x, 1.0, outer)
    assert outer[0].isnan().all() and outer[1].isnan().tolist() == [column == 7 for column in range(16)]


def test_what_fits() -> None:
    x, a, b = torch.zeros(4, 32), torch.zeros(2, 32), torch.zeros(48, 2)
    assert kernels.few_fit(x, [a], [b]) and kernels.few_fit(x.bfloat16(), [a, a], [b, b])
    assert not kernels.few_fit(x.double(), [a], [b])
    assert not kernels.few_fit(x.to("meta"), [a], [b])
    for other in (a.bfloat16(), a[:, ::2], a[:, :24].contiguous(), a.to("meta"), torch.zeros(MOST_RANKS, 32)):
        assert not kernels.few_fit(x, [a, other], [b, b])
    for other in (b.bfloat16(), b.T.contiguous().T, b[:40], torch.zeros(48, 1)):
        assert not kernels.few_fit(x, [a], [other])
    for other in (x[:, :20], x[:, :16]):
        assert not kernels.few_fit(other, [a], [b])
    kernels.use(False)
    assert not kernels.few_fit(x, [a], [b])
