"""Attention's kernels on a tape: what each keeps of queries, keys and values, and what it needs meanwhile."""

from dataclasses import dataclass

from factory.architecture import Architecture
from factory.attention import PER_DOCUMENT, S2
from factory.estimate.anatomy import Anatomy
from factory.estimate.tape import STATISTIC, Tape, Tensor, factors


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """A batch: rows, and tokens in each."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True, slots=True)
class Attention:
    """From queries, keys and values, (tokens, heads x head_dim) each, to what comes out of the heads.

    `group` is that of S² attention, in tokens; None: it has none. `masked`: rows hold isolated documents, so that
    kernels which do not read the documents' lengths are given a mask.
    """

    tape: Tape
    arch: Architecture
    anatomy: Anatomy
    batch: Shapes
    group: int | None
    masked: bool

    def __call__(self, kernel: str, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if kernel == "sdpa" and self.masked:
            return self._with_mask(query, keys, values)
        kernels = {"eager": self._eager, S2: self._grouped, PER_DOCUMENT: self._in_parts}
        return kernels.get(kernel, self._fused)(query, keys, values)

    def _compute(self, *values: Tensor) -> list[Tensor]:
        size = self.tape.compute
        return [value if size is None else self.tape.cast(value, size) for value in values]

    def _fused(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """torch's fused kernel: keeps what goes in, what comes out, and a number for each row of scores."""
        query, keys, values = self._compute(query, keys, values)
        arch, tape = self.arch, self.tape
        if self.anatomy.masks:
            return self._unfused(query, keys, values)
        made = tape.operation(
            [query, keys, values],
            query.count,
            query.size,
            saves=(query, keys, values),
            saves_output=True,
            statistics=self.batch.tokens * arch.heads * STATISTIC,
            dear=True,
        )
        # with as many keys as queries it comes out in another layout, and is copied
        return tape.pointwise(made) if arch.heads == arch.kv_heads else made

    def _in_parts(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what the fused kernel gives for each sequence, copied into one tensor."""
        return self.tape.pointwise(self._fused(query, keys, values))

    def _with_mask(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the fused kernel's output where each row has a mask of (length, length) numbers.

        transformers then repeats the keys for each query head (`use_gqa_in_sdpa`), and torch makes of the truth values
        numbers of the queries' type, which each layer's backward pass keeps (`convert_boolean_attn_mask` in
        aten/src/ATen/native/transformers/attention.cpp).
        """
        query, keys, values = self._compute(query, keys, values)
        arch, tape, batch = self.arch, self.tape, self.batch
        if arch.heads != arch.kv_heads:
            share = arch.heads // arch.kv_heads
            keys, values = (tape.operation([each], each.count * share, each.size) for each in (keys, values))
        mask = tape.new(batch.rows * batch.length**2, query.size)
        made = tape.operation(
            [query, keys, values],
            query.count,
            query.size,
            saves=(query, keys, values, mask),
            saves_output=True,
            statistics=batch.tokens * arch.heads * STATISTIC,
            dear=True,
        )
        return tape.pointwise(made)

    def _unfused(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """torch's own way without a fused kernel: the softmax of all scores, in float32, is kept."""
        tape, scores = self.tape, self.batch.rows * self.arch.heads * self.batch.length**2
        kept = (query, keys, values, tape.new(scores, 4))
        scratch = (scores * 4 * 3 // 2,)
        made = tape.operation(
            [query, keys, values], query.count, query.size, saves=kept, scratch=scratch, backward_scratch=scratch
        )
        return tape.pointwise(made)

    def _grouped(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """S² attention: copies of both halves in groups go through the fused kernel (factory.attention.s2)."""
        tape = self.tape
        if self.group is None or self.batch.length <= self.group:
            return self._fused(query, keys, values)
        query, keys, values = self._compute(query, keys, values)
        sharing = self.arch.heads // self.arch.kv_heads
        if (self.arch.heads // 2) % sharing:  # heads of both halves share keys: each gets its own
            keys, values = (tape.operation([each], each.count * sharing, each.size) for each in (keys, values))
        query, keys, values = (tape.pointwise(each) for each in (query, keys, values))
        return tape.pointwise(tape.pointwise(self._fused(query, keys, values)))

    def _eager(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Whole matrices of scores, their softmax in float32 (transformers' eager_attention_forward)."""
        tape, arch, batch = self.tape, self.arch, self.batch
        query, keys, values = self._compute(query, keys, values)
        if arch.heads != arch.kv_heads:
            share = arch.heads // arch.kv_heads
            keys = tape.operation([keys], keys.count * share, keys.size)
            values = tape.operation([values], values.count * share, values.size)
        scores = batch.rows * arch.heads * batch.length**2
        weights = tape.pointwise(tape.operation([query, keys], scores, query.size, saves=factors(query, keys)))
        if self.anatomy.caps_scores:
            weights = tape.pointwise(weights)
            weights = tape.pointwise(tape.operation([weights], scores, weights.size, saves_output=True))
        weights = tape.pointwise(weights)  # the mask is added
        wide = tape.operation([tape.cast(weights, 4)], scores, 4, saves_output=True)
        narrow = tape.cast(wide, query.size)
        return tape.pointwise(tape.operation([narrow, values], query.count, query.size, saves=factors(narrow, values)))
