"""Losses and log-probabilities that never hold the logits of all tokens at once."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from factory import chunks
from factory.attention import LENGTHS_ON_DEVICE, PER_DOCUMENT, VARLEN
from factory.data.batches import FLASH, JOINED, LENGTHS, STARTS
from factory.data.dataset import IGNORED, OF_ANSWERS, TRAINED_AT
from factory.logits import Head, decoder, head_of, text_model, wide_type


def _chunks(hidden: Tensor, dtype: torch.dtype, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Which tokens, and what goes into the head for them, padded with rows of 0."""
    for start in range(0, len(hidden), size):
        part = hidden[start : start + size].to(dtype)
        yield slice(start, start + len(part)), functional.pad(part, (0, 0, 0, -len(part) % chunks.MULTIPLE))


class _Room:
    """For the logits of a chunk after the other, in the type of the product; of some of its tokens in float32 at least.

    Its sizes are few: of blocks that are ever another size glibc's heap would keep the holes.
    """

    def __init__(self, tokens: int, gradients: "_Gradients", head: Head) -> None:
        rows, words, dtype = chunks.room(tokens, gradients.chunk), len(head.weight), head.weight.dtype
        self._head, self._product = head, head.weight.new_empty(rows, words)
        self._at_once, self._wide = rows, None
        if wide_type(dtype) != dtype:
            self._at_once = chunks.wide(rows, on_cpu=head.weight.device.type == "cpu")
            self._wide = head.weight.new_empty(self._at_once, words, dtype=wide_type(dtype))

    def product(self, part: Tensor) -> Tensor:
        """What goes into the head, times its weight."""
        return torch.mm(part, self._head.weight.T, out=self._product[: len(part)])

    def losses(self, product: Tensor, target: Tensor, counts: Tensor | None, gradients: "_Gradients") -> Tensor:
        """-log softmax(logits)[target]: (tokens). In the product's place are, if they are needed, the slopes in it."""
        parts = list[Tensor]()
        for some, logits in self._logits(product):
            wanted = target[some]
            bend = self._head.bend(logits) if gradients.needed else None
            parts.append(_losses(logits, wanted))
            if gradients.needed:
                slopes = self._head.slopes(logits, bend, wanted, None if counts is None else counts[some])
                gradients.add_bias(slopes)
                if self._wide is not None:
                    product[some].copy_(slopes.mul_(_FLOAT16_SCALE) if gradients.is_scaled else slopes)
        return torch.cat(parts)

    def _logits(self, product: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Tokens of the product, and their logits (`Head.logits`), there until the next are."""
        for start in range(0, len(product), self._at_once):
            some = slice(start, start + self._at_once)
            narrow = product[some]
            yield some, self._head.shaped(narrow if self._wide is None else self._wide[: len(narrow)].copy_(narrow))


# slopes in float16 are multiplied by it: a probability of 6e-8 then is a normal number, and none reaches 65,504
_FLOAT16_SCALE = 1024.0


class _Gradients:
    """The gradients of hidden, weight and bias, inputs 0, 1 and 4 of both functions; None of those not needed.

    Those of weight and bias are sums over chunks, in float32 at least until all chunks are added. Where the head
    computes in float16, slopes are scaled, products are float32, and `finish` takes the scale out: the loss is scaled
    only after the forward pass, and what vanished there would stay 0.
    """

    def __init__(
        self, needs: tuple[bool, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        needs_hidden, self._needs_weight = needs[:2]
        self._needs_bias = bias is not None and needs[4]
        self.needed = needs_hidden or self._needs_weight or self._needs_bias
        self.chunk = chunks.chunk(head_trains=self._needs_weight)
        self.is_scaled = dtype == torch.float16
        kept = wide_type(hidden.dtype) if self.is_scaled else hidden.dtype
        self.hidden = torch.empty_like(hidden, dtype=kept) if needs_hidden else None
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def add_bias(self, slopes: Tensor) -> None:
        """Of some tokens, in float32 at least."""
        if self._needs_bias:
            total = slopes.sum(0)
            self.bias = total if self.bias is None else self.bias.add_(total)

    def add(self, rows: slice, part: Tensor, narrow: Tensor, slopes: Tensor) -> None:
        """Of the tokens of `rows`: what went into the head, its weight of that type, and the slopes in it too."""
        if self.hidden is not None:
            product = _wide_product(slopes, narrow) if self.is_scaled else slopes @ narrow
            self.hidden[rows] = product[: rows.stop - rows.start]
        if self._needs_weight:
            self._add_weight(slopes, part)

    def _add_weight(self, slopes: Tensor, part: Tensor) -> None:
        """Add the product of a chunk, one block of words at a time."""
        words = slopes.shape[1]
        if self.weight is None:
            self.weight = slopes.new_zeros(words, part.shape[1], dtype=wide_type(slopes.dtype))
        for start in range(0, words, chunks.WORDS):
            block = slice(start, start + chunks.WORDS)
            self.weight[block] += _wide_product(slopes[:, block].T, part)

    def finish(self, largest: Tensor | None) -> None:
        """Take the scale of float16 slopes out. `largest`: what all counts were divided by; None: 1."""
        if not self.is_scaled:
            return
        for gradient, scale in ((self.hidden, _FLOAT16_SCALE), (self.weight, _FLOAT16_SCALE), (self.bias, 1.0)):
            if gradient is not None:
                gradient.mul_(1 / scale if largest is None else largest / scale)


def _wide_product(one: Tensor, other: Tensor) -> Tensor:
    """Return the product of two matrices of one type in float32 at least.

    Products of two 16-bit numbers are exact in float32. A GPU writes their sums so; a CPU needs wide factors.
    """
    wide = wide_type(one.dtype)
    if wide != one.dtype and one.device.type != "cpu":
        return torch.mm(one, other, out_dtype=wide)
    return one.to(wide) @ other.to(wide)


def _token_losses(
    head: Head, gradients: _Gradients, hidden: Tensor, target: Tensor, counts: Tensor | None = None
) -> Tensor:
    """-log softmax(logits)[target] of each token: (tokens). The gradients are of their sum, each times its count."""
    values, room = (
        hidden.new_empty(len(target), dtype=wide_type(head.weight.dtype)),
        _Room(len(hidden), gradients, head),
    )
    largest = None
    if gradients.is_scaled and counts is not None:  # a scaled loss may have counts that float16 does not hold
        largest = counts.abs().amax().clamp(min=torch.finfo(counts.dtype).tiny)
        counts = counts / largest
    for rows, part in _chunks(hidden, head.weight.dtype, gradients.chunk):
        product = room.product(part)
        values[rows] = room.losses(product, target[rows], None if counts is None else counts[rows], gradients)
        if gradients.needed:
            gradients.add(rows, part, head.weight, product)
    gradients.finish(largest)
    return values


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropies of a head's logits, its gradients computed chunk by chunk in the forward pass.

    hidden: (tokens, width); target: (tokens); weight, bias, scale and cap as `Head` has them, its product taken in
    `dtype`. `counts`: (tokens), what each token's loss is multiplied by; None: 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        dtype: torch.dtype,
        bias: Tensor | None = None,
        scale: float = 1.0,
        cap: float | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        gradients = _Gradients(ctx.needs_input_grad, hidden, weight, bias, dtype)
        losses = _token_losses(Head(weight.to(dtype), bias, scale, cap), gradients, hidden, target, counts)
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        ctx.types = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return (losses if counts is None else losses * counts).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        by_hidden, by_weight, by_bias = (
            None if slopes is None else slopes.mul_(grad.to(slopes.dtype)).to(dtype)
            for slopes, dtype in zip(ctx.saved_tensors, ctx.types, strict=True)
        )
        return by_hidden, by_weight, None, None, by_bias, None, None, None


class LinearLogProbs(torch.autograd.Function):
    """log softmax(logits)[target] of each token, (tokens) in float32 at least, the logits made chunk by chunk.

    Arguments as those of `LinearCrossEntropy`. What the tokens' gradients will be is not known in the forward pass. Of
    a frozen head a token's own is a factor of what then goes back, which is made in the forward pass; for one that
    trains, the backward pass makes each chunk's logits again, and only the arguments are kept in between.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        dtype: torch.dtype,
        bias: Tensor | None = None,
        scale: float = 1.0,
        cap: float | None = None,
    ) -> Tensor:
        needs = ctx.needs_input_grad
        ctx.again, ctx.numbers = needs[1] or (bias is not None and needs[4]), (dtype, scale, cap)
        ctx.kept = hidden.dtype
        gradients = _Gradients((False,) * len(needs) if ctx.again else needs, hidden, weight, bias, dtype)
        losses = _token_losses(Head(weight.to(dtype), bias, scale, cap), gradients, hidden, target)
        ctx.save_for_backward(*((hidden, weight, target, bias) if ctx.again else (gradients.hidden,)))
        return losses.neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        if not ctx.again:
            (slopes,) = ctx.saved_tensors
            return (slopes * -grad[:, None]).to(ctx.kept), None, None, None, None, None, None
        hidden, weight, target, bias = ctx.saved_tensors
        dtype, scale, cap = ctx.numbers
        gradients = _Gradients(ctx.needs_input_grad, hidden, weight, bias, dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            _token_losses(Head(weight.to(dtype), bias, scale, cap), gradients, hidden, target, -grad)
        by_weight = None if gradients.weight is None else gradients.weight.to(weight.dtype)
        by_hidden = None if gradients.hidden is None else gradients.hidden.to(hidden.dtype)
        return by_hidden, by_weight, None, None, gradients.bias, None, None


def _losses(logits: Tensor, target: Tensor) -> Tensor:
    """-log softmax(logits)[target]: (tokens). Over the logits is written their softmax. Later rows pad.

    With the largest logit m and its weight w, log sum exp = m - log w. As w is no less than 1 / vocabulary, nothing is
    lost where the target's own weight vanishes. Torch's log_softmax takes ten times as long as its softmax on a CPU.
    """
    rows = logits[: len(target)]
    chosen, largest = rows.gather(1, target[:, None])[:, 0], rows.amax(-1)
    torch.softmax(logits, dim=-1, out=logits)
    return largest - chosen - rows.amax(-1).log_()


def _summed(logits: Tensor, target: Tensor, counts: Tensor | None) -> Tensor:
    """The sum of the tokens' losses, each multiplied by its count."""
    if counts is None:
        return functional.cross_entropy(logits, target, reduction="sum")
    return -(_log_probs(logits, target) * counts).sum()


def _log_probs(logits: Tensor, target: Tensor) -> Tensor:
    """log softmax(logits)[target], in float32 at least: (tokens)."""
    return -functional.cross_entropy(logits.to(wide_type(logits.dtype)), target, reduction="none")


Where = tuple[Tensor, Tensor]  # rows and places of a batch: (tokens) each


def causal_lm(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Sum over the trained tokens of -log p(token | tokens before it), times its `weights` where the batch has them.

    Labels of -100 are not trained. Only the trained positions get logits: the decoder runs on all tokens, the head on
    those alone. Where the head is of a kind that is not known here, the model makes its own logits, of all positions.
    """
    where, target = _targets(batch)
    head = head_of(model)
    counts = batch["weights"][:, 1:][where] if "weights" in batch else None
    if head is None:
        return _summed(_own_logits(model, batch, where), target, counts)
    return _by_head(LinearCrossEntropy, head, _hidden(model, batch, where), target, counts)


def row_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """What each row of the batch adds to `causal_lm`: (rows), in float32 at least."""
    values, rows = token_log_probs(model, batch)
    if "weights" in batch:
        values = values * batch["weights"][:, 1:][_targets(batch)[0]]
    return -values.new_zeros(len(batch["labels"])).index_add(0, rows, values)


def token_log_probs(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """log p(token | tokens before it) of each trained token, and the row of the batch that it stands in.

    Both (tokens), row by row in the order of the text; the first in float32 at least, and differentiable. As in
    `causal_lm` labels of -100 are not trained, and a head that is not known makes the logits of all positions. The
    batch's `weights` have no part in it: they say how a loss counts a token, not how likely it is.
    """
    values, _ = sampled_log_probs(model, batch)
    return values, _targets(batch)[0][0]


def sampled_log_probs(
    model: Any, batch: dict[str, Tensor], temperature: float = 1.0, *, states: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`token_log_probs` of logits that are divided by the temperature, (tokens), and what the head was given for them.

    The hidden states, (tokens, width), stand before each token: what is expected of the text without it. None unless
    asked for; where the head is not known they take a second pass.
    """
    where, target = _targets(batch)
    head = head_of(model)
    if head is None:
        values = _by_logits(_own_logits(model, batch, where, wide=False).div_(temperature), target)
        return values, _hidden(model, batch, where) if states else None
    hidden = _hidden(model, batch, where)
    return _by_head(LinearLogProbs, head.at(temperature), hidden, target), hidden if states else None


def sequence_log_probs(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Of each row the sum of `token_log_probs`, and how many tokens it sums: (rows), (rows). Of none: 0 and 0."""
    values, rows = token_log_probs(model, batch)
    count = len(batch["labels"])
    tokens = rows.new_zeros(count).index_add(0, rows, torch.ones_like(rows))
    return values.new_zeros(count).index_add(0, rows, values), tokens


def heads_agree(model: Any, batch: dict[str, Tensor]) -> float:
    """The largest difference, in nats, between a token's loss by the model's own logits and by `causal_lm`'s head.

    Rounding is all that may differ. 0 where `causal_lm` takes the model's own. It makes the logits of the whole batch,
    so give it a small one; at most 31 trained tokens are compared.
    """
    head = head_of(model)
    if head is None:
        return 0.0
    where, target = _targets(batch)
    compared = torch.arange(0, len(target), max(1, len(target) // 16), device=target.device)
    training = model.training
    model.eval()
    with torch.no_grad():
        own, states = _own_logits_and_states(model, batch, where)
        theirs = _log_probs(own[compared], target[compared])
        hidden = _hidden(model, batch, where) if states is None else _at(batch, states, where)
        ours = _by_head(LinearLogProbs, head, hidden[compared], target[compared])
    model.train(training)
    return float((theirs - ours).abs().max()) if len(compared) else 0.0


def _own_logits_and_states(model: Any, batch: dict[str, Tensor], where: Where) -> tuple[Tensor, Tensor | None]:
    """`_own_logits`, and `_states` where the model called its decoder just as that does: then both are the same."""
    called: list[tuple[Any, dict[str, Any], Tensor]] = []

    def keep(_decoder: Any, words: Any, named: dict[str, Any], given: Any) -> None:
        called.append((words, named, given.last_hidden_state.clone()))

    hook = decoder(text_model(model)).register_forward_hook(keep, with_kwargs=True)
    try:
        logits = _own_logits(model, batch, where)
    finally:
        hook.remove()
    if len(called) != 1:
        return logits, None
    words, named, states = called[0]
    said = {name: value for name, value in named.items() if value is not None}
    return logits, states if not words and _same(said, _inputs(model, batch)) else None


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        both = isinstance(a, Tensor) and isinstance(b, Tensor)
        return torch.equal(a, b) if both else type(a) is type(b) and bool(a == b)

    return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())


def _targets(batch: dict[str, Tensor]) -> tuple[Where, Tensor]:
    """Where the next token is trained, and those tokens: (tokens). Looked for where the batch does not say it."""
    labels = batch["labels"][:, 1:]
    rows, places = batch[TRAINED_AT] if TRAINED_AT in batch else (labels != IGNORED).nonzero(as_tuple=True)
    return (rows, places), labels[rows, places]


# its attention is bidirectional unless it is told which tokens answer: all that it is not told of are taken to
_TYPED = ("paligemma",)
# they read a text's own positions, which tell documents apart, only beside those in time, height and width
_FOUR_POSITIONS = ("qwen2_vl", "qwen2_5_vl")


# what a batch holds beside the model's inputs
_OURS = ("labels", TRAINED_AT, OF_ANSWERS, "weights", "reference", "desirable", STARTS, LENGTHS, *FLASH, *JOINED)


def _inputs(model: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
    """What the model's forward takes: the batch without labels, and what its kind needs to see a text as one."""
    inputs: dict[str, Any] = {name: value for name, value in batch.items() if name not in _OURS}
    inputs |= {name: batch[ours] for ours, name in JOINED.items() if ours in batch}
    inputs |= _lengths(model.config._attn_implementation, batch, inputs["input_ids"])
    kind, positions = text_model(model).config.model_type, inputs.get("position_ids")
    assert kind != "llama4_text" or "pixel_values" not in inputs, "its language model would take no notice of an image"
    if kind in _TYPED and "token_type_ids" not in inputs:
        inputs["token_type_ids"] = torch.ones_like(inputs["input_ids"])
    if kind in _FOUR_POSITIONS and positions is not None and positions.dim() == 2:
        inputs["position_ids"] = positions.expand(4, *positions.shape)
    return {**inputs, "use_cache": False}


def _lengths(attention: str, batch: dict[str, Any], ids: Tensor) -> dict[str, Any]:
    """Return the lengths of the sequences of (rows, length) ids as the attention reads them.

    A batch that says none holds a sequence in each row.
    """
    if attention == PER_DOCUMENT:
        assert LENGTHS in batch or "position_ids" not in batch, "the batch says no lengths of its documents"
        return {LENGTHS: batch.get(LENGTHS, (ids.shape[1],) * len(ids))}
    if attention not in LENGTHS_ON_DEVICE:
        return {}
    if FLASH[0] in batch:
        return {name: batch[name] for name in FLASH}
    if attention != VARLEN:  # flash attention looks itself
        return {}
    assert not {"position_ids", STARTS} & batch.keys(), "the batch says no lengths of its documents"
    bounds = torch.arange(len(ids) + 1, dtype=torch.int32, device=ids.device) * ids.shape[1]
    return dict(zip(FLASH, (bounds, ids.shape[1]) * 2, strict=True))


def answer_states(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The decoder's last hidden state, after its last norm, at each row's last trained token: (rows, width)."""
    trained = batch["labels"] != IGNORED
    places = torch.arange(trained.shape[1], device=trained.device)
    last = (places * trained).amax(dim=1)
    return _at(batch, _states(model, batch), (torch.arange(len(last), device=last.device), last))


def _hidden(model: Any, batch: dict[str, Tensor], where: Where) -> Tensor:
    """What goes into the head there: (tokens, width)."""
    return _at(batch, _states(model, batch), where)


def _at(batch: dict[str, Tensor], found: Tensor, where: Where) -> Tensor:
    """What the model gave, (rows, length, …), of the tokens there: (tokens, …)."""
    rows, places = where
    if STARTS in batch:
        return found[0].index_select(0, batch[STARTS][rows] + places)
    return found[rows, places]


def _states(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """What goes into the head, of all that the model reads: (rows, length, width)."""
    return _called(decoder(text_model(model)), model, batch).last_hidden_state


def _called(part: Any, model: Any, batch: dict[str, Tensor]) -> Any:
    return part(**_inputs(model, batch))


def _own_logits(model: Any, batch: dict[str, Tensor], where: Where, *, wide: bool = True) -> Tensor:
    """The model's own logits there, (tokens, vocabulary), in float32 at least where they are wide."""
    logits = _at(batch, _called(text_model(model), model, batch).logits, where)
    return logits.to(wide_type(logits.dtype)) if wide else logits


def _by_logits(logits: Tensor, target: Tensor) -> Tensor:
    """log softmax(logits)[target]: (tokens). Of no more than a chunk are the wide ones there at once."""
    size = chunks.chunk(head_trains=False)
    parts = zip(logits.split(size), target.split(size), strict=True)
    return torch.cat([checkpoint(_log_probs, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def _by_head(
    function: type[torch.autograd.Function], head: Head, hidden: Tensor, target: Tensor, *more: Tensor | None
) -> Tensor:
    """What one of the functions above gives for a model's hidden states."""
    weight, bias = head.weight, head.bias
    if not torch.is_grad_enabled():  # autograd.Function sees what requires a gradient, not whether one is wanted
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return function.apply(hidden, weight, target, dtype, bias, head.scale, head.cap, *more)  # type: ignore[no-any-return]
