"""A training step's tensors by their sizes alone: what is allocated, what is kept for the backward pass, when it goes.

The forward pass of a model is written with these operations as its own code has them, and runs on sizes: a tensor's
bytes are counted from its creation to the moment that nobody refers to it any more, Python's own references and
autograd's included. The backward pass walks the operations in reverse, as autograd does: an operation's gradient and
what it kept go when it is done. What each operation keeps is what PyTorch's does (derivatives.yaml); the tests compare
it with torch's own hooks on saved tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from factory.estimate.heap import Heap, Place

_SMALL = 32  # bytes; of a tensor's own object, what fits beside another tensor in the heap and keeps holes apart
STATISTIC = 4  # bytes of a number that norms and softmax keep of a row, float32


class Ledger:
    """Bytes that are held now, the most that ever were since `peak` was set, and where they lie in the heap, if any."""

    def __init__(self, heap: Heap | None = None) -> None:
        self.now = self.peak = 0
        self.heap = heap

    def add(self, count: int) -> tuple[Place, Place] | None:
        """The places of a tensor's numbers and of its own object."""
        self.now += count
        self.peak = max(self.peak, self.now)
        return None if self.heap is None else (self.heap.take_small(_SMALL), self.heap.take(count))

    def remove(self, count: int, places: tuple[Place, Place] | None) -> None:
        self.now -= count
        if self.heap is not None and places is not None:
            for place in places:
                self.heap.give(*place)

    def give_back(self) -> None:
        if self.heap is not None:
            self.heap.give_back()

    def pass_by(self, *counts: int) -> None:
        """Scratch that goes at once."""
        places = [(count, self.add(count)) for count in counts if count]
        for count, place in places:
            self.remove(count, place)


class Storage:
    """Bytes that go when the last reference does."""

    __slots__ = ("_ledger", "_places", "bytes")

    def __init__(self, ledger: Ledger, count: int):
        self._places, self.bytes = ledger.add(count), count
        self._ledger = ledger

    def __del__(self) -> None:
        if (ledger := getattr(self, "_ledger", None)) is not None:  # a signal may have ended it while it was made
            ledger.remove(self.bytes, self._places)


@dataclass(slots=True, eq=False)
class Tensor:
    """`count` elements of `size` bytes. `node` is the operation that made it, None where no gradient flows to it."""

    storage: Storage
    count: int
    size: int
    node: "Node | None" = None

    @property
    def bytes(self) -> int:
        return self.count * self.size


@dataclass(slots=True, eq=False)
class Weight:
    """A parameter: it lies outside of the ledger, its gradient does not. `kept`: bytes of what that soon becomes."""

    count: int
    size: int
    trained: bool = False
    kept: int | None = None


Gradient = Storage | None
Backward = Callable[[Storage], "list[Gradient]"]


@dataclass(slots=True, eq=False)
class Node:
    """An operation whose backward pass is to come. `inputs` are those that made what went in, in its order."""

    inputs: "list[Node | None]"
    backward: Backward
    gradient: Gradient = None


@dataclass(slots=True)
class Tape:
    """`compute`: bytes of a number where autocast chooses the type of matrix products; None: their operands' own.

    `recording` is off where no gradient is wanted. `keeps` collects what selective checkpointing keeps, `again`
    has what it need not make again.
    """

    compute: int | None
    ledger: Ledger
    recording: bool = True
    frees_gradients: bool = False  # each is stepped as soon as it is whole
    scales_loss: bool = False  # autocast computes in float16
    nodes: list[Node] = field(default_factory=list)
    gradients: dict[int, Storage] = field(default_factory=dict)
    keeps: list[Storage] | None = None
    again: list[Storage] = field(default_factory=list)
    _casts: dict[int, Tensor] = field(default_factory=dict)

    # --- what all operations are made of

    def new(self, count: int, size: int) -> Tensor:
        return Tensor(Storage(self.ledger, count * size), count, size)

    def operation(
        self,
        inputs: "list[Tensor]",
        count: int,
        size: int,
        *,
        saves: "tuple[Tensor, ...]" = (),
        saves_output: bool = False,
        statistics: int = 0,
        scratch: Sequence[int] = (),
        backward_scratch: Sequence[int] = (),
        trains: tuple[Weight, ...] = (),
        slopes: int | None = None,
        backward: Backward | None = None,
        dear: bool = False,
    ) -> Tensor:
        """Makes a tensor. Its backward pass gives each input a gradient of the input's size, unless told otherwise.

        `statistics` are bytes, scratch those of blocks that are there at once; those of `trains` that are trained get a
        gradient here, made with numbers of `slopes` bytes, or of their own. What is `dear`, selective checkpointing
        keeps and does not make again.
        """
        trains = tuple(weight for weight in trains if weight.trained)
        made = Tensor(self.again.pop(0), count, size) if dear and self.again else self.new(count, size)
        self.ledger.pass_by(*scratch)
        if dear and self.keeps is not None:
            self.keeps.append(made.storage)
        if not self.recording or not (trains or any(value.node for value in inputs)):
            return made
        kept: list[Any] = [value.storage for value in saves]
        if saves_output:
            kept.append(made.storage)
        if statistics:
            kept.append(Storage(self.ledger, statistics))
        sizes = [value.bytes if value.node else None for value in inputs]

        def usual(gradient: Storage) -> list[Gradient]:
            found: list[Gradient] = [None if each is None else Storage(self.ledger, each) for each in sizes]
            for weight in trains:
                self.accumulate(weight, slopes or weight.size)
            self.ledger.pass_by(*backward_scratch)
            return found

        made.node = self._node(inputs, kept, backward or usual)
        return made

    def _node(self, inputs: "list[Tensor]", kept: list[Any], backward: Backward) -> Node:
        def run(gradient: Storage) -> list[Gradient]:
            found = backward(gradient)
            kept.clear()
            return found

        node = Node([value.node for value in inputs], run)
        self.nodes.append(node)
        return node

    def accumulate(self, weight: Weight, size: int) -> None:
        """A gradient of the weight, made with numbers of `size` bytes, is cast to the weight's and added to its own."""
        made = Storage(self.ledger, weight.count * size)
        if size != weight.size:
            made = Storage(self.ledger, weight.count * weight.size)
        self._keep(weight, made)

    def _keep(self, weight: Weight, made: Storage) -> None:
        if self.frees_gradients or id(weight) in self.gradients:
            return
        self.gradients[id(weight)] = made if weight.kept is None else self._becomes(weight)

    def _becomes(self, weight: Weight) -> Storage:
        """Made of the gradient in float32."""
        wide = None if weight.size == 4 else Storage(self.ledger, 4 * weight.count)
        made = Storage(self.ledger, weight.kept or 0)
        del wide
        return made

    def backward(self, loss: Tensor) -> None:
        """From the loss to the first operation."""
        assert loss.node is not None
        loss.node.gradient = Storage(self.ledger, 0)
        self._walk(self.nodes)

    def _walk(self, nodes: list[Node]) -> None:
        while nodes:
            node = nodes.pop()
            gradient, node.gradient = node.gradient, None
            if gradient is None:
                continue
            found = node.backward(gradient)
            del gradient
            while found:
                into, given = node.inputs[len(found) - 1], found.pop()
                if into is not None and given is not None:
                    self._add(into, given)
                del given

    def _add(self, node: Node, given: Storage) -> None:
        if node.gradient is None:
            node.gradient = given
            return
        node.gradient = Storage(self.ledger, max(node.gradient.bytes, given.bytes))

    # --- operations

    def cast(self, value: Tensor, size: int) -> Tensor:
        if value.size == size:
            return value
        return self.operation([value], value.count, size)

    def detached(self, value: Tensor) -> Tensor:
        return Tensor(value.storage, value.count, value.size)

    def pointwise(self, value: Tensor, *, saves_input: bool = False) -> Tensor:
        """Of one tensor, to one of its size. Times a constant, or, where it saves its input, an activation."""
        return self.operation([value], value.count, value.size, saves=(value,) if saves_input else ())

    def add(self, one: Tensor, other: Tensor) -> Tensor:
        """Gradients pass through as they are, or cast where the operands' types differ."""
        size = max(one.size, other.size)

        def backward(gradient: Storage) -> list[Gradient]:
            return [self._as(gradient, value, size) if value_node else None for value, value_node in both]

        both = [(value.size, value.node is not None) for value in (one, other)]
        return self.operation([one, other], one.count, size, backward=backward)

    def _as(self, gradient: Storage, wanted: int, size: int) -> Storage:
        return gradient if wanted == size else Storage(self.ledger, gradient.bytes * wanted // size)

    def multiply(self, one: Tensor, other: Tensor) -> Tensor:
        """Elementwise, both of one shape."""
        return self.operation([one, other], one.count, max(one.size, other.size), saves=factors(one, other))

    def scaled(self, value: Tensor, weight: Weight) -> Tensor:
        """Times a vector that is the same for all tokens: the value is kept only for the vector's own gradient."""
        size = max(value.size, weight.size)
        saves = (value,) if weight.trained else ()
        scratch = (value.count * size,) if weight.trained else ()
        return self.operation([value], value.count, size, saves=saves, trains=(weight,), backward_scratch=scratch)

    def concatenated(self, values: list[Tensor]) -> Tensor:
        return self.operation(values, sum(value.count for value in values), values[0].size)

    def sliced(self, value: Tensor, count: int) -> Tensor:
        """A view; its gradient is one of the whole, of zeros elsewhere."""
        if not self.recording or value.node is None:
            return Tensor(value.storage, count, value.size)
        whole = value.bytes
        node = self._node([value], [], lambda gradient: [Storage(self.ledger, whole)])
        return Tensor(value.storage, count, value.size, node)

    def weight_cast(self, weight: Weight) -> Tensor | None:
        """A trained weight as autocast multiplies with it: made once a pass. A frozen one anew each time."""
        if self.compute is None or weight.size == self.compute:
            return None
        found = self._casts.get(id(weight))
        if found is None:
            found = self.new(weight.count, self.compute)
            if weight.trained:
                self._casts[id(weight)] = found
        return found

    def leave_autocast(self) -> None:
        self._casts.clear()

    def product(self, value: Tensor, weight: Weight, outputs: int, *, bias: Weight | None = None) -> Tensor:
        """value @ weight.T with `outputs` columns, in autocast's type."""
        size = self.compute or max(value.size, weight.size)
        value = self.cast(value, size)
        narrow = self.weight_cast(weight)
        trains = (weight,) if bias is None else (weight, bias)
        saves = ((value,) if weight.trained else ()) + ((narrow,) if narrow is not None and value.node else ())
        rows = value.count * outputs // (weight.count or 1)
        return self.operation([value], rows * outputs, size, saves=saves, trains=trains, slopes=size, dear=True)

    # --- checkpoints

    def checkpoint(
        self,
        layer: Callable[[Tensor], Tensor],
        value: Tensor,
        *,
        selective: bool,
        before: Callable[[], None] | None = None,
    ) -> Tensor:
        """A layer whose operations are done again in the backward pass. `selective`: what products gave is kept.

        `before` is called each time that the layer runs.
        """
        if before is not None:
            before()
        if not self.recording:
            return layer(value)
        first = len(self.nodes)
        kept: list[Any] = [value.storage]
        with self._silent(kept if selective else None):
            made = layer(self.detached(value))
        assert len(self.nodes) == first
        if value.node is None and not getattr(layer, "trains", True):  # no gradient flows through it or into it
            return made
        source, count, size = value.node, value.count, value.size

        def backward(gradient: Storage) -> list[Gradient]:
            if before is not None:
                before()
            outer, self.nodes = self.nodes, []
            entry = Tensor(kept[0], count, size)
            ends: list[Gradient] = [None]
            if source is not None:
                entry.node = self._node([], [], lambda given: _put(ends, given))
            self.again = kept[1:]
            kept.clear()
            again = layer(entry)
            self.again.clear()
            self.leave_autocast()
            del entry
            assert again.node is not None
            again.node.gradient = gradient
            del again
            self._walk(self.nodes)
            self.nodes = outer
            return ends

        made.node = Node([source], backward)
        self.nodes.append(made.node)
        return made

    @contextmanager
    def _silent(self, keeps: list[Storage] | None) -> Iterator[None]:
        self.recording, self.keeps = False, keeps
        try:
            yield
        finally:
            self.recording, self.keeps = True, None


def factors(one: Tensor, other: Tensor) -> tuple[Tensor, ...]:
    """What a product of two keeps: each for the other's gradient."""
    return (*((other,) if one.node else ()), *((one,) if other.node else ()))


def _put(ends: list[Gradient], given: Storage) -> list[Gradient]:
    ends[0] = given
    return []
