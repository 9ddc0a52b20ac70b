"""A user's own options and recipes (--config-dir), and the files that the board loads."""

import random
from collections.abc import Callable
from pathlib import Path

import tiny
import yaml

from factory import cli
from factory.board import file
from factory.config import compose, groups, tables
from fuzz.mutation import YAML_PIECES, changed, twisted

_PIECES = [
    *YAML_PIECES,
    b"defaults: [x]\n",
    b"defaults:\n- override /method: ../../x\n",
    b"hydra: {callbacks: {a: {_target_: os.system, command: touch fuzz_canary}}}\n",
    b"hydra: {job_logging: {root: {handlers: [{'()': os.system}]}}}\n",
    b"# @package _global_\n",
    b"runs: [{}]\n",
]


def opened(folder: Path) -> Callable[[random.Random], str]:
    model = tiny.save(folder / "llama")
    own = folder / "own"
    seeds = {
        "recipe/mine.yaml": (tables.RECIPES / "sft_chat.yaml").read_bytes(),
        "method/mine.yaml": (groups.CONF / "method" / "qlora.yaml").read_bytes(),
        "stage/mine.yaml": (groups.CONF / "stage" / "dpo.yaml").read_bytes(),
        "data/mine.yaml": (groups.CONF / "data" / "file.yaml").read_bytes(),
    }
    for name in seeds:
        (own / name).parent.mkdir(parents=True)

    def case(chance: random.Random) -> str:
        name = chance.choice(sorted(seeds))
        content = seeds[name]
        if chance.random() < 0.5:
            content = changed(content, chance, _PIECES)
        else:
            head = content[: content.index(b"\n") + 1] if content.startswith(b"#") else b""
            text = yaml.safe_dump(twisted(yaml.safe_load(content), chance), allow_unicode=True)
            content = head + text.encode("utf-8", "replace")
        if chance.random() < 0.9:  # Hydra takes a third of a second
            file.read(content.decode("utf-8", "replace"))
            return "loaded"
        (own / name).write_bytes(content)
        word = f"{name.partition('/')[0].replace('recipes', 'recipe')}=mine"
        line = compose.parse([f"--config-dir={own}", word, f"model.path={model}", "tracking=none", "hardware=cpu"])
        try:
            if compose.recipe_of_runs(line):
                return "several"
            cli._compiled(compose.compose(line), training=False)
        finally:
            (own / name).unlink()
        return "planned"

    return case
