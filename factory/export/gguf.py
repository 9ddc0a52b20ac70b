"""A model of transformers as one GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

Names of keys and tensors, and the quantizers, are those of llama.cpp's own `gguf` package.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from factory.architecture.positions import reach
from factory.export.spec import BLOCK, GGUF, rope
from factory.export.tokens import Tokens
from factory.plan.plan import Plan
from factory.rounding import rounded

_HALF_MAX = 65504.0  # the largest number of float16
Template = str | Mapping[str, str]  # one, or several by name


def write(path: Path, model: Any, tokens: Tokens, template: Template | None, plan: Plan, *, name: str) -> None:
    """Tensor after tensor, so that the model is there once. Raises OSError."""
    kind = GGUF[model.config.model_type]
    writer = gguf.GGUFWriter(path, kind.name)
    try:
        _numbers(writer, model.config, plan, name)
        _vocabulary(writer, tokens, template)
        planned = list(_tensors(model, plan))
        for found in planned:
            _announce(writer, found)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for found in planned:
            writer.write_tensor_data(_content(found))
    finally:
        writer.close()


def _numbers(writer: Any, config: Any, plan: Plan, name: str) -> None:
    said = config.to_dict()
    width = said.get("head_dim") or config.hidden_size // config.num_attention_heads
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_file_type(plan))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(reach(said))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    ways = rope(said)
    writer.add_rope_freq_base(float(ways.get("rope_theta") or said.get("rope_theta") or 10000.0))
    if ways["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(ways["rope_type"]))
        writer.add_rope_scaling_factor(float(ways["factor"]))
    if ways["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(
            int(ways.get("original_max_position_embeddings") or config.max_position_embeddings)
        )
        writer.add_rope_scaling_yarn_beta_fast(float(ways.get("beta_fast") or 32.0))
        writer.add_rope_scaling_yarn_beta_slow(float(ways.get("beta_slow") or 1.0))


def _file_type(plan: Plan) -> int:
    types = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
    quantization = plan.settings.export.quantization
    named = f"MOSTLY_{quantization.upper()}" if quantization else types[plan.exported.dtype or "float16"]
    return int(gguf.LlamaFileType[named])


def _vocabulary(writer: Any, tokens: Tokens, template: Template | None) -> None:
    writer.add_tokenizer_model(tokens.model)
    writer.add_tokenizer_pre(tokens.pre)
    writer.add_token_list(list(tokens.texts))
    writer.add_token_types(list(tokens.types))
    if tokens.merges:
        writer.add_token_merges(list(tokens.merges))
    if tokens.scores:
        writer.add_token_scores(list(tokens.scores))
    for name, number in tokens.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(tokens.adds_bos)
    writer.add_add_space_prefix(tokens.space_prefix)
    if template:
        each = template if isinstance(template, str) else [{"name": n, "template": t} for n, t in template.items()]
        writer.add_chat_template(each)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One of the file: its name, shape and type there, and what makes its numbers, in float32."""

    name: str
    shape: tuple[int, ...]
    kind: Any  # gguf.GGMLQuantizationType
    make: Callable[[], Any]


def _tensors(model: Any, plan: Plan) -> Iterator[Tensor]:
    config, kind = model.config, GGUF[model.config.model_type]
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind.name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    if rope(config.to_dict())["rope_type"] == "llama3":
        factors = _rope_factors(config)
        yield Tensor("rope_freqs.weight", tuple(factors.shape), gguf.GGMLQuantizationType.F32, factors.numpy)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, value in model.state_dict().items():
        if tied and name.startswith("lm_head."):  # it is the embedding
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert own is not None, f"{name} has no place in GGUF"
        heads = _heads(name, config) if kind.neighbours else None
        shape = tuple(value.shape)
        yield Tensor(own, shape, _type(own, shape, plan), partial(_numbers_of, value, heads))


def _heads(name: str, config: Any) -> int | None:
    """Of a query's or a key's projection, how many heads its rows are of."""
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else None


def _numbers_of(value: Any, heads: int | None) -> Any:
    """The tensor as float32 numbers, its rows by `heads` in llama.cpp's order.

    transformers turns a head's first half against its second, llama.cpp pairs of neighbours: row i of the first half
    becomes row 2i, row i of the second 2i + 1.
    """
    numbers = value.detach().to("cpu", torch.float32)
    if heads is not None:
        halves = numbers.reshape(heads, 2, numbers.shape[0] // heads // 2, *numbers.shape[1:])
        numbers = halves.swapaxes(1, 2).reshape(numbers.shape)
    return numbers.contiguous().numpy()


def _rope_factors(config: Any) -> Any:
    """What llama.cpp divides each frequency by, for Llama 3.1's positions, which have no keys: (head width / 2)."""
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    theta, width = config.rope_parameters["rope_theta"], 2 * len(stretched)
    plain = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    return plain / stretched.float()


def _type(name: str, shape: tuple[int, ...], plan: Plan) -> Any:
    """A vector stays float32. Embedding and head, which suffer most, have 8 bits at least."""
    types = gguf.GGMLQuantizationType
    if len(shape) == 1:
        return types.F32
    plain = {"float32": types.F32, "float16": types.F16, "bfloat16": types.BF16}
    quantization = plan.settings.export.quantization
    if quantization is None:
        return plain[plan.exported.dtype or "float16"]
    if shape[-1] % BLOCK:  # no whole number of blocks in a row
        return types.F16
    whole = name.startswith(("token_embd.", "output."))
    return types.Q8_0 if whole else types[quantization.upper()]


def _announce(writer: Any, tensor: Tensor) -> None:
    shape = gguf.quant_shape_to_byte_shape(tensor.shape, tensor.kind)
    writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), prod(shape), raw_dtype=tensor.kind)


def _content(tensor: Tensor) -> Any:
    """The tensor's bytes. Raises OverflowError for a number that float16 has not."""
    numbers, types = tensor.make(), gguf.GGMLQuantizationType
    if tensor.kind == types.F16 and np.abs(numbers).max() > _HALF_MAX:
        raise OverflowError(tensor.name)
    if tensor.kind in (types.F16, types.BF16):
        narrow = torch.float16 if tensor.kind == types.F16 else torch.bfloat16
        numbers = rounded(torch.from_numpy(numbers), narrow).float().numpy()
    return np.ascontiguousarray(gguf.quants.quantize(numbers, tensor.kind)).view(np.uint8)
