"""Products whose columns are shared by threads are those of torch, and nothing beside them is written to."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from factory import fused, products
from factory.native import build, kernels


@pytest.fixture(autouse=True, params=[2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    if build.compiler() is None or not torch.backends.mkl.is_available():
        pytest.skip("there is no C compiler, or torch has another BLAS than MKL")
    before = torch.get_num_threads()
    kernels.use(True)
    kernels._sgemm = kernels._mkls_sgemm()  # on any processor
    monkeypatch.setattr(kernels, "_LEAST_SHARED", 64)
    torch.set_num_threads(request.param)
    torch.manual_seed(0)
    yield request.param
    torch.set_num_threads(before)


def within(rows: int, columns: int, *, turned: bool) -> torch.Tensor:
    """Of a larger one, as pieces of a wide weight are; `turned`: the transpose of such."""
    if turned:
        return within(columns, rows, turned=False).T
    return torch.randn(rows, columns + 3)[:, 2 : 2 + columns]


@pytest.mark.parametrize("onto", [False, True])
@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(("rows", "columns", "inner"), [(1, 192, 5), (7, 200, 33), (70, 576, 64), (3, 203, 1)])
def test_they_are_float64s(rows: int, columns: int, inner: int, turned: tuple[bool, bool], onto: bool) -> None:
    a, b = within(rows, inner, turned=turned[0]), within(inner, columns, turned=turned[1])
    around = torch.randn(rows, columns + 5)
    into, before = around[:, 4 : 4 + columns], around.clone()
    if not onto:
        into.fill_(torch.nan)  # what was there is not read
    assert kernels.multiply_shared(a, b, into, onto=onto)
    exact = a.double() @ b.double() + (before[:, 4 : 4 + columns].double() if onto else 0)
    torch.testing.assert_close(into.double(), exact, rtol=1e-5, atol=1e-5)
    before[:, 4 : 4 + columns] = into
    assert torch.equal(around, before)


@pytest.mark.parametrize("way", ["linear", "logits", "add", "back", "add_back"])
def test_products_of_layers_are_shared(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, slope = torch.randn(96, 192), torch.randn(200, 192), torch.randn(96, 200)
    ways = {
        "linear": (lambda: products.linear(x.view(2, 48, 192), weight, None).flatten(0, 1), x @ weight.T),
        "logits": (lambda: products.logits(x, weight, torch.empty(96, 200)), x @ weight.T),
        "add": (lambda: products.add(slope, x, weight), slope + x @ weight.T),
        "back": (lambda: products.back(slope, weight), slope @ weight),
        "add_back": (lambda: products.add_back(x, slope, weight), x + slope @ weight),
    }
    for torchs in ("mm", "addmm"):
        monkeypatch.setattr(torch, torchs, lambda *_, **__: pytest.fail("torch's"))
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *_, **__: pytest.fail("torch's"))
    make, truth = ways[way]
    made = make()
    torch.testing.assert_close({"add": slope, "add_back": x}.get(way, made), truth)


def test_layers_that_nothing_is_learned_of_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of answers and held-out rows."""
    from test_fused import model_of

    model: Any = model_of("llama").eval()
    fused.fuse_linears(model)
    linear = (layer for layer in model.model.modules() if isinstance(layer, torch.nn.Linear))
    layers = [layer for layer in linear if layer.out_features >= 48]
    monkeypatch.setattr(kernels, "_LEAST_SHARED", 16)
    inputs = [torch.randn(2, 4, layer.in_features) for layer in layers]
    truth = [x @ layer.weight.T for x, layer in zip(inputs, layers, strict=True)]
    for torchs in ("mm", "addmm"):
        monkeypatch.setattr(torch, torchs, lambda *_, **__: pytest.fail("torch's"))
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *_, **__: pytest.fail("torch's"))
    with torch.no_grad():
        made = [layer(x) for x, layer in zip(inputs, layers, strict=True)]
    assert made
    torch.testing.assert_close(made, truth)


def test_what_fits(threads: int) -> None:
    def shared(a: torch.Tensor, b: torch.Tensor, into: torch.Tensor | None = None) -> bool:
        into = torch.full((len(a), b.shape[1]), torch.nan) if into is None else into
        done = kernels.multiply_shared(a, b, into, onto=False)
        assert done != bool(into.isnan().all())  # it does all of it or nothing
        return done

    a, b = torch.ones(4, 8), torch.ones(8, 192)
    assert shared(a, b)
    assert not shared(a, b[:, : 64 * threads - 1])  # too few columns for each thread
    assert not shared(torch.ones(384 // threads + 1, 8), b) and shared(
        torch.ones(384 // threads, 8), b
    )  # too many rows
    for other in (a.bfloat16(), torch.ones(4, 16)[:, ::2], a[:1].expand(4, 8), a[:, :0]):
        assert not shared(other, b[: other.shape[1]])
    assert not shared(a, b, torch.full((192, 4), torch.nan).T)
    assert not kernels.multiply_shared(a.to("meta"), b.to("meta"), torch.empty(4, 192, device="meta"), onto=False)
    torch.set_num_threads(1)
    assert not shared(a, b)
    torch.set_num_threads(threads)
    kernels.use(False)
    assert not shared(a, b)


@pytest.mark.parametrize(("vendor", "shared"), [("AuthenticAMD", True), ("GenuineIntel", False), ("", False)])
def test_where_it_is_faster(vendor: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.cpu, "vendor", lambda: vendor)
    kernels.use(True)
    assert (kernels._sgemm is not None) == shared
