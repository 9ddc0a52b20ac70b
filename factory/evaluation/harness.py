"""Tasks of EleutherAI's lm-evaluation-harness (the package lm-eval), asked of a model that is loaded already.

`read` finds the tasks, their data and what is wrong with them before a weight is read; `ask` has the library ask and
score, and turns what it found into a report's figures and the rows that two runs are compared by. The questions, the
prompts and the metrics are the library's; neither it nor torch is imported before one of the two is called.
"""

import difflib
import hashlib
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from math import isfinite, isnan
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.refusal import UserError, refuse
from factory.config.settings import Evaluate
from factory.data import hub
from factory.evaluation.rows import Row
from factory.evaluation.spec import not_finite

# names of a set that are readers of local files
_READERS = ("arrow", "csv", "json", "pandas", "parquet", "text", "xml")
_DRAWS = 1000  # of a bootstrap, where a metric's standard error has no formula
_GENERATED = 256  # tokens of an answer where a task does not say: the library's own default
# what a task's file may call that number: the first that is there counts
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NEAR = 3  # names that are offered for one that is unknown
# what the library says of each prompt that it cuts, and of each whose template takes no system's text
_CUT = ("Combined length of context", "Left truncation applied")
_UNTAKEN = ("Failed to apply chat template",)
Chat = Callable[..., str]  # a conversation to a prompt, as the library calls it


@dataclass(frozen=True, slots=True)
class Tasks:
    """What the library's TaskManager made of the names: `loaded` is its own. `notes`: what a reader must know."""

    loaded: dict[str, Any]
    seed: int
    notes: tuple[str, ...]

    def set_out(self) -> None:
        """The shots of the first question are drawn next, whatever was drawn before."""
        for task in self.loaded["tasks"].values():
            task.set_fewshot_seed(self.seed)


@dataclass(frozen=True, slots=True)
class Result:
    """`tree`: for the report, by task and group. `rows`: a line a question, as `evaluation.rows` has it."""

    tree: dict[str, Any]
    rows: list[Row]
    notes: tuple[str, ...]


# --- before a weight is read


def read(asked: Evaluate, folder: str | None, *, seed: int, chat: Chat | None, context: int) -> Tasks:
    """Finds the tasks and reads their data. `chat`: what makes a prompt of a conversation, where that is asked for.

    `folder`: of the user's task files.
        `context`: what the model reads, in tokens. Raises UserError where a task cannot be asked.
    """
    with _seeded(seed):
        manager, notes = _manager(asked.harness, folder)
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        by: dict[str, str] = {}  # the name that asked for a task
        for name in asked.harness:
            found = _load(manager, name)
            for task in found["tasks"]:
                if task in by:
                    wrong = f"{task} is one of {by[task]}'s too" if by[task] != task else f"{task} is asked by itself"
                    raise refuse(
                        "harness-overlap",
                        f"evaluate.harness={name}",
                        wrong,
                        because="a task is asked and scored once",
                        fix="leave one of the names out",
                    )
                by[task] = name
            for part, each in loaded.items():
                each |= found.get(part, {})
        made = Tasks(loaded, seed, ())
        for task in loaded["tasks"].values():
            notes += _shots(task, asked.harness_shots)
        made.set_out()
        for name, task in loaded["tasks"].items():
            _try(f"evaluate.harness={by[name]}", name, task, chat, context)
    return Tasks(loaded, seed, tuple(notes))


def _manager(asked: Sequence[str], folder: str | None) -> tuple[Any, list[str]]:
    """The library's index of tasks, and what it leaves out of the user's folder.

    Reading all of its own takes some 20 seconds, so that it is not done where the user's files hold all that is asked.
    Raises UserError for names that are in neither.
    """
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    notes = list[str]()
    if folder is not None:
        with _left_out() as skipped:
            own = TaskManager(include_path=folder, include_defaults=False)
        notes += [f"evaluate.harness_path: {text}" for text in skipped]
        if all(name in own.task_index for each in asked for name, _ in _below(own, each)):
            return own, notes
    manager = TaskManager(include_path=folder)
    known: list[str] = manager.all_tasks
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=_NEAR, cutoff=0.6)
            told = " ".join((f"lm-eval {version('lm-eval')} has no task, group or tag of this name", *notes[:1]))
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise refuse(
                "harness-unknown",
                f"evaluate.harness={name}",
                told,
                because="a task, a group or a tag is looked up by its name",
                fix=(
                    f"{hint}`lm-eval ls tasks` lists the library's own; those of a folder of yours need "
                    "evaluate.harness_path"
                ),
            )
    return manager, notes


@contextmanager
def _left_out() -> Iterator[list[str]]:
    """Files that the library cannot read as tasks, which it tells to those alone who look for its mistakes.

    One without a name is there for others to include, and is not meant.
    """
    found, logger = list[str](), logging.getLogger("lm_eval.tasks._index")

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = record.getMessage()
            if said.startswith("Skip ") and "Unknown config shape" not in said:
                found.append(f"{' '.join(said.removeprefix('Skip ').split())[:300]} is left out")

    heard, before = Heard(), (logger.level, logger.propagate)
    logger.addHandler(heard)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(heard)
        logger.level, logger.propagate = before


def _load(manager: Any, name: str) -> dict[str, Any]:
    """The library's tasks of a name, with their data. Raises UserError."""
    setting, on_hub = f"evaluate.harness={name}", False
    try:
        with hub._explained(setting):
            on_hub = not all(map(_is_local, _sets(manager, name)))
            if on_hub:
                hub._refuse_no_network()  # the library would try again for half a minute
            return manager.load([name])
    except UserError as error:
        found = error.refusals[0]
        if not (on_hub and found.rule == "hub-unreachable"):
            raise _broken(setting, found.wrong) from error
        raise refuse(
            "harness-unreachable",
            setting,
            found.wrong,
            because="its questions are not on this machine",
            fix="check the network, set HF_ENDPOINT to a mirror, or HF_DATASETS_OFFLINE=1 for a downloaded set",
            machine=True,
        ) from error
    except Exception as error:  # whatever a file of the user's, or a function that it names, does wrong
        raise _broken(setting, _said(error)) from error


def _sets(manager: Any, name: str) -> Iterator[str]:
    """The sets that a task's questions are read from, of a group or a tag those of all its tasks."""
    for _, found in _below(manager, name):
        if isinstance(path := found.get("dataset_path"), str):
            yield path


def _below(manager: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name with what its file says (nothing of one that is unknown), and what a group or a tag is made of."""
    entry = manager.task_index.get(name)
    if entry is None:
        yield name, {}
    elif name in manager.all_tags:
        for task in sorted(entry.tags):
            yield from _below(manager, task)
    else:
        found = entry.cfg or {}
        yield name, found
        members = found.get("task")
        for member in members if isinstance(members, list) else ():
            if isinstance(member, str):
                yield from _below(manager, member)
            else:  # with settings of its own, or written out within the group
                named = str(member.get("task") or member.get("group"))
                yield from _below(manager, named)
                yield named, member


def _is_local(path: str) -> bool:
    return path in _READERS or Path(path).exists()


def _broken(setting: str, wrong: str) -> UserError:
    return refuse(
        "harness-broken",
        setting,
        wrong,
        because="a task is made of its file, its data and the functions that it names before a weight is read",
        fix=(
            'correct its file, or install the package that is missing (pip install "lm-eval[...]"), or leave '
            "the task out"
        ),
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _shots(task: Any, asked: int | None) -> list[str]:
    """As the library's own command line has it: a task whose file says 0 is asked without."""
    own = task.get_config("num_fewshot")
    if asked is None or own == 0:
        task.set_config("num_fewshot", own or 0)
    else:
        task.set_config("num_fewshot", asked)
    told = f"{task.task_name} is asked without shots, as its file says: evaluate.harness_shots does not hold for it."
    return [told] if asked and own == 0 else []


def _try(setting: str, name: str, task: Any, chat: Chat | None, context: int) -> None:
    """A task's first question is written, so that what is wrong with it costs no model load. Raises UserError."""
    if getattr(task, "UNSAFE_CODE", False):
        raise refuse(
            "harness-unsafe",
            setting,
            f"{name} runs code that the model writes",
            because="nothing here keeps what a model writes from doing harm",
            fix=("leave it out, or run the library by itself in a machine of its own on what `factory export` writes"),
        )
    if getattr(task, "MULTIMODAL", False):
        raise refuse(
            "harness-images",
            setting,
            f"{name} asks about pictures or sounds",
            because="the tasks of evaluate.harness are asked in text",
            fix="leave it out",
        )
    if task.OUTPUT_TYPE == "generate_until":
        said = task.get_config("generation_kwargs") or {}
        length = next((said[name] for name in _LENGTHS if said.get(name) is not None), _GENERATED)
        if length >= context:
            wrong = f"answers to {name} have up to {length:,} tokens, and the model reads {context:,}"
            raise refuse(
                "harness-room",
                setting,
                wrong,
                because="an answer follows its prompt within the context",
                fix=(
                    "leave it out, or copy its file into a folder of your own (evaluate.harness_path) with a smaller "
                    "max_gen_toks"
                ),
            )
    try:
        task.build_all_requests(limit=1, **_as_conversation(chat))
    except Exception as error:  # whatever a file of the user's, or a function that it names, does wrong
        raise _broken(setting, _said(error)) from error


def _as_conversation(chat: Chat | None) -> dict[str, Any]:
    return {"apply_chat_template": chat is not None, "fewshot_as_multiturn": True, "chat_template": chat}


# --- of a model


def ask(tasks: Tasks, model: Any, *, limit: int | None, chat: bool, device: str) -> Result:
    """`model`: of the library's interface (`harness_model`). `limit`: at most so many questions of each task.

    Raises UserError where a task's metric fails, or the library does.
    """
    from lm_eval import evaluate  # pyright: ignore[reportMissingImports]

    notes = list[str]()
    tasks.set_out()
    with _seeded(tasks.seed, device), _told() as told:
        try:
            found: Any = evaluate(
                model,
                tasks.loaded,
                limit=limit,
                bootstrap_iters=_DRAWS,
                log_samples=True,
                apply_chat_template=chat,
                fewshot_as_multiturn=True,
                cache_requests=False,
            )
        except (UserError, OSError, MemoryError):
            raise
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            setting = f"evaluate.harness=[{','.join(tasks.loaded['tasks'])}]"
            raise refuse(
                "harness-asking",
                setting,
                _said(error),
                because="the library stopped while it asked or scored; what was trained and measured before is saved",
                fix=(
                    "leave the task out, or correct its file; `factory evaluate run=FOLDER` asks again without training"
                ),
            ) from error
    if told.untaken:
        notes.append("The chat template takes no system text: what a task says in one (its description) was left out.")
    if told.cut:
        notes.append(
            f"lm-eval cut {told.cut:,} prompts, or batches of them, to the model's context of {model.max_length:,} "
            "tokens, on the left."
        )
    rows, digests = _rows(tasks, found)
    tree = _tree(tasks, found, digests, chat=chat, notes=notes)
    return Result(tree, rows, tuple(notes))


@dataclass(slots=True)
class _Told(logging.Filter):
    """Counts in place of a line for each prompt."""

    cut: int = 0
    untaken: int = 0

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        cut, untaken = said.startswith(_CUT), said.startswith(_UNTAKEN)
        self.cut, self.untaken = self.cut + cut, self.untaken + untaken
        return not (cut or untaken)


@contextmanager
def _told() -> Iterator[_Told]:
    logger, counted = logging.getLogger("lm_eval.models.huggingface"), _Told()
    logger.addFilter(counted)
    try:
        yield counted
    finally:
        logger.removeFilter(counted)


@contextmanager
def _seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """All that the library and its tasks draw from, and nobody else is any the wiser.

    Its bootstraps are drawn in this process: it would start others beside a model that may be on a card.
    """
    import torch

    name = "DISABLE_MULTIPROC"
    kept, own, before = random.getstate(), np.random.get_state(), os.environ.get(name)
    cards = [] if device == "cpu" else [torch.cuda.current_device()]
    with torch.random.fork_rng(devices=cards):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        os.environ[name] = "1"
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(own)
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


# --- what was found


def shown(metric: str) -> str:
    """`acc,none` is acc; `exact_match,strict-match` is exact_match/strict-match."""
    name, _, taken = metric.partition(",")
    return name if taken in ("", "none") else f"{name}/{taken}"


def _tree(
    tasks: Tasks, found: dict[str, Any], digests: dict[str, str], *, chat: bool, notes: list[str]
) -> dict[str, Any]:
    """Each task, and each group that has figures of its own. Adds to the notes what has no number."""
    groups = tasks.loaded["groups"]
    within = {
        task.task_name: name
        for name, group in groups.items()
        if _figures(found["results"].get(name, {}))
        for task in group.get_all_tasks()
    }
    tree = dict[str, Any]()
    for name, values in found["results"].items():
        figures = _figures(values)
        if not figures and name in groups:
            continue
        better, metrics = found["higher_is_better"].get(name, {}), dict[str, Any]()
        for metric, (value, error) in figures.items():
            if value is None:
                notes.append(f"{name}: {shown(metric)} is no finite number, and is left out.")
                continue
            higher = better.get(metric.partition(",")[0])
            metrics[shown(metric)] = {
                "value": value,
                "error": error,
                "better": None if higher is None else "high" if higher else "low",
            }
        members = [task.task_name for task in groups[name].get_all_tasks()] if name in groups else [name]
        counts = [found["n-samples"][member] for member in members]
        asked, there = (sum(each[key] for each in counts) for key in ("effective", "original"))
        shots = sorted({int(found["n-shot"].get(member) or 0) for member in members})
        tree[name] = {
            "metrics": metrics,
            "questions": asked,
            "of": there,
            "shots": shots[0] if len(shots) == 1 else shots,
            "version": str(found["versions"].get(name)),
            "group": within.get(name),
            "signature": _signature(name, found, tasks.seed, shots, asked, [digests[each] for each in members], chat),
        }
    return tree


def _signature(
    name: str, found: dict[str, Any], seed: int, shots: list[int], asked: int, digests: list[str], chat: bool
) -> str:
    """What two figures must share to be comparable: the questions themselves by their hash."""
    kind = "conversation" if chat else "plain text"
    drawn = f" by seed {seed}" if any(shots) else ""
    content = hashlib.sha256("".join(digests).encode()).hexdigest()[:8]
    return (
        f"{name} {found['versions'].get(name)} of lm-eval {version('lm-eval')}, {' or '.join(map(str, shots))}-shot"
        f"{drawn}, {kind}, {asked:,} questions {content}"
    )


def _figures(values: dict[str, Any]) -> dict[str, tuple[float | None, float | None]]:
    """{metric,filter: (value, standard error)}; None for what is no finite number."""
    return {
        key: (_number(value), _number(values.get(_error(key))))
        for key, value in values.items()
        if "," in key and not key.partition(",")[0].endswith("_stderr")
    }


def _error(metric: str) -> str:
    name, _, taken = metric.partition(",")
    return f"{name}_stderr,{taken}"


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return float(value) if number and isfinite(value) else None


def _rows(tasks: Tasks, found: dict[str, Any]) -> tuple[list[Row], dict[str, str]]:
    """A row a question, and a hash of each task's questions with their answers.

    Its scores are those of metrics that are means of them, and of which more is better: what a comparison takes them
    for. A group's metric is one where it weighs its tasks by their questions.
    """
    rows, digests = list[Row](), dict[str, str]()
    for name, task in tasks.loaded["tasks"].items():
        by_question, content = dict[int, Row](), hashlib.sha256()
        means = _means(name, task, found)
        for sample in sorted(found["samples"][name], key=lambda each: each["doc_id"]):
            number = sample["doc_id"]
            if any(map(_is_nan, sample["resps"])):
                wrong = f"a log-likelihood of question {number} is no number"
                raise not_finite(f"evaluate.harness={name}", wrong)
            if number not in by_question:
                content.update(f"{sample['doc_hash']} {sample['target_hash']} ".encode())
                by_question[number] = _row(name, sample)
            row = by_question[number]
            row["answers"] |= _answer(sample)
            for metric in sample["metrics"]:
                value = _number(float(own) if isinstance(own := sample[metric], bool) else own)
                if metric in means and value is not None:
                    key = shown(f"{metric},{sample['filter']}")
                    row["scores"] |= {f"{each}/{key}": value for each in (name, *_weighed(tasks, name, metric, sample))}
        rows += by_question.values()
        digests[name] = content.hexdigest()
    return rows, digests


def _means(name: str, task: Any, found: dict[str, Any]) -> set[str]:
    from lm_eval.api.metrics import mean  # pyright: ignore[reportMissingImports]

    better = found["higher_is_better"].get(name, {})
    return {metric for metric, over in task.aggregation().items() if over is mean and better.get(metric)}


def _weighed(tasks: Tasks, name: str, metric: str, sample: dict[str, Any]) -> list[str]:
    """The groups whose metric is the mean over all questions of their tasks."""
    return [
        group.name
        for group in tasks.loaded["groups"].values()
        if any(task.task_name == name for task in group.get_all_tasks())
        and any(
            each.metric == metric
            and each.weight_by_size
            and (each.filter_list is None or sample["filter"] in each.filter_list)
            for each in group.aggregate_metric_list or ()
        )
    ]


def _row(name: str, sample: dict[str, Any]) -> Row:
    number = sample["doc_id"]
    target = sample["target"]
    plain = isinstance(target, str | int | float | bool | None)
    return {
        "id": f"{name}:{number}",
        "scores": {},
        "task": name,
        "number": number,
        "prompt": str(sample["arguments"][0][0]),
        "target": target if plain else str(target),
        "requests": [_request(*each) for each in zip(sample["arguments"], sample["resps"], strict=True)],
        "answers": {},
    }


def _is_nan(given: list[Any]) -> bool:
    """Of a log-likelihood, alone or with whether it is the likeliest; a text is none."""
    first = given[0][0] if isinstance(given[0], tuple) else given[0]
    return isinstance(first, float) and isnan(first)


def _request(asked: tuple[Any, ...], given: list[Any]) -> dict[str, Any]:
    """A continuation with its log-likelihood and whether it is the likeliest, or what was written or measured."""
    first = given[0]
    if isinstance(first, tuple):
        return {"text": str(asked[1]), "log_likelihood": _number(first[0]), "likeliest": bool(first[1])}
    return {"log_likelihood": _number(first)} if isinstance(first, float) else {"given": [str(each) for each in given]}


def _answer(sample: dict[str, Any]) -> dict[str, str]:
    """What a filter took of what the model wrote; nothing where it only chose."""
    taken = sample["filtered_resps"]
    return {sample["filter"]: str(taken[0])} if taken and isinstance(taken[0], str) else {}
