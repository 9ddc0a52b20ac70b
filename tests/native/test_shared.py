"""Products whose columns are shared by threads are those of torch, and nothing beside them is written to."""

from collections.abc import Iterator

import pytest
import torch

from factory import products
from factory.native import build, kernels


@pytest.fixture(autouse=True, params=[2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    if build.compiler() is None or not torch.backends.mkl.is_available():
        pytest.skip("there is no C compiler, or torch has another BLAS than MKL")
    before = torch.get_num_threads()
    kernels.use(True)
    kernels._sgemm = kernels._mkls_sgemm()  # on any processor
    torch.set_num_threads(request.param)
    torch.manual_seed(0)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(("rows", "columns", "inner"), [(1, 192, 5), (7, 200, 33), (70, 576, 64), (3, 203, 1)])
def test_they_are_float64s(rows: int, columns: int, inner: int, back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that lie apart too, as pieces of a wide weight's are."""
    x = torch.randn(rows, inner + 3)[:, 2 : 2 + inner]
    weight = torch.randn(inner if back else columns, 1 + (columns if back else inner))[:, 1:]
    around = torch.randn(rows, columns + 5)
    onto, before = around[:, 4 : 4 + columns], around.clone()
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *_, **__: pytest.fail("torch's"))
    (products.add_back if back else products.add)(onto, x, weight)
    exact = before[:, 4 : 4 + columns].double() + x.double() @ (weight.double() if back else weight.double().T)
    torch.testing.assert_close(onto.double(), exact, rtol=1e-5, atol=1e-5)
    before[:, 4 : 4 + columns] = onto
    assert torch.equal(around, before)


def test_what_fits(threads: int) -> None:
    onto, x, weight = torch.zeros(4, 192), torch.zeros(4, 8), torch.zeros(192, 8)
    assert kernels.shared_fit(onto, x, weight)
    assert not kernels.shared_fit(onto[:, : 64 * threads - 1], x, weight)  # too few columns for each thread
    assert not kernels.shared_fit(torch.zeros(193, 192), torch.zeros(193, 8), weight)  # too many rows
    for other in (x.bfloat16(), x[:, ::2], x[:1].expand(4, 8), x.to("meta"), x[:, :0]):
        assert not kernels.shared_fit(onto, other, weight)
    torch.set_num_threads(1)
    assert not kernels.shared_fit(onto, x, weight)
    torch.set_num_threads(threads)
    kernels.use(False)
    assert not kernels.shared_fit(onto, x, weight)


@pytest.mark.parametrize(("vendor", "shared"), [("AuthenticAMD", True), ("GenuineIntel", False), ("", False)])
def test_where_it_is_faster(vendor: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.cpu, "vendor", lambda: vendor)
    kernels.use(True)
    assert (kernels._sgemm is not None) == shared
