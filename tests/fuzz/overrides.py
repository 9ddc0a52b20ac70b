"""Command lines: keys of the schema with other values, other keys, other words, planned as `factory plan` does."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
from conftest import composed as composed_of

from factory import cli
from factory.config import compose, groups, settings
from factory.config.line import spelt
from factory.config.registry import names
from factory.plan.plan import to_yaml
from fuzz.mutation import EXTREMES, changed

_SLOW = 0.02  # of the cases: those that Hydra composes anew


def opened(folder: Path) -> Callable[[random.Random], str]:
    model = tiny.save(folder / "llama")
    keys = [key.path for key in settings.all_keys()]
    choices = {name: groups.options(name) for name in groups.GROUPS} | {"stage": names("stages")}
    base = [f"model.path={model}", "hardware=cpu", "tracking=none"]

    def case(chance: random.Random) -> str:
        words = [*base, *(_word(chance, keys) for _ in range(chance.choice((1, 1, 2, 3))))]
        if chance.random() < _SLOW:
            group = chance.choice(sorted(choices))
            words.append(f"{group}={chance.choice([*choices[group], '[a,b]', '*', 'x/../../y'])}")
        line = compose.parse(words)
        if line.hydra_flags or line.multirun:
            return "another's"
        composed = compose.compose(line) if line.config_dirs else composed_of(line.overrides)
        made = cli._compiled(composed, training=chance.random() < 0.5)
        to_yaml(made)
        return "planned"

    return case


def _word(chance: random.Random, keys: list[str]) -> str:
    value = _value(chance)
    key = chance.choice(keys).replace("<name>", chance.choice(("demo", "mine")))
    text = f"{key}={value}"
    if chance.random() < 0.1:
        text = changed(text.encode("utf-8", "replace"), chance).decode("utf-8", "replace").replace("\0", "")
    return text if chance.random() < 0.9 else chance.choice(("+", "~", "++", "-", "hydra.", "")) + text


def _value(chance: random.Random) -> str:
    value: Any = chance.choice((*EXTREMES, 1, 2, 4, 0.1, 64, 1e-4, "x", "auto", True, False))
    if isinstance(value, str):
        return spelt(value) if chance.random() < 0.7 else value
    return json.dumps(value).replace('"', "'" if chance.random() < 0.5 else "")
