"""Quantized checkpoints of a small model, written as the libraries write them: round to nearest, by hand.

So that reading them and training over them is tested where the library that calibrates is not installed.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
NAMES = ("bitsandbytes 4", "bitsandbytes 8", "torchao", "gptq", "awq", "aqlm", "fp8", "compressed-tensors")
PACKAGE = {"torchao": "torchao", "gptq": "gptqmodel", "awq": "gptqmodel", "aqlm": "aqlm"} | {
    "compressed-tensors": "compressed_tensors"
}
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # where each of 8 columns lies in a word

Pieces = Iterator[tuple[str, Tensor]]


def write(name: str, model: Path, folder: Path) -> Path:
    """The model of a folder again, its linear layers but the head quantized by the named library."""
    if name in _BY_LIBRARY:
        return _by_library(name, model, folder)
    said, pieces = _BY_HAND[name]
    tensors: dict[str, Tensor] = {}
    for key, value in load_file(model / "model.safetensors").items():
        if key.endswith("_proj.weight"):
            tensors |= {f"{key.removesuffix('.weight')}.{piece}": made for piece, made in pieces(value.float())}
        else:
            tensors[key] = value
    return _finish(model, folder, tensors, said)


def _finish(model: Path, folder: Path, tensors: dict[str, Tensor], said: dict[str, Any]) -> Path:
    shutil.copytree(model, folder)
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    return folder


def _rounded(weight: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Integers (out, in), and each group's scale and zero (out, groups)."""
    grouped = weight.unflatten(1, (-1, GROUP))
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = ((high - low) / levels).clamp(min=1e-6)
    zero = (-low / scale).round().clamp(1, levels)
    codes = (grouped / scale[..., None] + zero[..., None]).round().clamp(0, levels)
    return codes.flatten(1).int(), scale, zero.int()


def _packed(codes: Tensor, order: tuple[int, ...]) -> Tensor:
    """Eight 4-bit columns in each int32."""
    words = codes.unflatten(-1, (-1, 8)).to(torch.int64)
    packed = sum(words[..., column] << (4 * place) for place, column in enumerate(order))
    assert isinstance(packed, Tensor)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def _gptq(weight: Tensor) -> Pieces:
    codes, scale, zero = _rounded(weight, 15)
    yield "qweight", _packed(codes, tuple(range(8))).T
    yield "qzeros", _packed(zero.T - 1, tuple(range(8)))  # this format stores them less one
    yield "scales", scale.T.half()
    yield "g_idx", torch.arange(weight.shape[1], dtype=torch.int32) // GROUP


def _awq(weight: Tensor) -> Pieces:
    codes, scale, zero = _rounded(weight, 15)
    yield "qweight", _packed(codes.T, _AWQ_ORDER)
    yield "qzeros", _packed(zero.T, _AWQ_ORDER)
    yield "scales", scale.T.half()


def _aqlm(weight: Tensor) -> Pieces:
    """A codebook of 2¹⁶ vectors holds every vector of a small weight: nothing is lost."""
    vectors = weight.reshape(-1, 8)
    book = torch.zeros(1, 2**16, 1, 8)
    book[0, : len(vectors), 0] = vectors
    yield "codebooks", book
    yield "codes", torch.arange(len(vectors), dtype=torch.int16).reshape(len(weight), -1, 1)
    yield "scales", torch.ones(len(weight), 1, 1, 1)


def _fp8(weight: Tensor) -> Pieces:
    scale = weight.abs().max() / 448  # the largest number of e4m3
    yield "weight", (weight / scale).to(torch.float8_e4m3fn)
    blocks = [-(-size // 128) for size in weight.shape]
    yield "weight_scale_inv", scale.expand(blocks).clone()


def _compressed(weight: Tensor) -> Pieces:
    scale = weight.abs().amax(1, keepdim=True) / 127
    yield "weight", (weight / scale).round().to(torch.int8)
    yield "weight_scale", scale


_LINEAR_INT8 = {
    "targets": ["Linear"],
    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
}
_BY_HAND: dict[str, tuple[dict[str, Any], Callable[[Tensor], Pieces]]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}, _gptq),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
        _awq,
    ),
    "aqlm": (
        {
            "quant_method": "aqlm",
            "in_group_size": 8,
            "out_group_size": 1,
            "num_codebooks": 1,
            "nbits_per_codebook": 16,
            "linear_weights_not_to_quantize": ["lm_head", "model.embed_tokens"],
        },
        _aqlm,
    ),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, _fp8),
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": _LINEAR_INT8},
        },
        _compressed,
    ),
}


def _by_library(name: str, model: Path, folder: Path) -> Path:
    from transformers import AutoModelForCausalLM

    made = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, device_map={"": "cpu"}, quantization_config=_BY_LIBRARY[name]()
    )
    shutil.copytree(model, folder)
    made.save_pretrained(folder)
    return folder


def _four_bits() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _eight_bits() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def _torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


_BY_LIBRARY: dict[str, Callable[[], Any]] = {
    "bitsandbytes 4": _four_bits,
    "bitsandbytes 8": _eight_bits,
    "torchao": _torchao,
}
