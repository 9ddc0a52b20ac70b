"""Verbs and exit codes: 0 done, 1 failed while running, 2 refused, 130 interrupted with a checkpoint saved."""

import contextlib
import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from factory import __version__, compose, schema, settings
from factory.anew import Anew
from factory.anew import compiled as _compiled
from factory.meant import not_a_setting, setting_meant
from factory.plan import Plan, Verb
from factory.ranks.outer import refuse_outer, run_as_rank
from factory.ranks.world import from_environment, launched
from factory.redact import redacted, redacting
from factory.refusal import Refusal, UserError, did_you_mean, refusal, refuse
from factory.run.advice import cheapest
from factory.run.folder import RunFolder
from factory.saved import scores
from factory.typed import Reader, convert, to_tree

if TYPE_CHECKING:
    from factory.inference import asked
    from factory.run.jobs import Job

REFUSED = 2
# the verbs that read a group of keys of their own
OWN = {name: (name,) for name in ("plan", "preview", "compare", "export", "chat", "serve", "board")}
OWN |= dict.fromkeys(("engine", "generation"), ("chat", "serve"))


def main(argv: list[str] | None = None) -> int:
    with contextlib.redirect_stderr(redacting(sys.stderr)):  # what libraries and servers say of their errors too
        return _said(sys.argv[1:] if argv is None else argv)


def _said(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `factory … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO) or error.filename is not None:
            return _our_mistake(error)
        print(f"Standard output cannot be written ({error.strerror}).", file=sys.stderr)
        return 1
    except Exception as error:
        return _our_mistake(error)


def _dispatch(arguments: list[str]) -> int:
    is_verb = arguments and not arguments[0].startswith("-") and "=" not in arguments[0]
    verb, rest = (
        (arguments[0], arguments[1:]) if is_verb and arguments[0][:1] not in ("+", "~") else ("train", arguments)
    )
    if "--help" in arguments or "-h" in arguments or verb == "help":
        from factory.help import overview

        print(overview(VERBS, compose.parse([word for word in rest if word not in ("--help", "-h")]).config_dirs))
        return 0
    if arguments == ["--version"]:
        print(f"factory {__version__}")
        return 0
    if verb not in VERBS and setting_meant(verb, rest):
        raise UserError(not_a_setting(verb, rest))
    if verb not in VERBS:
        wrong = "there is no such verb"
        raise refuse("unknown-verb", verb, wrong, known=", ".join(VERBS), hint=did_you_mean(verb, VERBS))
    return VERBS[verb](rest)


def _composed(line: compose.CommandLine, verb: str) -> compose.Composed:
    _refuse_unread(line, verb)
    return compose.compose(line)


def _refuse_unread(line: compose.CommandLine, verb: str) -> None:
    """The keys of what another verb prints: this one would not look at them."""
    for text in line.overrides:
        group = text.lstrip("+").partition("=")[0].partition(".")[0]
        if group in OWN and verb not in OWN[group]:
            shown = text if group not in ("serve", "board") else text.partition("=")[0]  # which may be a secret
            wrong = f"`factory {verb}` does not read it"
            raise refuse("key-of-another-verb", shown, wrong, verb=" or ".join(OWN[group]))
        if group == "sweep" and not line.multirun:
            raise refuse("sweep-without-multirun", text, "it is read by sweeps alone")


def plan(arguments: list[str]) -> int:
    """compile only: the plan, the estimate, and what this machine lacks; --diff A B: what differs between two plans"""
    if "--diff" in arguments:
        return _diff(arguments)
    line = compose.parse(arguments)
    if line.hydra_flags:
        return _hydras_own(line)
    if line.multirun:
        return _plan_sweep(line)
    if compose.recipe_of_runs(line):
        return _plan_recipe(line)
    composed = _composed(line, "plan")
    shared = tuple(text for text in composed.overrides if not _of_plan(text))  # a plan's own line is one of `train`
    made = _compiled(replace(composed, overrides=shared), training=False)
    form, fits = composed.tree["plan"]["format"], made.estimate.memory.fits
    if convert(bool, composed.tree["plan"]["search"]):
        return _search(made, form, Anew(line.config_dirs))
    changes = [] if fits or form == "yaml" else cheapest(made, None, Anew(line.config_dirs))
    if form == "json":
        from factory.plan import to_json

        told = {} if fits else {"changes": [to_tree(change) for change in changes]}
        print(json.dumps({**to_json(made), **told}, ensure_ascii=False))
    elif form == "yaml":
        from factory.plan import to_yaml

        print(to_yaml(made), end="")
    else:
        from factory.run.plan_shown import changes_text, plan_panel
        from factory.run.screen import Screen

        screen = Screen()
        screen.print(plan_panel(made))
        if not fits:
            screen.print(changes_text(changes), soft_wrap=True)
    return 0


def _search(made: Plan, form: str, anew: Anew) -> int:
    """The best legal settings for the budget."""
    from factory.run import search

    if form == "yaml":
        raise refuse("search-as-yaml", "plan.format=yaml", "a table of settings is no plan")
    found = search.search(made, anew)
    if form == "json":
        from factory.plan import to_json

        print(json.dumps({**to_json(made), "search": search.as_json(found)}, ensure_ascii=False))
    else:
        from factory.run.screen import Screen

        Screen().print(search.as_text(found), soft_wrap=True)
    return 0


def _plan_sweep(line: compose.CommandLine) -> int:
    """Every job of a sweep with its estimate, or why it is refused. 2 where one is."""
    _refuse_unread(line, "plan")
    kept, _ = _of_sweep(line)
    shared, form = _without_form(kept)
    from factory.run import sweep

    return _show_jobs(*sweep.planned(shared, partial(_compiled, training=False)), form)


def _plan_recipe(line: compose.CommandLine) -> int:
    """Every run of a recipe, as far as it is known. 2 where one is refused."""
    _refuse_unread(line, "plan")
    shared, form = _without_form(line)
    from factory.run import chain

    return _show_jobs(chain.planned(shared, partial(_of_recipe, training=False)), True, form)


def _of_recipe(composed: compose.Composed, *, training: bool) -> Plan:
    """The plan of one of a recipe's runs: of method=none there is nothing but to measure."""
    return _compiled(composed, training=training, verb=_verb(composed))


def _verb(composed: compose.Composed) -> Verb:
    return "evaluate" if composed.options.get("method") == "none" else "train"


def _of_plan(override: str) -> bool:
    return override.lstrip("+").startswith("plan.")


def _without_form(line: compose.CommandLine) -> tuple[compose.CommandLine, str]:
    """The line without plan.*, and how several plans are printed."""
    shared = tuple(text for text in line.overrides if not _of_plan(text))
    asked = _settings_of([text for text in line.overrides if text not in shared]).plan
    if asked.format == "yaml":
        raise refuse("plan-of-a-sweep", "plan.format=yaml", "a file holds one plan")
    if asked.search:
        raise refuse("plan-of-a-sweep", "plan.search=true", "the best settings of one run are sought at a time")
    return replace(line, overrides=shared), asked.format


def _show_jobs(found: "Sequence[Job]", known: bool, form: str) -> int:
    """`known`: whether these are the jobs, and not two of those that a sweeper may choose."""
    from factory.run import jobs

    if form == "json":
        print(json.dumps({**jobs.as_json(found), "known": known}, ensure_ascii=False))
    else:
        from factory.run.screen import Screen

        screen = Screen()
        screen.print(jobs.table(found))
        screen.print(jobs.summary(found) if known else jobs.AS_IT_GOES)
    for job in found:
        if job.refusals:
            print(f"\njob {job.name}\n{UserError(*job.refusals)}", file=sys.stderr)
    return REFUSED if any(job.refusals for job in found) else 0


def _of_sweep(line: compose.CommandLine) -> tuple[compose.CommandLine, schema.Sweep]:
    """The keys of the sweep itself, taken from the line. Raises UserError."""
    own = [text for text in line.overrides if text.lstrip("+").startswith("sweep.")]
    kept = tuple(text for text in line.overrides if text not in own)
    return replace(line, overrides=kept), _settings_of(own).sweep


def _settings_of(overrides: Sequence[str]) -> settings.Settings:
    """The settings of these overrides and the defaults. Raises UserError."""
    tree = compose.compose(compose.parse(list(overrides))).tree
    chosen, problems, _ = settings.read(tree, options={}, overrides=(), run_dir="")
    if problems:
        raise UserError(*problems)
    return chosen


def _diff(arguments: list[str]) -> int:
    """Two plans: files, run folders or MLflow run ids."""
    from factory import diff

    at = arguments.index("--diff")
    names, rest = arguments[at + 1 : at + 3], [*arguments[:at], *arguments[at + 3 :]]
    unread = [word for word in rest if not word.startswith(("plan.format=", "tracking.", "tracking="))]
    unnamed = len(names) < 2 or any("=" in name and not Path(name).exists() for name in names)
    if unread or unnamed:
        wrong = "two plans are needed" if unnamed else f"{unread[0]} is not read here"
        raise refuse("diff-what", f"--diff {' '.join(names)}".strip(), wrong)
    chosen = _settings_of(rest)
    one, other = (diff.read(name, chosen.tracking.mlflow) for name in names)
    found = diff.differences(one, other)
    if chosen.plan.format == "json":
        print(json.dumps(diff.as_json(found), ensure_ascii=False))
    else:
        print(diff.as_text(found, (names[0], names[1])))
    return 0


def preview(arguments: list[str]) -> int:
    """the data steps only: what is trained, token by token, and what is dropped or cut; preview.html=PATH: as a page"""
    line = compose.parse(arguments)
    if line.multirun:
        raise refuse("preview-of-a-sweep", "-m", "one preview is shown at a time")
    if line.hydra_flags:
        return _hydras_own(line)
    from factory.preview import show

    composed = _composed(line, "preview")
    asked = composed.tree.get("preview")
    composed = replace(composed, problems=(*composed.problems, *show.unusable(asked)))
    with contextlib.redirect_stdout(sys.stderr):  # what a data function prints is no part of the preview
        made = _compiled(composed, training=False)
    return show.show(made, asked)


def compare(arguments: list[str]) -> int:
    """runs side by side: folders, a sweep's folder, MLflow ids, experiment=NAME or a filter; compare.out=page.html"""
    from factory.compare import show

    read = ("compare.", "tracking.", "tracking=")
    keys = [word for word in arguments if word.lstrip("+").startswith(read) and not Path(word).exists()]
    chosen = _settings_of(keys)
    return show.show([word for word in arguments if word not in keys], chosen.compare, chosen.tracking)


def _hydras_own(line: compose.CommandLine) -> int:
    """--cfg, --info, completion: Hydra prints and nothing runs."""
    completing = {"-sc", "--shell-completion"} & set(line.hydra_flags)  # whose words are no overrides
    given = line.overrides if completing else compose.prepared(line).overrides
    compose.hydra_main(lambda _: None, [*line.hydra_flags, *given], line.config_dirs)
    return 0


def train(arguments: list[str]) -> int:
    """compile, then execute; `--from-plan PLAN` replays a plan file, -m sweeps"""
    if any(word.partition("=")[0] == "--from-plan" for word in arguments):
        return _replay(arguments)
    refuse_outer(" ".join(arguments) or "train")
    line = compose.parse(arguments)
    if line.hydra_flags:
        return _hydras_own(line)
    if line.multirun:
        return _sweep(line)
    if compose.recipe_of_runs(line):
        _refuse_unread(line, "train")
        return _recipe(line, schema.Sweep(resume=None, reuse=False))
    composed = _composed(line, "train")
    if any(text.lstrip("+").startswith("hydra.run.dir=") for text in line.overrides):
        return _run(composed)
    default = composed.run_dir
    while True:
        composed = replace(composed, run_dir=_fresh(default))
        try:
            return _run(composed)
        except UserError as error:
            if {found.rule for found in error.refusals} != {"folder-in-use"}:  # another run of the same second took it
                raise


def _fresh(folder: str) -> str:
    """The default folder is named by the second: another run may have been as quick."""
    number, path = 1, folder
    while Path(path).exists():
        number += 1
        path = f"{folder}-{number}"
    return path


def _run(composed: compose.Composed) -> int:
    made = _compiled(composed, training=True)
    from factory.run.launch import launch
    from factory.run.screen import Screen

    folder = RunFolder(composed.run_dir)
    resume = composed.tree["stage"]["resume"]
    start = "newest" if resume == "auto" else Path(resume) if resume else None
    return launch(made, folder, start, Screen(), Anew(composed.config_dirs))


def _sweep(line: compose.CommandLine) -> int:
    _refuse_unread(line, "train")
    from factory.run import chain
    from factory.run.screen import Screen
    from factory.run.sweep import Verbs, sweep

    kept, asked = _of_sweep(line)
    if asked.resume and chain.is_here(asked.resume):
        return _recipe(kept, asked)
    verbs = Verbs(
        compile=partial(_compiled, training=True),
        run=lambda composed: _job(RunFolder(composed.run_dir), partial(_run, composed)),
        go_on=lambda folder: _job(folder, partial(_go_on, folder)),
    )
    return sweep(kept, asked, verbs, Screen())


def _recipe(line: compose.CommandLine, asked: schema.Sweep) -> int:
    """Runs that may read each other, one after another."""
    from factory.run.chain import chain
    from factory.run.screen import Screen
    from factory.run.sweep import Verbs

    verbs = Verbs(
        compile=partial(_of_recipe, training=True),
        run=lambda composed: _job(RunFolder(composed.run_dir), partial(_run_of_recipe, composed)),
        go_on=lambda folder: _job(folder, partial(_go_on, folder)),
    )
    return chain(line, asked, verbs, Screen())


def _run_of_recipe(composed: compose.Composed) -> int:
    return _measure(composed) if _verb(composed) == "evaluate" else _run(composed)


def _measure(composed: compose.Composed) -> int:
    """A model as it is, in a run's folder."""
    made = _compiled(composed, training=True, verb="evaluate")
    from factory.run.launch import launch
    from factory.run.screen import Screen

    return launch(made, RunFolder(composed.run_dir), None, Screen(), None)


def _job(folder: RunFolder, executed: Callable[[], int]) -> int:
    """One job of a sweep: what ends it must not end the others."""
    try:
        return executed()
    except UserError as error:
        code, text = REFUSED, str(error)
        print(text, file=sys.stderr)
    except Exception as error:
        return _our_mistake(error, folder.path)
    with contextlib.suppress(OSError):  # a full disk, which is most often what was just told
        folder.path.mkdir(parents=True, exist_ok=True)
        with folder.log.open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")
    return code


def _replay(arguments: list[str]) -> int:
    """Executes a plan file as it is. Only places may be changed: hydra.run.dir and tracking."""
    from factory.look.machine import look_at_machine
    from factory.plan import read_plan
    from factory.tracking.later import unusable

    path, rest = _from_plan(arguments)
    made = read_plan(Path(path))
    run_dir, problems, own = None, list[Refusal](), [text for text in rest if _of_tracking(text)]
    for text in rest:
        name, _, value = text.lstrip("+").partition("=")
        if name == "hydra.run.dir" and value:
            run_dir = value
        elif text not in own:
            problems.append(refusal("fixed-by-the-plan", text, "a plan is replayed as it is"))
    tracking = replace(made.tracking, parent_run=None, **_chosen_tracking(own))
    problems += unusable(tracking, look_at_machine().packages)
    if problems:
        raise UserError(*problems)
    if launched():
        if run_dir is None:
            raise refuse("rank-folder", "hydra.run.dir", "it is not set")
        return run_as_rank(replace(made, tracking=tracking), RunFolder(run_dir), from_environment())
    if made.steps.train.ranks.nodes > 1:
        wrong = "processes are started on this machine only"
        raise refuse("nodes-need-launcher", f"hardware.num_nodes={made.steps.train.ranks.nodes}", wrong)
    folder = RunFolder(run_dir or _fresh(datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S")))
    if folder.plan.exists():
        raise refuse("folder-taken", f"hydra.run.dir={folder.path}", "there is a run in it")
    return _launch_checked(replace(made, tracking=tracking), folder, None)


def _of_tracking(text: str) -> bool:
    key = text.lstrip("+").partition("=")[0]
    return key == "tracking" or (key.startswith("tracking.") and key != "tracking.parent_run")


def _chosen_tracking(texts: Sequence[str]) -> dict[str, Any]:
    """The keys of tracking that these overrides set. Raises UserError."""
    if not texts:
        return {}
    chosen = to_tree(_settings_of(texts).tracking)
    del chosen["parent_run"]
    if any(text.lstrip("+").startswith("tracking=") for text in texts):
        return chosen
    return {name: chosen[name] for name in (text.partition("=")[0].split(".")[1] for text in texts)}


def _launch_checked(made: Plan, folder: RunFolder, start: Literal["newest"] | None) -> int:
    """Launches a plan that was not compiled just now, if what it was made from is still so."""
    from factory.execute.verify import verify
    from factory.run.launch import launch
    from factory.run.screen import Screen

    verify(made)
    return launch(made, folder, start, Screen(), Anew())


def _from_plan(arguments: list[str]) -> tuple[str, list[str]]:
    rest = list(arguments)
    at = next(index for index, word in enumerate(rest) if word.partition("=")[0] == "--from-plan")
    _, equals, path = rest.pop(at).partition("=")
    if not equals:
        path = rest.pop(at) if at < len(rest) else ""
    if not path:
        raise refuse("plan-missing", "--from-plan", "no file is named")
    return path, rest


def evaluate(arguments: list[str]) -> int:
    """measure a model, or run=FOLDER (a run's, a saved model's, or an MLflow run's id), on the held-out rows"""
    line = compose.parse(arguments)
    if line.multirun:
        raise refuse("plan-of-a-sweep", "-m", "one model is evaluated at a time")
    if line.hydra_flags:
        return _hydras_own(line)
    _refuse_unread(line, "evaluate")
    composed = _untrained(line)
    if not any(text.lstrip("+").startswith("hydra.run.dir=") for text in line.overrides):
        composed = replace(composed, run_dir=_fresh(composed.run_dir))
    return _measure(composed)


def _untrained(
    line: compose.CommandLine,
    taken: Callable[[tuple[str, ...]], tuple[str, ...]] = lambda overrides: overrides,
    *,
    base: bool = False,
) -> compose.Composed:
    """What the user says, over what the run that is named was made with; its method's own keys are of no use.

    `taken`: what of the run's overrides counts. `base`: the model that the run started from, instead of its own.
    """
    from factory.saved import merged, saved

    named = [text for text in line.overrides if text.startswith("run=")]
    own = tuple(text for text in line.overrides if not text.startswith("run="))
    if method := next((text for text in own if text.lstrip("+").startswith("method=")), None):
        raise refuse("evaluate-method", method, "no method is read")
    if not named:
        return compose.compose(replace(line, overrides=(*own, "method=none")))
    bare = compose.compose(replace(line, overrides=(*(text for text in own if _of_method(text)), "method=none")))
    asked = bare.tree["tracking"]
    found = saved(named[-1].partition("=")[2], asked.get("uri") if asked.get("tool") == "mlflow" else None)
    made = compose.compose(replace(line, overrides=merged(taken(found.overrides), own)))
    method = dict(bare.tree["method"])
    if found.quantization is not None and not any(_of_method(text) for text in own):  # as the run held its base
        method["quantization"] = to_tree(found.quantization)
    places = {name: value for name, value in (("path", found.path), ("adapter", found.adapter)) if value is not None}
    if base:
        if not found.overrides and found.adapter is None:
            raise refuse(
                "chat-compare", named[-1], "of a saved model without its run nobody knows what it started from"
            )
        places = {} if found.overrides else {"path": found.path}
    tree = {**made.tree, "method": method, "model": {**made.tree["model"], **places}}
    return replace(made, tree=tree, options={**made.options, "method": "none"}, run=found.run)


def export(arguments: list[str]) -> int:
    """write run=FOLDER's model, or model=…, to export.dir for others: merged weights, an adapter, GGUF; to the hub"""
    line = compose.parse(arguments)
    if line.multirun:
        raise refuse("plan-of-a-sweep", "-m", "one model is exported at a time")
    if line.hydra_flags:
        return _hydras_own(line)
    composed = _exported(line)
    if not any(text.lstrip("+").startswith("hydra.run.dir=") for text in line.overrides):
        composed = replace(composed, run_dir=_fresh(composed.run_dir))
    made = _compiled(composed, training=True, verb="export")
    from factory.run.launch import launch
    from factory.run.screen import Screen

    return launch(made, RunFolder(composed.run_dir), None, Screen(), None)


_EXPORTING = ("run", "model", "export", "hardware", "tracking", "hydra", "seed")  # groups that an export reads


def _exported(line: compose.CommandLine) -> compose.Composed:
    """The model of what is named, in float32 and without data; all else as it is by default or as the user says."""
    for text in line.overrides:
        group = text.lstrip("+~").partition("=")[0].split(".")[0].split("/")[0]
        if group not in _EXPORTING and not text.lstrip("+").startswith("method.quantization."):
            raise refuse("export-key", text, "an export does not read it")
    composed = _untrained(line)
    place = composed.tree["model"]
    heads = "rm" if scores(place["adapter"], place["path"]) else "sft"
    own = tuple(text for text in line.overrides if not text.startswith(("run=", "model=", "model.")))
    bare = compose.compose(replace(line, overrides=(*own, "method=none", f"stage={heads}", "precision=fp32")))
    tree = {
        **bare.tree,
        "model": {**place, "rope_scaling": "none"},  # the saved config has them
        "method": composed.tree["method"],
        "seed": composed.tree["seed"],  # of rows of the embedding that nobody trained
        "data": {**bare.tree["data"], "sources": {}},
        "evaluate": {**bare.tree["evaluate"], "perplexity": False, "samples": 0},
        "export": {**bare.tree["export"], "run": composed.run},
    }
    options = {**bare.options, "model": composed.options["model"]}
    del options["data"]
    return replace(composed, tree=tree, options=options, overrides=line.overrides)


def _of_method(text: str) -> bool:
    return text.lstrip("+").startswith(("method.", "tracking."))


def chat(arguments: list[str]) -> int:
    """a conversation with a model or run=FOLDER in the terminal; compare=[base,run]: two of them side by side"""
    from factory.inference import asked

    line = compose.parse(arguments)
    if line.hydra_flags:
        return _hydras_own(line)
    own = _taken_apart("chat", line)
    compared = [text for text in own.overrides if text.lstrip("+").startswith("chat.compare=")]
    chosen = _settings_of(compared).chat.compare if compared else ()
    sides = asked.sides(asked.named_run(own), chosen)
    made = [_to_write("chat", line, own, side) for side in sides]
    from factory.chat import show

    return show.show([show.Asked(side, plan) for side, (plan, _) in zip(sides, made, strict=True)], made[0][1])


def serve(arguments: list[str]) -> int:
    """an OpenAI-style API (chat, completions, embeddings, scores) for a model or run=FOLDER, on 127.0.0.1:8000"""
    from factory.inference import asked

    line = compose.parse(arguments)
    if line.hydra_flags:
        return _hydras_own(line)
    own = _taken_apart("serve", line)
    (side,) = asked.sides(asked.named_run(own), ())
    made, chosen = _to_write("serve", line, own, side)
    from factory.serve import show

    return show.show(made, chosen, side, own.secret)


def board(arguments: list[str]) -> int:
    """the page in the browser: configure, preview, train, compare, chat, export, on 127.0.0.1:7860"""
    line = compose.parse(arguments)
    if line.multirun:
        raise refuse("plan-of-a-sweep", "-m", "one page is opened at a time")
    if line.hydra_flags:
        return _hydras_own(line)
    asked = _composed(line, "board").tree["board"]
    reader = Reader()
    chosen = reader.record(schema.Board, asked, "board")
    if reader.problems:
        raise UserError(*reader.problems)
    from factory.board import server

    server.serve(chosen, line.config_dirs)
    return 0


def _taken_apart(verb: Verb, line: compose.CommandLine) -> "asked.Line":
    from factory.inference import asked

    if line.multirun:
        raise refuse("plan-of-a-sweep", "-m", f"one `factory {verb}` runs at a time")
    return asked.taken_apart(verb, line.overrides)


def _to_write(
    verb: Verb, line: compose.CommandLine, own: "asked.Line", side: "asked.Side"
) -> tuple[Plan, settings.Settings]:
    """The plan of a model that writes, and the settings beside it. Nothing is written into a folder."""
    from factory.inference import asked

    words = replace(line, overrides=asked.with_run(own, side.run))
    composed = replace(_untrained(words, asked.of_run, base=side.base), run_dir=asked.NOWHERE)
    made = _compiled(composed, training=True, verb=verb)
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    chosen, _, _ = settings.read(
        composed.tree, options=composed.options, overrides=composed.overrides, run_dir=composed.run_dir, verb=verb
    )
    return made, chosen


def resume(arguments: list[str]) -> int:
    """continue an interrupted run's FOLDER from its newest whole checkpoint"""
    refuse_outer(f"resume {' '.join(arguments)}")
    if len(arguments) != 1:
        raise refuse("resume-what", " ".join(arguments) or "(nothing)", "one folder is needed")
    folder = RunFolder(arguments[0])
    if not folder.plan.is_file():
        raise refuse("resume-missing", arguments[0], "there is no plan.yaml in it")
    if folder.status() == "finished":
        raise refuse("resume-finished", arguments[0], "the run is finished")
    return _go_on(folder)


def _go_on(folder: RunFolder) -> int:
    from factory.plan import read_plan

    return _launch_checked(read_plan(folder.plan), folder, "newest")


def track(arguments: list[str]) -> int:
    """send what of a run's or a sweep's FOLDER did not reach its tracking; tracking.uri=ADDRESS for another place"""
    from factory.look.machine import look_at_machine
    from factory.run import sweep
    from factory.tracking import later

    own = [word for word in arguments if _of_tracking(word)]
    folders = [word for word in arguments if word not in own]
    if len(folders) != 1:
        raise refuse("track-what", " ".join(folders) or "(nothing)", "one folder is needed")
    chosen = _chosen_tracking(own)
    if problems := later.unusable_in(folders[0], chosen, look_at_machine().packages):
        raise UserError(*problems)
    if later.is_sweep(folders[0]):
        found = sweep.tracked(folders[0], chosen)
    else:
        found = [later.of_run(RunFolder(folders[0]), chosen)]
    for each in found:
        print(each, file=sys.stderr if each.problem else sys.stdout)
    return 1 if any(each.problem for each in found) else 0


def explain(arguments: list[str]) -> int:
    """a key's (or a group's) meaning, type, range, default, and the rules that read it"""
    from factory.help import explained

    if len(arguments) != 1:
        raise refuse("explain-what", " ".join(arguments) or "(nothing)", "one key or group is needed")
    print(explained(arguments[0]))
    return 0


def models(arguments: list[str]) -> int:
    """the options of `model`, filtered by words: models llama apache; models vision; models.format=json"""
    from factory.models import as_json, rows, table

    line = compose.parse(arguments)
    keys = [word for word in line.overrides if "=" in word]
    asked = keys[-1].partition("=")[2] if keys else "text"
    for word in keys:
        if word not in ("models.format=json", "models.format=text"):
            raise refuse("models-key", word, "this verb reads models.format=text or json, and words")
    found = rows(tuple(word for word in line.overrides if "=" not in word), line.config_dirs)
    if asked == "json":
        print(json.dumps(as_json(found), ensure_ascii=False))
    else:
        from factory.run.screen import Screen

        screen = Screen()
        screen.print(table(found, width=screen.console.width))
    return 0


def doctor(arguments: list[str]) -> int:
    """the machine and the installation: what is there, what is missing, what to do; doctor.format=json"""
    from factory import doctor

    return doctor.main(arguments)


def import_config(arguments: list[str]) -> int:
    """a train config of LLaMA-Factory (FILE.yaml) as a command line of this one, with what has no equal, and why"""
    from factory.imported import llamafactory

    if len(arguments) != 1:
        raise refuse("import-what", " ".join(arguments) or "(nothing)", "one file is needed")
    said = llamafactory.translate(Path(arguments[0]))
    overrides = said.as_overrides()
    try:
        _compiled(compose.compose(compose.parse(list(overrides))), training=False)
        refused = []
    except UserError as error:
        refused = str(error).splitlines()
    print("\n".join(llamafactory.as_script(arguments[0], said, refused)))
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "plan": plan,
    "preview": preview,
    "evaluate": evaluate,
    "export": export,
    "chat": chat,
    "serve": serve,
    "board": board,
    "compare": compare,
    "resume": resume,
    "track": track,
    "models": models,
    "explain": explain,
    "doctor": doctor,
    "import-config": import_config,
}


def _our_mistake(error: Exception, folder: Path | None = None) -> int:
    """A traceback is ours, not the user's: it goes to a log, one line says where."""
    log = (folder or Path("outputs")) / "run.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(redacted("".join(traceback.format_exception(error))))
        where = f"the traceback is in {log}"
    except OSError:
        where = "no log could be written"
    first = str(error).splitlines()[0] if str(error) else ""
    print(f"Internal error ({type(error).__name__}: {first}); {where}", file=sys.stderr)
    return 1
