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
from factory.config.extras import install
from factory.config.settings import Quantization
from factory.plan.choices import precision
from factory.plan.facts import Machine
from factory.plan.plan import BYTES, Dtype
from factory.plan.rule import Case, Rule
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


def _quantized(case: Case) -> str | None:
    method, base = case.settings.method, case.settings.method.quantization
    if base.bits is None or _trains_over(method, base.method, base.bits):
        return None
    return f"{_option(case)} does not train over {base.bits}-bit weights of {base.method}"


def _bits(case: Case) -> str | None:
    asked = case.settings.method.quantization
    if asked.bits is None or asked.bits in QUANTIZERS[asked.method].bits:
        return None
    return f"{asked.method} does {' and '.join(map(str, QUANTIZERS[asked.method].bits))} bits here"


def _without_bits(case: Case) -> str | None:
    asked = case.settings.method.quantization
    unread = asked.method != "bitsandbytes" and asked.bits is None
    return "method.quantization.bits=null quantizes nothing" if unread else None


def _type_unread(case: Case) -> str | tuple[str, str] | None:
    asked = case.settings.method.quantization
    plain = asked.type == "nf4" and asked.double_quantization
    if plain or (asked.method, asked.bits) == ("bitsandbytes", 4):
        return None
    held = "nothing is quantized" if asked.bits is None else f"here are {asked.bits} bits of {asked.method}"
    if asked.type == "nf4":
        return "method.quantization.double_quantization", f"it is a choice of bitsandbytes' 4 bits, and {held}"
    return f"it is a type of bitsandbytes' 4 bits, and {held}"


def lacking(name: str, machine: Machine) -> str | None:
    """What is wrong with a quantizer on this machine, if anything; one that nobody knows has no packages."""
    made = QUANTIZERS.get(name, Quantizer())
    missing = [package for package in made.packages if package not in machine.packages]
    if not missing:
        return None
    command = install(made.extra) if made.extra else f"pip install {missing[0]}"
    return f"it needs {' and '.join(missing)}, not installed here: {command}"


def _package(case: Case) -> str | None:
    asked = case.settings.method.quantization
    return None if asked.bits is None else lacking(asked.method, case.facts.machine)


def _checkpoint_package(case: Case) -> str | None:
    name = checkpoint_quantizer(case.model.config)
    return name and lacking(name, case.facts.machine)


def _layers(case: Case) -> str | None:
    """GPT-2's layers are no linear ones to torch; only bitsandbytes knows them."""
    asked = case.settings.method.quantization
    unknown = case.arch.kind == "gpt2" and asked.bits is not None and asked.method != "bitsandbytes"
    return f"{asked.method} does not know the layers of gpt2, which would stay whole" if unknown else None


def _hqq_groups(case: Case) -> str | None:
    asked = case.settings.method.quantization
    if asked.method != "hqq" or asked.bits is None:
        return None
    group = _HQQ_GROUP * (8 // asked.bits)  # packed as whole bytes
    odd = [name for name, (outputs, inputs) in case.arch.linears().items() if outputs * inputs % group]
    return f"the weights of {odd[0]} are no multiple of {group}" if odd else None


def _twice(case: Case) -> str | None:
    name = checkpoint_quantizer(case.model.config)
    if name is None or case.settings.method.quantization.bits is None:
        return None
    return f"the weights of this checkpoint are quantized already ({name})"


def _checkpoint_unread(case: Case) -> str | None:
    name, config = checkpoint_quantizer(case.model.config), case.model.config
    if name is None:
        return None
    if name not in QUANTIZERS or QUANTIZERS[name].checkpoint == "unread":
        return f"its weights are quantized by {name}"
    if name != "torchao":
        return None
    said = config["quantization_config"].get("quant_type")
    kind = said.get("default", {}).get("_type") if isinstance(said, dict) else said
    return None if kind == "Int8WeightOnlyConfig" else f"its weights are torchao's {kind}, not Int8WeightOnlyConfig"


def _checkpoint_needs_gpu(case: Case) -> str | None:
    if checkpoint_quantizer(case.model.config) != "aqlm" or case.device != "cpu":
        return None
    bits = case.model.config["quantization_config"].get("nbits_per_codebook")
    return "over AQLM codebooks of 8 bits no adapter trains on a CPU" if bits == 8 else None


def _checkpoint_method(case: Case) -> str | None:
    name, method = _of_checkpoint(case.model.config, "kept"), case.settings.method
    if name is None:
        return None
    bits = _checkpoint_bits(case.model.config["quantization_config"])
    return None if _trains_over(method, name, bits) else f"{_option(case)} does not train over {name} weights"


def _checkpoint_precision(case: Case) -> str | None:
    half = in_half(case.model.config, case.device) and precision(case)[0] != "fp16"
    return "AWQ weights compute in float16 on a GPU" if half else None


def _checkpoint_broken(case: Case) -> str | None:
    """A number that the size of the weights follows from is missing: the estimate would fail, and so would reading."""
    if not stays_quantized(case.settings.method.quantization, case.model.config):
        return None
    try:
        for shape in case.arch.linears().values():
            weight_bytes(case.settings.method.quantization, case.model.config, shape, "bfloat16")
    except (KeyError, TypeError, ZeroDivisionError) as error:
        return f"its quantization_config lacks a number, or has a wrong one ({error})"
    return None


RULES: tuple[Rule, ...] = (
    Rule("checkpoint-broken", _checkpoint_broken),
    Rule("quantized-weights", _quantized),
    Rule("quantizer-bits", _bits),
    Rule("quantizer-without-bits", _without_bits),
    Rule("quantization-type", _type_unread),
    Rule("quantizer-package", _package),
    Rule("quantizer-layers", _layers),
    Rule("hqq-groups", _hqq_groups),
    Rule("quantized-twice", _twice),
    Rule("checkpoint-quantizer", _checkpoint_unread),
    Rule("checkpoint-package", _checkpoint_package),
    Rule("checkpoint-needs-gpu", _checkpoint_needs_gpu),
    Rule("checkpoint-method", _checkpoint_method),
    Rule("checkpoint-precision", _checkpoint_precision),
)
