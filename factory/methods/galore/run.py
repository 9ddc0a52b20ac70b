from typing import Any

from factory.architecture import architecture
from factory.methods.full.run import attach
from factory.methods.galore.spec import Settings, is_projected
from factory.plan import Train

__all__ = ["attach", "optimizer", "pack_state", "unpack_state"]


def optimizer(model: Any, settings: Settings, plan: Train) -> Any:
    """galore-torch's AdamW: matrices of the linear layers projected, everything else plain."""
    from galore_torch import GaLoreAdamW

    linears = architecture(model.config.to_dict()).linears
    projected, plain, vectors = [], [], []
    for name, parameter in model.named_parameters():
        (projected if is_projected(name, linears) else plain if parameter.ndim >= 2 else vectors).append(parameter)
    low_rank = {
        "rank": settings.rank,
        "update_proj_gap": settings.update_interval,
        "scale": settings.scale,
        "proj_type": "std",
    }
    groups = [{"params": plain}, {"params": vectors, "weight_decay": 0.0}, {"params": projected, **low_rank}]
    return GaLoreAdamW(groups, lr=plan.learning_rate, weight_decay=plan.weight_decay, no_deprecation_warning=True)


def pack_state(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with its projectors as plain values, so that no pickle is ever read back."""
    return _each_projector(state, lambda projector: dict(vars(projector)))


def unpack_state(state: dict[str, Any]) -> dict[str, Any]:
    from galore_torch.galore_projector import GaLoreProjector

    def build(values: dict[str, Any]) -> Any:
        projector = GaLoreProjector(values["rank"])
        vars(projector).update(values)
        return projector

    return _each_projector(state, build)


def _each_projector(state: dict[str, Any], change: Any) -> dict[str, Any]:
    states = {
        index: {name: change(value) if name == "projector" else value for name, value in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": states}
