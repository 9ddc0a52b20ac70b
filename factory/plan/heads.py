"""Heads that a stage trains beside the language model's own: which they are, how they start, and their files.

A head is a linear layer without bias on the decoder's last hidden states. It is a module of the model that is trained,
PEFT's wrapper or the model itself, so its tensor has one name under every method; and it is saved beside the adapter or
the weights, in a file of its own that nothing else reads. Importing this needs no torch.
"""

from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from factory.architecture import Architecture, Shape
from factory.config import registry

if TYPE_CHECKING:
    from torch import Tensor

    from factory.plan.facts import ModelFacts

FILES = "*_head.safetensors"  # each with the tensor `weight`
TENSOR = "weight"
Start = Literal["drawn", "zero"]


def heads(stage: str, arch: Architecture) -> dict[str, Shape]:
    """The stage's heads as trained tensors by name, (outputs, width)."""
    own = registry.hook(registry.spec("stages", stage), "heads")
    return own(arch) if own else {}


def writes(stage: str) -> bool:
    """Whether the stage reads the language model's head."""
    return registry.hook(registry.spec("stages", stage), "WRITES", True)


def unread(stage: str, arch: Architecture) -> tuple[str, ...]:
    """The tensors that the stage's loss never reaches: a language model's head, unless it is the embedding."""
    return () if writes(stage) else tuple(name for name in arch.outside if name.startswith(f"{arch.head}."))


def reached(stage: str, arch: Architecture) -> Architecture:
    """The architecture with what the stage never reaches fixed, so that no method trains or counts it."""
    return replace(arch, fixed=(*arch.fixed, *unread(stage, arch)))


def width(arch: Architecture) -> int:
    """Of what goes into a head: that of the embedding, which some models project to and from."""
    return arch.outside[f"{arch.embedding}.weight"][-1]


def goes_on(tensor: str, model: "ModelFacts") -> tuple[str, Shape] | None:
    """The key of what a head goes on from and the head's shape there: an adapter's own first; None: it starts anew."""
    places = {"model.adapter": model.adapter.heads if model.adapter else {}, "model.path": model.heads}
    return next(((key, there[tensor]) for key, there in places.items() if tensor in there), None)


def module_of(tensor: str) -> str:
    """What the head is called in the model, by its tensor's name."""
    return tensor.removesuffix(f".{TENSOR}")


def file_of(tensor: str) -> str:
    return f"{module_of(tensor)}.safetensors"


def tensor_of(file: Path) -> str:
    return f"{file.stem}.{TENSOR}"


def start(stage: str) -> Start:
    """How a stage's heads start that go on from none."""
    return registry.hook(registry.spec("stages", stage), "HEADS_START", "drawn")


def add(
    model: Any,
    shapes: dict[str, Shape],
    saved_in: tuple[str, ...],
    *,
    dtype: Any,
    device: str,
    seed: int,
    start: Start = "drawn",
) -> None:
    """Adds heads that train, in `dtype`: as the first of the folders has them that has them, else at their `start`.

    Drawn: N(0, 1 / (width + 1)), as Stiennon et al. 2020 (arXiv 2009.01325) start a reward model's: scores are of
    size 1.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator) / sqrt(shape[1] + 1) if start == "drawn" else torch.zeros(shape)
        there = [Path(folder) / file_of(name) for folder in saved_in]
        file = next((file for file in there if file.is_file()), None)
        weight = drawn if file is None else _read(file)
        assert weight.shape == shape, f"{file}: a rule"
        _put(model, name, weight.to(device, dtype), trains=True)


def load(model: Any, folder: Path) -> Any:
    """The model with the heads that are saved in the folder, for a model that is not trained; returns it."""
    for file in sorted(folder.glob(FILES)):
        load_one(model, tensor_of(file), folder)
    return model


def load_one(model: Any, name: str, folder: Path) -> None:
    """Adds the head that is saved in the folder under this tensor's name, frozen."""
    _put(model, name, _read(folder / file_of(name)).to(next(model.parameters()).device), trains=False)


def save(model: Any, names: tuple[str, ...], folder: Path) -> None:
    """Each into its own file, in the type that it was trained in: they are small."""
    from safetensors.torch import save_file

    for name in names:
        weight = model.get_parameter(name).detach().cpu().contiguous()
        save_file({TENSOR: weight}, folder / file_of(name), metadata={"format": "pt"})


def apply(model: Any, name: str, hidden: "Tensor") -> "Tensor":
    """The head's outputs of hidden states (..., width), in float32 at least whatever computes: (..., outputs)."""
    import torch

    dtype = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.nn.functional.linear(hidden.to(dtype), model.get_parameter(name).to(dtype))


def _put(model: Any, name: str, weight: "Tensor", *, trains: bool) -> None:
    import torch

    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    head.weight = torch.nn.Parameter(weight, requires_grad=trains)
    model.add_module(module_of(name), head)


def _read(file: Path) -> "Tensor":
    from safetensors.torch import load_file

    return load_file(file)[TENSOR]
