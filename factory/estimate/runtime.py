"""What a CPU process holds beside a run's tensors: Python with its libraries, its code and its tokenizer. Measured."""

from factory.architecture import Architecture
from factory.plan import Steps

_MIB = 2**20
_BASE = 496 * _MIB  # Python with torch, transformers, datasets and accelerate, and the kernels that torch compiles
_ADAPTERS = 65 * _MIB  # peft, with bitsandbytes, which it imports
_TOKEN = 450  # of a tokenizer's vocabulary


def resident(steps: Steps, arch: Architecture) -> int:
    adapters = 0 if steps.attach.method in ("full", "freeze", "galore", "apollo", "badam", "badam_ratio", "llama_pro") else _ADAPTERS
    return _BASE + adapters + _TOKEN * arch.vocabulary
