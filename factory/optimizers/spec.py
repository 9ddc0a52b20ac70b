"""What each optimizer keeps beside the weights on its device, in bytes for a tensor, and what it needs. No torch."""

from collections.abc import Callable
from math import ceil, prod

from factory.architecture import Architecture, Shape
from factory.config import registry
from factory.plan.rule import Broken, Case, rule

State = Callable[[Shape, int], float]  # of a tensor's shape, and the bytes of a number that it is held in
_BLOCK = 256  # elements that share a quantization constant (Dettmers et al. 2022, section 2.1)
_TOO_SMALL = 4096  # elements: bitsandbytes keeps the state of smaller tensors in float32
PAGED_FROM = 100_000  # elements: the states of such a tensor are paged, of a smaller one they stay on the GPU


def _floats(count: int) -> State:
    """So many float32 numbers an element, whatever the tensor is held in."""
    return lambda shape, size: 4 * count * prod(shape)


def _alike(count: int) -> State:
    """So many numbers an element, held as the tensor is."""
    return lambda shape, size: size * count * prod(shape)


def _eight_bits(count: int) -> State:
    """So many 8-bit numbers an element, and a float32 constant for each block of each."""

    def bytes_of(shape: Shape, size: int) -> float:
        elements = prod(shape)
        return 4 * count * elements if elements < _TOO_SMALL else count * (elements + 4 * ceil(elements / _BLOCK))

    return bytes_of


def _paged(whole: State, constants: int = 0) -> State:
    """What stays on the GPU: of a tensor whose states are paged, so many float32 constants for each block."""

    def bytes_of(shape: Shape, size: int) -> float:
        elements = prod(shape)
        return whole(shape, size) if elements < PAGED_FROM else 4 * constants * ceil(elements / _BLOCK)

    return bytes_of


def _factored(shape: Shape, size: int) -> float:
    """A float32 mean for each row and for each column (Shazeer and Stern 2018, algorithm 4)."""
    if len(shape) < 2:
        return 4 * prod(shape)
    return 4 * (prod(shape[:-1]) + prod(shape[:-2] + shape[-1:]))


STATES: dict[str, State] = {
    "adamw": _alike(2),
    "adamw_8bit": _eight_bits(2),
    "paged_adamw": _paged(_floats(2)),
    "paged_adamw_8bit": _paged(_eight_bits(2), 2),
    "ademamix": _floats(3),
    "ademamix_8bit": _eight_bits(3),
    "paged_ademamix": _paged(_floats(3)),
    "paged_ademamix_8bit": _paged(_eight_bits(3), 3),
    "lion": _floats(1),
    "lion_8bit": _eight_bits(1),
    "paged_lion": _paged(_floats(1)),
    "paged_lion_8bit": _paged(_eight_bits(1), 1),
    "adafactor": _factored,
    "muon": _alike(2),  # of what is no hidden matrix
    "sgd": _floats(0),
}
MADE_EARLY = frozenset({"adamw"})  # its state is there before the first step (factory.optimizers.run)
HIDDEN: dict[str, State] = {"muon": _alike(1)}  # of hidden matrices, where they are treated in another way

_ITERATIONS = 5  # of Newton and Schulz, as torch.optim.Muon makes by itself


def _orthogonal(shape: Shape) -> int:
    """Of m x n, m the smaller, an iteration is X Xᵀ (2 m m n), that squared (2 m m m), and that times X (2 m m n)."""
    small, large = sorted(shape)
    return _ITERATIONS * 2 * small * small * (2 * large + small)


# of an optimizer whose step multiplies matrices, the FLOPs of a hidden one: they are of a step, whatever tokens it has
MULTIPLIES: dict[str, Callable[[Shape], int]] = {"muon": _orthogonal}


def products(name: str, shapes: dict[str, Shape], arch: Architecture) -> int:
    """FLOPs of an update, a multiply-add counted as two; of what is done element by element none."""
    if name not in MULTIPLIES:
        return 0
    return sum(MULTIPLIES[name](shape) for tensor, shape in shapes.items() if is_hidden(tensor, shape, arch))


# What a tensor's step makes and frees, in bytes for each element of one in float32, and of one in 16 bits; as torch's
# profiler counts it (tests/optimizers/test_scratch.py). A fused step makes nothing.
_SCRATCH: dict[str, tuple[float, float]] = {
    "adafactor": (8, 16),
    "muon": (12, 10),
    "sgd": (4, 2),
}
_ON_CPU: dict[str, tuple[float, float]] = {  # bitsandbytes' kernels of a GPU work in place, those of a CPU are torch's
    "adamw_8bit": (20, 24),
    "ademamix": (16, 20),
    "ademamix_8bit": (37, 41),
    "lion": (12, 16),
    "lion_8bit": (20, 24),
}
# float32 copies of a tensor, of one in float32 and of one in 16 bits, that a step frees before its end and makes anew:
# what one leaves in glibc's heap holds no other of its size (factory.estimate.heap), so the heap is higher by them
_ANEW: dict[str, tuple[int, int]] = {
    "adamw_8bit": (0, 1),
    "ademamix": (1, 2),
    "ademamix_8bit": (1, 2),
    "lion": (1, 2),
    "lion_8bit": (0, 1),
    "adafactor": (1, 1),
}

# what an optimizer needs installed
PACKAGES = {name: "bitsandbytes" for name in STATES if name not in ("adamw", "adafactor", "muon", "sgd")}
_PAGED = "paged_"
NEEDS_GPU = frozenset(name for name in STATES if name.startswith(_PAGED))


def is_matrix(tensor: str, shape: Shape) -> bool:
    """Or a stack of matrices, by its name in the model: what weight decay is for.

    A stack of the experts' biases is none, nor is Mamba's table of log decay rates, as its authors have it.
    """
    return len(shape) >= 2 and not tensor.endswith(("bias", ".A_log"))


def is_hidden(tensor: str, shape: Shape, arch: Architecture) -> bool:
    """A matrix within the decoder's layers: no embedding, head, norm or stack of experts."""
    return len(shape) == 2 and is_matrix(tensor, shape) and f"{arch.layers_at}." in tensor


def state_bytes(name: str, shapes: dict[str, Shape], arch: Architecture, size: int) -> int:
    """Of tensors whose numbers are held in `size` bytes."""
    hidden = HIDDEN.get(name, STATES[name])
    kept = {tensor: hidden if is_hidden(tensor, shape, arch) else STATES[name] for tensor, shape in shapes.items()}
    return round(sum(kept[tensor](shape, size) for tensor, shape in shapes.items()))


def unpaged(name: str) -> str:
    """The optimizer that pages nothing and has, of float32 numbers, the same states; itself, of most."""
    return name.removeprefix(_PAGED)


def scratch(name: str, size: int, dtype_bytes: int, device: str) -> int:
    """Bytes that the step of a tensor of `size` elements makes and frees."""
    table = _SCRATCH | (_ON_CPU if device == "cpu" else {})
    whole, half = table.get(name, (0, 0))
    return round(size * (whole if dtype_bytes == 4 else half))


def blocks(name: str, size: int, dtype_bytes: int, device: str) -> list[int]:
    """The bytes of what the step of a tensor of `size` elements has in the heap, block by block."""
    made, whole = scratch(name, size, dtype_bytes, device), 4 * size
    anew = _ANEW.get(name, (0, 0))[0 if dtype_bytes == 4 else 1]
    rest = [made % whole] if whole and made % whole else []
    return [*([whole] * (made // whole + anew)), *rest] if made else []


@rule(
    "optimizer",
    keys=("stage.optimizer", "method.name", "hardware.device"),
    reason="the method changes the optimizer's gradient or state, which this optimizer has no place for",
    fix="set stage.optimizer=adamw or adamw_8bit",
)
def optimizer(case: Case) -> str | Broken | None:
    name, unfit = case.settings.stage.optimizer, registry.hook(case.method_spec, "unfit")
    if name in NEEDS_GPU and case.device == "cpu":
        reason = "paging moves the optimizer's state between a GPU's memory and the machine's"
        return Broken(message=f"{name} needs a GPU", reason=reason, fix="set the optimizer without paged_")
    return unfit and unfit(name)


def no_adam(name: str) -> str | None:
    """Return why a method that is made of AdamW's steps, in 8 bits or not, cannot take an optimizer."""
    return f"the method is made of AdamW's steps, not of {name}'s" if "adamw" not in name else None
