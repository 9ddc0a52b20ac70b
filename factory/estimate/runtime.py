"""What a CPU process holds beside a run's tensors: Python with its libraries and its tokenizer. Measured."""

from math import ceil

from factory import registry
from factory.architecture import FAMILIES, Architecture, traits_of
from factory.attention import BLOCKS, key_step
from factory.plan import Patch, Steps
from factory.quantizers.spec import holding

_MIB = 2**20
_BASE = 346 * _MIB  # Python with torch, transformers and accelerate
_TOGETHER = 64 * _MIB  # torch's compiler, tensors of several machines and sympy, which a process alone does without
LIBRARY_PAGES = 150 * _MIB  # of _BASE: pages of the libraries' files, as many as an environment has that is not new
_CUDA = 390 * _MIB  # of a torch that was built for CUDA, on a CPU too: its libraries, and what libraries load for them
_ADAPTERS = 24 * _MIB  # PEFT
_BITSANDBYTES = 22 * _MIB  # of a process that is not alone
_PRODUCTS = 30 * _MIB  # what is compiled or packed for products
_SHAPE = 5 * _MIB  # kernels of the six products of a block of attention in 16 bits, for each number of keys
_TOKEN = 450  # of a tokenizer's vocabulary


def is_alone(steps: Steps) -> bool:
    """Whether a process needs nothing that serves ranks or compiles: for its imports (execute/lean.py).

    Others of the quantizers compile as they like, and what processes images asks for the compiler.
    """
    one = steps.train.ranks.processes == 1 and steps.load.device == "cpu" and not steps.patch.compile
    return one and reads_text_alone(steps) and holding(steps.quantize, steps.load.config) <= {"bitsandbytes"}


def reads_text_alone(steps: Steps) -> bool:
    """Whether its model is known, and neither sees nor hears."""
    kind = steps.load.config.get("model_type")
    return kind in FAMILIES and not traits_of(kind).media


def resident(method: str, arch: Architecture, *, adapter: bool, bitsandbytes: bool, cuda: bool, alone: bool) -> int:
    """Bytes of the process before its first weight. A method whose spec says how PEFT saves it needs PEFT.

    So does a saved `adapter`. `cuda`: whether torch was built for it.
    """
    adapters = _ADAPTERS if adapter or registry.hook(registry.spec("methods", method), "peft") else 0
    shared = 0 if alone else _TOGETHER + (_BITSANDBYTES if bitsandbytes else 0)
    return _BASE + shared + adapters + (_CUDA if cuda else 0) + _TOKEN * arch.vocabulary


def kernels(patch: Patch, size: int, length: int) -> int:
    """Bytes that products of `length` tokens, in numbers of `size` bytes, leave; attention by blocks leaves more."""
    blocks = patch.attention == BLOCKS and size == 2
    return _PRODUCTS + (_SHAPE * ceil(length / key_step(length)) if blocks else 0)
