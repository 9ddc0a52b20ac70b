"""Small benchmarks of made-up sums, in the three published layouts; and their prompts, written out a second time."""
# ruff: noqa: RUF001

import csv
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from factory import templates

Row = tuple[str, str, str, str, str, str]  # question, four choices, the answer's letter

FILES = {
    "mmlu": ("dev/{}_dev.csv", "test/{}_test.csv", None),
    "cmmlu": ("dev/{}.csv", "test/{}.csv", ["", "Question", "A", "B", "C", "D", "Answer"]),
    "ceval": ("dev/{}_dev.csv", "val/{}_val.csv", ["id", "question", "A", "B", "C", "D", "answer"]),
}
SUBJECTS = {
    "mmlu": {"abstract_algebra": "abstract algebra", "astronomy": "astronomy", "world_religions": "world religions"},
    "cmmlu": {"agronomy": "农学", "arts": "艺术学", "chinese_history": "中国历史"},
    "ceval": {"law": "法学", "logic": "逻辑学", "physician": "医师资格"},
}


def rows(count: int, seed: int) -> list[Row]:
    draws = random.Random(seed)
    found = list[Row]()
    for _ in range(count):
        a, b = draws.randrange(100), draws.randrange(100)
        many = ", exactly" * draws.randrange(5)  # of several lengths
        first, second, third, fourth = map(str, draws.sample(range(200), 4))
        question = f'What is {a} plus {b}{many}, "in all"?'
        found.append((question, first, second, third, fourth, draws.choice("ABCD")))
    return found


def write(folder: Path, name: str, questions: int = 4, shots: int = 5) -> dict[str, tuple[list[Row], list[Row]]]:
    """The layout in `folder`; by subject its shots and its scored rows."""
    dev, scored, header = FILES[name]
    made = {subject: (rows(shots, 1 + at), rows(questions, 100 + at)) for at, subject in enumerate(SUBJECTS[name])}
    for subject, (solved, asked) in made.items():
        save(folder / dev.format(subject), solved, header, explained=name == "ceval")
        save(folder / scored.format(subject), asked, header)
    return made


def save(file: Path, content: Sequence[Sequence[str]], header: list[str] | None, *, explained: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        if header is None:
            writer.writerows(content)
            return
        writer.writerow([*header, "explanation"] if explained else header)
        for number, row in enumerate(content):
            writer.writerow([number, *row, "because"] if explained else [number, *row])


def prompt(name: str, subject: str, shots: Sequence[Row], row: Row) -> str:
    """Up to the answer, which `SPACE[name]` comes before."""
    called, blocks = SUBJECTS[name][subject], list[str]()
    before, cue = {"mmlu": ("", "Answer:"), "cmmlu": ("题目：", "答案是："), "ceval": ("", "答案：")}[name]
    for question, a, b, c, d, answer in [*shots, row]:
        blocks.append(f"{before}{question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\n{cue}{SPACE[name]}{answer}")
    blocks[-1] = blocks[-1][: -1 - len(SPACE[name])]
    header = {
        "mmlu": f"The following are multiple choice questions (with answers) about  {called}.",
        "cmmlu": f"以下是关于{called}的单项选择题，请直接给出正确答案的选项。",
        "ceval": f"以下是中国关于{called}考试的单项选择题，请选出其中的正确答案。",
    }[name]
    return "\n\n".join([header, *blocks])


SPACE = {"mmlu": " ", "cmmlu": "", "ceval": ""}


@cache
def tokenizer() -> Any:
    """Trained on such prompts: each letter is one token, with a space before it and without."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet)
    solved = rows(50, 7)
    texts = [prompt(name, subject, solved, solved[0]) for name in SUBJECTS for subject in SUBJECTS[name]]
    backend.train_from_iterator([*texts, *[" A B C D"] * 1000], trainer)
    trained = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    trained.chat_template = templates.read("chatml")
    return trained
