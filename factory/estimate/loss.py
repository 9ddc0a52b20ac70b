"""What stands after the decoder: the head and the loss, as factory.losses makes them in chunks."""

from factory import chunks
from factory.estimate.tape import Gradient, Storage, Tape, Tensor, Weight


def _through(tape: Tape, hidden: Tensor, head: Weight, vocabulary: int, size: int) -> list[Gradient]:
    """One chunk's logits and slopes on the way to the gradients of hidden states and head, which are returned.

    The product and, in its place, the slopes are in the head's type; where that is narrower, the logits of some tokens
    are float32 beside it. The head's gradient is float32 at least; a block of words is a product on its way, for which
    a CPU widens both factors.
    """
    width = head.count // vocabulary
    wanted = hidden.node is not None
    gradient = Storage(tape.ledger, hidden.count * (4 if tape.scales_loss else hidden.size)) if wanted else None
    rows = chunks.room(hidden.count // width, chunks.chunk(head_trains=head.trained))
    part = rows * width * size
    wide = chunks.wide(rows, on_cpu=tape.ledger.heap is not None) * vocabulary * 4
    wide = 0 if size == 4 else wide
    made = Storage(tape.ledger, head.count * 4) if head.trained else None
    words = min(vocabulary, chunks.WORDS)
    factors = (rows * words + rows * width) * 4 if size < 4 and tape.ledger.heap is not None else 0
    block = words * width * 4 + factors if head.trained else 0
    tape.ledger.pass_by(part, rows * vocabulary * size, wide + block)
    return [gradient, made]


def _in_type(tape: Tape, gradient: Storage, head: Weight) -> Storage:
    """Return the head's gradient in the head's type: both are there for a moment."""
    return gradient if head.size == 4 else Storage(tape.ledger, head.count * head.size)


def cross_entropy(tape: Tape, hidden: Tensor, head: Weight, vocabulary: int) -> Tensor:
    """`LinearCrossEntropy`: the gradients are made in the forward pass, and kept for the backward pass."""
    size = tape.compute or hidden.size
    copy = tape.new(head.count, size) if size != head.size else None
    if not tape.recording or (hidden.node is None and not head.trained):
        _through(tape, tape.detached(hidden), Weight(head.count, head.size), vocabulary, size)
        return tape.new(0, 4)
    kept = _through(tape, hidden, head, vocabulary, size)
    del copy

    def backward(gradient: Storage) -> list[Gradient]:
        by_hidden, by_head = kept
        kept.clear()
        if by_head is not None:
            tape.gradients.setdefault(id(head), _in_type(tape, by_head, head))
        return [by_hidden]

    return tape.operation([hidden], 0, 4, trains=(head,), backward=backward)


def log_probs(tape: Tape, hidden: Tensor, head: Weight, vocabulary: int) -> Tensor:
    """`LinearLogProbs`: of a head that trains the backward pass makes each chunk's logits again."""
    size = tape.compute or hidden.size
    copy = tape.new(head.count, size) if size != head.size else None
    if not head.trained and tape.recording and hidden.node is not None:
        kept = _through(tape, hidden, head, vocabulary, size)
        del copy
        wide, narrow = 4 * hidden.count, hidden.bytes

        def scaled(gradient: Storage) -> list[Gradient]:
            product = Storage(tape.ledger, wide)
            made: list[Gradient] = [product if narrow == wide else Storage(tape.ledger, narrow)]
            kept.clear()
            return made

        return tape.operation([hidden], 0, 4, backward=scaled)
    _through(tape, tape.detached(hidden), Weight(head.count, head.size), vocabulary, size)
    del copy
    source = Tensor(hidden.storage, hidden.count, hidden.size, hidden.node)

    def backward(gradient: Storage) -> list[Gradient]:
        again = tape.new(head.count, size) if size != head.size else None
        by_hidden, by_head = _through(tape, source, head, vocabulary, size)
        del again
        if by_head is not None:
            tape.gradients.setdefault(id(head), _in_type(tape, by_head, head))
        return [by_hidden]

    return tape.operation([hidden], 0, 4, saves=(hidden,), trains=(head,), backward=backward)


def score(tape: Tape, hidden: Tensor, rows: int, width: int) -> Tensor:
    """A reward model's: of each row one hidden state."""
    return tape.operation([hidden], rows * width, 4)
