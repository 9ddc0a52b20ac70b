"""The verbs that train or go on with it: train (a run, a sweep, a recipe, a plan again), resume, track."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from factory.config import compose
from factory.config.line import name_of, names_a_folder, setting, unquoted
from factory.config.refusal import Refusal, UserError, refusal, refuse
from factory.config.settings import Sweep
from factory.config.values import to_tree
from factory.config.words import program
from factory.execute.__main__ import REFUSED
from factory.execute.verify import verify
from factory.plan.anew import Anew, compiled
from factory.plan.inspect.machine import look_at_machine
from factory.plan.plan import PLAN_EXAMPLE, Plan, Verb, read_plan
from factory.plan.replayed import lacking
from factory.ranks.outer import refuse_outer, run_as_rank
from factory.ranks.world import from_environment, launched
from factory.run.folder import RunFolder, fresh, last_here, taken
from factory.run.swept import SweepFolder
from factory.verbs import composed as composed_of
from factory.verbs import our_mistake, parsed, refuse_unread, settings_of

if TYPE_CHECKING:
    from factory.run.sweep import Verbs


def train(arguments: list[str]) -> int:
    """compile, then execute; `--from-plan PLAN` replays a plan file, -m sweeps"""
    if any(word.partition("=")[0] == "--from-plan" for word in arguments):
        return _replay(arguments)
    refuse_outer(" ".join(arguments) or "train")
    if (line := parsed(arguments, "train")) is None:
        return 0
    if line.multirun:
        return _sweep(line)
    if compose.recipe_of_runs(line):
        refuse_unread(line, "train")
        return _recipe(line, Sweep(resume=None, reuse=False))
    composed = composed_of(line, "train")
    if names_a_folder(line):
        return _run(composed)
    default = composed.run_dir
    return _in_a_new_folder(lambda: _run(replace(composed, run_dir=fresh(default))))


def _in_a_new_folder(run: Callable[[], int]) -> int:
    while True:
        try:
            return run()
        except UserError as error:
            if {found.rule for found in error.refusals} != {"folder-in-use"}:  # another run of the same second took it
                raise


def _run(composed: compose.Composed) -> int:
    made = compiled(composed, training=True)
    resume = composed.tree["stage"]["resume"]
    start = "newest" if resume == "auto" else Path(resume) if resume else None
    return _launch(made, RunFolder(composed.run_dir), start, Anew(composed.config_dirs))


def _launch(made: Plan, folder: RunFolder, start: Path | Literal["newest"] | None, anew: Anew | None) -> int:
    from factory.run.launch import launch
    from factory.run.screen import Screen

    return launch(made, folder, start, Screen(), anew)


def _sweep(line: compose.CommandLine) -> int:
    refuse_unread(line, "train")
    from factory.run.screen import Screen
    from factory.run.sweep import sweep

    kept, asked = of_sweep(line)
    if asked.resume and SweepFolder(asked.resume).is_of_a_recipe():
        return _recipe(kept, asked)
    made = partial(sweep, kept, asked, _of_jobs(compiled, _run), Screen())
    return made() if _has_a_folder(kept, asked) else _in_a_new_folder(made)


def of_sweep(line: compose.CommandLine) -> tuple[compose.CommandLine, Sweep]:
    """The keys of the sweep itself, taken from the line. Raises UserError."""
    own = [text for text in line.overrides if name_of(text).startswith("sweep.")]
    kept = tuple(text for text in line.overrides if text not in own)
    return replace(line, overrides=kept), settings_of(own, "sweep").sweep


def _recipe(line: compose.CommandLine, asked: Sweep) -> int:
    """Runs that may read each other, one after another."""
    from factory.run.chain import chain
    from factory.run.screen import Screen

    made = partial(chain, line, asked, _of_jobs(of_recipe, _run_of_recipe), Screen())
    return made() if _has_a_folder(line, asked) else _in_a_new_folder(made)


def _has_a_folder(line: compose.CommandLine, asked: Sweep) -> bool:
    return asked.resume is not None or names_a_folder(line, "hydra.sweep.dir")


def _of_jobs(planned: Callable[..., Plan], run: Callable[[compose.Composed], int]) -> "Verbs":
    from factory.run.sweep import Verbs

    return Verbs(
        compile=partial(planned, training=True),
        run=lambda composed: _job(RunFolder(composed.run_dir), partial(run, composed)),
        go_on=lambda folder: _job(folder, partial(_go_on, folder)),
    )


def of_recipe(composed: compose.Composed, *, training: bool) -> Plan:
    """The plan of one of a recipe's runs: of method=none there is nothing but to measure."""
    return compiled(composed, training=training, verb=_verb(composed))


def _verb(composed: compose.Composed) -> Verb:
    return "evaluate" if composed.options.get("method") == "none" else "train"


def _run_of_recipe(composed: compose.Composed) -> int:
    return done_once(composed, "evaluate") if _verb(composed) == "evaluate" else _run(composed)


def done_once(composed: compose.Composed, verb: Verb, said: tuple[str, ...] | None = None) -> int:
    """In a run's folder, what trains nothing: there is no checkpoint, and nothing cheaper to advise.

    `said`: the command's own overrides, where those that are composed are a run's too. The plan tells of these.
    """
    made = compiled(composed, training=True, verb=verb)
    made = made if said is None else made.with_settings(overrides=said)
    return _launch(made, RunFolder(composed.run_dir), None, None)


def in_a_folder(line: compose.CommandLine, composed: compose.Composed) -> compose.Composed:
    """The one that the line names, or a new one."""
    return composed if names_a_folder(line) else replace(composed, run_dir=fresh(composed.run_dir))


def _job(folder: RunFolder, executed: Callable[[], int]) -> int:
    """One job of a sweep: what ends it must not end the others."""
    try:
        return executed()
    except UserError as error:
        code, text = REFUSED, str(error)
        print(text, file=sys.stderr)
    except Exception as error:
        return our_mistake(error, folder.path)
    with contextlib.suppress(OSError):  # a full disk, which is most often what was just told
        folder.path.mkdir(parents=True, exist_ok=True)
        with folder.log.open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")
    return code


def _replay(arguments: list[str]) -> int:
    """Executes a plan file as it is. Only places may be changed: hydra.run.dir and tracking."""
    from factory.tracking.later import unusable

    path, rest = _from_plan(arguments)
    made = read_plan(Path(path))
    run_dir, problems, own = None, list[Refusal](), [text for text in rest if _of_tracking(text)]
    for text in rest:
        name, _, value = text.lstrip("+").partition("=")
        if name == "hydra.run.dir" and (place := unquoted(value)):
            run_dir = place
        elif text not in own:
            problems.append(
                refusal(
                    "fixed-by-the-plan",
                    text,
                    "a plan is replayed as it is",
                    because="its rules were checked with the values that it holds",
                    fix="change only hydra.run.dir and tracking.*, or compile a new plan without --from-plan",
                )
            )
    tracking = made.settings.tracking.model_copy(update={"parent_run": None, **_chosen_tracking(own)})
    problems += unusable(tracking, look_at_machine().packages)
    if problems:
        raise UserError(*problems)
    if launched():
        if run_dir is None:
            raise refuse(
                "rank-folder",
                "hydra.run.dir",
                "it is not set",
                because="all ranks write into and read from one folder, and each would name another by its own clock",
                fix="set hydra.run.dir to a folder that every node reaches",
            )
        _refuse_lacking(made)
        return run_as_rank(made.with_settings(tracking=tracking), RunFolder(run_dir), from_environment())
    if made.settings.hardware.num_nodes > 1:
        wrong = "processes are started on this machine only"
        raise refuse(
            "nodes-need-launcher",
            f"hardware.num_nodes={made.settings.hardware.num_nodes}",
            wrong,
            because="what starts processes on several machines (torchrun, Slurm, Ray) is outside of Factory",
            fix=(
                "write the plan with `factory plan … plan.format=yaml > plan.yaml`, and let each node run "
                "`torchrun … -m factory train --from-plan plan.yaml hydra.run.dir=…` (docs/scaling.md)"
            ),
            machine=True,
        )
    folder = RunFolder(run_dir or fresh(datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S")))
    if folder.plan.exists():
        raise UserError(taken(folder.path, finished=folder.status() == "finished"))
    return _launch_checked(made.with_settings(tracking=tracking), folder, None)


def _of_tracking(text: str) -> bool:
    key = name_of(text)
    return key == "tracking" or (key.startswith("tracking.") and key != "tracking.parent_run")


def _chosen_tracking(texts: Sequence[str]) -> dict[str, Any]:
    """The keys of tracking that these overrides set. Raises UserError."""
    if not texts:
        return {}
    chosen = to_tree(settings_of(texts).tracking)
    del chosen["parent_run"]
    if "tracking" in map(name_of, texts):
        return chosen
    return {name: chosen[name] for name in (name_of(text).split(".")[1] for text in texts)}


def _launch_checked(made: Plan, folder: RunFolder, start: Literal["newest"] | None) -> int:
    """Launches a plan that was not compiled just now, if what it was made from is still so and this machine has it."""
    verify(made)
    _refuse_lacking(made)
    return _launch(made, folder, start, Anew(made.config_dirs))


def _refuse_lacking(made: Plan) -> None:
    if found := lacking(made, look_at_machine(), launched=launched()):
        raise UserError(*found)


def _from_plan(arguments: list[str]) -> tuple[str, list[str]]:
    rest = list(arguments)
    at = next(index for index, word in enumerate(rest) if word.partition("=")[0] == "--from-plan")
    _, equals, path = rest.pop(at).partition("=")
    if not equals:
        path = rest.pop(at) if at < len(rest) else ""
    if not path:
        raise refuse(
            "plan-missing",
            "--from-plan",
            "no file is named",
            because="there is no plan to read",
            fix=f"name one, as in {PLAN_EXAMPLE}",
        )
    return path, rest


def resume(arguments: list[str]) -> int:
    """continue an interrupted run's FOLDER from its newest whole checkpoint"""
    refuse_outer(f"resume {' '.join(arguments)}")
    if len(arguments) != 1:
        raise refuse(
            "resume-what",
            " ".join(arguments) or "(nothing)",
            "one folder is needed",
            because="a run is continued as its plan says, without overrides",
            fix="factory resume outputs/DATE/TIME",
        )
    folder = RunFolder(arguments[0])
    if not folder.plan.is_file():
        if SweepFolder(folder.path).is_there():
            hint = f"{program('factory')} -m {setting('sweep.resume', folder.path)} goes on with it; "
            raise _resume_missing(arguments[0], "it is a sweep's", hint=hint)
        wrong = "there is no plan.yaml in it" if folder.path.exists() else "there is no such folder"
        raise _resume_missing(arguments[0], wrong, hint=last_here())
    if folder.status() == "finished":
        raise refuse(
            "resume-finished",
            arguments[0],
            "the run is finished",
            because="nothing is left to do",
            fix="see report.json; what its tracking misses is sent by `factory track FOLDER`",
        )
    return _go_on(folder)


def _go_on(folder: RunFolder) -> int:
    return _launch_checked(read_plan(folder.plan, setting=f"resume {folder.path}"), folder, "newest")


def track(arguments: list[str]) -> int:
    """send what of a run's or a sweep's FOLDER did not reach its tracking; tracking.uri=ADDRESS for another place"""
    from factory.run import sweep
    from factory.tracking import later

    own = [word for word in arguments if _of_tracking(word)]
    folders = [word for word in arguments if word not in own]
    if len(folders) != 1:
        raise refuse(
            "track-what",
            " ".join(folders) or "(nothing)",
            "one folder is needed",
            because="what a run's or a sweep's folder holds is sent",
            fix="as in: factory track outputs/DATE/TIME [tracking.uri=ADDRESS] [tracking.experiment=NAME]",
        )
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


def _resume_missing(setting: str, wrong: str, hint: str) -> UserError:
    return refuse(
        "resume-missing",
        setting,
        wrong,
        because="it is not a run's folder",
        fix=f"{hint}name the folder that the run printed",
    )
