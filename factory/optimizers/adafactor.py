"""Adafactor (Shazeer and Stern 2018) whose rate is the schedule's, as that of every other optimizer here."""

from typing import Any

import torch
from transformers.optimization import Adafactor as _Adafactor


class Adafactor(_Adafactor):
    """transformers' own without the rate of the paper's section 7, which would follow each tensor's size and the step.

    A low-rank adapter starts at zero: a rate relative to its size would hardly move it.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float):
        super().__init__(groups, lr=lr, scale_parameter=False, relative_step=False, warmup_init=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Its means are float32 beside weights of 16 bits, which torch would round to the weights' type."""
        super().load_state_dict(state_dict)
        parameters = (parameter for group in self.param_groups for parameter in group["params"])
        for index, parameter in enumerate(parameters):
            for name, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, torch.Tensor):
                    self.state[parameter][name] = value.to(parameter.device)
