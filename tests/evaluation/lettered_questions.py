"""A tiny model that can answer multiple choice: its tokenizer has a token for each letter. And questions for it."""

from pathlib import Path
from typing import Any

import tiny

ROWS = [(f"What is {a} plus {b}?", a + b, a + b + 1, a * b, b + 9, "A") for a, b in ((2, 3), (4, 1), (7, 2), (5, 5))]


def lettered(folder: Path) -> Path:
    """Tests' tiny model, with ` A` to ` D` as words of its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny.save(folder))
    tokenizer.add_tokens([f" {letter}" for letter in "ABCD"])
    tokenizer.save_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def questions(folder: Path, subjects: tuple[str, ...] = ("astronomy", "world_religions")) -> Path:
    """In MMLU's layout: two shots and four questions of each subject."""
    for subject in subjects:
        for split, rows in (("dev", ROWS[:2]), ("test", ROWS)):
            file = folder / split / f"{subject}_{split}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return folder
