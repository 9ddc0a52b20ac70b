"""What a CPU process holds beside a run's tensors: Python with its libraries and its tokenizer. Measured."""

from math import ceil

from factory import registry
from factory.architecture import Architecture
from factory.attention import BLOCKS, key_step

_MIB = 2**20
_BASE = 435 * _MIB  # Python with torch, transformers and accelerate, and the kernels that torch compiles
LIBRARY_PAGES = 150 * _MIB  # of _BASE: pages of the libraries' files, as many as an environment has that is not new
_CUDA = 390 * _MIB  # of a torch that was built for CUDA, on a CPU too: its libraries, and what libraries load for them
_ADAPTERS = 45 * _MIB  # PEFT
_BITSANDBYTES = 22 * _MIB  # without torch's inductor, which it would import (execute/lean.py)
_SHAPE = 5 * _MIB  # kernels of the six products of a block of attention in 16 bits, for each number of keys
_TOKEN = 450  # of a tokenizer's vocabulary


def resident(method: str, arch: Architecture, *, adapter: bool, bitsandbytes: bool, cuda: bool) -> int:
    """Bytes of the process before its first weight. A method whose spec says how PEFT saves it needs PEFT.

    So does a saved `adapter`. `cuda`: whether torch was built for it.
    """
    adapters = _ADAPTERS if adapter or registry.hook(registry.spec("methods", method), "peft") else 0
    beside = (_BITSANDBYTES if bitsandbytes else 0) + (_CUDA if cuda else 0)
    return _BASE + adapters + beside + _TOKEN * arch.vocabulary


def kernels(attention: str, size: int, length: int) -> int:
    """Bytes of what is compiled for attention by blocks of `length` tokens in numbers of `size` bytes."""
    return _SHAPE * ceil(length / key_step(length)) if attention == BLOCKS and size == 2 else 0
