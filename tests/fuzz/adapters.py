"""Folders of adapters: adapter_config.json, the header of the tensors' file, the tokenizer beside them."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import tiny
from conftest import composed as composed_of

from factory import cli, own_base
from factory.plan.inspect import walked
from factory.plan.inspect.model import look_at_adapter
from fuzz.mutation import as_json, changed, twisted

_CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "x",
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "inference_mode": True,
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "revision": None,
    "auto_mapping": None,
    "trainable_token_indices": None,
}
_BASE = {"model_type": "llama", "max_position_embeddings": 256, "rope_parameters": {"rope_type": "yarn", "factor": 2.0}}
_OWN = {"scale": 1.0, "dtype": "float32", "quantization": {}, "computed_in": "float32", "ids": [1], "losses": []}
_TOKENIZER = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": "<x>"}]}


def opened(folder: Path) -> Callable[[random.Random], str]:
    model = tiny.save(folder / "llama")
    adapter = folder / "adapter"
    (adapter / "base").mkdir(parents=True)
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{side}.weight": shape
        for layer in range(2)
        for name, out in (("q_proj", 32), ("v_proj", 16))
        for side, shape in (("A", [8, 32]), ("B", [out, 8]))
    }
    header, at = {}, 0
    for name, (rows, columns) in tensors.items():
        size = 4 * rows * columns
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [at, at + size]}
        at += size

    words = (f"model.path={model}", f"model.adapter={adapter}", "hardware=cpu", "tracking=none")
    composed = composed_of((*words, "method.target_modules=[q_proj,v_proj]"))

    def case(chance: random.Random) -> str:
        what = chance.randrange(5)
        for number, (name, seed) in enumerate(
            (("adapter_config.json", _CONFIG), ("base/config.json", _BASE), ("tokenizer.json", _TOKENIZER))
        ):
            tree = twisted(seed, chance) if what == number else seed
            (adapter / name).write_bytes(as_json(tree, chance) if what == number else json.dumps(tree).encode())
        if what != 1:
            (adapter / "base" / "config.json").unlink()
        written = safetensors(twisted(header, chance) if what == 3 else header, at)
        file = adapter / "adapter_model.safetensors"
        file.write_bytes(changed(written, chance) if what == 3 and chance.random() < 0.3 else written)
        own = adapter / own_base.FILE
        own.unlink(missing_ok=True)
        if what == 4:
            said = {"__metadata__": {"own_base": json.dumps(twisted(_OWN, chance))}}
            own.write_bytes(safetensors(twisted(said, chance) if chance.random() < 0.5 else said, 0))
        if chance.random() < 0.5:
            look_at_adapter(str(adapter))
            return "read"
        with mock.patch.object(walked, "_ask", lambda *_: {"found": None, "problem": "not asked here"}):
            cli._compiled(composed, training=True)
        return "planned"

    return case


def safetensors(header: object, size: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)
