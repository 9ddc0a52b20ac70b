"""Products with few rows in C give what float64 gives, whatever is turned, on one thread and on two."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from factory.native import MOST_RANKS, build, kernels

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


@pytest.fixture(autouse=True, params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    if build.compiler() is None:
        pytest.skip("there is no C compiler")
    before = torch.get_num_threads()
    kernels.use(True)
    torch.set_num_threads(request.param)
    torch.manual_seed(0)
    yield request.param
    torch.set_num_threads(before)


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


def test_no_number_stays_none() -> None:
    """A run that has gone wrong must see it."""
    x, few = torch.ones(5, 16), torch.ones(2, 16)
    x[3, 7] = torch.nan
    down, outer, up = torch.empty(5, 2), torch.empty(2, 16), torch.empty(5, 16)
    kernels.few_down(x, few, 1.0, down)
    assert down.isnan().any(1).tolist() == [False, False, False, True, False]
    kernels.few_up(down, few, 1.0, up)
    assert up.isnan().all(1).tolist() == [False, False, False, True, False]
    kernels.few_outer(torch.ones(5, 2), x, 1.0, outer)
    assert outer.isnan().any(0).nonzero().tolist() == [[7]]


def test_what_fits() -> None:
    x, a, b = torch.zeros(4, 32), torch.zeros(2, 32), torch.zeros(48, 2)
    assert kernels.few_fit(x, [a], [b]) and kernels.few_fit(x.bfloat16(), [a, a], [b, b])
    assert not kernels.few_fit(x.double(), [a], [b])
    assert not kernels.few_fit(x.to("meta"), [a], [b])
    for other in (a.bfloat16(), a[:, ::2], a[:, :24].contiguous(), a.to("meta"), torch.zeros(MOST_RANKS, 32)):
        assert not kernels.few_fit(x, [a, other], [b, b])
    for other in (b.bfloat16(), b.T.contiguous().T, b[:40]):
        assert not kernels.few_fit(x, [a], [other])
    kernels.use(False)
    assert not kernels.few_fit(x, [a], [b])
