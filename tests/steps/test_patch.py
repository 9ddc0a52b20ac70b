"""Scaled positions: their frequencies against the papers' formulas in NumPy, and what is saved against what trained."""

import shutil
from pathlib import Path
from typing import Any

import kinds
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from factory.steps.patch import scale_positions

CONTEXT, FACTOR, THETA, WIDTH = 64, 1.5, 10000.0, 8
LONG = round(CONTEXT * FACTOR)
SCALINGS = ("linear", "dynamic", "yarn", "llama3")
NO_ROPE = ("gpt2", "gpt_neo", "gptj", "gpt_bigcode", "opt", "bloom", "mpt")  # gptj's is not config.json's to scale
# phimoe knows longrope alone; granitemoehybrid has no positions by default; gpt_oss is made with scaled ones
OTHERWISE = ("phimoe", "granitemoehybrid", "gpt_oss")


def scaled(kind: str, scaling: str, **changes: Any) -> Any:
    """A tiny model of the kind, built from a patched config."""
    config = kinds.config(kind, **changes)
    if scaling != "none":
        scale_positions(config, scaling, FACTOR, CONTEXT)
    return kinds.built(config)


def theta(width: int) -> Any:
    return THETA ** (-2 * np.arange(width // 2, dtype=np.float64) / width)


def linear(width: int) -> Any:
    """Positions divided by s (arXiv 2306.15595, equation 4)."""
    return theta(width) / FACTOR


def dynamic(width: int) -> Any:
    """A larger base by the length l at hand: b (s l / L - (s - 1))^(d / (d - 2)), "dynamic NTK"."""
    base = THETA * (FACTOR * LONG / CONTEXT - (FACTOR - 1)) ** (width / (width - 2))
    return base ** (-2 * np.arange(width // 2, dtype=np.float64) / width)


def yarn(width: int) -> Any:
    """By parts: full turns within the context decide (arXiv 2309.00071, equations 17 to 20); the authors' own code
    ramps over the dimensions between those of 32 turns and of 1 turn, rounded outwards."""
    at = [width * np.log(CONTEXT / (turns * 2 * np.pi)) / (2 * np.log(THETA)) for turns in (32, 1)]
    low, high = max(np.floor(at[0]), 0), min(np.ceil(at[1]), width - 1)
    interpolated = np.clip((np.arange(width // 2) - low) / (high - low), 0, 1)
    return theta(width) * (interpolated / FACTOR + 1 - interpolated)


def llama3(width: int) -> Any:
    """By wavelength: below L/4 as it was, above L divided by s, between them a mixture (Llama 3.1's reference code)."""
    plain = theta(width)
    smooth = np.clip((CONTEXT * plain / (2 * np.pi) - 1) / (4 - 1), 0, 1)
    return (1 - smooth) * plain / FACTOR + smooth * plain


FORMULAS = {"linear": linear, "dynamic": dynamic, "yarn": yarn, "llama3": llama3}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(
    ("kind", "width"), [("llama", 8), ("llama", 32), ("phi", 4), ("falcon", 8), ("gemma2", 8), ("qwen2_vl", 8)]
)
def test_frequencies_are_the_papers(kind: str, width: int, scaling: str) -> None:
    """phi turns half of each head's width: partial_rotary_factor is kept."""
    model = scaled(kind, scaling, **({"head_dim": width} if (kind, width) == ("llama", 32) else {}))
    model(input_ids=torch.arange(LONG)[None] % 90, use_cache=False)  # dynamic takes the length from the batch
    (rotary,) = {module for name, module in model.named_modules() if name.endswith("rotary_emb")}
    assert len(rotary.inv_freq) == width // 2
    np.testing.assert_allclose(rotary.inv_freq.double().numpy(), FORMULAS[scaling](width), rtol=2e-6)
    turned = 0.1 * np.log(FACTOR) + 1 if scaling == "yarn" else 1.0  # arXiv 2309.00071, equation 22
    assert rotary.attention_scaling == pytest.approx(turned)


def test_yarn_keeps_what_turns_often_and_interpolates_what_turns_less_than_once() -> None:
    """The paper's two limits, which hold however the middle is ramped."""
    rotary: Any = scaled("llama", "yarn", head_dim=32).model.rotary_emb
    share, turns = rotary.inv_freq.double().numpy() / theta(32), CONTEXT * theta(32) / (2 * np.pi)
    np.testing.assert_allclose(share[turns < 0.5], 1 / FACTOR, rtol=1e-6)
    assert share[0] == 1
    assert (np.diff(share) < 1e-6).all()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("kind", ["gemma3_text", "olmo3"])
def test_a_window_never_looks_further(kind: str, scaling: str) -> None:
    before, after = kinds.config(kind).rope_parameters, scaled(kind, scaling).config.rope_parameters
    assert after["sliding_attention"] == before["sliding_attention"]
    assert after["full_attention"].items() >= {**before["full_attention"], "rope_type": scaling, "factor": 1.5}.items()


def difference(kind: str, scaling: str) -> float:
    ids = torch.randint(3, 90, (1, LONG), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = [scaled(kind, each)(input_ids=ids, use_cache=False).logits for each in ("none", scaling)]
    return float((logits[0] - logits[1]).abs().max())


@pytest.mark.parametrize("kind", [kind for kind in kinds.KINDS if kind not in (*NO_ROPE, *OTHERWISE)])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_rotary_kind_is_scaled(kind: str, scaling: str) -> None:
    assert difference(kind, scaling) > 1e-4


@pytest.mark.parametrize("kind", NO_ROPE)
def test_kinds_without_rotary_positions_say_nothing_of_them(kind: str) -> None:
    assert "rope_parameters" not in kinds.config(kind).to_dict()


def test_kinds_that_would_fail_or_change_nothing() -> None:
    with pytest.raises(KeyError, match="mscale"):
        difference("phimoe", "llama3")
    assert difference("granitemoehybrid", "linear") == 0
    assert kinds.config("gpt_oss").rope_parameters["rope_type"] == "yarn"


TRAIN = ("data.max_length=384", "stage.max_steps=1", "stage.learning_rate=0.01", "precision=fp32", "stage=pt")


def long_ids() -> torch.Tensor:
    """As long as training's: dynamic keeps the frequencies of the longest sequence that it has seen."""
    return torch.randint(3, 500, (1, 384), generator=torch.Generator().manual_seed(1))


def equal_beyond_the_context(trained: Any, reloaded: Any) -> None:
    with torch.no_grad():
        theirs = trained.eval()(input_ids=long_ids(), use_cache=False).logits
        ours = reloaded.eval()(input_ids=long_ids(), use_cache=False).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_saved_weights_keep_the_positions(scaling: str, execute: Any, here: Path) -> None:
    done = execute(*TRAIN, "method=full", f"model.rope_scaling={scaling}")
    reloaded = AutoModelForCausalLM.from_pretrained(here / "run/model")
    assert reloaded.config.rope_parameters["rope_type"] == scaling
    equal_beyond_the_context(done.model, reloaded)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_saved_adapter_keeps_the_positions(scaling: str, execute: Any, here: Path, tiny_model: Path) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel

    done = execute(*TRAIN, "method=lora", f"model.rope_scaling={scaling}")
    config = AutoConfig.from_pretrained(here / "run/model/base")
    base = AutoModelForCausalLM.from_pretrained(tiny_model, config=config)
    equal_beyond_the_context(done.model, PeftModel.from_pretrained(base, str(here / "run/model")))
    # without it other positions are computed, so the card says how to read it
    alone = AutoPeftModelForCausalLM.from_pretrained(here / "run/model").eval()
    with torch.no_grad():
        far = alone(input_ids=long_ids()).logits - done.model(input_ids=long_ids(), use_cache=False).logits
    assert far.abs().max() > 1e-4
    assert "base/config.json" in (here / "run/model/README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(here / "run/model").num_parameters() > 0  # transformers' own way in
    shutil.rmtree(here / "run/model/base")


def test_unscaled_adapters_carry_no_config(execute: Any, here: Path) -> None:
    execute("stage=pt", "stage.max_steps=1", "method=lora", "data.max_length=64")
    assert not (here / "run/model/base").exists()
    assert "base/config.json" not in (here / "run/model/README.md").read_text()
