"""A pair of low-rank matrices beside each linear layer (LoRA, Hu et al. 2022, equation 3)."""

from dataclasses import dataclass
from typing import Literal

from factory import schema
from factory.architecture import Architecture, Shape
from factory.compile.rule import Case, Rule
from factory.methods.full.spec import optimizer_elements
from factory.refusal import did_you_mean
from factory.typed import key

__all__ = ["RULES", "Settings", "optimizer_elements", "targets", "trainable"]

QUANTIZABLE = True  # whether it trains beside a base that stays quantized


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(schema.Method):
    rank: int = key("rank of the matrices A and B", low=1)
    alpha: float = key("scale: the adapter adds alpha / rank times BA", above=0)
    dropout: float = key("dropout on the adapter's input", low=0, high=0.99)
    target_modules: tuple[str, ...] | Literal["all-linear"] = key(
        "linear layers by name (q_proj, v_proj …), or all-linear: all but the output head"
    )


def targets(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """The adapted projections of one layer, by their names within it."""
    if method.target_modules == "all-linear":
        return arch.linears
    return {
        name: shape
        for name, shape in arch.linears.items()
        if any(name == wanted or name.endswith(f".{wanted}") for wanted in method.target_modules)
    }


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """A is (rank, in) and B is (out, rank), named as PEFT names them."""
    shapes: dict[str, Shape] = {}
    for layer in range(arch.layers):
        for name, (outputs, inputs) in targets(method, arch).items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            shapes[f"{module}.lora_A.default.weight"] = (method.rank, inputs)
            shapes[f"{module}.lora_B.default.weight"] = (outputs, method.rank)
    return shapes


def _targets_exist(case: Case) -> str | None:
    wanted = case.settings.method.target_modules
    if wanted == "all-linear":
        return None
    if not wanted:
        return "the list is empty"
    names = {name for full in case.arch.linears for name in (full, full.rpartition(".")[2])}
    unknown = [name for name in wanted if name not in names]
    if not unknown:
        return None
    return f"the model has no linear layer {unknown[0]}; {did_you_mean(unknown[0], names)}".rstrip("; ?")


RULES = (Rule("target-modules", _targets_exist),)
