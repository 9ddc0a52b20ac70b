"""Scores by a Python function, of the user's or of TRL's."""

from collections.abc import Callable
from functools import partial
from typing import Any

from factory.config import function
from factory.config.refusal import UserError, refuse


def by_function(path: str, _own: dict[str, Any]) -> Any:
    """`module:function`, called with those of these names that it takes, as TRL's trainers call theirs:

    prompts and completions (texts), completion_ids (tokens), and solution (what the data have for the prompt).
    """
    setting = f"stage.reward={path}"
    found = _said(setting, lambda: function.imported(path))
    taken = function.taken(found)

    def score(prompts: list[str], answers: list[str], ids: list[list[int]], solutions: list[str]) -> Any:
        given = {"prompts": prompts, "completions": answers, "completion_ids": ids, "solution": solutions}
        named = {name: values for name, values in given.items() if taken is None or name in taken}
        return _said(setting, lambda: function.called(path, "it raised", lambda: found(**named)))

    return score


def _said(setting: str, call: Callable[[], Any]) -> Any:
    """What the call gives; what is wrong with the function is said of the reward, not of rows."""
    try:
        return call()
    except UserError as error:
        raise refuse(
            "reward-function",
            setting,
            error.refusals[0].wrong,
            because=(
                "it scores the answers, called with those of prompts, completions, completion_ids and solution "
                "that it takes"
            ),
            fix=("write it as in: def shortness(completions, **others): return [-len(text) for text in completions]"),
        ) from None


def by_trl(name: str, _own: dict[str, Any]) -> Any:
    """TRL's own, which reads answers as conversations of one message."""
    path, setting = f"trl.rewards:{name}", f"stage.reward=trl:{name}"
    found = _said(setting, lambda: function.imported(path))

    def score(_prompts: list[str], answers: list[str], _ids: list[list[int]], solutions: list[str]) -> Any:
        said = [[{"role": "assistant", "content": answer}] for answer in answers]
        call = partial(found, completions=said, solution=solutions)
        return _said(setting, lambda: function.called(path, "it raised", call))

    return score
