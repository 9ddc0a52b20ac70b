"""A tokenizer's files, as planning looks at them and as `load` reads them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny

from factory.plan.plan import Load
from factory.plan.vocabulary import added_tokens, tokens_in
from factory.steps import load, source
from fuzz.mutation import as_json, twisted

_NAMES = ("tokenizer.json", "tokenizer_config.json")


def opened(folder: Path) -> Callable[[random.Random], str]:
    model = tiny.save(folder / "llama")
    seeds: dict[str, Any] = {name: json.loads((model / name).read_bytes()) for name in _NAMES}
    whole = {name: json.dumps(seed).encode() for name, seed in seeds.items()}
    plan = _plan(model)

    def case(chance: random.Random) -> str:
        name = chance.choice(_NAMES)
        for each, content in whole.items():
            (model / each).write_bytes(content)
        tree = seeds[name]
        if name == "tokenizer.json":  # its vocabulary is most of it, and the least of what is read
            vocabulary, merges = tree["model"]["vocab"], tree["model"]["merges"]
            bare = {**tree, "model": {**tree["model"], "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}}
            tree = twisted(bare, chance)
            if isinstance(tree, dict) and isinstance(tree.get("model"), dict) and chance.random() < 0.8:
                tree["model"] |= {"vocab": vocabulary, "merges": merges}
        else:
            tree = twisted(tree, chance)
        (model / name).write_bytes(as_json(tree, chance))
        tokens_in(model)
        added_tokens(model)
        if chance.random() < 0.7:
            return "looked at"
        with source.readable(plan, allow_pickle=False):
            found = load.read_tokenizer(str(model), None, False, "auto")
            found("Hi <|im_end|>")
        return "read"

    return case


def _plan(model: Path) -> Load:
    from conftest import compiled

    return compiled(f"model.path={model}", "hardware=cpu", "tracking=none").steps.load
