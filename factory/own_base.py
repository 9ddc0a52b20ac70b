"""The base that an adapter has to itself: what its start left of the weights, quantized (PiSSA, LoftQ over few bits).

What was taken out of the published weights lies beside such an adapter, so that they become its base again without
another SVD: the same difference, rounded in the same way. Some of the trained model's own losses lie with it, which
whatever is made of it can be held against.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.config.parsed import json_of
from factory.config.settings import Quantization
from factory.config.values import record, to_tree
from factory.plan.plan import Dtype

FILE = "own_base.safetensors"
TEXT = (
    "The model that was trained is written in another form, and must answer as it did before. Numbers: 3.14, 2026; "
    "names: Ada, Élise, 李; code: for i in range(10): print(i * i). A fox jumps over the dog, and the day goes on."
)
_TOKENS = 64
_SAID = "own_base"  # the key of the file's header


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnBase:
    """`scale` · BA was taken out of weights that were read as `dtype`; the rest was quantized as `quantization` says.

    `losses` are the trained model's, in nats, of each of the ids but the first, computed in `computed_in`; empty where
    several processes held the model.
    """

    scale: float
    dtype: Dtype
    quantization: Quantization
    computed_in: Dtype
    ids: tuple[int, ...]
    losses: tuple[float, ...]


def ids(tokenizer: Any) -> list[int]:
    """What an export is compared on."""
    return tokenizer(TEXT)["input_ids"][:_TOKENS]


def said(header: dict[str, Any]) -> OwnBase | None:
    """What the header of an adapter's file says; None: it is not one of these."""
    try:
        tree = json_of(header["__metadata__"][_SAID])
    except (KeyError, TypeError, ValueError):
        return None
    try:
        return record(OwnBase, tree)
    except ValueError:
        return None


def save(folder: Path, taken: dict[str, tuple[Any, Any]], own: OwnBase) -> None:
    """`taken`: B and A of what was taken out of each layer's weight, by the layer's name; none where nothing was."""
    from safetensors.torch import save_file

    tensors = {f"{name}.{side}": value for name, pair in taken.items() for side, value in zip("BA", pair, strict=True)}
    save_file(tensors, folder / FILE, metadata={"format": "pt", _SAID: json.dumps(to_tree(own))})


def rest(weight: Any, scale: float, b: Any, a: Any) -> Any:
    """The weight, (out, in) in float32, without scale · BA: the same to the bit on the same device."""
    return weight - scale * b.contiguous() @ a.contiguous()


def turned(module: Any) -> bool:
    """Whether a layer holds its weight as (in, out), as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def read(folder: Path) -> OwnBase:
    """What the file beside an adapter says; that it is one is a rule."""
    from safetensors import safe_open

    with safe_open(folder / FILE, framework="pt") as opened:
        found = said({"__metadata__": opened.metadata()})
    assert found is not None, folder
    return found


def take_out(model: Any, folder: Path) -> None:
    """Leaves of the whole weights, which are held as the run has read them, what its start had left."""
    from safetensors.torch import load_file

    scale, tensors = read(folder).scale, load_file(folder / FILE)
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        module = model.get_submodule(name)
        held = module.weight.data
        b, a = (tensors[f"{name}.{side}"].to(held.device) for side in "BA")
        weight = held.T.float() if turned(module) else held.float()
        left = rest(weight, scale, b, a)
        held.copy_(left.T if turned(module) else left)


def forget_the_start(model: Any) -> None:
    """An adapter [B, -B₀][A; A₀] gives back what was taken out: over the base that lacks it, it is to be BA alone."""
    import torch

    found = [value for name, value in model.named_parameters() if ".lora_B." in name]
    assert found, "no B is in it"
    with torch.no_grad():
        for value in found:
            value[:, value.shape[1] // 2 :] = 0
