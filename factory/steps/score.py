"""Score: benchmarks, tasks of lm-eval, answers to held-out prompts, of a model that is trained or evaluated.

What is asked, and by what it is scored, is made before a weight is read: mistakes in it cost no model load. Several
ranks each ask everything, as the weights may be split; the first writes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from factory import benchmarks
from factory.benchmarks.prompts import Prompter
from factory.config.refusal import refuse
from factory.config.words import counted
from factory.evaluation import generate, harness, rows
from factory.evaluation.generate import Answered, Prompt, Scorer
from factory.execute.context import Run
from factory.steps.feed import autocast
from factory.steps.pack import Dataset


@dataclass(frozen=True, slots=True)
class Asked:
    """`scorer`: None where no answers are; `tasks`: None where none of lm-evaluation-harness are."""

    exams: tuple[Prompter, ...]
    tasks: harness.Tasks | None
    prompts: list[Prompt]
    scorer: Scorer | None


def questions(run: Run, tokenizer: Any, dataset: Dataset) -> dict[str, Any]:
    """Reads the questions of benchmarks and tasks, and imports the user's metrics. Raises UserError."""
    plan, found = run.plan.settings.evaluate, run.plan.steps.evaluate.benchmarks
    with run.world.node_leader_first():  # the others find what the hub gave in the cache
        exams = [
            benchmarks.read(name, each.path, shots=plan.shots, max_samples=plan.max_samples)
            for name, each in found.items()
        ]
        tasks = _tasks(run, tokenizer)
    room = run.plan.steps.patch.reach
    asked = tuple(Prompter(tokenizer, exam, chat=plan.chat, context=room) for exam in exams)
    if not plan.generation:
        return {"asked": Asked(asked, tasks, [], None)}
    prompts = generate.prompts(dataset.validation, tokenizer, plan.max_samples, dataset.ends)
    if not prompts:
        raise refuse(
            "nothing-to-answer",
            "evaluate.generation=true",
            "no row is left to be held out",
            because="the prompts of held-out rows are answered, and the answers compared with the rows' own",
            fix="set evaluate.generation=false, or hold out rows of conversations in text",
        )
    if lost := generate.lost_ends(dataset.validation):
        cut = f"data.truncation=right has cut the end of {counted(lost, 'reference')}"
        run.emit("note", text=f"{cut}: what is written is scored against what is left.")
    return {"asked": Asked(asked, tasks, prompts, generate.scorer(plan.metrics, [each.reference for each in prompts]))}


def _tasks(run: Run, tokenizer: Any) -> harness.Tasks | None:
    plan, found = run.plan.settings.evaluate, run.plan.steps.evaluate.harness
    if not plan.harness:
        return None
    from jinja2 import TemplateError

    def chat(said: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As the library's own model does it: without a turn for the answer the last one is left open.

        A system's text that the template does not take is left out.
        """
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        write = partial(tokenizer.apply_chat_template, tokenize=False, **options)
        try:
            return write(said)
        except TemplateError:
            return write([each for each in said if each["role"] != "system"])

    room = run.plan.steps.patch.reach
    folder, seed = found and found.path, run.plan.settings.seed
    return harness.read(plan, folder, seed=seed, chat=chat if plan.chat else None, context=room)


def score(
    run: Run, model: Any, tokenizer: Any, dataset: Dataset, asked: Asked, measured: dict[str, Any]
) -> dict[str, Any]:
    from factory.attention.segments import with_masks
    from factory.logits import text_model

    model.eval()
    evaluate = dict(measured["evaluate"])
    with with_masks(text_model(model)):
        if asked.scorer is not None:
            figures, how = _answers(run, model, tokenizer, dataset, asked.prompts, asked.scorer)
            evaluate |= {**figures, "generation": how}
        if asked.exams:
            evaluate["benchmarks"] = {exam.exam.name: _asked(run, model, exam) for exam in asked.exams}
        if asked.tasks is not None:
            evaluate["harness"] = _of_tasks(run, model, tokenizer, dataset, asked.tasks)
    return {"result": {**measured, "evaluate": evaluate}}


def _of_tasks(run: Run, model: Any, tokenizer: Any, dataset: Dataset, tasks: harness.Tasks) -> dict[str, Any]:
    """The figures of each task for the report; their questions go into a file."""
    import torch

    from factory.evaluation.harness_model import Called, Loaded
    from factory.logits import text_model

    plan, device = run.plan.settings.evaluate, run.plan.steps.load.device

    def call(function: Callable[[], Any]) -> Any:
        """Mixed precision is set here, within what the library sets: none."""

        def within() -> Any:
            with autocast(run.plan):
                return function()

        return run.way.call(within)

    found = harness.ask(
        tasks,
        Loaded(
            Called(text_model(model), torch.device(device), call, run.stop_if_asked, sorted(dataset.ends.tokens)),
            tokenizer,
            batch_size=plan.batch_size,
            context=run.plan.steps.patch.reach,
            progress=partial(run.progress, rows.HARNESS),
        ),
        limit=plan.max_samples,
        chat=plan.chat,
        device=device,
    )
    if run.world.leads:
        rows.write(run.folder.evaluation / f"{rows.HARNESS}.jsonl", found.rows)
    for note in (*tasks.notes, *found.notes):
        run.emit("note", text=note)
    return found.tree


def _asked(run: Run, model: Any, prompter: Prompter) -> dict[str, Any]:
    """A benchmark's figures for the report; its rows go into a file."""
    name, plan = prompter.exam.name, run.plan.steps
    with autocast(run.plan):
        found = benchmarks.ask(
            prompter,
            model,
            batch_size=run.plan.settings.evaluate.batch_size,
            device=plan.load.device,
            call=run.way.call,
            progress=lambda done, total: run.progress(name, done, total or done),
            stop=run.stop_if_asked,
        )
    if run.world.leads:
        rows.write(run.folder.evaluation / f"{name}.jsonl", found.row_trees())
    for note in found.notes:
        run.emit("note", text=note)
    return found.to_tree()


def _answers(
    run: Run, model: Any, tokenizer: Any, dataset: Dataset, prompts: list[Prompt], scorer: Scorer
) -> tuple[dict[str, float], dict[str, Any]]:
    """Each metric, and how it was measured. Every batch is in the file as soon as it is answered."""
    plan = run.plan.settings.evaluate
    kept = generate.Kept(
        run.folder.evaluation / f"{rows.GENERATION}.jsonl", generate.digest(run.plan.digest(), prompts)
    )
    there = run.world.leaders(kept.read() if run.world.leads else [])
    if there:
        run.emit("note", text=f"{len(there):,} of {len(prompts):,} answers are there from before.")
    found, answer = list[rows.Row](), partial(_batch, run, model, tokenizer, dataset)
    for batch, new in generate.answered(prompts, plan.batch_size, there, answer, scorer):
        if new and run.world.leads:
            rows.append(kept.file, batch)
        found += batch
        run.progress("answers", len(found), len(prompts))
    figures, how = generate.report(found, scorer)
    cut = len(found) - how["ended"]
    if cut:
        run.emit("note", text=f"{cut:,} of {len(found):,} answers reached evaluate.max_new_tokens and were cut there.")
    return figures, {**how, "temperature": plan.temperature, "max_new_tokens": plan.max_new_tokens}


def _batch(run: Run, model: Any, tokenizer: Any, dataset: Dataset, number: int, asked: list[Prompt]) -> list[Answered]:
    from factory.rollouts.sample import Sampling, sample

    run.stop_if_asked()
    plan, device = run.plan.settings.evaluate, run.plan.steps.load.device
    sampling = Sampling(plan.max_new_tokens, temperature=plan.temperature or 1.0, greedy=plan.temperature == 0)
    drawing = nullcontext() if sampling.greedy else _drawing(run.plan.settings.seed + number, device)
    shown, media = [each.media for each in asked], dataset.media
    options = {"pad": dataset.pad, "stops": dataset.ends.tokens, "device": device, "call": run.way.call}
    options["beside"] = None if media is None else partial(media, shown)
    with autocast(run.plan), drawing:
        given = sample(model, [each.ids for each in asked], sampling, **options)
    texts = tokenizer.batch_decode([each.said for each in given], skip_special_tokens=True)
    whole = [(dataset.ends.cut(text), text) for text in texts]
    return [Answered(said.strip(), each.ended or said != text) for (said, text), each in zip(whole, given, strict=True)]


@contextmanager
def _drawing(seed: int, device: str) -> Iterator[None]:
    """A generator of its own for each batch: what is drawn is the same in a run that goes on."""
    import torch

    with torch.random.fork_rng(devices=[] if device == "cpu" else [torch.cuda.current_device()]):
        torch.manual_seed(seed)
        yield
