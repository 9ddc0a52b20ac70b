"""Which linear layers an adapter stands beside: what every method that adds adapters shares."""

from typing import Literal

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.config.refusal import did_you_mean
from factory.config.settings import Method
from factory.methods.parts import nothing_there, of_parts, part_of, parts_of
from factory.plan.rule import Case, rule

PREFIX = "base_model.model."  # before every name of a model that PEFT has wrapped

# PEFT 0.21 reads gate_proj, up_proj and down_proj as its experts in these (those of transformers 4 had such names):
# an adapter beside their dense layers and shared experts would be trained, and loaded, as another one
EXPERTS_BY_NAME = {
    "deepseek_v2",
    "deepseek_v3",
    "ernie4_5_moe",
    "glm4_moe",
    "hunyuan_v1_moe",
    "olmoe",
    "qwen3_moe",
    "qwen3_next",
}
# what no adapter stands beside, by kind: the layers' names, and what is said of them. The classes with Mamba's layers
# hand some weights to their kernels, dt_proj's on a CPU too; PEFT refuses LoRA beside some of these
_PAST = "whose weight its class reads past any adapter"
LEFT_OUT: dict[str, tuple[tuple[str, ...], str]] = {
    **dict.fromkeys(EXPERTS_BY_NAME, (("gate_proj", "up_proj", "down_proj"), "that PEFT would take for experts")),
    **dict.fromkeys(("mamba", "falcon_mamba"), (("x_proj", "dt_proj", "out_proj"), _PAST)),
    **dict.fromkeys(
        ("bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2"), (("out_proj",), _PAST)
    ),
    "jamba": (("dt_proj",), _PAST),
}


class Adapter(Method):
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        description="linear layers by name (q_proj, v_proj …), or all-linear: all but the output head"
    )


def _linears(method: Adapter, arch: Architecture) -> dict[str, Shape]:
    return of_parts(arch.linears() | arch.part_linears, method.parts, arch)


def left_out(method: Adapter, arch: Architecture) -> tuple[dict[str, Shape], str]:
    """The linear layers that are to have no adapter, and why."""
    names, why = LEFT_OUT.get(arch.kind, ((), ""))
    return named(names, _linears(method, arch)), why


def candidates(method: Adapter, arch: Architecture) -> dict[str, Shape]:
    """The linear layers of the chosen parts by their whole names, as (out, in)."""
    without, _ = left_out(method, arch)
    return {name: shape for name, shape in _linears(method, arch).items() if name not in without}


def named(names: tuple[str, ...], linears: dict[str, Shape]) -> dict[str, Shape]:
    endings = tuple(f".{name}" for name in names)
    return {name: shape for name, shape in linears.items() if f".{name}".endswith(endings)}


def targets(method: Adapter, arch: Architecture) -> dict[str, Shape]:
    """The adapted linear layers by their whole names, as (out, in)."""
    found = candidates(method, arch)
    return found if method.target_modules == "all-linear" else named(method.target_modules, found)


def unknown_names(names: tuple[str, ...], linears: dict[str, Shape]) -> str | None:
    unknown = [name for name in names if not named((name,), linears)]
    if not unknown:
        return None
    ends = dict.fromkeys(name.rpartition(".")[2] for name in linears)
    short = {".".join(name.split(".")[-2:]) for name in linears} | set(ends)
    near = did_you_mean(unknown[0], sorted(short)).rstrip(" ?") or f"it has {', '.join(ends)}"
    return f"the model has no linear layer {unknown[0]}; {near}"


@rule(
    "target-modules",
    keys=("method.target_modules", "method.parts", "model.path"),
    reason="an adapter needs a linear layer to stand beside",
    fix="name layers as q_proj, v_proj, down_proj, or use all-linear; method.parts says of which part of the model",
)
def target_modules(case: Case) -> str | None:
    method = case.settings.method
    found = candidates(method, case.arch)
    if not found:
        return nothing_there(case)
    if method.target_modules == "all-linear":
        return _passed_over(method, case.arch)
    if not method.target_modules:
        return "the list is empty"
    without, why = left_out(method, case.arch)
    taken = [name for name in method.target_modules if named((name,), without)]
    if taken:
        return f"{taken[0]} of a {case.arch.kind} model is a layer {why}"
    return unknown_names(method.target_modules, found) or _passed_over(method, case.arch)


def _passed_over(method: Adapter, arch: Architecture) -> str | None:
    """Name a chosen part in which no adapter would stand: it would stay as it is in silence."""
    reached = {part_of(name, arch) for name in targets(method, arch)}
    part = next((part for part in method.parts if part not in reached and part in parts_of(arch)), None)
    if part is None:
        return None
    own = dict.fromkeys(name.rpartition(".")[2] for name in candidates(method, arch) if part_of(name, arch) == part)
    there = f"; it has {', '.join(own)}" if own else ", which has no linear layer: leave it out of method.parts"
    return f"no adapter would stand in its {part}{there}"


def over_bitsandbytes(method: Adapter, library: str, bits: int | None) -> bool:
    """A spec's `trains_over`, where PEFT has a layer of this adapter for bitsandbytes and for no other library."""
    return library == "bitsandbytes"


def as_saved(shapes: dict[str, Shape]) -> dict[str, Shape]:
    """Trained tensors as PEFT names them in an adapter's file."""
    return {name.replace(".default", ""): shape for name, shape in shapes.items()}
