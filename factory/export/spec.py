"""The formats of an export as data: which model kinds each takes, what it quantizes to, and the bytes it will take.

No torch here: what cannot be exported is refused before anything is loaded.
"""

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from factory.architecture import Architecture
from factory.plan.plan import BYTES, Dtype
from factory.run.folder import read_json

MARKER = "export.json"  # in every folder that an export has written: only such a folder is ever replaced
MODEL_GGUF = "model.gguf"
MODELFILE = "Modelfile"
_BESIDE = 32 * 2**20  # bytes for tokenizer, card and the like, and for what a file system rounds up


@dataclass(frozen=True, slots=True)
class Quantized:
    """`bits` a weight of a linear layer takes with its constants; `format` that has it; `package` of an extra."""

    format: Literal["hf", "gguf"]
    bits: float
    package: str | None = None  # that makes it, where it is no dependency


# blocks of GGUF: 32 weights with a 16-bit scale (_0), and with a 16-bit minimum too (_1)
QUANTIZED: dict[str, Quantized] = {
    "nf4": Quantized("hf", 4.5),
    "fp4": Quantized("hf", 4.5),
    "int8": Quantized("hf", 8.1),
    "gptq": Quantized("hf", 4.2, "auto-round"),
    "awq": Quantized("hf", 4.2, "auto-round"),
    "q8_0": Quantized("gguf", 8.5),
    "q5_1": Quantized("gguf", 6.0),
    "q5_0": Quantized("gguf", 5.5),
    "q4_1": Quantized("gguf", 5.0),
    "q4_0": Quantized("gguf", 4.5),
}
CALIBRATED = ("gptq", "awq")
BLOCK = 32  # weights of a row that GGUF's types share a scale of


_ROPE = ("default", "linear", "yarn")  # ways to stretch positions that a file says in keys


@dataclass(frozen=True, slots=True)
class Gguf:
    """A model kind in GGUF: its name there, and whether llama.cpp turns pairs of neighbours (i, i + 1) of a head.

    `rope`: the ways to stretch positions that llama.cpp has for it. That of Llama 3.1 is a tensor, which it reads of
    the kind llama alone; a file of another kind with one tensor too many is refused.
    """

    name: str
    neighbours: bool
    rope: tuple[str, ...] = _ROPE


# the kinds whose every tensor and number has a place in GGUF under the same mathematics (tests/export/test_gguf.py)
GGUF: dict[str, Gguf] = {
    "llama": Gguf("llama", True, (*_ROPE, "llama3")),
    "mistral": Gguf("llama", True, (*_ROPE, "llama3")),
    "qwen2": Gguf("qwen2", False),
    "qwen3": Gguf("qwen3", False),
}
GGUF_UNSAID = ("attention_factor", "mscale", "mscale_all_dim", "truncate")  # of yarn: it has one way of each


def rope(config: dict[str, Any]) -> dict[str, Any]:
    """What a config.json says of its positions, old or new, with `rope_type`."""
    said = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    return {"rope_type": said.get("rope_type") or said.get("type") or "default", **said}


def dtype_of(asked: str, format: str, config: dict[str, Any]) -> Dtype | None:
    """The type that weights are written in. None: of an adapter, as it is."""
    if asked != "auto":
        return asked  # pyright: ignore[reportReturnType]
    if format != "hf":
        return "float16" if format == "gguf" else None
    said = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return said if said in BYTES else "bfloat16"  # pyright: ignore[reportReturnType]


def bytes_of(arch: Architecture, format: str, dtype: Dtype | None, quantization: str | None, adapter: int) -> int:
    """About what the folder will take; `adapter`: elements of the adapter alone."""
    if format == "adapter":
        return adapter * BYTES[dtype or "float32"] + _BESIDE
    assert dtype is not None
    linears = {f"{name}.weight" for name in arch.linears()}  # of the decoder
    large = sum(prod(shape) for name, shape in arch.tensors() if name in linears)
    small = sum(prod(shape) for name, shape in arch.tensors() if name not in linears)
    if quantization is None:
        return (small + large) * BYTES[dtype] + _BESIDE
    if QUANTIZED[quantization].format == "gguf":  # embedding and head too
        return round((small * 8.5 + large * QUANTIZED[quantization].bits) / 8) + _BESIDE
    return small * BYTES[dtype] + round(large * QUANTIZED[quantization].bits / 8) + _BESIDE


def place_of(folder: str | Path) -> Path:
    """Where a folder's files lie, behind links: what is renamed into it must lie beside that, on the same disk."""
    return Path(os.path.realpath(folder))


def is_export(folder: Path) -> bool:
    """Whether an export has written the folder."""
    return (read_json(folder / MARKER) or {}).get("written_by") == "factory export"
