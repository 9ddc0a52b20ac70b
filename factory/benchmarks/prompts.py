"""What a model is asked: the text of a prompt, its tokens, and the tokens that the four letters are there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from factory.benchmarks.types import LETTERS, Benchmark, Exam, Question
from factory.config.refusal import refuse


def _body(made: Benchmark, question: Question) -> str:
    choices = zip(LETTERS, question.choices, strict=True)
    lines = [made.choice.format(letter=letter, text=text) for letter, text in choices]
    return made.question.format(question=question.text) + "".join(lines) + made.cue


def text(made: Benchmark, question: Question, shots: Sequence[Question], letter: str) -> str:
    """The prompt as its authors write it, up to this answer."""
    solved = [_body(made, shot) + made.answer.format(letter=shot.answer) + made.end for shot in shots]
    header = made.header.format(subject=made.name_of(question.subject))
    return header + "".join(solved) + _body(made, question) + made.answer.format(letter=letter)


def turns(made: Benchmark, question: Question, shots: Sequence[Question]) -> list[dict[str, str]]:
    """The same as a conversation: each question a user's turn, the header before the first (C-Eval's tutorial, 3.2)."""
    said = list[dict[str, str]]()
    for shot in shots:
        said += [{"role": "user", "content": _body(made, shot)}, {"role": "assistant", "content": shot.answer}]
    said.append({"role": "user", "content": _body(made, question)})
    said[0]["content"] = made.header.format(subject=made.name_of(question.subject)) + said[0]["content"]
    return said


def common(rows: Sequence[list[int]]) -> int:
    """With how many tokens all rows begin alike: as the first and the last of them in order do."""
    first, last = min(rows), max(rows)
    pairs = enumerate(zip(first, last, strict=False))
    return next((at for at, (mine, theirs) in pairs if mine != theirs), min(len(first), len(last)))


@dataclass(frozen=True, slots=True)
class Prompt:
    """`ids`: what stands before the answer's letter. `shots`: how many of the asked ones fitted into the context."""

    ids: list[int]
    shots: int


class Prompter:
    """Prompts in tokens. `letters`: the one token of each letter that follows a prompt. Raises UserError.

    `context` is how many tokens the model can read; None: any number.
    """

    def __init__(self, tokenizer: Any, exam: Exam, *, chat: bool, context: int | None) -> None:
        self._tokenizer, self.exam, self.chat, self._context = tokenizer, exam, chat, context
        if chat and not tokenizer.chat_template:
            raise refuse(
                "benchmark-template",
                f"evaluate.benchmarks={exam.name}",
                "the tokenizer has no chat template",
                because="the questions are to be asked as a conversation",
                fix="set model.template, or ask in plain text, as the benchmark's authors do",
            )
        self._before = [] if chat else _before(tokenizer)
        self.letters = self._find_letters()

    def prompts(self, questions: Sequence[Question]) -> list[Prompt | None]:
        """In the questions' order; None where not even a prompt without shots fits into the context.

        As many shots as fit, the last ones: the first are left out.
        """
        found: list[Prompt | None] = [None] * len(questions)
        waiting = list(range(len(questions)))
        most = max((len(self.exam.shots[question.subject]) for question in questions), default=0)
        for count in range(most, -1, -1):
            rows = self._encode(self._text(questions[at], count, LETTERS[0]) for at in waiting)
            for at, ids in zip(waiting, rows, strict=True):
                self._check(ids)
                if self._context is None or len(ids) - 1 <= self._context:
                    found[at] = Prompt(ids[:-1], count)
            waiting = [at for at in waiting if found[at] is None]
            if not waiting:
                break
        return found

    def _text(self, question: Question, count: int, letter: str) -> str:
        made, shots = self.exam.benchmark, self.exam.shots[question.subject]
        shots = shots[len(shots) - count :]
        if not self.chat:
            return text(made, question, shots, letter)
        said = turns(made, question, shots)
        return self._tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True) + letter

    def _encode(self, texts: Iterable[str]) -> list[list[int]]:
        """What a tokenizer puts before a text is put there; what it puts after one is not."""
        rows = self._tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return [[*self._before, *ids] for ids in rows]

    def _find_letters(self) -> tuple[int, ...]:
        """By construction: the prompts that end with each letter differ in their last token alone."""
        first = self.exam.questions[0]
        count = len(self.exam.shots[first.subject])
        rows = self._encode(self._text(first, count, letter) for letter in LETTERS)
        shared = common(rows)
        letters = tuple(ids[-1] for ids in rows)
        if any(len(ids) != shared + 1 for ids in rows) or len(set(letters)) < len(LETTERS):
            raise self._refusal([ids[shared:] for ids in rows])
        return letters

    def _check(self, ids: list[int]) -> None:
        if ids[-1] != self.letters[0]:
            raise self._refusal([ids[-1:]])

    def _refusal(self, ends: list[list[int]]) -> Exception:
        shown = ", ".join(str(self._tokenizer.convert_ids_to_tokens(ids)) for ids in ends)
        wrong = f"this tokenizer has no single token for each of A, B, C and D there, but {shown}"
        return refuse(
            "benchmark-letters",
            f"evaluate.benchmarks={self.exam.name}",
            wrong,
            because="the answer is read from one token each for A, B, C and D at the place after the question",
            fix="evaluate another model, or leave the benchmark out",
        )


def _before(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer begins a text with."""
    whole, bare = (tokenizer("A", add_special_tokens=special)["input_ids"] for special in (True, False))
    return whole[: next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)]
