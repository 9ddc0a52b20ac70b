"""Plans of one optimizer, and runs that are stopped and continued."""

from collections.abc import Callable
from typing import Any

import pytest

from factory.plan import Train


@pytest.fixture
def train_plan() -> Callable[..., Train]:
    def train_plan(**changes: Any) -> Train:
        values: dict[str, Any] = {
            "stage": "sft",
            "own": {},
            "learning_rate": 1e-2,
            "num_epochs": 1.0,
            "max_steps": None,
            "batch_size": 1,
            "gradient_accumulation_steps": 1,
            "optimizer": "adamw",
            "lr_scheduler": "constant",
            "warmup_ratio": 0.0,
            "weight_decay": 0.0,
            "max_grad_norm": None,
            "logging_steps": 1,
            "save_steps": None,
            "save_total_limit": 1,
            "autocast": None,
            "threads": 1,
        }
        return Train(**{**values, **changes})

    return train_plan
