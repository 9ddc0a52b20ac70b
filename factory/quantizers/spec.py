"""What each quantizer can do, needs and costs, as one table, and the rules that follow from it.

A base is quantized while it is read (`method.quantization`), or it comes from a checkpoint that is quantized already
and says so in its config.json (`quantization_config`). Of such a checkpoint, the adapters train over the quantized
weights, or the weights are made whole again while they are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from factory.architecture import Architecture, Shape
from factory.config import registry
from factory.config.settings import Quantization
from factory.plan.choices import precision
from factory.plan.plan import BYTES, Dtype
from factory.plan.rule import Broken, Case, rule
from factory.quantizers.checkpoint import checkpoint_quantizer, in_half

Checkpoint = Literal["kept", "whole", "unread"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """`bits`: what it can quantize to while a model is read; none: it only comes as a checkpoint.

    `checkpoint`: its weights are kept quantized with adapters over them, made whole while they are read, or they
    cannot be read (`unread`). `attributes`: what transformers is told to read a checkpoint with, by device.
    """

    bits: tuple[int, ...] = ()
    packages: tuple[str, ...] = ()  # distributions
    extra: str | None = None  # of this project, that brings them; None: they are dependencies
    checkpoint: Checkpoint = "unread"
    attributes: dict[str, dict[str, Any]] | None = None


_DEQUANTIZED: dict[str, dict[str, Any]] = {device: {"dequantize": True} for device in ("cpu", "cuda")}

QUANTIZERS: dict[str, Quantizer] = {
    # QLoRA, section 3 (4 bits); LLM.int8 (8 bits)
    "bitsandbytes": Quantizer(bits=(4, 8), packages=("bitsandbytes",), checkpoint="kept"),
    # half-quadratic quantization, groups of 64; its checkpoints cannot be read by transformers 5
    "hqq": Quantizer(bits=(4, 8), packages=("hqq",), extra="hqq"),
    # int8, a scale for each row; PEFT trains over no other type of it
    "torchao": Quantizer(bits=(8,), packages=("torchao",), extra="torchao", checkpoint="kept"),
    # int8, a scale for each row; transformers cannot save it, so there are no checkpoints
    "quanto": Quantizer(bits=(8,), packages=("optimum-quanto",), extra="quanto"),
    # the other kernels of gptqmodel for a CPU lose gradients after an evaluation
    "gptq": Quantizer(
        packages=("gptqmodel", "optimum"),
        extra="gptq",
        checkpoint="kept",
        attributes={"cpu": {"backend": "torch"}, "cuda": {"backend": "auto_trainable"}},
    ),
    "awq": Quantizer(
        packages=("gptqmodel",),
        extra="awq",
        checkpoint="kept",
        attributes={"cpu": {"backend": "torch_awq"}, "cuda": {"backend": "auto_trainable"}},
    ),
    "aqlm": Quantizer(packages=("aqlm",), extra="aqlm", checkpoint="kept"),
    "fp8": Quantizer(checkpoint="whole", attributes=_DEQUANTIZED),
    "mxfp4": Quantizer(checkpoint="whole", attributes=_DEQUANTIZED),
    "compressed-tensors": Quantizer(
        packages=("compressed-tensors",), extra="compressed-tensors", checkpoint="whole", attributes=_DEQUANTIZED
    ),
}
PACKAGES: tuple[str, ...] = tuple(sorted({package for made in QUANTIZERS.values() for package in made.packages}))
IN_PLACE = frozenset({"hqq"})  # quantized after the weights were read whole: transformers 5 cannot do it while reading


# --- what a checkpoint says


def _of_checkpoint(config: dict[str, Any], becomes: Checkpoint) -> str | None:
    """The name of a checkpoint's quantizer, where this becomes of its weights."""
    name = checkpoint_quantizer(config)
    return name if name in QUANTIZERS and QUANTIZERS[name].checkpoint == becomes else None


def stays_quantized(quantization: Quantization, config: dict[str, Any]) -> bool:
    """Whether the frozen linear layers are held quantized while the adapters train."""
    return quantization.bits is not None or _of_checkpoint(config, "kept") is not None


def holding(quantization: Quantization, config: dict[str, Any]) -> set[str]:
    """The quantizers whose weights the model has, by the plan or by its checkpoint."""
    return {name for name in (quantization.bits and quantization.method, checkpoint_quantizer(config)) if name}


def reading(config: dict[str, Any], device: str) -> dict[str, Any] | None:
    """What transformers is to be told beyond the checkpoint's own configuration; None: nothing."""
    name = checkpoint_quantizer(config)
    attributes = QUANTIZERS[name].attributes if name else None
    return attributes[device] if attributes else None


# --- what a weight costs


def weight_bytes(quantization: Quantization, config: dict[str, Any], shape: Shape, dtype: Dtype) -> int:
    """Bytes of one linear layer's weight of this shape (out, in), with all its constants.

    `dtype` is what the plan reads weights as: the whole weight's, and that of some constants.
    """
    name, size = _of_checkpoint(config, "kept"), BYTES[dtype]
    if name is not None:
        return _CHECKPOINT_BYTES[name](config["quantization_config"], shape, size)
    if quantization.bits is None:
        return shape[0] * shape[1] * size
    return _READ_BYTES[quantization.method](quantization, shape, size)


_BLOCK, _NESTED_BLOCK = 64, 256  # weights that share a constant, and constants that share one (QLoRA, section 3)
_CODE, _NESTED_CODE = 16 * 4, 256 * 4  # each layer's own tables of the values that the codes stand for, in float32
_HQQ_GROUP = 64


def _bitsandbytes_4bit(shape: Shape, double: bool) -> int:
    count = shape[0] * shape[1]
    blocks = ceil(count / _BLOCK)
    constants = blocks + 4 * ceil(blocks / _NESTED_BLOCK) + 4 + _NESTED_CODE if double else 4 * blocks
    return ceil(count / 2) + constants + _CODE


def _bitsandbytes_8bit(shape: Shape) -> int:
    return shape[0] * shape[1] + 4 * shape[0]  # a float32 for each row


def _bitsandbytes(quantization: Quantization, shape: Shape, _size: int) -> int:
    if quantization.bits == 8:
        return _bitsandbytes_8bit(shape)
    return _bitsandbytes_4bit(shape, quantization.double_quantization)


def _hqq(quantization: Quantization, shape: Shape, size: int) -> int:
    assert quantization.bits is not None
    count = shape[0] * shape[1]
    return count * quantization.bits // 8 + 2 * size * (count // _HQQ_GROUP)  # a scale and a zero for each group


def _torchao(shape: Shape) -> int:
    return shape[0] * shape[1] + (4 + 1) * shape[0]  # a float32 scale and an int8 zero for each row


def _quanto(shape: Shape, size: int) -> int:
    return shape[0] * shape[1] + size * shape[0] + 2 * 4  # a scale for each row; two scalars for activations


_READ_BYTES: dict[str, Callable[[Quantization, Shape, int], int]] = {
    "bitsandbytes": _bitsandbytes,
    "hqq": _hqq,
    "torchao": lambda _quantization, shape, _size: _torchao(shape),
    "quanto": lambda _quantization, shape, size: _quanto(shape, size),
}


def _grouped(said: dict[str, Any], shape: Shape) -> int:
    """Packed weights, and a 16-bit scale and a packed zero for each group."""
    outputs, inputs = shape
    groups = 1 if said["group_size"] == -1 else ceil(inputs / said["group_size"])  # -1: a whole row is a group
    bits = said["bits"]
    return (outputs * inputs + outputs * groups) * bits // 8 + 2 * outputs * groups


def _gptq_checkpoint(said: dict[str, Any], shape: Shape, _size: int) -> int:
    return _grouped(said, shape) + 4 * shape[1] + 4 * (32 // said["bits"])  # each input's group, and shifts


def _aqlm_checkpoint(said: dict[str, Any], shape: Shape, size: int) -> int:
    """Codes into codebooks of vectors, and a scale for each group of outputs (AQLM, arXiv 2401.06118, section 3)."""
    books, bits = said["num_codebooks"], said["nbits_per_codebook"]
    group_out, group_in = said["out_group_size"], said["in_group_size"]
    outputs, inputs = shape[0] // group_out, shape[1] // group_in
    codes = outputs * inputs * books * (1 if bits <= 8 else 2)
    return codes + size * (books * 2**bits * group_out * group_in + outputs)


def _bitsandbytes_checkpoint(said: dict[str, Any], shape: Shape, _size: int) -> int:
    if said.get("load_in_8bit"):
        return _bitsandbytes_8bit(shape)
    return _bitsandbytes_4bit(shape, bool(said.get("bnb_4bit_use_double_quant")))


_CHECKPOINT_BYTES: dict[str, Callable[[dict[str, Any], Shape, int], int]] = {
    "bitsandbytes": _bitsandbytes_checkpoint,
    "torchao": lambda _said, shape, _size: _torchao(shape),
    "gptq": _gptq_checkpoint,
    "awq": lambda said, shape, _size: _grouped(said, shape),
    "aqlm": _aqlm_checkpoint,
}


def notes(quantization: Quantization, config: dict[str, Any], arch: Architecture, dtype: Dtype) -> tuple[str, ...]:
    """What the plan says about weights that are held otherwise than one would think."""
    name, found = _of_checkpoint(config, "whole"), []
    if name is not None:
        found.append(f"model: its {name} weights cannot be trained over, so they are read as {dtype}")
    if quantization.bits is not None and arch.experts():
        found.append(f"method.quantization.bits: the experts' stacked matrices stay {dtype}, no library quantizes them")
    return tuple(found)


# --- rules


def _trains_over(method: Any, library: str, bits: int | None) -> bool:
    """Whether the method trains while the linear layers stay quantized so: one without the hook trains them itself."""
    own = registry.hook(registry.spec("methods", method.name), "trains_over")
    return own is not None and own(method, library, bits)


def _option(case: Case) -> str:
    return f"method={case.settings.options.get('method', case.settings.method.name)}"


def _checkpoint_bits(said: dict[str, Any]) -> int | None:
    """How many bits a weight of the checkpoint has; None: its config.json says it otherwise."""
    if checkpoint_quantizer({"quantization_config": said}) == "bitsandbytes":
        return 8 if said.get("load_in_8bit") else 4
    return said.get("bits")


@rule(
    "quantized-weights",
    keys=("method.quantization.bits", "method.quantization.method", "method.name", "precision.name", "model.path"),
    reason="quantized weights have no gradient; only adapters beside them learn, each over what its layers can read",
    fix=(
        "set method=qlora or method.quantization.bits=null; over bitsandbytes learn adalora, oft, vera, ia3 (4 and 8 "
        "bits), dora (4), loha and lokr (8)"
    ),
)
def quantized_weights(case: Case) -> str | Broken | None:
    method, base, pure = case.settings.method, case.settings.method.quantization, case.settings.precision.name
    name = checkpoint_quantizer(case.model.config)
    if name is not None and base.bits is not None:
        return Broken(
            message=f"the weights of this checkpoint are quantized already ({name})",
            reason="transformers keeps the checkpoint's quantization and drops the other",
            fix=(
                "set method=lora and method.quantization.bits=null to train over it as it is, or name the unquantized "
                "model"
            ),
        )
    if base.bits is not None and not _trains_over(method, base.method, base.bits):
        return f"{_option(case)} does not train over {base.bits}-bit weights of {base.method}"
    mixes = method.name == "ia3" or (method.name in ("adalora", "vera") and base.bits == 8)
    if base.bits is not None and mixes and pure == "pure_bf16":
        reason = "over these weights PEFT leaves float32 in a product with bfloat16, where nothing casts its operands"
        return Broken(message=f"with precision={pure}", reason=reason, fix="set precision=bf16 or fp32")
    name = _of_checkpoint(case.model.config, "kept")
    if name is None or _trains_over(method, name, _checkpoint_bits(case.model.config["quantization_config"])):
        return None
    message = f"{_option(case)} does not train over {name} weights"
    return Broken(key="method.name", message=message, fix="set method=lora, or name the unquantized model")


@rule(
    "quantizer-limits",
    keys=("method.quantization.bits", "method.quantization.method", "model.path"),
    reason="no adapter was seen to train over other weights of it",
    fix="set bits that it does, or method.quantization.method=bitsandbytes",
)
def quantizer_limits(case: Case) -> str | Broken | None:
    asked, bits = case.settings.method.quantization, QUANTIZERS[case.settings.method.quantization.method].bits
    if asked.bits is None:
        return None
    if asked.bits not in bits:
        return f"{asked.method} does {' and '.join(map(str, bits))} bits here"
    if case.arch.kind == "gpt2" and asked.method != "bitsandbytes":  # whose layers are no linear ones to torch
        return f"{asked.method} does not know the layers of gpt2, which would stay whole"
    group = _HQQ_GROUP * (8 // asked.bits)  # that share a scale, packed as whole bytes
    odd = [name for name, (outputs, inputs) in case.arch.linears().items() if outputs * inputs % group]
    return f"the weights of {odd[0]} are no multiple of {group}" if odd and asked.method == "hqq" else None


@rule(
    "checkpoint-quantizer",
    keys=("model.path", "hardware.device"),
    reason="no adapter trains over it with today's transformers and PEFT",
    fix="name the unquantized model and set method=qlora",
)
def unreadable_checkpoint(case: Case) -> str | Broken | None:
    name, config = checkpoint_quantizer(case.model.config), case.model.config
    if name is None:
        return None
    if name == "aqlm" and case.device == "cpu" and config["quantization_config"].get("nbits_per_codebook") == 8:
        reason = "the CPU's kernel gives no result that a gradient can pass"
        return Broken(message="over AQLM codebooks of 8 bits no adapter trains on a CPU", reason=reason)
    if name not in QUANTIZERS or QUANTIZERS[name].checkpoint == "unread":
        return f"its weights are quantized by {name}"
    if name != "torchao":
        return None
    said = config["quantization_config"].get("quant_type")
    kind = said.get("default", {}).get("_type") if isinstance(said, dict) else said
    return None if kind == "Int8WeightOnlyConfig" else f"its weights are torchao's {kind}, not Int8WeightOnlyConfig"


@rule(
    "checkpoint-precision",
    keys=("precision.name", "model.path", "hardware.device"),
    reason="on a GPU transformers turns the whole model to float16, whatever the plan says",
    fix="set precision=fp16",
)
def checkpoint_precision(case: Case) -> str | None:
    half = in_half(case.model.config, case.device) and precision(case)[0] != "fp16"
    return "AWQ weights compute in float16 on a GPU" if half else None


@rule(
    "checkpoint-broken",
    keys=("model.path", "method.quantization.bits"),
    reason="neither the memory that the weights take nor how to read them can be told",
    fix="restore config.json from the model's source",
)
def checkpoint_broken(case: Case) -> str | None:
    """A number that the size of the weights follows from is missing: the estimate would fail, and so would reading."""
    if not stays_quantized(case.settings.method.quantization, case.model.config):
        return None
    try:
        for shape in case.arch.linears().values():
            weight_bytes(case.settings.method.quantization, case.model.config, shape, "bfloat16")
    except (KeyError, TypeError, ZeroDivisionError) as error:
        return f"its quantization_config lacks a number, or has a wrong one ({error})"
    return None
