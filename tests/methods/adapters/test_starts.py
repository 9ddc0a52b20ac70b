"""Adapters that start from the weights: the same model before training, the same one when it is read back."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from built import QUANTIZED, Built, built, weight_of

from factory.methods.lora.spec import scaling
from factory.methods.lora.targets import PREFIX

RANK = 4
SCALES = {"plain": ("method.alpha=6",), "rslora": ("method.alpha=6", "method.rslora=true")}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "num_key_value_heads": 4}
    return tiny.save(tmp_path_factory.mktemp("tiny") / "gpt2", model_type="gpt2", **sizes)


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights have a spectrum that falls, as trained ones do; a random matrix's is nearly flat."""
    from transformers import AutoModelForCausalLM

    folder = tiny.save(tmp_path_factory.mktemp("tiny") / "spread")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 2 and "layers" in name:
                u, s, vt = torch.linalg.svd(value, full_matrices=False)
                value.copy_(u * s[0] * 0.8 ** torch.arange(len(s)) @ vt)
    model.save_pretrained(folder)
    return folder


def start(made: Built, name: str) -> torch.Tensor:
    """scale · BA."""
    at = f"{PREFIX}{name}.lora"
    b, a = (made.trained[f"{at}_{side}.default.weight"].detach() for side in "BA")
    return scaling(made.settings) * b @ a


def original(made: Built, name: str, *, quantized: bool = False) -> torch.Tensor:
    """The weight as (out, in); or the nearest rounding of it."""
    from peft import LoraConfig, get_peft_model

    base = made.base(quantized=quantized)
    wrapped = get_peft_model(base, LoraConfig(target_modules=[name]))
    return weight_of(wrapped, name)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["pissa", "olora"])
@pytest.mark.parametrize("model", ["tiny_model", "gpt2"])
def test_base_and_adapter_are_the_weights(model: str, kind: str, scale: str, request: pytest.FixtureRequest) -> None:
    made = built(request.getfixturevalue(model), f"method={kind}", f"method.rank={RANK}", *SCALES[scale])
    for name in made.arch.linears():
        whole = original(made, name)
        rest = weight_of(made.model, name)
        torch.testing.assert_close(rest + start(made, name), whole, rtol=0, atol=1e-6)
        assert not torch.allclose(rest, whole, atol=1e-3)
    torch.testing.assert_close(made.logits(), made.logits(made.base()), rtol=0, atol=1e-4)


def test_pissa_is_the_nearest_of_its_rank(tiny_model: Path) -> None:
    """What is left is what NumPy's singular values below the rank say (Eckart and Young)."""
    made = built(tiny_model, "method=pissa", f"method.rank={RANK}")
    for name in made.arch.linears():
        singular = np.linalg.svd(original(made, name).double().numpy(), compute_uv=False)
        assert weight_of(made.model, name).norm().item() == pytest.approx(np.linalg.norm(singular[RANK:]), rel=1e-5)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_as_peft_starts_it(kind: str, tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    made = built(tiny_model, f"method={kind}", f"method.rank={RANK}", *SCALES["rslora"])
    config = LoraConfig(
        r=RANK, lora_alpha=6, use_rslora=True, init_lora_weights=kind, target_modules=list(made.arch.linears())
    )
    theirs = get_peft_model(made.base(), config)
    for name in made.arch.linears():
        torch.testing.assert_close(weight_of(made.model, name), weight_of(theirs, name), rtol=0, atol=1e-5)


def test_fast_pissa_is_nearly_pissa(spread: Path) -> None:
    exact, fast = (
        built(spread, "method=pissa", f"method.rank={RANK}", f"method.iterations={number}") for number in ("null", 16)
    )
    for name in exact.arch.linears():
        left = [weight_of(made.model, name).norm().item() for made in (exact, fast)]
        assert left[0] * (1 - 1e-5) <= left[1] <= left[0] * 1.01
        whole = original(fast, name)
        torch.testing.assert_close(weight_of(fast.model, name) + start(fast, name), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("base", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["pissa", "loftq"])
def test_nearer_than_rounding(kind: str, base: str, spread: Path) -> None:
    """The error of the quantized base with the adapter, over all layers, against that of rounding alone."""
    made = built(spread, f"method={kind}", f"method.rank={RANK}", *QUANTIZED[base])
    ours = nearest = 0.0
    for name in made.arch.linears():
        whole = original(made, name)
        ours += (weight_of(made.model, name) + start(made, name) - whole).square().sum().item()
        nearest += (original(made, name, quantized=True) - whole).square().sum().item()
    assert 0 < ours < 0.9 * nearest


def test_loftq_is_algorithm_1(spread: Path) -> None:
    """By NumPy's SVD and bitsandbytes' own layer, in turn (LoftQ, algorithm 1)."""
    from bitsandbytes import functional
    from bitsandbytes.nn import Params4bit

    made = built(spread, "method=loftq", f"method.rank={RANK}", "method.iterations=3")

    def rounded(weight: np.ndarray) -> np.ndarray:
        held = Params4bit(torch.tensor(weight, dtype=torch.float32), quant_type="nf4", compress_statistics=True)
        held = held.to("cpu")
        return functional.dequantize_4bit(held.data, held.quant_state).double().numpy()

    for name in list(made.arch.linears())[:4]:
        whole = original(made, name).double().numpy()
        adapter = np.zeros_like(whole)
        base = whole
        for _ in range(3):
            base = rounded(whole - adapter)
            u, s, vt = np.linalg.svd(whole - base, full_matrices=False)
            adapter = u[:, :RANK] * s[:RANK] @ vt[:RANK]
        # a value halfway between two codes is rounded either way, and the turns after it differ: not so what is left
        left = whole - weight_of(made.model, name).double().numpy() - start(made, name).double().numpy()
        ours, theirs = np.linalg.norm(left), np.linalg.norm(whole - base - adapter)
        assert ours == pytest.approx(theirs, rel=0.02) and ours < 0.8 * np.linalg.norm(whole - rounded(whole))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["pissa", "olora"])
@pytest.mark.parametrize("model", ["tiny_model", "gpt2"])
def test_the_export_stands_beside_the_original(
    model: str, kind: str, scale: str, request: pytest.FixtureRequest
) -> None:
    made = built(request.getfixturevalue(model), f"method={kind}", f"method.rank={RANK}", *SCALES[scale])
    before = made.logits(made.base())
    made.train()
    trained = made.logits()
    exported = made.exported()
    assert exported.peft_config["default"].r == 2 * RANK
    assert exported.peft_config["default"].init_lora_weights is True
    assert (trained - before).abs().max() > 0.1
    torch.testing.assert_close(made.logits(exported), trained, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["pissa", "loftq"])
def test_the_export_of_a_quantized_base_leaves_only_rounding(kind: str, spread: Path) -> None:
    """Beside the original: the trained matrix, but for the error that its own quantized base had."""
    made = built(spread, f"method={kind}", f"method.rank={RANK}", *QUANTIZED["nf4"])
    first = {name: start(made, name) for name in made.arch.linears()}
    made.train()
    exported = made.exported(quantized=False)
    for name in made.arch.linears():
        module = exported.get_submodule(f"{PREFIX}{name}")
        theirs = weight_of(exported, name) + module.get_delta_weight("default").detach()
        ours = weight_of(made.model, name) + start(made, name)
        error = original(made, name) - (weight_of(made.model, name) + first[name])
        torch.testing.assert_close(theirs - ours, error, rtol=0, atol=1e-5)


@pytest.mark.parametrize("library", ["torchao", "optimum.quanto"])
def test_over_the_other_quantizers(library: str, tiny_model: Path) -> None:
    """The rest is quantized by whatever library: the model is the whole one's but for 8-bit rounding."""
    pytest.importorskip(library)
    quantizer = f"method.quantization.method={library.rpartition('.')[2]}"
    made = built(tiny_model, "method=pissa", f"method.rank={RANK}", quantizer, *QUANTIZED["int8"])
    whole = made.base(quantized=False)
    difference = (made.logits() - made.logits(whole)).abs().max()
    assert 0 < difference < 0.01 * made.logits(whole).abs().max()
    assert made.train() == set()
