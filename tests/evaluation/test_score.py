"""Benchmarks and answers of a run: what the report says is what its rows say, and what one-by-one asking gives."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from lettered_questions import lettered, questions
from rich.console import Console

from factory.attention.segments import with_masks
from factory.config.refusal import UserError
from factory.data.dataset import Example, Labelled, Pair
from factory.data.encoding import Ends
from factory.evaluation import generate, rows
from factory.evaluation.generate import Prompt
from factory.execute.context import Interrupted
from factory.logits import text_model
from factory.metrics import text
from factory.run import report_shown
from factory.tracking import to_mlflow

Execute = Callable[..., Any]
RUN = (
    "method=lora",
    "method.rank=4",
    "precision=fp32",
    "stage.max_steps=1",
    "data.max_samples=40",
    "stage.save_steps=1",
)
ROOM = ("data.max_length=200", "evaluate.max_new_tokens=12", "data.validation_fraction=0.3")
ANSWERS = (*RUN, *ROOM, "evaluate.generation=true", "evaluate.batch_size=4")


def lines(run: Any, name: str) -> list[dict[str, Any]]:
    return rows.read(run.folder.evaluation / f"{name}.jsonl")


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lettered(tmp_path_factory.mktemp("letters") / "llama")


@pytest.fixture
def metrics(here: Path) -> Iterator[str]:
    (here / "my_metrics.py").write_text(
        "def longer(answers, references):\n    return [float(len(a) > len(r)) for a, r in zip(answers, references)]\n"
        "def short(answers):\n    return [1.0]\n"
        "def broken(**given):\n    raise KeyError(sorted(given))\n"
        "def large(answers):\n    return [1e300 for _ in answers]\n"
    )
    yield "my_metrics"


# --- benchmarks


def test_a_benchmark_is_asked_after_training(execute: Execute, letters: Path, here: Path) -> None:
    asked = (f"model.path={letters}", "evaluate.benchmarks=[mmlu]", f"evaluate.path={questions(here / 'mmlu')}")
    done = execute(*RUN, *asked, "evaluate.shots=2", "evaluate.max_samples=3")
    found, kept = done.result["evaluate"]["benchmarks"]["mmlu"], lines(done.run, "mmlu")
    assert json.loads(json.dumps(found)) == found
    assert (found["questions"], found["shots"], found["average"]) == (6, 2, "micro")
    assert [row["id"] for row in kept] == [
        f"{name}:{n}" for name in ("astronomy", "world_religions") for n in (1, 2, 3)
    ]
    assert found["accuracy"] == pytest.approx(sum(100 * row["right"] for row in kept) / 6)
    measured = rows.measures(done.run.folder.path)
    assert rows.value("mmlu", measured["mmlu"]) == pytest.approx(found["accuracy"])
    assert all(set(row["log_probs"]) == set("ABCD") and row["question"].startswith("What") for row in kept)
    assert list(found["categories"]) == ["STEM", "humanities"]
    sent = dict(to_mlflow._of_benchmarks(done.result["evaluate"]["benchmarks"]))
    assert sent["evaluate/mmlu"] == found["accuracy"] and set(sent) >= {"evaluate/mmlu/STEM"}
    shown = Console(width=120, record=True, file=(here / "screen").open("w"))
    for _, what in report_shown._scored(done.result["evaluate"]):
        shown.print(what)
    said = shown.export_text()
    assert f"{found['accuracy']:.2f} %" in said and "humanities" in said and "6 questions of 2 subjects" in said


def test_what_is_wrong_with_the_questions_costs_no_model(
    execute: Execute, letters: Path, tiny_model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("evaluate.benchmarks=[mmlu]", f"evaluate.path={questions(here / 'mmlu')}")
    with pytest.raises(UserError, match=r"\[benchmark-shots\] evaluate\.shots=5: .*2 of them"):
        execute(*RUN, f"model.path={letters}", *asked)
    (here / "empty").mkdir()
    with pytest.raises(UserError, match=r"\[benchmark-source\] evaluate\.path=empty: none of its files"):
        execute(*RUN, f"model.path={letters}", asked[0], "evaluate.path=empty")
    monkeypatch.setattr("factory.steps.attach.attach", None)  # which reads the weights
    with pytest.raises(UserError, match=r"\[benchmark-letters\]"):  # the tiny model's own tokenizer has no such tokens
        execute(*RUN, f"model.path={tiny_model}", *asked, "evaluate.shots=1")


# --- answers


def test_the_answers_are_those_of_one_prompt_after_the_other(execute: Execute, metrics: str) -> None:
    """Greedy, in float32: by the model's own generate, alone; and the scores are sacrebleu's and rouge-score's."""
    import torch
    from transformers import AutoTokenizer

    names = f"evaluate.metrics=[rouge1,bleu4,{metrics}:longer,exact_match]"
    done = execute(*ANSWERS, names)
    kept, held = lines(done.run, "generation"), done.dataset.validation
    assert len(kept) == len(held) > 8
    tokenizer = AutoTokenizer.from_pretrained(done.run.folder.model)
    by_id = {row["id"]: row for row in kept}
    model = done.model.eval()
    for number, name in enumerate(rows.ids(held)):
        example, row = held[number], by_id[name]
        with torch.no_grad(), with_masks(text_model(model)):
            alone = model.generate(
                input_ids=torch.tensor([example.ids[: example.prompt]]),
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=sorted(done.dataset.ends.tokens),
                pad_token_id=0,
            )[0, example.prompt :]
        assert row["answer"] == tokenizer.decode(alone, skip_special_tokens=True).strip()
        assert row["ended"] == (alone[-1].item() in done.dataset.ends.tokens)
        assert row["reference"] and row["reference"] in tokenizer.decode(example.ids)
        assert row["prompt"] in tokenizer.decode(example.ids[: example.prompt])
    found = done.result["evaluate"]
    whole = text.score([row["answer"] for row in kept], [row["reference"] for row in kept])
    expected = {name: whole[name].value for name in ("rouge1", "bleu4", "exact_match")}
    expected["longer"] = sum(len(row["answer"]) > len(row["reference"]) for row in kept) / len(kept)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert "rougeL" not in found
    how = found["generation"]
    assert list(how["signatures"]) == ["rouge1", "bleu4", "longer", "exact_match"]
    assert "tok:13a" in how["signatures"]["bleu4"] and how["counted_by"] == "words"
    assert how["rows"] == len(kept) and how["ended"] == sum(row["ended"] for row in kept)
    measured = rows.measures(done.run.folder.path)
    assert rows.value("bleu4", measured["bleu4"]) == pytest.approx(expected["bleu4"])


def test_chinese_is_counted_by_characters(execute: Execute, here: Path) -> None:
    said = [{"instruction": f"说{n}", "output": f"这是第{n}个数字"} for n in range(30)]
    (here / "zh.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in said))
    done = execute(*ANSWERS, "data=file", "data.path=zh.jsonl", "evaluate.max_samples=5")
    how = done.result["evaluate"]["generation"]
    assert "tok:zh" in how["signatures"]["bleu4"] and "characters" in how["signatures"]["rougeL"]
    assert (how["counted_by"], how["rows"]) == ("characters", 5)
    assert all("\u4e00" <= row["reference"][0] <= "\u9fff" for row in lines(done.run, "generation"))


def test_a_metric_may_be_larger_than_a_reward(metrics: str) -> None:
    """Nothing computes with it in 32 bits."""
    (large,) = generate.scorer([f"{metrics}:large"], ["a"]).functions.values()
    assert large(["?"], ["b"], ["a"]) == [1e300]


def test_an_interrupted_evaluation_goes_on(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the batches that are there; the rows are those of a run in one piece, drawn ones too."""
    from factory.steps import score

    words = (*ANSWERS, "evaluate.temperature=1.5", "evaluate.perplexity=false")
    whole = execute(*words, folder="whole")
    original, calls = score._batch, list[int]()

    def batch(*given: Any) -> Any:
        if len(calls) == 2:
            raise Interrupted
        calls.append(given[-2])
        return original(*given)

    monkeypatch.setattr(score, "_batch", batch)
    with pytest.raises(Interrupted):
        execute(*words, folder="parts")
    file = Path("parts/evaluation/generation.jsonl")
    there = rows.read(file)
    assert len(there) == 8
    with file.open("a") as opened:
        opened.write('{"id": "cut')  # by a kill
    calls.clear()
    monkeypatch.setattr(score, "_batch", lambda *given: (calls.append(given[-2]), original(*given))[1])
    checkpoint = whole.run.folder.checkpoint()
    parts = execute(*words, folder="parts", resume_from=checkpoint)
    assert calls == [2] and parts.result["evaluate"] == whole.result["evaluate"]
    assert sorted(lines(parts.run, "generation"), key=lambda row: row["id"]) == sorted(
        lines(whole.run, "generation"), key=lambda row: row["id"]
    )


def test_a_token_that_was_added_to_end_answers_is_no_part_of_them(execute: Execute, here: Path) -> None:
    """A decoder shows it: an answer that has no word of its reference would share the end of turn with it."""
    said = [{"instruction": f"Say {n}", "output": f"It is {n}."} for n in range(30)]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, said)))
    words = ("data=file", "data.path=rows.jsonl", "model.template=llama3", "model.new_tokens=['<|eot_id|>']")
    done = execute(*ANSWERS, *words)
    assert done.dataset.ends == Ends(frozenset([2, 512]))
    kept = lines(done.run, "generation")
    assert kept and all(row["reference"] in {each["output"] for each in said} for row in kept)
    assert not any("<|eot_id|>" in row["answer"] for row in kept)


@pytest.mark.parametrize("asked", ["data.truncation=right", "data.train_on_prompt=true"])
def test_answers_end_as_the_template_says_whatever_the_first_row_ends_with(
    asked: str, execute: Execute, here: Path
) -> None:
    """One that was cut has lost its end, and of one that is trained whole the last token is the line's."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny.save(here / "base"))
    tokenizer.eos_token = "<|endoftext|>"  # which ends no turn
    tokenizer.save_pretrained(here / "base")
    said = [{"instruction": f"Count from {n}", "output": ", ".join(map(str, range(n, n + 40)))} for n in range(30)]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, said)))
    words = ("data=file", "data.path=rows.jsonl", "data.validation_fraction=0.3", "stage.max_steps=1")
    cut = ("data.max_length=64",) if asked == "data.truncation=right" else ()
    done = execute(f"model.path={here / 'base'}", *words, *cut, asked)
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert done.dataset.ends == Ends(frozenset([tokenizer.eos_token_id, *ends]))


def test_references_that_were_cut_are_told(execute: Execute, here: Path) -> None:
    said = [{"instruction": f"Count from {n}", "output": ", ".join(map(str, range(n, 2 * n + 4)))} for n in range(30)]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, said)))
    words = ("data=file", "data.path=rows.jsonl", "data.truncation=right", "data.max_length=64")
    done = execute(*ANSWERS, *words)
    held = done.dataset.validation
    ends = [tiny.tokenizer().decode(held[at].ids).rstrip() for at in range(len(held))]
    cut = sum(not each.endswith("<|im_end|>") for each in ends)
    notes = [json.loads(line).get("text", "") for line in done.run.folder.events.read_text().splitlines()]
    assert 0 < cut < len(held) and any(f"has cut the end of {cut} ref" in note for note in notes)


def test_an_end_that_is_spelled_in_pieces_is_no_part_of_a_reference(execute: Execute) -> None:
    done = execute(*ANSWERS, "model.template=gemma", "evaluate.max_samples=2")
    assert done.dataset.ends.text == "<end_of_turn>"
    assert done.dataset.ends.cut("One.<end_of_turn> Two.") == "One."
    for row in lines(done.run, "generation"):
        assert row["reference"] and "end_of_turn" not in row["reference"]


def test_what_a_judged_row_gives_for_a_reference() -> None:
    """Of a pair the chosen answer; a labelled answer where it is wanted."""
    tokenizer = tiny.tokenizer()

    def example(answer: str) -> Example:
        asked, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("say it", answer))
        ids = [*asked, *said, 2]
        return Example(ids, ids, asked=(0, len(asked)), prompt=len(asked))

    pair = Pair(example("well"), example("badly"))
    labelled = [Labelled(example(text), wanted, 2) for text, wanted in (("no", False), ("yes", True), ("sure", True))]
    found = generate.prompts([pair, *labelled], tokenizer, most=2, ends=Ends(frozenset([2])))
    assert [(each.id, each.text, each.reference) for each in found] == [
        ("held out:0", "say it", "well"),
        ("held out:2", "say it", "yes"),
    ]
    assert found[0].ids == pair.chosen.ids[: pair.chosen.prompt]


def test_other_prompts_begin_anew(tmp_path: Path) -> None:
    asked = [Prompt("a:1", [1, 2], "say", "one")]
    kept = generate.Kept(tmp_path / "generation.jsonl", generate.digest("plan", asked))
    assert kept.read() == []
    rows.append(kept.file, [{"id": "a:1"}])
    assert kept.read() == [{"id": "a:1"}]
    for other in (generate.digest("another plan", asked), generate.digest("plan", [*asked, *asked])):
        assert other != kept.digest
    assert generate.Kept(kept.file, generate.digest("another plan", asked)).read() == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_metrics:nothing", "has no nothing"),
        ("my_metrics:short", "it gave 1 scores for 4 answers"),
        ("my_metrics:broken", r"it raised KeyError: \['answers', 'prompts', 'references'\] \(my_metrics.py, line 6\)"),
    ],
)
def test_a_metric_of_the_users_that_fails_is_told(name: str, said: str, execute: Execute, metrics: str) -> None:
    with pytest.raises(UserError, match=rf"\[metric-function\] evaluate\.metrics={name}: .*{said}"):
        execute(*ANSWERS, f"evaluate.metrics=[{name}]")
