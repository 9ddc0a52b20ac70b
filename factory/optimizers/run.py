"""Optimizers by name. AdamW: Loshchilov and Hutter 2019, with the defaults of Kingma and Ba 2015."""

from typing import Any

from factory.plan import Train


def adamw(model: Any, settings: Any, plan: Train) -> Any:
    """AdamW over what requires a gradient; weight decay on matrices only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": plan.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if plan.optimizer == "adamw_8bit":
        from bitsandbytes.optim.adamw import AdamW8bit

        return AdamW8bit(groups, lr=plan.learning_rate)
    import torch

    return torch.optim.AdamW(groups, lr=plan.learning_rate, fused=True)
