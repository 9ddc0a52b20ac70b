"""The prompts are, letter by letter, those of the benchmarks' own code; the categories are whole."""
# ruff: noqa: RUF001

from pathlib import Path

import made_questions as made
import pytest

from factory.benchmarks import NAMES, benchmark
from factory.benchmarks.prompts import Prompter, common, text, turns
from factory.benchmarks.types import Exam, Question

SHOT = ("1 + 1?", "1", "2", "3", "4", "B")
ASKED = ("2 + 1?", "1", "2", "3", "4", "C")
SUBJECT = {"mmlu": "world_religions", "cmmlu": "chinese_history", "ceval": "physician"}
# hendrycks/test, evaluate.py; haonan-li/CMMLU, src/mp_utils.py; hkust-nlp/ceval, evaluators/llama.py
PUBLISHED = {
    "mmlu": (
        "The following are multiple choice questions (with answers) about  world religions.\n\n"
        "1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
        "2 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: C"
    ),
    "cmmlu": (
        "以下是关于中国历史的单项选择题，请直接给出正确答案的选项。\n\n"
        "题目：1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\n答案是：B\n\n"
        "题目：2 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\n答案是：C"
    ),
    "ceval": (
        "以下是中国关于医师资格考试的单项选择题，请选出其中的正确答案。\n\n"
        "1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\n答案：B\n\n"
        "2 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\n答案：C"
    ),
}
SIZES = {
    "mmlu": {"STEM": 18, "humanities": 13, "social sciences": 12, "other": 14},
    "cmmlu": {"STEM": 17, "Humanities": 13, "Social Science": 22, "Other": 15, "China specific": 15},
    "ceval": {"STEM": 20, "Social Science": 10, "Humanities": 11, "Other": 11},
}


def question(name: str, row: made.Row, number: int = 1) -> Question:
    return Question(SUBJECT[name], number, row[0], row[1:5], row[5])


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_the_published_one(name: str) -> None:
    asked, shot = question(name, ASKED), question(name, SHOT)
    assert text(benchmark(name), asked, [shot], "C") == PUBLISHED[name]
    header, _, last = PUBLISHED[name].split("\n\n")
    assert text(benchmark(name), asked, [], "C") == f"{header}\n\n{last}"


def test_braces_in_a_question_stay_as_they_are() -> None:
    asked = question("mmlu", ("f{x} of {letter}?", "{0}", "{}", "{question}", "D}", "A"))
    found = text(benchmark("mmlu"), asked, [], "A")
    assert "f{x} of {letter}?\nA. {0}\nB. {}\nC. {question}\nD. D}\nAnswer: A" in found


@pytest.mark.parametrize("name", NAMES)
def test_the_categories_are_whole(name: str) -> None:
    found = benchmark(name)
    assert {category: len(subjects) for category, subjects in found.categories.items()} == SIZES[name]
    assert len(found.subjects) == {"mmlu": 57, "cmmlu": 67, "ceval": 52}[name]
    assert all(len(set(subjects)) == len(subjects) for subjects in found.categories.values())
    counted = sum(map(len, found.categories.values()))
    assert counted - len(found.subjects) == (15 if name == "cmmlu" else 0)  # its "China specific" are in others too
    assert len({found.name_of(subject) for subject in found.subjects}) == len(found.subjects)
    written = benchmark(name).header.format(subject="?")
    assert (name == "mmlu") == written.isascii() == all(found.name_of(each).isascii() for each in found.subjects)


def test_a_conversation_has_the_header_before_its_first_question() -> None:
    shot, asked = question("cmmlu", SHOT), question("cmmlu", ASKED)
    header = "以下是关于中国历史的单项选择题，请直接给出正确答案的选项。\n\n"
    assert turns(benchmark("cmmlu"), asked, [shot]) == [
        {"role": "user", "content": header + "题目：1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\n答案是："},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "题目：2 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\n答案是："},
    ]
    assert turns(benchmark("cmmlu"), asked, [])[0]["content"].startswith(header)


def exam(name: str, shots: int) -> Exam:
    asked = tuple(question(name, row, number) for number, row in enumerate(made.rows(9, 3), 1))
    solved = tuple(question(name, row) for row in made.rows(shots, 4))
    return Exam(
        name=name,
        source="here",
        shots={SUBJECT[name]: solved},
        questions=asked,
        dropped={},
        absent=(),
        not_sampled=0,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shots", [0, 5])
def test_tokens_before_the_letter_spell_the_prompt(name: str, shots: int) -> None:
    tokenizer, asked = made.tokenizer(), exam(name, shots)
    prompter = Prompter(tokenizer, asked, chat=False, context=None)
    space = " " if name == "mmlu" else ""
    assert [tokenizer.decode([token]) for token in prompter.letters] == [space + letter for letter in "ABCD"]
    for each, prompt in zip(asked.questions, prompter.prompts(asked.questions), strict=True):
        assert prompt is not None and prompt.shots == shots
        whole = text(asked.benchmark, each, asked.shots[each.subject], "A")
        assert tokenizer.decode(prompt.ids) == whole.removesuffix(space + "A")


def test_a_tokenizers_own_beginning_is_kept_and_its_end_is_not() -> None:
    from tokenizers import processors

    tokenizer = made.tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    try:
        assert tokenizer("A")["input_ids"][0] == 1 and tokenizer("A")["input_ids"][-1] == 2
        asked = exam("mmlu", 1)
        prompter = Prompter(tokenizer, asked, chat=False, context=None)
        (prompt, *_) = prompter.prompts(asked.questions)
        assert prompt is not None and prompt.ids[0] == 1 and 2 not in prompt.ids
        assert tokenizer.decode(prompt.ids[1:]).endswith("\nAnswer:")
    finally:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
        made.tokenizer.cache_clear()


def test_a_space_of_its_own_before_the_letters_is_part_of_the_prompt() -> None:
    """A tokenizer that parts " A" into two tokens: the first is the same for all letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    signs = sorted({sign for row in made.rows(50, 3) for value in row for sign in value} | set(PUBLISHED["mmlu"]))
    backend = Tokenizer(models.WordLevel({sign: at for at, sign in enumerate([*signs, "?!"])}, unk_token="?!"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?!")
    asked = exam("mmlu", 0)
    prompter = Prompter(tokenizer, asked, chat=False, context=None)
    assert tokenizer.convert_ids_to_tokens(list(prompter.letters)) == ["A", "B", "C", "D"]
    (prompt, *_) = prompter.prompts(asked.questions)
    assert prompt is not None and tokenizer.convert_ids_to_tokens(prompt.ids)[-2:] == [":", " "]


@pytest.mark.parametrize(
    ("rows", "shared"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 4]], 2), ([[5], [6]], 0), ([[1, 2]], 2), ([[1, 9], [1, 2], [1]], 1)],
)
def test_what_rows_begin_with(rows: list[list[int]], shared: int) -> None:
    assert common(rows) == shared


def test_the_data_are_packaged() -> None:
    folder = Path(__file__).parents[2] / "factory" / "benchmarks"
    assert {path.stem for path in folder.glob("*.yaml")} == set(NAMES)
    assert set(NAMES) == {"mmlu", "cmmlu", "ceval"}
