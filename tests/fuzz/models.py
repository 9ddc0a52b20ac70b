"""A model's folder as planning reads it: config.json, weights' headers, index, tokenizer, templates."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import tiny
from conftest import composed as composed_of
from families import DENSE, SMALL, TOKENS

from factory import cli
from factory.plan.inspect import walked
from fuzz.adapters import safetensors
from fuzz.mutation import as_json, changed, twisted


def opened(folder: Path) -> Callable[[random.Random], str]:
    import torch  # noqa: F401  what the look imports is none of a case's time

    model = tiny.save(folder / "llama")
    seeds = {
        name: (model / name).read_bytes()
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    config = json.loads(seeds["config.json"])
    others = [SMALL | TOKENS | {"model_type": kind} | more[0] for kind, more in DENSE.items()]
    others = [
        {key: value for key, value in each.items() if isinstance(value, int | float | str | list)} for each in others
    ]
    length = int.from_bytes(seeds["model.safetensors"][:8], "little")
    header = json.loads(seeds["model.safetensors"][8 : 8 + length])
    body = len(seeds["model.safetensors"]) - 8 - length
    index = {"metadata": {"total_size": body}, "weight_map": dict.fromkeys(header, "model.safetensors")}
    tokenizer = json.loads(seeds["tokenizer.json"])
    tokenizer["model"]["vocab"] = dict(list(tokenizer["model"]["vocab"].items())[-40:])
    tokenizer["model"]["merges"] = []
    setup = json.loads(seeds["tokenizer_config.json"])

    words = (f"model.path={model}", "hardware=cpu", "tracking=none", "data.max_samples=8")
    composed, longer = composed_of(words), composed_of((*words, "model.new_tokens=[a]"))

    def written(name: str, content: bytes) -> None:
        (model / name).write_bytes(content)

    def case(chance: random.Random) -> str:
        for name, content in seeds.items():
            written(name, content)
        (model / "model.safetensors.index.json").unlink(missing_ok=True)
        what = chance.randrange(8)
        if what < 4:
            seed = config if what < 2 else chance.choice(others)
            written("config.json", as_json(twisted(seed, chance), chance))
        elif what == 4:
            content = safetensors(twisted(header, chance), body)
            written("model.safetensors", changed(content, chance) if chance.random() < 0.3 else content)
        elif what == 5:
            written("model.safetensors.index.json", as_json(twisted(index, chance), chance))
        elif what == 6:
            written("tokenizer.json", as_json(twisted(tokenizer, chance), chance))
        else:
            written("tokenizer_config.json", as_json(twisted(setup | {"chat_template": "{{ tools }}"}, chance), chance))
        # another architecture is built in a process of its own: `tests/plan/inspect` has that one's faults
        with mock.patch.object(walked, "_ask", lambda *_: {"found": None, "problem": "not asked here"}):
            cli._compiled(longer if what == 6 else composed, training=True)
        return "planned"

    return case
