"""How much is made at a time, of logits and of gradients: for them and their estimate. No torch."""

CHUNK = 256  # tokens
WIDE = 32  # tokens of a chunk whose logits are float32 at a time, on a CPU; on a GPU all are, so that it is asked less
WORDS = 4096  # of the vocabulary, whose part of a head's gradient is made and added at a time
MULTIPLE = 32  # a chunk's rows are padded to this: few shapes, so few kernels that a CPU compiles and keeps


def chunk(*, head_trains: bool) -> int:
    """Tokens of a chunk. Each passes over the gradient of a head that trains: fewer are faster."""
    return 2 * CHUNK if head_trains else CHUNK


def room(tokens: int, chunk: int) -> int:
    """Rows of what holds each chunk's logits in turn: a power of two, or the chunk.

    Few sizes, as of blocks that are ever another size glibc's heap would keep the holes (docs/measurements.md).
    """
    return max(MULTIPLE, min(chunk, 1 << (tokens - 1).bit_length()))


def wide(rows: int, *, on_cpu: bool) -> int:
    """Rows of what holds logits in float32, of a chunk's room of `rows` in a narrower type."""
    return min(rows, WIDE) if on_cpu else rows
