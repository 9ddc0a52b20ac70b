"""Where the scores of answers come from: a reward model, a Python function, one of TRL's, or a server.

`spec` says what `stage.reward` names; `source.reward` makes of a plan a `Reward`, which every kind is called as.
Importing this needs no torch.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory.rollouts.sample import Answer

# (model, answers, what the data have for each prompt as tokens, the answers' batches) → a score each, nan
# where grpo is to leave an answer out
Reward = Callable[[Any, "list[Answer]", list[list[int]], list[dict[str, Any]]], list[float]]

__all__ = ["Reward"]
