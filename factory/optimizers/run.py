"""Optimizers by name, with their papers' constants. Weight decay is decoupled, and of matrices only."""

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.config.settings import Stage
from factory.optimizers.several import Several
from factory.optimizers.spec import is_hidden, is_matrix
from factory.plan.plan import Compiled

Named = dict[str, Tensor]
Ratio = Callable[[str], float]
Groups = list[dict[str, Any]]
Builder = Callable[[Named, Stage, Architecture, Ratio], Any]


def one(_name: str) -> float:
    return 1.0


def plain(model: Any, settings: Any, plan: Compiled, arch: Architecture, ratio: Ratio = one) -> Any:
    """The optimizer of `stage.optimizer` over what requires a gradient; `ratio` is a tensor's share of the rate."""
    return build(trained(model), plan.settings.stage, arch, ratio)


def trained(model: Any) -> Named:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def build(named: Named, stage: Stage, arch: Architecture, ratio: Ratio = one) -> Any:
    return BUILDERS[stage.optimizer](named, stage, arch, ratio)


def grouped(named: Named, weight_decay: float, ratio: Ratio) -> Groups:
    """Parameter groups: one for each rate, matrices apart from the rest."""
    found: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in named.items():
        found.setdefault((ratio(name), is_matrix(name, tuple(parameter.shape))), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if matrices else 0.0, "lr_ratio": share}
        for (share, matrices), parameters in found.items()
    ]


def make_states(optimizer: Any) -> None:
    """Gives all AdamW's tensors their state, as their first step would: zeros, in the types that torch keeps it in.

    Made in that step they would lie between its activations, and what those leave is too small for anything large: the
    heap of a CPU would be higher (docs/measurements.md).
    """
    for each in getattr(optimizer, "optimizers", [optimizer]):
        if isinstance(each, torch.optim.AdamW):
            for group in each.param_groups:
                each.state.update((parameter, _moments(parameter)) for parameter in group["params"])


def divides_gradients(optimizer: Any) -> bool:
    """Whether its step divides them by `grad_scale`, a float32, as it reads them: torch's fused AdamW.

    torch.amp.GradScaler sets that too, and is no part of this.
    """
    return type(optimizer) is torch.optim.AdamW and optimizer.defaults["fused"]


def _moments(parameter: Tensor) -> dict[str, Tensor]:
    """Of a fused AdamW."""
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


def _of(path: str, **constants: Any) -> Builder:
    """`module:class`, imported when it is built."""

    def builder(named: Named, stage: Stage, arch: Architecture, ratio: Ratio) -> Any:
        optimizer = resolve_name(path)
        return optimizer(grouped(named, stage.weight_decay, ratio), lr=stage.learning_rate, **constants)

    return builder


def _muon(named: Named, stage: Stage, arch: Architecture, ratio: Ratio) -> Any:
    """Muon (Jordan 2024) for hidden matrices, AdamW for the rest.

    Muon's step is scaled to AdamW's size (Liu et al. 2025, arXiv 2502.16982, equation 4), so one rate serves both.
    """
    hidden = {name: value for name, value in named.items() if is_hidden(name, tuple(value.shape), arch)}
    rest = {name: value for name, value in named.items() if name not in hidden}
    muon = _of("torch.optim:Muon", adjust_lr_fn="match_rms_adamw")
    parts = ((muon, hidden), (BUILDERS["adamw"], rest))
    return Several([builder(part, stage, arch, ratio) for builder, part in parts if part])


_BITSANDBYTES = {"adamw": "AdamW", "ademamix": "AdEMAMix", "lion": "Lion"}
BUILDERS: dict[str, Builder] = {
    **{
        f"{paged}{name}{bits}": _of(f"{module}:{paged.title().rstrip('_')}{kind}{bits.lstrip('_')}")
        for name, kind in _BITSANDBYTES.items()
        for paged, module in (("", "bitsandbytes.optim"), ("paged_", "factory.optimizers.paged"))
        for bits in ("", "_8bit")
    },
    "adamw": _of("torch.optim:AdamW", fused=True),
    "adafactor": _of("factory.optimizers.adafactor:Adafactor"),
    "muon": _muon,
    "sgd": _of("torch.optim:SGD"),
}
