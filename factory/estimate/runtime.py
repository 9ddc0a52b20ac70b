"""What a CPU process holds beside a run's tensors: Python with its libraries and its tokenizer. Measured."""

from factory.architecture import Architecture

_MIB = 2**20
_BASE = 460 * _MIB  # Python with torch, transformers and accelerate
LIBRARY_PAGES = 150 * _MIB  # of _BASE: pages of the libraries' files, as many as an environment has that is not new
_CUDA = 390 * _MIB  # of a torch that was built for CUDA, on a CPU too: its libraries, and what libraries load for them
_ADAPTERS = 20 * _MIB  # PEFT
_BITSANDBYTES = 45 * _MIB
PRODUCTS = 45 * _MIB  # what is compiled or packed for products
_TOKEN = 450  # of a tokenizer's vocabulary


def resident(arch: Architecture, *, adapter: bool, bitsandbytes: bool, cuda: bool) -> int:
    """Return the bytes of the process before its first weight.

    `adapter`: whether it imports PEFT, which imports bitsandbytes too. `cuda`: whether torch was built for it.
    """
    imported = _BASE + (_ADAPTERS if adapter else 0) + (_BITSANDBYTES if adapter or bitsandbytes else 0)
    return imported + (_CUDA if cuda else 0) + _TOKEN * arch.vocabulary
