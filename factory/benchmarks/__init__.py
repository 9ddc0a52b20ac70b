"""MMLU, CMMLU and C-Eval: multiple choice, answered by the logits of the letters. Data and prompts as published.

A benchmark is a YAML file here; `questions` reads them and needs no torch; `prompts` writes them as their authors do;
`score` asks a model; `result` holds what came out.

Where the authors' code leaves a choice, or differs from itself, it is made so:
- A letter is read as the tokenizer writes it in a solved question: of MMLU with the space before it (as evaluate.py
  there, not evaluate_hf.py), of the Chinese ones without. What all four have before the letter itself (a space that is
  a token of its own) belongs to the prompt.
- The texts are those of the files. Reading them with pandas, as the authors do, makes 0.5 of 0.50 and nan of None.
- Shots that do not fit into the model's own context are left out from the front, and a question that does not fit
  without any counts as wrong: so the rows of two models stay comparable, one by one.
- Of C-Eval the val split is scored, as the answers of its test split are not published.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from factory.benchmarks.questions import read
from factory.benchmarks.types import NAMES, benchmark

if TYPE_CHECKING:
    from factory.benchmarks.prompts import Prompter
    from factory.benchmarks.result import Result

__all__ = ["NAMES", "ask", "benchmark", "read"]


def ask(
    prompter: "Prompter",
    model: Any,
    *,
    batch_size: int,
    device: str,
    call: Callable[[Callable[[], Any]], Any] = lambda function: function(),
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    stop: Callable[[], None] = lambda: None,
) -> "Result":
    """A model's score on the exam of the prompter.

    The model is called as it is, so an autocast around this holds; `call` is what calls one whose weights are split.
    """
    from factory.benchmarks.result import Result, Row, choice
    from factory.benchmarks.score import answers

    exam = prompter.exam
    found = answers(model, prompter, batch_size=batch_size, device=device, call=call, progress=progress, stop=stop)
    rows = [
        Row(
            subject=question.subject,
            number=question.number,
            text=question.text,
            answer=question.answer,
            given=choice(given.log_probs),
            log_probs=given.log_probs,
            shots=given.shots,
        )
        for question, given in zip(exam.questions, found.given, strict=True)
    ]
    return Result(
        name=exam.name,
        source=exam.source,
        digest=exam.digest(),
        shots=exam.shots_each,
        chat=prompter.chat,
        rows=tuple(rows),
        dropped=exam.dropped,
        absent=exam.absent,
        not_sampled=exam.not_sampled,
        reading=found.reading,
        apart=found.apart,
    )
