"""Tasks of lm-evaluation-harness: the library's figures are those of a plain loop over the same questions.

The tasks are files of the test's own (`own_tasks`), so that no network is asked and the library's index is not read.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from own_tasks import ASKED, QUESTIONS, SHOTS, own_tasks
from rich.console import Console

from factory.attention.segments import with_masks
from factory.compare.columns import columns
from factory.compare.judged import apart
from factory.config.refusal import UserError
from factory.data.encoding import EncoderSpec, Ends
from factory.evaluation import harness, rows
from factory.execute.verify import verify
from factory.logits import text_model
from factory.plan.inspect.machine import installed_version
from factory.run import report_shown
from factory.tracking import to_mlflow

pytestmark = pytest.mark.skipif(installed_version("lm-eval") is None, reason="needs the extra harness")
Execute = Callable[..., Any]
RUN = (
    "method=lora",
    "method.rank=4",
    "precision=fp32",
    "stage.max_steps=1",
    "data.max_samples=40",
    "stage.save_steps=1",
    "evaluate.batch_size=4",
)
NATS = 1e-4  # by which a log-likelihood may differ in float32: of padding and other batches


def lines(run: Any) -> list[dict[str, Any]]:
    return rows.read(run.folder.evaluation / f"{rows.HARNESS}.jsonl")


@pytest.fixture
def mine(here: Path) -> str:
    return f"evaluate.harness_path={own_tasks(here / 'mine')}"


@pytest.fixture
def folder(here: Path) -> str:
    return str(own_tasks(here / "mine"))


def asked(*tasks: str, shots: int | None = None) -> Any:
    return SimpleNamespace(harness=tasks or ("sums",), harness_shots=shots)


def question(text: str, answer: str = "") -> str:
    return f"Question: {text}\nAnswer:{answer}"


def log_likelihood(model: Any, tokenizer: Any, prompt: str, choice: str) -> float:
    """Of a choice after a prompt, one sequence at a time, the tokens as the two together have them."""
    import torch

    whole, before = tokenizer(prompt + choice)["input_ids"], len(tokenizer(prompt)["input_ids"])
    with torch.no_grad(), with_masks(text_model(model)):
        found = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return float(sum(found[at - 1, whole[at]] for at in range(before, len(whole))))


# --- what is measured


def test_the_figures_are_those_of_a_plain_loop(execute: Execute, mine: str, here: Path) -> None:
    """After training, in float32. A prompt of shots is one that holds solved questions of the task's own, and ours."""
    from transformers import AutoTokenizer

    done = execute(*RUN, mine, "evaluate.harness=[sums,sums_bare]")
    found, kept = done.result["evaluate"]["harness"], lines(done.run)
    assert json.loads(json.dumps(found)) == found
    tokenizer, model = AutoTokenizer.from_pretrained(done.run.folder.model), done.model.eval()
    solved = {question(text, choices[answer]) for text, choices, answer in SHOTS}
    for name, shots in (("sums", 2), ("sums_bare", 0)):
        own = [row for row in kept if row["task"] == name]
        assert [row["id"] for row in own] == [f"{name}:{number}" for number in range(len(ASKED))]
        right = {"acc": 0, "acc_norm": 0}
        for row, (text, choices, answer) in zip(own, ASKED, strict=True):
            *before, last = row["prompt"].split("\n\n")
            assert last == question(text) and len(before) == shots and set(before) <= solved
            nats = [log_likelihood(model, tokenizer, row["prompt"], choice) for choice in choices]
            assert [each["text"] for each in row["requests"]] == choices
            assert [each["log_likelihood"] for each in row["requests"]] == pytest.approx(nats, abs=NATS)
            a_character = [each / len(choice) for each, choice in zip(nats, choices, strict=True)]
            each = {"acc": nats.index(max(nats)) == answer, "acc_norm": a_character.index(max(a_character)) == answer}
            assert row["scores"] == {f"{name}/{metric}": float(hit) for metric, hit in each.items()}
            assert row["target"] == answer
            right = {metric: right[metric] + hit for metric, hit in each.items()}
        for metric, count in right.items():
            share = count / len(ASKED)
            figure = found[name]["metrics"][metric]
            assert figure["value"] == pytest.approx(share) and figure["better"] == "high"
            assert figure["error"] == pytest.approx((share * (1 - share) / (len(ASKED) - 1)) ** 0.5)
        assert (found[name]["questions"], found[name]["of"], found[name]["shots"]) == (6, 6, shots)
    measured = rows.measures(done.run.folder.path)
    figures = {f"{name}/{metric}": each["value"] for name in found for metric, each in found[name]["metrics"].items()}
    assert {name: rows.value(name, measured[name]) for name in figures} == pytest.approx(figures)
    sent = to_mlflow._of_harness(found)
    wanted = {f"evaluate/{name}": value for name, value in figures.items()}
    assert {name: value for name, value in sent if not name.endswith("_stderr")} == pytest.approx(wanted)
    shown = Console(width=120, record=True, file=(here / "screen").open("w"))
    for _, what in report_shown._scored(done.result["evaluate"]):
        shown.print(what)
    said = shown.export_text()
    assert "sums_bare" in said and "acc_norm" in said and f"{figures['sums/acc']:.4f}" in said


def test_the_model_is_asked_as_it_is_and_nothing_of_it_changes(execute: Execute, mine: str) -> None:
    """The weights that are trained beside the tasks are those that are trained without them."""
    import torch

    plain = execute(*RUN)
    asked = execute(*RUN, mine, "evaluate.harness=[sums]", folder="asked")
    for (name, one), (_, other) in zip(plain.model.named_parameters(), asked.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert plain.result["evaluate"]["perplexity"] == asked.result["evaluate"]["perplexity"]
    assert "harness" not in plain.result["evaluate"] and not lines(plain.run)


def test_a_group_has_its_tasks_and_the_mean_over_their_questions(folder: str) -> None:
    read = harness.read(asked("sums_all"), folder, seed=0, chat=None, context=256)
    assert set(read.loaded["tasks"]) == {"sums", "sums_bare"} and set(read.loaded["groups"]) == {"sums_all"}
    scores = {
        (name, number): float(number < 3 + 2 * (name == "sums")) for name in read.loaded["tasks"] for number in range(5)
    }
    found = harness.ask(read, Pretended(scores), limit=5, chat=False, device="cpu")
    assert found.tree["sums_all"]["metrics"]["acc"]["value"] == pytest.approx(0.8)
    assert (found.tree["sums_all"]["questions"], found.tree["sums_all"]["shots"]) == (10, [0, 2])
    assert found.tree["sums"]["group"] == "sums_all" and found.tree["sums_all"]["group"] is None
    assert "5 questions" in found.tree["sums"]["signature"] and "10 questions" in found.tree["sums_all"]["signature"]
    of_group = [row["scores"]["sums_all/acc"] for row in found.rows]
    assert sum(of_group) / len(of_group) == pytest.approx(0.8)
    assert all("sums_all/acc_norm" not in row["scores"] for row in found.rows)  # it has no such figure
    run = SimpleNamespace(report={"evaluate": {"harness": found.tree}})
    assert [column.key for column in columns([run]) if "/" in column.key] == ["sums_all/acc"]  # pyright: ignore


class Pretended:
    """A model of the library's interface that is right where it is told to be."""

    rank, world_size, max_length = 0, 1, 256

    def __init__(self, scores: dict[tuple[str, int], float]):
        self._scores = scores

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [
            (float((each.idx == each.doc["answer"]) == bool(self._scores[each.task_name, each.doc_id])), False)
            for each in requests
        ]


def test_answers_in_words_are_those_of_the_models_own_generate(execute: Execute, mine: str) -> None:
    import torch
    from transformers import AutoTokenizer

    done = execute(*RUN, mine, "evaluate.harness=[written]", "evaluate.max_samples=4")
    kept, tokenizer = lines(done.run), AutoTokenizer.from_pretrained(done.run.folder.model)
    assert [row["number"] for row in kept] == [0, 1, 2, 3]
    for row, (text, choices, answer) in zip(kept, ASKED, strict=False):
        ids = torch.tensor([tokenizer(question(text))["input_ids"]])
        with torch.no_grad(), with_masks(text_model(done.model)):
            given = done.model.eval().generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        said = tokenizer.decode(given[0, ids.shape[1] :], skip_special_tokens=True).partition("\n")[0]
        assert row["answers"] == {"none": said} and row["target"] == choices[answer]
        assert row["scores"] == {"written/exact_match": float(said == choices[answer])}
    assert done.result["evaluate"]["harness"]["written"]["of"] == len(ASKED)


def test_an_answer_ends_with_what_ends_one_in_training(
    execute: Execute, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's own file may know of no such token; and where it was added, a decoder would show it."""
    import torch
    from transformers import AutoTokenizer

    words = (*RUN, mine, "evaluate.harness=[written]", "evaluate.max_samples=1")
    whole = execute(*words, folder="whole")
    tokenizer = AutoTokenizer.from_pretrained(whole.run.folder.model)
    ids = torch.tensor([tokenizer(question(ASKED[0][0]))["input_ids"]])
    with torch.no_grad(), with_masks(text_model(whole.model)):
        given = whole.model.eval().generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    said = given[0, ids.shape[1] :].tolist()
    at = next(place for place, token in enumerate(said) if place and token not in said[:place])
    monkeypatch.setattr(EncoderSpec, "ends", lambda *_: Ends(frozenset((2, said[at]))))
    (row,) = lines(execute(*words, folder="ended").run)
    assert row["answers"] == {"none": tokenizer.decode(said[:at])}


def test_a_template_that_takes_no_system_text_is_asked_without(execute: Execute, mine: str, here: Path) -> None:
    base = tiny.save(here / "base")
    template = base / "chat_template.jinja"
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    template.write_text(refusing + template.read_text())
    (here / "mine" / "sums.yaml").open("a").write("description: Sums are asked for.\n")
    done = execute(*RUN, mine, f"model.path={base}", "evaluate.harness=[sums]", "evaluate.chat=true")
    kept = lines(done.run)
    assert len(kept) == len(ASKED) and not any("Sums are asked for" in row["prompt"] for row in kept)
    notes = [json.loads(line).get("text", "") for line in done.run.folder.events.read_text().splitlines()]
    assert sum("takes no system text" in note for note in notes) == 1


def test_as_a_conversation(execute: Execute, mine: str) -> None:
    """The solved questions are turns of the same conversation, as the model's chat template has it."""
    done = execute(*RUN, mine, "evaluate.harness=[sums]", "evaluate.chat=true", "evaluate.harness_shots=1")
    for row in lines(done.run):
        assert row["prompt"].count("<|im_start|>user") == 2 and row["prompt"].endswith("<|im_start|>assistant\n")
    told = done.result["evaluate"]["harness"]["sums"]
    assert told["shots"] == 1 and "1-shot" in told["signature"] and "conversation" in told["signature"]


def test_a_prompt_that_is_cut_is_told(execute: Execute, mine: str, here: Path) -> None:
    task = here / "mine" / "sums.yaml"
    task.write_text(task.read_text().replace("Question: ", "Question: " + "long " * 300))
    done = execute(*RUN, mine, "evaluate.harness=[sums]")
    notes = [json.loads(line).get("text", "") for line in done.run.folder.events.read_text().splitlines()]
    assert any("to the model's context of 256 tokens, on the left" in note for note in notes)
    assert not any("Combined length" in line for line in done.run.heard.first)


def test_what_was_asked_tells_which_figures_compare(folder: str) -> None:
    right = {("sums", number): 1.0 for number in range(6)}

    def told(limit: int | None = None, seed: int = 0, shots: int | None = None) -> Any:
        read = harness.read(asked(shots=shots), folder, seed=seed, chat=None, context=256)
        tree = harness.ask(read, Pretended(right), limit=limit, chat=False, device="cpu").tree
        return SimpleNamespace(report={"evaluate": {"harness": tree}}, plan=None, name=f"{limit} {seed} {shots}")

    first = told()
    assert apart("sums/acc", [first, told()]) is None
    for other in (told(limit=3), told(seed=1), told(shots=1)):
        said = apart("sums/acc", [first, other])
        assert said is not None and "were asked different questions" in said
    assert apart("sums/acc", [told(shots=0), told(shots=0, seed=1)]) is None  # nothing is drawn


def test_nobody_else_draws_otherwise_for_it(folder: str) -> None:
    import random

    import numpy as np
    import torch

    def state() -> Any:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # pyright: ignore

    before, threads = state(), os.environ.get("DISABLE_MULTIPROC")
    read = harness.read(asked(), folder, seed=0, chat=None, context=256)
    harness.ask(read, Pretended({("sums", at): 1.0 for at in range(6)}), limit=None, chat=False, device="cpu")
    assert state() == before and os.environ.get("DISABLE_MULTIPROC") == threads


# --- what is wrong costs no model


def test_an_unknown_name_has_near_ones(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own tasks are left out of the index here: reading them takes it 20 seconds."""
    from lm_eval import tasks  # pyright: ignore[reportMissingImports]

    whole = tasks.TaskManager
    monkeypatch.setattr(
        tasks, "TaskManager", lambda include_path, **_: whole(include_path=include_path, include_defaults=False)
    )
    with pytest.raises(UserError, match=r"\[harness-unknown\] evaluate\.harness=sumz: (.|\n)*did you mean sums"):
        harness.read(asked("sumz"), folder, seed=0, chat=None, context=256)
    with pytest.raises(UserError, match=r"\[harness-overlap\] evaluate\.harness=sums: sums is one of sums_all's too"):
        harness.read(asked("sums_all", "sums"), folder, seed=0, chat=None, context=256)


def test_the_librarys_own_index_has_its_tasks() -> None:
    """And an own file of an own name beside them."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    folder = Path(__import__("lm_eval").__file__).parent / "tasks" / "hellaswag"
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    assert "hellaswag" in manager.all_tasks
    assert list(harness._sets(manager, "hellaswag")) == ["Rowan/hellaswag"]


@pytest.mark.parametrize(
    ("change", "rule", "says"),
    [
        (("dataset_path: json", "dataset_path: me/none"), "harness-unreachable", "no way there"),
        (("asked.jsonl", "gone.jsonl"), "harness-broken", "gone.jsonl"),
        (("{{question}}", "{{question.nothing.at_all}}"), "harness-broken", "UndefinedError"),
        (("doc_to_target: answer", "doc_to_target: !function none_such.target"), "harness-broken", "none_such"),
        (("metadata:", "unsafe_code: true\nmetadata:"), "harness-unsafe", "runs code that the model writes"),
        (("test_split: test", "test_split: nothing"), "harness-broken", "nothing"),
    ],
    ids=["unreachable", "no file", "no column", "no function", "unsafe", "no split"],
)
def test_a_task_that_cannot_be_asked(
    change: tuple[str, str], rule: str, says: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable() -> None:
        raise OSError("no way there")

    monkeypatch.setattr("factory.data.hub._refuse_no_network", unreachable)
    task = Path(folder) / "sums.yaml"
    assert change[0] in task.read_text()
    task.write_text(task.read_text().replace(*change))
    with pytest.raises(UserError) as raised:
        harness.read(asked(), folder, seed=0, chat=None, context=256)
    (refusal,) = raised.value.refusals
    assert refusal.rule == rule and says in refusal.wrong


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens"])
def test_answers_that_the_context_has_no_room_for(name: str, folder: str) -> None:
    task = Path(folder) / "written.yaml"
    task.write_text(task.read_text().replace("max_gen_toks", name))
    with pytest.raises(UserError, match=r"\[harness-room\] evaluate\.harness=written: .*up to 6 tokens"):
        harness.read(asked("written"), folder, seed=0, chat=None, context=6)


def test_a_file_that_is_no_task_is_told(folder: str) -> None:
    place = Path(folder)
    (place / "half.yaml").write_text("task: [half")
    (place / "shared.yaml").write_text("output_type: multiple_choice\n")  # for others to include
    logger = logging.getLogger("lm_eval.tasks._index")
    before = logger.level
    (note,) = harness.read(asked(), folder, seed=0, chat=None, context=256).notes
    assert "half.yaml" in note and "is left out" in note and logger.level == before


def test_shots_do_not_hold_where_a_tasks_file_wants_none(folder: str) -> None:
    read = harness.read(asked("sums", "sums_bare", shots=3), folder, seed=0, chat=None, context=256)
    assert {name: task.get_config("num_fewshot") for name, task in read.loaded["tasks"].items()} == {
        "sums": 3,
        "sums_bare": 0,
    }
    assert [note.partition(" ")[0] for note in read.notes] == ["sums_bare"]


def test_what_is_wrong_costs_no_model(execute: Execute, mine: str, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setattr("factory.steps.attach.attach", None)  # which reads the weights
    (here / "mine" / "asked.jsonl").unlink()
    with pytest.raises(UserError, match=r"\[harness-broken\] evaluate\.harness=sums: "):
        execute(*RUN, mine, "evaluate.harness=[sums]")


def test_a_metric_that_fails_is_the_users_to_mend(folder: str) -> None:
    place = Path(folder)
    (place / "mine.py").write_text("def worst(items):\n    raise KeyError('no worst')\n")
    task = place / "sums.yaml"
    task.write_text(
        task.read_text().replace("metric: acc, aggregation: mean", "metric: acc, aggregation: !function mine.worst")
    )
    read = harness.read(asked(), folder, seed=0, chat=None, context=256)
    right = {("sums", number): 1.0 for number in range(len(QUESTIONS))}
    with pytest.raises(UserError, match=r"\[harness-asking\] evaluate\.harness=\[sums\]: KeyError: 'no worst'"):
        harness.ask(read, Pretended(right), limit=None, chat=False, device="cpu")


def test_a_model_that_gives_no_numbers_has_no_figure(folder: str) -> None:
    """The library would take the first of such log-likelihoods for the largest."""
    read = harness.read(asked(), folder, seed=0, chat=None, context=256)

    class Broken(Pretended):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return [(float("nan"), False) for _ in requests]

    with pytest.raises(UserError, match=r"\[held-out-not-finite\] evaluate\.harness=sums: .* is no number"):
        harness.ask(read, Broken({}), limit=None, chat=False, device="cpu")


def test_changed_task_files_are_another_plan(execute: Execute, mine: str, here: Path) -> None:
    from conftest import compiled

    tiny = ("hardware=cpu", "tracking=none", "evaluate.harness=[sums]", mine)
    plan = compiled(*tiny, training=False)
    verify(plan)
    (here / "mine" / "sums.yaml").open("a").write("# more\n")
    with pytest.raises(UserError, match=r"evaluate\.harness_path=.*: its task files have changed"):
        verify(plan)
    assert compiled(*tiny, training=False).digest() != plan.digest()
