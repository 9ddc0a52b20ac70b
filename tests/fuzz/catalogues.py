"""LLaMA-Factory's dataset_info.json, and the first look at the files that it names."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from factory.data import catalogue
from factory.plan.inspect.data import look_at_data
from fuzz.mutation import as_json, twisted

_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
_SEED = {
    "mine": {"file_name": "mine.json", "columns": _COLUMNS, "num_samples": 5},
    "talk": {
        "file_name": "talk.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "system": "system", "tools": "tools", "images": "images"},
        "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
    },
    "pairs": {
        "file_name": "mine.json",
        "ranking": True,
        "columns": {"prompt": "instruction", "chosen": "output", "rejected": "input"},
    },
    "far": {"hf_hub_url": "a/b", "subset": "x", "split": "train", "folder": "y"},
    "text": {"file_name": "mine.json", "columns": {"prompt": "instruction"}},
}


def opened(folder: Path) -> Callable[[random.Random], str]:
    file = folder / "dataset_info.json"
    rows = [{"instruction": f"Say {number}.", "input": "a", "output": f"{number}"} for number in range(5)]
    (folder / "mine.json").write_text(json.dumps(rows))
    talk = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "images": ["x"]}]
    (folder / "talk.json").write_text(json.dumps(talk * 3))

    def case(chance: random.Random) -> str:
        tree = twisted(_SEED, chance)
        file.write_bytes(as_json(tree, chance))
        names = [chance.choice(sorted(_SEED))] if not isinstance(tree, dict) or chance.random() < 0.2 else list(tree)
        for name, source in catalogue.sources(str(file), names).items():
            try:
                look_at_data(name, source, chance.choice(("sft", "pt", "dpo")))
            except OSError:  # which `look` tells of
                return "unreadable"
        return "read"

    return case
