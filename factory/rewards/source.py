"""A plan's reward, ready to be called."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from factory.config import registry
from factory.plan.plan import Plan, stage_keys
from factory.rewards import Reward
from factory.rewards.checked import scores
from factory.rewards.function import by_function, by_trl
from factory.rewards.model import by_adapter, by_model
from factory.rewards.server import by_server
from factory.rewards.spec import Kind, named
from factory.rollouts.roles import is_adapter
from factory.rollouts.sample import Answer

# texts of prompts, of answers, the answers' tokens, and the texts that the data have for the prompts → a score each
ByText = Callable[[list[str], list[str], list[list[int]], list[str]], Any]
_BY_TEXT: dict[Kind, Callable[[str, dict[str, Any]], ByText]] = {
    "function": by_function,
    "trl": by_trl,
    "server": by_server,
}


def reward(plan: Plan, tokenizer: Any) -> Reward:
    """Imports the function or reads the weights. Raises UserError where that cannot be done."""
    own, folder = stage_keys(plan), plan.steps.load.reward
    if folder is not None:
        return by_adapter(Path(folder)) if is_adapter(folder) else by_model(plan, tokenizer)
    found = named(own["reward"])
    assert found is not None  # a rule
    source, setting = _BY_TEXT[found.kind](found.name, own), f"stage.reward={own['reward']}"
    unscored = registry.hook(registry.spec("stages", plan.settings.stage.name), "UNSCORED", default=False)
    return _of_texts(source, tokenizer, setting, unscored=unscored)


def _of_texts(source: ByText, tokenizer: Any, setting: str, *, unscored: bool) -> Reward:
    """Prompts as the model is given them, with the template's marks; answers and the data's without."""

    def reward(_model: Any, answers: list[Answer], data: list[list[int]], _batches: Any) -> list[float]:
        prompts = [tokenizer.decode(answer.prompt) for answer in answers]
        ids = [answer.ids for answer in answers]
        # what ends an answer is shown where it was added to the tokenizer
        said = [answer.said for answer in answers]
        texts, solutions = (tokenizer.batch_decode(tokens, skip_special_tokens=True) for tokens in (said, data))
        given = source(prompts, texts, ids, [text.strip() for text in solutions])
        return scores(given, len(answers), setting, unscored=unscored)

    return reward
