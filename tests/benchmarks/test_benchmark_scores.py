"""The answers from a shared prefix in batches are those of a plain loop over whole prompts."""
# ruff: noqa: RUF001

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import families
import made_questions as made
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from factory import benchmarks
from factory.benchmarks import score
from factory.benchmarks.prompts import Prompter
from factory.benchmarks.result import Result
from factory.config.refusal import UserError

CONTEXT = 2048
WINDOW = {"sliding_window": 24}
ROTARY = {
    "llama": {},
    "mistral": WINDOW,
    "gemma2": WINDOW | {"head_dim": 16},
    "gemma3_text": WINDOW | {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 16},
    "qwen3": {"head_dim": 16},
    "cohere": {"logit_scale": 2.0},
    "granite": {"logits_scaling": 4.0},
    "mixtral": families.LOCAL,
}


LEGACY = ("gpt2", "opt", "bloom")  # two with learned positions, one with ALiBi


def model_of(kind: str, **changes: Any) -> Any:
    """A random model, with weights large enough for its answers to differ."""
    torch.manual_seed(0)
    own = {"max_position_embeddings": CONTEXT, "initializer_range": 0.2}
    if kind in LEGACY:
        own |= {key: value for key, value in families.LEGACY[kind][0].items() if value is not families.ABSENT}
        own |= {"n_positions": CONTEXT, "max_position_embeddings": CONTEXT, "vocab_size": 512}
    else:
        own |= ROTARY.get(kind, {})
    return AutoModelForCausalLM.from_config(tiny.config(model_type=kind, **own | changes))


def run(name: str, folder: Path, model: Any, tokenizer: Any = None, **changes: Any) -> Result:
    options: dict[str, Any] = {"shots": 5, "batch_size": 8, "max_samples": None, "context": CONTEXT, "device": "cpu"}
    options |= changes
    exam = benchmarks.read(name, str(folder), shots=options.pop("shots"), max_samples=options.pop("max_samples"))
    chat, context = options.pop("chat", False), options.pop("context")
    prompter = Prompter(tokenizer or made.tokenizer(), exam, chat=chat, context=context)
    return benchmarks.ask(prompter, model, **options)


def plain(model: Any, prompt: str, space: str, tokenizer: Any) -> list[float]:
    """log p of each letter: one prompt, read whole, by the model's own logits."""
    ends = [tokenizer(prompt + space + letter, add_special_tokens=False)["input_ids"] for letter in "ABCD"]
    with torch.no_grad():
        logits = model(torch.tensor([ends[0][:-1]]), use_cache=False).logits[0, -1].double()
    return [float(torch.log_softmax(logits, 0)[ids[-1]]) for ids in ends]


def apart(result: Result, expected: Sequence[Sequence[float]]) -> float:
    found = torch.tensor([row.log_probs for row in result.rows], dtype=torch.float64)
    return float((found - torch.tensor(expected, dtype=torch.float64)).abs().max())


def loop(name: str, content: Any, model: Any, tokenizer: Any, shots: int = 5) -> list[list[float]]:
    return [
        plain(model, made.prompt(name, subject, solved[:shots], row), made.SPACE[name], tokenizer)
        for subject, (solved, asked) in sorted(content.items())
        for row in asked
    ]


@pytest.mark.parametrize(
    ("kind", "questions"),
    [(kind, 67 if kind in ("llama", "gemma2", "gemma3_text", "gpt2") else 8) for kind in (*ROTARY, *LEGACY)],
)
def test_the_answers_are_those_of_a_plain_loop(kind: str, questions: int, tmp_path: Path) -> None:
    """Of 201 questions and of 24."""
    content = made.write(tmp_path, "mmlu", questions=questions)
    model = model_of(kind).eval()
    result = run("mmlu", tmp_path, model)
    assert len(result.rows) == 3 * questions
    assert result.reading == "shared" and result.apart is not None and result.apart < 1e-4
    expected = loop("mmlu", content, model, made.tokenizer())
    assert apart(result, expected) < 1e-4
    given = ["ABCD"[max(range(4), key=values.__getitem__)] for values in expected]
    assert [row.given for row in result.rows] == given
    assert torch.tensor(expected).std(0).min() > 0.01
    assert result.overall.micro == pytest.approx(
        100 * sum(row.given == row.answer for row in result.rows) / len(result.rows)
    )


@pytest.mark.parametrize("name", ["cmmlu", "ceval", "mmlu"])
@pytest.mark.parametrize("shots", [0, 2, 5])
def test_prompts_are_those_of_the_papers_code(name: str, shots: int, tmp_path: Path) -> None:
    content = made.write(tmp_path, name)
    model = model_of("llama").eval()
    result = run(name, tmp_path, model, shots=shots)
    assert apart(result, loop(name, content, model, made.tokenizer(), shots)) < 1e-5


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_batchs_size_changes_nothing(batch_size: int, tmp_path: Path) -> None:
    made.write(tmp_path, "mmlu", questions=7)
    model = model_of("gemma3_text")
    one = run("mmlu", tmp_path, model, batch_size=batch_size)
    assert apart(one, [row.log_probs or () for row in run("mmlu", tmp_path, model, batch_size=8).rows]) < 1e-5


def test_other_questions_are_another_figure(tmp_path: Path) -> None:
    """Of the same number and the same subjects, as a set is that corrects another."""
    made.write(tmp_path, "mmlu")
    model = model_of("llama")
    first, again = (run("mmlu", tmp_path, model).signature for _ in range(2))
    file = tmp_path / "test" / "astronomy_test.csv"
    file.write_text(file.read_text().replace("plus", "and", 1))
    other = run("mmlu", tmp_path, model).signature
    assert first == again != other
    assert first.rpartition(", ")[0] == other.rpartition(", ")[0]


@pytest.mark.parametrize(
    ("turned", "reach"),
    [
        ({"rope_type": "dynamic", "factor": 4.0}, 420),
        ({"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0}, 1680),
    ],
    ids=["dynamic", "longrope"],
)
def test_positions_that_a_long_prompt_turns_are_read_alone(turned: dict[str, Any], reach: int, tmp_path: Path) -> None:
    """Of three subjects the last has one: those beside it, and those that come after it, are as in a fresh model."""
    content = made.write(tmp_path, "mmlu")
    file = tmp_path / "test" / "world_religions_test.csv"
    first, *rest = file.read_text().splitlines(keepends=True)
    file.write_text("".join([first.replace("What is", "long " * 150 + "What is", 1), *rest]))
    asked = content["world_religions"][1]
    asked[0] = (asked[0][0].replace("What is", "long " * 150 + "What is", 1), *asked[0][1:])
    if turned["rope_type"] == "longrope":
        turned = {**turned, "original_max_position_embeddings": 420}
    own = {"rope_parameters": {"rope_theta": 10000.0, **turned}, "max_position_embeddings": reach}
    result = run("mmlu", tmp_path, model_of("llama", **own), shots=2, context=1680)
    assert result.reading == "alone" and any("read alone" in note for note in result.notes)
    tokenizer = made.tokenizer()
    prompts = [
        made.prompt("mmlu", subject, solved[:2], row)
        for subject, (solved, asked) in sorted(content.items())
        for row in asked
    ]
    alone = [plain(model_of("llama", **own).eval(), prompt, made.SPACE["mmlu"], tokenizer) for prompt in prompts]
    assert apart(result, alone) < 1e-4
    file.write_text("".join(rest))
    assert run("mmlu", tmp_path, model_of("llama", **own), shots=2, context=1680).reading == "shared"


def test_a_memory_that_is_no_list_of_keys_is_not_shared(tmp_path: Path) -> None:
    content = made.write(tmp_path, "mmlu")
    model = model_of("lfm2", **families.DENSE["lfm2"][0]).eval()
    result = run("mmlu", tmp_path, model)
    assert result.reading == "whole" and result.apart is None
    assert any("read whole" in note for note in result.notes)
    assert apart(result, loop("mmlu", content, model, made.tokenizer())) < 1e-4


def test_a_memory_that_gives_other_answers_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = made.write(tmp_path, "mmlu")
    model = model_of("llama").eval()
    read = score._Asked.read

    def spoilt(asked: Any, prefix: list[int]) -> Any:
        cache = read(asked, prefix)
        cache.layers[0].keys = cache.layers[0].keys.roll(1, dims=2)
        return cache

    monkeypatch.setattr(score._Asked, "read", spoilt)
    result = run("mmlu", tmp_path, model)
    assert result.reading == "whole" and result.apart is not None and result.apart > 1e-3
    assert any("read whole" in note for note in result.notes)
    assert apart(result, loop("mmlu", content, model, made.tokenizer())) < 1e-5


def test_a_model_that_sees_the_padding_is_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = made.write(tmp_path, "mmlu")
    model = model_of("llama").eval()
    logits = score._Asked._logits

    def seeing(asked: Any, rows: list[list[int]], cache: Any) -> Any:
        padding = torch.tensor([[max(map(len, rows)) - len(row)] for row in rows])
        return logits(asked, rows, cache) * (1 + padding)

    monkeypatch.setattr(score._Asked, "_logits", seeing)
    result = run("mmlu", tmp_path, model)
    assert result.reading == "alone" and any("read alone" in note for note in result.notes)
    assert apart(result, loop("mmlu", content, model, made.tokenizer())) < 1e-5


def test_single_questions_share_nothing(tmp_path: Path) -> None:
    made.write(tmp_path, "mmlu", questions=1)
    result = run("mmlu", tmp_path, model_of("llama"))
    assert result.reading is None and result.apart is None
    assert not any("read" in note for note in result.notes)


def test_an_adapter_answers_too(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    content = made.write(tmp_path, "mmlu")
    base = model_of("llama").eval()
    without = loop("mmlu", content, base, made.tokenizer())
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    result = run("mmlu", tmp_path, model)
    assert apart(result, loop("mmlu", content, model, made.tokenizer())) < 1e-5
    assert apart(result, without) > 1e-3


def test_shots_are_left_out_from_the_front_and_told(tmp_path: Path) -> None:
    content = made.write(tmp_path, "mmlu", questions=12)
    model, tokenizer = model_of("llama").eval(), made.tokenizer()
    lengths = {
        (subject, at): len(tokenizer(made.prompt("mmlu", subject, solved, row) + " A")["input_ids"]) - 1
        for subject, (solved, asked) in sorted(content.items())
        for at, row in enumerate(asked)
    }
    context = sorted(lengths.values())[len(lengths) // 2]
    result = run("mmlu", tmp_path, model, context=context)
    expected = [
        plain(model, made.prompt("mmlu", row.subject, solved[5 - row.shots :], asked[row.number - 1]), " ", tokenizer)
        for row in result.rows
        for solved, asked in [content[row.subject]]
    ]
    assert apart(result, expected) < 1e-5
    assert [row.shots == 5 for row in result.rows] == [length <= context for length in lengths.values()]
    fewer = sum(row.shots < 5 for row in result.rows)
    assert 0 < fewer < len(result.rows)
    assert any(f"{fewer} of 36 questions have fewer than 5 shots" in note for note in result.notes)


def test_a_question_longer_than_the_context_counts_as_wrong(tmp_path: Path) -> None:
    made.write(tmp_path, "mmlu", questions=6)
    file = tmp_path / "test/astronomy_test.csv"
    made.save(file, [("long " * 300, "1", "2", "3", "4", "A"), *made.rows(5, 1)], None)
    seen = list[int]()
    result = run("mmlu", tmp_path, model_of("llama"), shots=0, context=256, progress=lambda done, _: seen.append(done))
    assert seen[-2:] == [17, 18]
    unread = [row for row in result.rows if row.given is None]
    assert [(row.subject, row.number, row.right, row.log_probs) for row in unread] == [("astronomy", 1, False, None)]
    assert result.subjects["astronomy"].count == 6
    assert any("1 questions do not fit" in note for note in result.notes)


def test_a_conversation_is_the_chat_templates(tmp_path: Path) -> None:
    content = made.write(tmp_path, "ceval")
    model, tokenizer = model_of("llama").eval(), made.tokenizer()
    result = run("ceval", tmp_path, model, shots=1, chat=True)

    def said(subject: str, solved: list[made.Row], row: made.Row) -> str:
        whole = made.prompt("ceval", subject, solved[:1], row)
        answer = solved[0][5]
        first, second = whole.split(f"答案：{answer}\n\n")
        return (
            f"<|im_start|>user\n{first}答案：<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
            f"<|im_start|>user\n{second}<|im_end|>\n<|im_start|>assistant\n"
        )

    expected = [
        plain(model, said(subject, solved, row), "", tokenizer)
        for subject, (solved, asked) in sorted(content.items())
        for row in asked
    ]
    assert apart(result, expected) < 1e-5


def test_training_goes_on_as_before(tmp_path: Path) -> None:
    made.write(tmp_path, "mmlu")
    model = model_of("llama", attention_dropout=0.5).train()
    first, second = (run("mmlu", tmp_path, model) for _ in range(2))
    assert model.training
    assert apart(first, [row.log_probs or () for row in second.rows]) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_autocast_around_it_holds(tmp_path: Path) -> None:
    made.write(tmp_path, "mmlu")
    model = model_of("llama")
    exact = run("mmlu", tmp_path, model)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run("mmlu", tmp_path, model)
    assert rounded.reading == "shared"
    assert 1e-4 < apart(rounded, [row.log_probs or () for row in exact.rows]) < 0.5


def test_progress_reaches_the_end_and_stop_ends_it(tmp_path: Path) -> None:
    made.write(tmp_path, "mmlu", questions=7)
    seen = list[tuple[int, int | None]]()
    run("mmlu", tmp_path, model_of("llama"), progress=lambda done, total: seen.append((done, total)), batch_size=4)
    assert seen == [(done, 21) for done in (4, 7, 11, 14, 18, 21)]

    def stop() -> None:
        if len(seen) > 7:
            raise KeyboardInterrupt

    model = model_of("llama").train()
    with pytest.raises(KeyboardInterrupt):
        run("mmlu", tmp_path, model, progress=lambda done, total: seen.append((done, total)), stop=stop)
    assert len(seen) == 8
    assert model.training


@pytest.fixture
def largest(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The most rows that a model was given at once."""
    seen = [0]
    logits = score._Asked._logits

    def counted(asked: Any, rows: list[list[int]], cache: Any) -> Any:
        seen.append(len(rows))
        return logits(asked, rows, cache)

    monkeypatch.setattr(score._Asked, "_logits", counted)
    return lambda: max(seen)


def test_no_more_than_a_batch_is_there_at_once(tmp_path: Path, largest: Callable[[], int]) -> None:
    made.write(tmp_path, "mmlu", questions=9)
    run("mmlu", tmp_path, model_of("llama"), batch_size=4)
    assert largest() == 4


def test_a_prompts_start_is_read_once_for_a_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.write(tmp_path, "mmlu", questions=9)
    read, tokens = score._Asked._logits, list[int]()

    def counted(asked: Any, rows: list[list[int]], cache: Any) -> Any:
        tokens.append(sum(map(len, rows)))
        return read(asked, rows, cache)

    monkeypatch.setattr(score._Asked, "_logits", counted)
    run("mmlu", tmp_path, model_of("llama"))
    shared = sum(tokens)
    tokens.clear()
    monkeypatch.setattr(score._Asked, "way", lambda *_: ("whole", None))
    run("mmlu", tmp_path, model_of("llama"))
    assert shared < 0.5 * sum(tokens)


def test_a_tokenizer_without_a_token_for_each_letter_is_refused(tmp_path: Path) -> None:
    made.write(tmp_path, "mmlu")
    with pytest.raises(UserError) as raised:
        run("mmlu", tmp_path, model_of("llama"), tiny.tokenizer())
    assert [refusal.rule for refusal in raised.value.refusals] == ["benchmark-letters"]
    assert "['ĠA'], ['ĠB'], ['ĠC'], ['Ġ', 'D']" in str(raised.value)


def test_without_a_chat_template_a_conversation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.write(tmp_path, "mmlu")
    monkeypatch.setattr(made.tokenizer(), "chat_template", None)
    with pytest.raises(UserError) as raised:
        run("mmlu", tmp_path, model_of("llama"), chat=True)
    assert [refusal.rule for refusal in raised.value.refusals] == ["benchmark-template"]


def test_a_model_that_gives_no_numbers_has_no_figure(tmp_path: Path) -> None:
    """The likeliest of four letters that are none would be A."""
    made.write(tmp_path, "mmlu")
    model = model_of("llama")
    with torch.no_grad():
        model.lm_head.weight[0] = torch.nan
    with pytest.raises(UserError, match=r"\[held-out-not-finite\] evaluate\.benchmarks=mmlu: .*are no numbers"):
        run("mmlu", tmp_path, model)
