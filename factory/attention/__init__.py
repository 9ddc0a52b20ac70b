"""Attention functions of our own, beside those of transformers. This file imports no torch: the compiler reads it."""

# the names in compute.attention and in transformers' registry
S2 = "s2"
BLOCKS = "blocks"  # exact, by blocks of queries
OURS = (S2, BLOCKS)
BLOCK = 64  # queries of a block
_SHORT = 3 * BLOCK  # tokens; up to here one matrix of scores takes less time than more and smaller operations
LONG = 2048  # tokens from which on torch's kernel, where it is faster forwards (flash), is faster backwards too


def block_of(length: int) -> int:
    """Queries of a block: of a short row all."""
    return length if length <= _SHORT else BLOCK


def key_step(length: int) -> int:
    """Keys are taken in multiples of this, so that a length has no more than 4 numbers of them.

    Of products in bfloat16 a CPU compiles a kernel for each shape, half a megabyte that stays (docs/measurements.md).
    """
    if length <= _SHORT:
        return length
    step = 2 * BLOCK
    while 4 * step < length:
        step *= 2
    return step


def register(name: str, group_size: int | None) -> None:
    """Makes one of ours known to transformers, in this process; of any other name there is nothing to do."""
    if name == S2:
        from factory.attention import s2

        assert group_size is not None
        s2.register(group_size)
    if name == BLOCKS:
        from factory.attention import blocks

        blocks.register()
