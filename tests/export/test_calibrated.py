"""Weights in the layouts of GPTQ and AWQ are the run's own, unpacked as those layouts are published."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from exporting import SHORT, exported, planned

from factory.config.refusal import UserError
from factory.execute.report import write_report
from factory.execute.verify import verify
from factory.plan.inspect import machine as look

Array = np.ndarray[Any, Any]
NOT_BLOOMS = ("max_position_embeddings", "num_key_value_heads", "intermediate_size")  # words of a config.json
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # where each of eight columns lies in its word (AutoAWQ's gemm kernels)


def _nibbles(packed: Array, axis: int) -> Array:
    """Eight numbers of 4 bits of each word, the lowest first, along the axis."""
    words = packed.astype(np.int64) & 0xFFFFFFFF
    parts = np.stack([(words >> (4 * place)) & 15 for place in range(8)], axis=axis + 1)
    shape = list(packed.shape)
    shape[axis] *= 8
    return parts.reshape(shape)


def _gptq(at: Callable[[str], Array]) -> Array:
    """(rows, columns). AutoGPTQ holds each zero point less one."""
    numbers, zeros, scales = _nibbles(at("qweight"), 0), _nibbles(at("qzeros"), 1) + 1, at("scales").astype(np.float32)
    group = at("g_idx")
    return ((numbers - zeros[group]) * scales[group]).T


def _awq(at: Callable[[str], Array]) -> Array:
    def columns(name: str) -> Array:
        found = _nibbles(at(name), 1)
        return found.reshape(found.shape[0], -1, 8)[:, :, AWQ_ORDER].reshape(found.shape)

    numbers, zeros, scales = columns("qweight"), columns("qzeros"), at("scales").astype(np.float32)
    group = np.arange(len(numbers)) // (len(numbers) // len(scales))
    return ((numbers - zeros[group]) * scales[group]).T


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "unpacked"), [("gptq", _gptq), ("awq", _awq)])
def test_the_weights_are_the_runs_own(
    layout: str, unpacked: Callable[..., Array], execute: Callable[..., Any], tmp_path: Path
) -> None:
    """To the rounding of 4 bits. 192 columns are no multiple of 128."""
    pytest.importorskip("auto_round")
    from safetensors.numpy import load_file

    model = tiny.save(tmp_path / "even", hidden_size=192, intermediate_size=384)
    done = execute(f"model.path={model}", "method=lora", *SHORT)
    write_report(done.run, "finished", done.result, None)
    text = tmp_path / "text.txt"
    rows = (Path(tiny.DEMO) / "text.jsonl").read_text().splitlines()
    text.write_text("\n".join(json.loads(row)["text"] for row in rows)[:20_000])
    exported("run=run", "export.dir=whole", "export.dtype=float32")
    exported("run=run", "export.dir=few", f"export.quantization={layout}", f"export.calibration={text}")
    few, whole = load_file("few/model.safetensors"), load_file("whole/model.safetensors")
    assert json.loads(Path("few/config.json").read_text())["quantization_config"]["group_size"] == 64
    packed = [name.removesuffix(".qweight") for name in few if name.endswith(".qweight")]
    assert len(packed) == 2 * 7
    for name in packed:
        weight = whole[f"{name}.weight"]
        off = unpacked(lambda part, name=name: few[f"{name}.{part}"]) - weight
        assert np.linalg.norm(off) < 0.2 * np.linalg.norm(weight), name


@pytest.mark.parametrize(("kind", "length"), [("llama", 256), ("bloom", 512)])
def test_the_text_is_as_long_as_the_model_reads(
    kind: str, length: int, here: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the plan has it: a BLOOM's config.json says none, and its positions have no end."""
    asked: dict[str, Any] = {}

    class Rounding:
        def __init__(self, model: Any, tokenizer: Any, **named: Any):
            asked.update(named, attention=model.config._attn_implementation)

        def quantize_and_save(self, folder: str, **named: Any) -> None:
            (Path(folder) / "config.json").write_text("{}")

    monkeypatch.setitem(sys.modules, "auto_round", types.SimpleNamespace(AutoRound=Rounding))
    machine(packages=look.look_at_machine().packages | {"auto-round": "0.16"})
    (here / "text.txt").write_text("The sea is wide. " * 200)
    model, words = tiny.save(here / "model", model_type=kind), list[str]()
    if kind == "bloom":
        config = json.loads((model / "config.json").read_text())
        its = {name: config[name] for name in config if name not in NOT_BLOOMS}
        (model / "config.json").write_text(json.dumps(its))
        words = ["model.context_length=2048"]
    words += ["export.quantization=gptq", "export.calibration=text.txt"]
    exported(f"model.path={model}", *words, "export.dir=out")
    assert asked["seqlen"] == length
    assert asked["attention"] == {"llama": "sdpa", "bloom": "eager"}[kind]  # its rows say no lengths


def test_a_plan_knows_the_text_by_its_content(machine: Callable[..., None], tiny_model: Path, here: Path) -> None:
    machine(packages=look.look_at_machine().packages | {"auto-round": "0.16"})
    words = (f"model.path={tiny_model}", "export.dir=out", "export.quantization=gptq", "export.calibration=text.txt")
    (here / "text.txt").write_text("The sea is wide.")
    made = planned(*words)
    assert planned(*words).digest() == made.digest()
    (here / "text.txt").write_text("The sea is deep.")
    assert planned(*words).digest() != made.digest()
    with pytest.raises(UserError, match=r"\[facts-changed\] text.txt: the file has changed"):
        verify(made)


def test_columns_that_no_group_divides_are_refused() -> None:
    from transformers import AutoModelForCausalLM

    from factory.export import calibrated

    model = AutoModelForCausalLM.from_config(tiny.config(hidden_size=40, num_attention_heads=2, intermediate_size=64))
    with pytest.raises(UserError, match="40, 64 columns"):
        calibrated._group("awq", model)
