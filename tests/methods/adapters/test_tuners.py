"""What is not LoRA, against NumPy: each adapted layer's whole matrix from the paper's formula."""

from pathlib import Path

import numpy as np
import pytest
import torch
from built import Built, built, weight_of
from test_lora_kinds import LAYER, array, effective, randomized

from factory.methods.lokr.spec import factors
from factory.methods.lora.targets import PREFIX

FAR = "method.target_modules=[layers.1.mlp.up_proj]"


def of(made: Built, name: str) -> np.ndarray:
    return array(made.trained[f"{PREFIX}{LAYER}.{name}"])


def base(made: Built) -> np.ndarray:
    return array(weight_of(made.model, LAYER))


def test_vera(tiny_model: Path) -> None:
    """W + Λ_b B Λ_d A with A and B frozen (VeRA, equation 2)."""
    made = randomized(built(tiny_model, "method=vera", "method.rank=8", "method.initial=0.2", FAR))
    module = made.model.get_submodule(f"{PREFIX}{LAYER}")
    a, b = array(module.vera_A["default"]), array(module.vera_B["default"])
    change = of(made, "vera_lambda_b.default")[:, None] * b @ (of(made, "vera_lambda_d.default")[:, None] * a)
    np.testing.assert_allclose(effective(made), base(made) + change, atol=1e-5)


def test_vera_starts_where_it_is_told(tiny_model: Path) -> None:
    made = built(tiny_model, "method=vera", "method.rank=8", "method.initial=0.2", FAR)
    assert (of(made, "vera_lambda_d.default") == np.float32(0.2)).all()
    assert not of(made, "vera_lambda_b.default").any()
    seeds = [
        built(tiny_model, "method=vera", "method.rank=8", f"method.projection_seed={seed}", FAR)
        .model.get_submodule(f"{PREFIX}{LAYER}")
        .vera_A["default"]
        for seed in (0, 0, 1)
    ]
    assert seeds[0].equal(seeds[1])
    assert not seeds[0].equal(seeds[2])


@pytest.mark.parametrize("terms", ["null", "5"])
def test_oft_turns_the_inputs(terms: str, tiny_model: Path) -> None:
    """Every angle between two neurons stays: W R (W R)ᵀ = W Wᵀ (OFT, section 3.1); R is Cayley's (equation 3)."""
    made = built(tiny_model, "method=oft", "method.block_size=8", f"method.neumann_terms={terms}", FAR)
    torch.manual_seed(1)
    with torch.no_grad():
        (rotation,) = made.trained.values()
        rotation.normal_(std=0.3 if terms == "null" else 0.02)
    before, after = base(made), effective(made)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-5)
    upper = np.triu_indices(8, 1)
    blocks = []
    for values in array(rotation):
        skew = np.zeros((8, 8))
        skew[upper] = values
        skew -= skew.T
        blocks.append((np.eye(8) - skew) @ np.linalg.inv(np.eye(8) + skew))
    turned = np.concatenate([before[:, 8 * n : 8 * n + 8] @ block for n, block in enumerate(blocks)], axis=1)
    mirrored = np.concatenate([before[:, 8 * n : 8 * n + 8] @ block.T for n, block in enumerate(blocks)], axis=1)
    assert min(np.abs(after - turned).max(), np.abs(after - mirrored).max()) < 1e-5


@pytest.mark.parametrize("inputs", [True, False])
def test_ia3(inputs: bool, tiny_model: Path) -> None:
    """diag(l) W, or W diag(l) where the input is scaled."""
    scaled = "method.scaled_inputs=[up_proj]" if inputs else "method.scaled_inputs=[]"
    made = randomized(built(tiny_model, "method=ia3", FAR, scaled))
    scale = of(made, "ia3_l.default")
    assert scale.shape == ((1, 32) if inputs else (64, 1))
    np.testing.assert_allclose(effective(made), base(made) * scale, atol=1e-5)


def test_loha(tiny_model: Path) -> None:
    """W + alpha/r (W₁a W₁b) ⊙ (W₂a W₂b)."""
    made = randomized(built(tiny_model, "method=loha", "method.rank=4", "method.alpha=6", FAR))
    one, two = (of(made, f"hada_w{n}_a.default") @ of(made, f"hada_w{n}_b.default") for n in (1, 2))
    np.testing.assert_allclose(effective(made), base(made) + 6 / 4 * one * two, atol=1e-5)


@pytest.mark.parametrize("rank", [2, 8])
def test_lokr(rank: int, tiny_model: Path) -> None:
    """W + alpha/r W₁ ⊗ W₂, the second factor whole where the rank is not below half its size."""
    made = randomized(built(tiny_model, "method=lokr", f"method.rank={rank}", "method.alpha=6", FAR))
    low = rank == 2
    second = of(made, "lokr_w2_a.default") @ of(made, "lokr_w2_b.default") if low else of(made, "lokr_w2.default")
    change = 6 / rank * np.kron(of(made, "lokr_w1.default"), second)
    np.testing.assert_allclose(effective(made), base(made) + change, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "wanted"), [(1, (1, 1)), (127, (1, 127)), (128, (8, 16)), (1536, (32, 48)), (576, (24, 24))]
)
def test_factors_near_the_root(size: int, wanted: tuple[int, int]) -> None:
    assert factors(size) == wanted


def test_factors_are_pefts() -> None:
    from peft.tuners.lokr.layer import factorization

    for size in (*range(1, 300), 576, 960, 1024, 1536, 2560, 4096, 5632, 11008, 14336, 28672, 49152):
        assert factors(size) == factorization(size), size
