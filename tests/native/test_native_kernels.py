"""The kernels in C give what float64 gives, to the last digits of their type, on one thread and on two."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from factory.native import kernels

pytestmark = pytest.mark.usefixtures("threads")

TYPES = [torch.float32, torch.bfloat16]


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype)


def digits(dtype: torch.dtype) -> float:
    return {torch.float32: 2e-6, torch.bfloat16: 2**-8}[dtype]


def near(found: Tensor, exact: Tensor, *, rounded: int = 1) -> None:
    """`rounded`: how often on the way, in its own type."""
    assert exact.dtype == torch.float64
    bound = rounded * digits(found.dtype)
    torch.testing.assert_close(found.double(), exact, rtol=bound, atol=bound * float(exact.abs().mean()))


def exact_slopes(function: Callable[..., Tensor], slope: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
    leaves = [each.double().requires_grad_() for each in given]
    return torch.autograd.grad(function(*leaves), leaves, slope.double())


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("7f00-7f01 r-xp 00000000 08:01 12   /opt/my env/lib/libgomp.so.1", "/opt/my env/lib/libgomp.so.1"),
        ("7f00-7f01 r-xp 00000000 08:01 12   /opt/lib/libgomp.so.1 (deleted)", "/opt/lib/libgomp.so.1"),
        ("7f00-7f01 rw-p 00000000 00:00 0 ", ""),
    ],
)
def test_a_mapped_file_may_have_spaces_in_its_path(line: str, path: str) -> None:
    assert kernels._mapped(line) == path


SHAPES = [(1, 1), (3, 7), (5, 576), (211, 160)]  # the last is shared by threads


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gate(shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate, up, slope = (drawn(*shape, dtype=dtype) for _ in range(3))
    gate = gate * 4

    def silu(gate: Tensor, up: Tensor) -> Tensor:
        return functional.silu(gate) * up

    near(kernels.gated_silu(gate, up), silu(gate.double(), up.double()))
    for found, exact in zip(kernels.gated_silu_back(gate, up, slope), exact_slopes(silu, slope, gate, up), strict=True):
        near(found, exact)


def test_a_gate_far_from_0() -> None:
    gate = torch.tensor([-math.inf, -1e30, -1000.0, -88.0, -87.0, -0.0, 87.0, 1e30])
    exact = functional.silu(gate)
    exact[0] = math.nan  # of -inf times 0, as sigmoid(x) is there
    found = kernels.gated_silu(gate, torch.ones(8))
    torch.testing.assert_close(found[1:], exact[1:], rtol=1e-5, atol=1e-7)  # -1e30 exp(-87)
    assert kernels.gated_silu(torch.tensor([math.nan]), torch.ones(1)).isnan()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm(shape: tuple[int, int], whole: bool, dtype: torch.dtype) -> None:
    x, slope, weight = drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype), drawn(shape[1], dtype=dtype)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (1 + weight if whole else weight)

    made, inverse = kernels.rms_norm(x, weight, 1e-5, whole)
    near(made, norm(x.double(), weight.double()), rounded=1 if whole else 2)
    by_x, by_weight = exact_slopes(norm, slope, x, weight)
    if shape[1] > 1:  # of a single number nothing but what is rounded is left
        near(kernels.rms_norm_back(x, weight, inverse, slope, whole), by_x)
    near(kernels.rms_norm_weight(x, inverse, slope), by_weight)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("counted", [True, False])
def test_a_cross_entropy(counted: bool, scale: float, dtype: torch.dtype) -> None:
    product, target = drawn(9, 5003, dtype=dtype) * 3, torch.randint(0, 5003, (9,))
    counts = torch.rand(9) if counted else torch.ones(9)

    def losses(product: Tensor) -> Tensor:
        return functional.cross_entropy(product * scale, target, reduction="none")

    (exact,) = exact_slopes(losses, counts, product)
    wanted, kept = losses(product.double()), product.clone()
    found = kernels.cross_entropy(product, target, scale, None, slopes=False)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-5)
    assert torch.equal(product, kept)
    again = kernels.cross_entropy(product, target, scale, counts if counted else None, slopes=True)
    assert torch.equal(found, again)
    near(product, exact)


@pytest.mark.parametrize("logit", [math.nan, math.inf])
def test_what_is_no_number_is_no_loss(logit: float) -> None:
    """A run that has gone wrong must see it, whichever word it is of."""
    for dtype in TYPES:
        product = torch.zeros(2, 64, dtype=dtype)
        product[1, 3] = logit
        losses = kernels.cross_entropy(product, torch.tensor([0, 5]), 1.0, None, slopes=True)
        assert losses[0] == pytest.approx(math.log(64)) and not losses[1].isfinite()


@pytest.mark.parametrize("target", [-1, 64])
def test_a_target_that_is_no_word(target: int) -> None:
    with pytest.raises(IndexError, match="0 to 63"):
        kernels.cross_entropy(torch.zeros(2, 64), torch.tensor([0, target]), 1.0, None, slopes=True)


def test_words_that_are_ruled_out() -> None:
    product = torch.tensor([[0.0, -math.inf, -1e30, 0.0]])
    losses = kernels.cross_entropy(product, torch.tensor([3]), 1.0, None, slopes=True)
    assert losses.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(product, torch.tensor([[0.5, 0.0, 0.0, -0.5]]))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("angles", [1, 2])
@pytest.mark.parametrize("length", [1, 5, 67])
def test_a_turn(length: int, angles: int, dtype: torch.dtype) -> None:
    x, slope = (drawn(2, length, 3, 16, dtype=dtype) for _ in range(2))
    cosine, sine = drawn(2, angles, length, 16, dtype=torch.float32)

    def turned(x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        return x * cosine.unsqueeze(2).double() + torch.cat([-other, one], -1) * sine.unsqueeze(2).double()

    near(kernels.rotate(x, cosine, sine), turned(x.double()))
    (exact,) = exact_slopes(turned, slope, x)
    near(kernels.rotate(slope, cosine, sine, back=True), exact)


def test_what_fits() -> None:
    x = torch.zeros(4, 6)
    assert kernels.fit(x, x)
    for other in (x.double(), x.bfloat16(), x.T, x[:, :3], x.to("meta")):
        assert not kernels.fit(x, other)
    kernels.use(False)
    assert not kernels.fit(x)
