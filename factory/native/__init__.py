"""In C, for a CPU: what is fused (`kernels`), where large blocks lie (`heap.c`); how both are made here (`build`)."""

LARGE = 4096  # bytes: blocks from this on lie apart from smaller ones
UNIT = 64  # bytes: their sizes are multiples of it, where they start as well, and as much stands before each
MOST_RANKS = 256  # rows that a product has of few (`few.c`)
