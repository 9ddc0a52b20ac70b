"""Exports of adapters that have a base to themselves: their start left the weights before these were quantized."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import SHORT, exported, files, losses, planned
from safetensors.torch import load_file

from factory import own_base
from factory.config import compose
from factory.config.refusal import UserError
from factory.execute.report import write_report
from factory.plan.anew import compiled

Execute = Callable[..., Any]
KINDS: dict[str, tuple[str, ...]] = {
    "loftq": ("method=loftq",),
    "loftq of one turn": ("method=loftq", "method.iterations=1"),
    "pissa": ("method=pissa", "method.quantization.bits=4"),
    "fast pissa, fp4": (
        "method=pissa",
        "method.iterations=4",
        "method.quantization.bits=4",
        "method.quantization.type=fp4",
        "method.quantization.double_quantization=false",
    ),
    "rslora's scale": ("method=loftq", "method.rslora=true"),
}
EXACT = 1e-4  # nats of a token, in float32
PUBLISHED = "method.quantization.bits=null"


def _trained(execute: Execute, kind: str, *words: str) -> Any:
    done = execute(*KINDS[kind], "method.rank=4", *SHORT, *words)
    write_report(done.run, "finished", done.result, None)
    return done


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """Of each adapted layer, with the adapter in it, as (out, in) in float32."""
    from peft.utils.integrations import dequantize_module_weight

    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            held = dequantize_module_weight(module.get_base_layer()).detach().float()
            weight = held + module.get_delta_weight("default").detach().float()
            found[f"{name.removeprefix('base_model.model.')}.weight"] = weight
    assert found
    return found


def _losses(run: Any, model: Any) -> torch.Tensor:
    return losses(model, run.dataset.first.ids[:48])


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_model_that_was_trained(kind: str, execute: Execute) -> None:
    from transformers import AutoModelForCausalLM

    done = _trained(execute, kind)
    told = exported("run=run", "export.dir=out", "export.dtype=float32")
    assert {"merge", "as_trained", "written"} <= told["checks"].keys()
    assert all(check["passed"] for check in told["checks"].values()), told["checks"]
    read = AutoModelForCausalLM.from_pretrained("out")
    assert (_losses(done, read) - _losses(done, done.model)).abs().max() < EXACT
    written = load_file("out/model.safetensors")
    for name, weight in _weights(done.model).items():
        torch.testing.assert_close(written[name], weight, rtol=0, atol=1e-6)
    assert "## The base" not in Path("out/README.md").read_text()


@pytest.mark.parametrize("kind", ["loftq", "pissa"])
def test_in_gguf_too(kind: str, execute: Execute) -> None:
    from transformers import AutoModelForCausalLM

    done = _trained(execute, kind)
    told = exported("run=run", "export.dir=out", "export.format=gguf", "export.dtype=float32")
    assert told["checks"]["as_trained"]["passed"] and told["most_nats"] < EXACT
    read = AutoModelForCausalLM.from_pretrained("out", gguf_file="model.gguf", dtype=torch.float32)
    assert (_losses(done, read) - _losses(done, done.model)).abs().max() < EXACT


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
@pytest.mark.parametrize("kind", ["loftq", "pissa"])
def test_its_base_is_read_in_the_type_that_the_run_read_it_in(kind: str, precision: str, execute: Execute) -> None:
    """Quantized from float32 the same weights would be others."""
    done = _trained(execute, kind, f"precision={precision}")
    plan = planned("run=run", "export.dir=out", "export.dtype=float32")
    assert (plan.steps.load.dtype, plan.steps.load.read_as) == ("float32", "bfloat16")
    told = exported("run=run", "export.dir=out", "export.dtype=float32")
    assert told["checks"]["as_trained"]["passed"]
    written = load_file("out/model.safetensors")
    for name, weight in _weights(done.model.float()).items():
        torch.testing.assert_close(written[name], weight, rtol=0, atol=1e-6)


def test_layers_that_lie_turned(execute: Execute, here: Path) -> None:
    """GPT-2's, as (in, out)."""
    import tiny
    from transformers import AutoModelForCausalLM

    sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "num_key_value_heads": 4}
    tiny.save(here / "gpt2", model_type="gpt2", **sizes)
    done = _trained(execute, "pissa", f"model.path={here / 'gpt2'}")
    exported("run=run", "export.dir=out", "export.dtype=float32")
    read = AutoModelForCausalLM.from_pretrained("out")
    assert (_losses(done, read) - _losses(done, done.model)).abs().max() < EXACT


def test_over_eight_bits_but_for_what_is_computed_in_eight(execute: Execute) -> None:
    from transformers import AutoModelForCausalLM

    done = _trained(execute, "pissa", "method.quantization.bits=8")
    told = exported("run=run", "export.dir=out", "export.dtype=float32")
    assert "0.3 are allowed" in told["checks"]["as_trained"]["detail"]
    apart = _losses(done, AutoModelForCausalLM.from_pretrained("out")) - _losses(done, done.model)
    assert apart.abs().max() < 1e-2


def test_a_run_that_was_continued_leaves_the_same_base(execute: Execute) -> None:
    whole = _trained(execute, "loftq", "stage.save_steps=1", "stage.save_total_limit=5")
    again = execute(
        *KINDS["loftq"],
        "method.rank=4",
        *SHORT,
        "stage.save_steps=1",
        "stage.save_total_limit=5",
        folder="again",
        resume_from=whole.run.folder.whole_checkpoints()[0],
    )
    ours, theirs = (load_file(done.run.folder.model / own_base.FILE) for done in (whole, again))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_merged_into_the_published_weights_it_says_by_how_much_it_is_another(execute: Execute) -> None:
    from transformers import AutoModelForCausalLM

    done = _trained(execute, "loftq")
    (warning,) = planned("run=run", "export.dir=out", PUBLISHED).warnings
    assert PUBLISHED in warning and "method.quantization.bits=4" in warning
    told = exported("run=run", "export.dir=out", "export.dtype=float32", PUBLISHED)
    detail = told["checks"]["as_trained"]["detail"]
    assert "not as it was trained" in detail and "1.5 are allowed" in detail
    apart = (_losses(done, AutoModelForCausalLM.from_pretrained("out")) - _losses(done, done.model)).abs()
    assert 10 * EXACT < apart.max() < 0.1
    assert "another model than the trained one" in Path("out/README.md").read_text()


@pytest.mark.parametrize("kind", ["loftq", "pissa"])
def test_the_adapter_alone_says_how_far_it_is_on_published_weights(
    kind: str, execute: Execute, tiny_model: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _trained(execute, kind)
    words = ("run=run", "export.dir=out", "export.format=adapter")
    (warning,) = planned(*words).warnings
    assert "export.format=adapter" in warning and "another model" in warning and "exact is export.format=hf" in warning
    told = exported(*words)
    whole, quantized = (told["apart"][name] for name in ("in full precision", "quantized"))
    assert told["checks"]["as_trained"]["passed"]
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), "out")
    own = own_base.read(Path("out"))
    apart = losses(read, list(own.ids)) - torch.tensor(own.losses)
    assert whole["mean_nats"] == pytest.approx(float(apart.abs().mean()), rel=1e-2)
    assert min(whole["mean_nats"], quantized["mean_nats"]) > EXACT
    card = Path("out/README.md").read_text()
    assert f"{whole['mean_nats']:.2g} nats on average" in card and f"{quantized['mean_nats']:.2g} nats" in card


def test_an_adapter_that_nobody_measures_says_that(execute: Execute) -> None:
    _trained(execute, "pissa")
    words = ("run=run", "export.dir=out", "export.format=adapter", "export.check=false")
    assert "not measured" in planned(*words).warnings[0]
    told = exported(*words)
    assert told["apart"] == {} and "how far is not measured" in Path("out/README.md").read_text()


def test_the_folder_of_an_adapter_is_enough(execute: Execute) -> None:
    """Exported alone, and merged by whoever has it, over what its file says; elsewhere the warning says how."""
    from transformers import AutoModelForCausalLM

    done = _trained(execute, "loftq")
    exported("run=run", "export.dir=alone", "export.format=adapter", "export.check=false")
    words = ("run=alone", "export.dir=out", "export.dtype=float32")
    (warning,) = planned(*words, PUBLISHED).warnings
    said = warning.partition("exact is ")[2].split()
    assert len(said) == 4
    assert planned(*words).warnings == planned(*words, *said).warnings == ()
    exported(*words)
    apart = _losses(done, AutoModelForCausalLM.from_pretrained("out")) - _losses(done, done.model)
    assert apart.abs().max() < EXACT


@pytest.mark.parametrize("what", ["other bits", "no file", "a broken file", "a file of something else"])
def test_a_base_that_cannot_be_made_is_refused_before_anything_is_read(what: str, execute: Execute) -> None:
    _trained(execute, "loftq")
    file, words = Path("run/model") / own_base.FILE, ["run=run", "export.dir=out"]
    if what == "other bits":
        words += ["method.quantization.bits=4", "method.quantization.type=fp4"]
    elif what == "no file":
        file.unlink()
    elif what == "a broken file":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.write_bytes(Path("run/model/adapter_model.safetensors").read_bytes())
    with pytest.raises(UserError, match="export-base" if what in ("other bits", "no file") else "model-broken"):
        planned(*words)


def test_a_run_that_left_no_base_can_be_merged_into_published_weights(execute: Execute) -> None:
    _trained(execute, "loftq")
    (Path("run/model") / own_base.FILE).unlink()
    assert "how far is not known" in planned("run=run", "export.dir=out", PUBLISHED).warnings[0]
    told = exported("run=run", "export.dir=out", PUBLISHED)
    assert "as_trained" not in told["checks"]
    assert "how far is not measured" in Path("out/README.md").read_text()


def test_another_base_under_the_same_name_is_refused(execute: Execute, tiny_model: Path, here: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    """By the losses of `as_trained`: it is no adapter's fault, and `merge` is green."""
    _trained(execute, "pissa")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.add_(0.1)
    model.save_pretrained(here / "other")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(here / "other")
    with pytest.raises(UserError, match="export-differs"):
        exported("run=run", "export.dir=out", f"model.path={here / 'other'}")
    assert not Path("out").exists()


@pytest.mark.parametrize("words", [("method=qlora",), ("method=pissa",)])
def test_other_adapters_have_none(words: tuple[str, ...], execute: Execute) -> None:
    done = execute(*words, "method.rank=4", *SHORT)
    write_report(done.run, "finished", done.result, None)
    assert own_base.FILE not in files("run/model")
    for form in ("hf", "adapter"):
        plan = planned("run=run", "export.dir=out", f"export.format={form}")
        assert plan.steps.load.own_base is None and plan.warnings == ()


def test_the_runs_own_card_says_it(execute: Execute) -> None:
    _trained(execute, "pissa")
    assert "another model" in Path("run/model/README.md").read_text()
    said = json.loads((Path("run/model") / "adapter_config.json").read_text())
    assert said["r"] == 8


def test_whoever_reads_it_without_its_base_is_told(execute: Execute, tiny_model: Path) -> None:
    folder = _trained(execute, "loftq").run.folder.model
    words = (
        f"model.path={tiny_model}",
        f"model.adapter={folder}",
        "method=lora",
        "method.rank=8",
        "method.alpha=32",
        "hardware=cpu",
    )
    for verb, told in (("train", True), ("evaluate", True), ("export", False)):
        composed = compose.compose(
            compose.CommandLine(overrides=(*words, *(("export.dir=out",) if verb == "export" else ())), verb=verb)
        )
        plan = compiled(composed, training=False, verb=verb)
        assert any("quantized without its start" in each for each in plan.warnings) == told, verb
