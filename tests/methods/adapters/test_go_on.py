"""Going on from a saved adapter, and being refused where it is another one's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quantized_checkpoints
import tiny
import torch
from built import Built, built
from conftest import compiled, refusals
from safetensors.torch import load_file, save_file
from test_adapter_experts import mixture
from test_every_adapter import ADAPTERS, FROM_WEIGHTS

from factory.plan.plan import to_yaml

LORA = ("method=lora", "method.rank=4")
TWO_TOKENS = (*LORA, "model.new_tokens=['<a>','<b>']")
KEPT = {name: (f"method={name}", *words) for name, words in ADAPTERS.items() if name not in FROM_WEIGHTS}
# method settings by the model that they are tried on
SAVED: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: ("llama", words) for name, words in KEPT.items()},
    "qlora": ("llama", ("method=qlora", "method.rank=4")),
    "new tokens": ("llama", TWO_TOKENS),
    "new tokens, tied": ("tied", TWO_TOKENS),
    "new tokens, dora": ("llama", ("method=dora", *TWO_TOKENS[1:])),
    "experts": ("mixtral", (*LORA, "method.target_experts=true")),
    "transposed experts": ("gpt_oss", (*LORA, "method.target_experts=true")),
    "transposed": ("gpt2", ("method=vera", "method.rank=4")),
    "some layers": ("llama", ("method=vera", "method.rank=4", "method.target_modules=[q_proj,down_proj]")),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("bases")
    return {
        "llama": tiny_model,
        "tied": tiny.save(at / "tied", tie_word_embeddings=True),
        "gpt2": tiny.save(at / "gpt2", model_type="gpt2", num_key_value_heads=4),
        "mixtral": mixture("mixtral", at),
        "gpt_oss": mixture("gpt_oss", at),
    }


def saved(folder: Path, at: Path, *words: str, steps: int = 3) -> Built:
    first = built(folder, *words)
    first.train(steps)
    first.method.export(first.model, first.settings, at)
    return first


@pytest.mark.parametrize("case", SAVED)
def test_goes_on_where_it_was(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Through the rule too: the spec knows the names and shapes that PEFT writes."""
    model, words = SAVED[case]
    first = saved(folders[model], tmp_path, *words)
    fresh, second = built(folders[model], *words), built(folders[model], *words, f"model.adapter={tmp_path}")
    assert not torch.allclose(fresh.logits(), first.logits(), atol=1e-4)
    torch.testing.assert_close(second.logits(), first.logits(), rtol=0, atol=1e-6)
    assert {name: value.requires_grad for name, value in second.model.named_parameters()} == {
        name: value.requires_grad for name, value in first.model.named_parameters()
    }
    assert not [name for name in second.train() if "embed_tokens" not in name]  # the new tokens are not in the text


@pytest.mark.parametrize("method", FROM_WEIGHTS)
def test_one_that_started_from_the_weights_goes_on_as_lora(method: str, tiny_model: Path, tmp_path: Path) -> None:
    """The refusal names the rank and alpha to go on with."""
    words = (*ADAPTERS[method], "method.alpha=6", "method.rslora=true")
    first = saved(tiny_model, tmp_path, f"method={method}", *words)
    at = (f"model.path={tiny_model}", "hardware=cpu", f"model.adapter={tmp_path}")
    found = {refusal.rule: refusal for refusal in refusals(*at, f"method={method}", *words)}
    assert found.keys() == {"adapter-start", "adapter-fits"}
    assert "method=lora" in found["adapter-start"].fix
    alpha = json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"]
    assert f"r=8 and lora_alpha={alpha}" in found["adapter-start"].wrong
    bits = f"method.quantization.bits={first.plan.settings.method.quantization.bits or 'null'}"
    second = built(
        tiny_model, "method=rslora", "method.rank=8", f"method.alpha={alpha}", bits, f"model.adapter={tmp_path}"
    )
    # a quantized base has other rounding errors than the one that was quantized without A and B
    torch.testing.assert_close(second.logits(), first.logits(), rtol=0, atol=0.15 if method == "loftq" else 1e-4)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("method=lora", "method.rank=8"), "has r=4, this run r=8"),
        (("method=lora", "method.rank=4", "method.alpha=3"), "lora_alpha=16"),
        (("method=rslora", "method.rank=4"), "has use_rslora=False, this run use_rslora=True"),
        (("method=dora", "method.rank=4"), "use_dora=False"),
        (("method=loha", "method.rank=4", "method.alpha=3"), "has peft_type=LORA alpha=None, this run peft_type=LOHA"),
        ((*LORA, "method.target_modules=[q_proj]"), "nothing is needed"),
        (TWO_TOKENS, "trainable_token_indices=None"),
    ],
)
def test_another_adapter_is_refused(other: tuple[str, ...], said: str, tiny_model: Path, tmp_path: Path) -> None:
    saved(tiny_model, tmp_path, *LORA, steps=0)
    (found,) = refusals(f"model.path={tiny_model}", "hardware=cpu", f"model.adapter={tmp_path}", *other)
    assert found.rule == "adapter-fits" and said in found.wrong


@pytest.mark.parametrize(
    "changed",
    [
        {"alpha_pattern": {"q_proj": 2}},
        {"alora_invocation_tokens": [7, 9]},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "lora_ga"},
    ],
)
def test_what_no_tensor_shows_is_refused(changed: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    saved(tiny_model, tmp_path, *LORA, steps=0)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(said | changed))
    (found,) = refusals(f"model.path={tiny_model}", "hardware=cpu", f"model.adapter={tmp_path}", *LORA)
    assert found.rule == "adapter-fits" and str(next(iter(changed.values()))) in found.wrong


def test_another_base_is_told_and_other_shapes_refused(tiny_model: Path, tmp_path: Path) -> None:
    saved(tiny_model, tmp_path / "adapter", *LORA, steps=0)
    words = ("hardware=cpu", f"model.adapter={tmp_path / 'adapter'}", *LORA)

    def told(folder: Path) -> list[str]:
        warnings = compiled(f"model.path={folder}", *words).warnings
        return [text for text in warnings if "it was trained on llama" in text]

    assert told(tiny.save(tmp_path / "other")) and not told(tiny_model)
    assert not told(tiny.save(tmp_path / "elsewhere" / "llama"))
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": ["llama"]}))
    assert not told(tmp_path / "other")
    wider = tiny.save(tmp_path / "wide" / "llama", hidden_size=64)
    (found,) = refusals(f"model.path={wider}", *words)
    assert found.rule == "adapter-fits" and "32 x 4, 64 x 4 is needed" in found.wrong


def test_an_adapter_of_another_kind_of_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Though each of its tensors has its place: a llama and a qwen2 differ in what they compute."""
    first = saved(tiny_model, tmp_path / "run" / "model", *LORA, steps=0)
    other = tiny.save(tmp_path / "qwen2", model_type="qwen2")
    config = tmp_path / "run" / "model" / "adapter_config.json"
    words = ("hardware=cpu", f"model.adapter={config.parent}", *LORA)

    def wrong(base: Path | str) -> list[str]:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(base)}))
        return [refusal.wrong for refusal in refusals(f"model.path={other}", *words) if refusal.rule == "adapter-fits"]

    (of_option,) = wrong("meta-llama/Llama-3.2-1B")
    assert not wrong("Qwen/Qwen2.5-0.5B-Instruct") and not wrong("me/unknown")
    assert not wrong(tiny_model)  # an adapter's word is no reason to read elsewhere
    (tmp_path / "run" / "plan.yaml").write_text(to_yaml(first.plan))
    (of_run,) = wrong(tiny_model)
    assert all("on a llama model" in text and "is a qwen2 model" in text for text in (of_option, of_run))
    assert not wrong(tmp_path / "mistral-0123456789ab")  # was a GGUF file, in which Mistral's models are llama's
    assert not refusals(f"model.path={tiny_model}", *words)


def test_the_positions_of_another_kind_of_base_are_not_read(tiny_model: Path, tmp_path: Path) -> None:
    """The config.json beside an adapter would stand in for the model's own, and hide what kind that is."""
    saved(tiny_model, tmp_path / "adapter", *LORA, steps=0)
    said = json.loads((tiny_model / "config.json").read_text())
    said["rope_parameters"] |= {"rope_type": "linear", "factor": 2.0}
    (tmp_path / "adapter" / "base").mkdir()
    (tmp_path / "adapter" / "base" / "config.json").write_text(json.dumps(said))
    words = ("hardware=cpu", f"model.adapter={tmp_path / 'adapter'}", *LORA)
    assert not refusals(f"model.path={tiny_model}", *words)
    (found,) = refusals(f"model.path={tiny.save(tmp_path / 'qwen2', model_type='qwen2')}", *words)
    assert found.rule == "adapter-fits" and "is a qwen2 model" in found.wrong


def test_a_file_that_lacks_a_tensor_is_not_loaded_in_part(tiny_model: Path, tmp_path: Path) -> None:
    first = saved(tiny_model, tmp_path, *LORA, steps=0)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    weights.popitem()
    save_file(weights, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(AssertionError, match="lora_"):
        first.method.go_on(first.model, str(tmp_path))


# --- in the loop, from a run's own folder

RUN = ("stage.learning_rate=1e-2", "stage.logging_steps=1", "precision=fp32", "stage.warmup_ratio=0")
FAR = (*RUN, "stage=pt", "data.max_length=384", "stage.max_steps=3", "stage.batch_size=2")


@pytest.mark.parametrize("case", [name for name in SAVED if SAVED[name][0] == "llama"])
def test_a_runs_folder_is_gone_on_from(case: str, execute: Callable[..., Any], here: Path) -> None:
    words = (*SAVED[case][1], *RUN, "stage.max_steps=2", "stage.batch_size=2", "evaluate.perplexity=true")
    first = execute(*words)
    second = execute(*words, f"model.adapter={here / 'run/model'}", folder="again")
    before = second.result["evaluate"]["perplexity_before"]
    assert before == pytest.approx(first.result["evaluate"]["perplexity"], rel=1e-4)
    assert all(check["passed"] for check in second.run.checks.values()), second.run.checks


@pytest.mark.parametrize("scaling", ["linear", "dynamic", "yarn", "llama3"])
def test_goes_on_with_the_positions_that_it_was_trained_with(
    scaling: str, execute: Callable[..., Any], here: Path
) -> None:
    first = execute(*FAR, *LORA, f"model.rope_scaling={scaling}")
    words = (*FAR, *LORA)
    second = execute(*words, f"model.adapter={here / 'run/model'}", folder="again")
    assert second.run.plan.steps.patch.context_length == 384
    assert second.model.config.rope_parameters["rope_type"] == scaling
    before = second.result["evaluate"]["perplexity_before"]
    assert before == pytest.approx(first.result["evaluate"]["perplexity"], rel=1e-5)
    third = execute(*words, f"model.adapter={here / 'again/model'}", folder="third")  # the positions travel on
    assert third.result["evaluate"]["perplexity_before"] == pytest.approx(
        second.result["evaluate"]["perplexity"], rel=1e-5
    )
    assert third.model.peft_config["default"].base_model_name_or_path.endswith("llama")
    scaled_twice = refusals(
        f"model.path={first.run.plan.steps.load.path}",
        "hardware=cpu",
        *words,
        f"model.adapter={here / 'run/model'}",
        "model.rope_scaling=linear",
        "data.max_length=600",
    )
    assert [refusal.rule for refusal in scaled_twice] == ["rope-scaling"]


def test_stretched_positions_over_a_quantized_checkpoint(execute: Callable[..., Any], here: Path) -> None:
    """The base config that travels with the adapter says how the checkpoint's weights lie."""
    wide = tiny.save(here / "wide", hidden_size=64, intermediate_size=128)
    base = quantized_checkpoints.write("bitsandbytes 4", wide, here / "base")
    words = (*FAR, *LORA, f"model.path={base}", "precision=bf16")
    first = execute(*words, "model.rope_scaling=linear")
    second = execute(*words, f"model.adapter={here / 'run/model'}", folder="again")
    before = second.result["evaluate"]["perplexity_before"]
    assert before == pytest.approx(first.result["evaluate"]["perplexity"], rel=1e-4)


@pytest.mark.parametrize("factor", [None, "Infinity", "NaN", '"2"'])
def test_a_base_folder_without_positions_is_refused(factor: str | None, tiny_model: Path, tmp_path: Path) -> None:
    saved(tiny_model, tmp_path, *LORA, steps=0)
    (tmp_path / "base").mkdir()
    rope = "" if factor is None else f', "rope_parameters": {{"rope_type": "linear", "factor": {factor}}}'
    text = f'{{"model_type": "llama", "max_position_embeddings": 256{rope}}}'
    (tmp_path / "base" / "config.json").write_text(text)
    found = refusals(f"model.path={tiny_model}", "hardware=cpu", f"model.adapter={tmp_path}", *LORA)
    assert [refusal.rule for refusal in found] == ["adapter-missing"]
