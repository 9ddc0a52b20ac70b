"""The verb `plan`: of one run, of a sweep, of a recipe, or what differs between two."""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from factory.config import compose
from factory.config.line import name_of
from factory.config.refusal import UserError, refuse
from factory.config.values import to_tree
from factory.execute.__main__ import REFUSED
from factory.plan import diff
from factory.plan.anew import Anew, compiled
from factory.plan.plan import Plan, read_plan, to_json, to_yaml
from factory.run.advice import cheapest
from factory.run.folder import RunFolder, is_mlflow_id
from factory.tracking import from_mlflow
from factory.verbs import composed as composed_of
from factory.verbs import parsed, plan_of_a_sweep, refuse_unread, settings_of
from factory.verbs.train import of_recipe, of_sweep

_EXAMPLE = "--diff outputs/DATE/ONE outputs/DATE/OTHER"

if TYPE_CHECKING:
    from factory.run.jobs import Job


def plan(arguments: list[str]) -> int:
    """compile only: the plan, the estimate, and what this machine lacks; --diff A B: what differs between two plans"""
    if any(word.partition("=")[0] == "--diff" for word in arguments):
        return _diff(arguments)
    if (line := parsed(arguments, "plan")) is None:
        return 0
    if line.multirun:
        return _plan_sweep(line)
    if compose.recipe_of_runs(line):
        return _plan_recipe(line)
    composed = composed_of(line, "plan")
    shared = tuple(text for text in composed.overrides if not _of_plan(text))  # a plan's own line is one of `train`
    made = compiled(replace(composed, overrides=shared), training=False)
    form, too_large = composed.tree["plan"]["format"], made.estimate.memory.fits is False
    if composed.tree["plan"]["search"]:
        return _search(made, form, Anew(line.config_dirs))
    changes = cheapest(made, None, Anew(line.config_dirs)) if too_large and form != "yaml" else []
    if form == "json":
        told = {"changes": [to_tree(change) for change in changes]} if too_large else {}
        print(json.dumps({**to_json(made), **told}, ensure_ascii=False))
    elif form == "yaml":
        print(to_yaml(made), end="")
    else:
        from factory.run.plan_shown import changes_text, plan_panel
        from factory.run.screen import Screen

        screen = Screen()
        screen.print(plan_panel(made))
        if too_large:
            screen.print(changes_text(changes), soft_wrap=True)
    return 0


def _search(made: Plan, form: str, anew: Anew) -> int:
    """The best legal settings for the budget."""
    from factory.run import search

    if form == "yaml":
        raise refuse(
            "search-as-yaml",
            "plan.format=yaml",
            "a table of settings is no plan",
            because="plan.yaml is what a run replays, and a search finds many",
            fix="set plan.format=json or text, and ask for one of its rows with plan.format=yaml",
        )
    if made.estimate.memory.capacity is None:
        raise refuse(
            "search-without-memory",
            "hardware.memory=null",
            "no such card is here, and nothing says what it has",
            because="settings are searched that fit what there is, and this machine's own memory is not the card's",
            fix=(
                "set hardware.memory to what the card has, as in hardware.memory=80GB, or name it, as in "
                "hardware=h100_80gb"
            ),
        )
    found = search.search(made, anew)
    if form == "json":
        print(json.dumps({**to_json(made), "search": search.as_json(found)}, ensure_ascii=False))
    else:
        from factory.run.screen import Screen

        screen = Screen()
        screen.print(search.as_text(found, screen.console.width), soft_wrap=True)
    return 0


def _plan_sweep(line: compose.CommandLine) -> int:
    """Every job of a sweep with its estimate, or why it is refused. 2 where one is."""
    refuse_unread(line, "plan")
    kept, _ = of_sweep(line)
    shared, form = _without_form(kept)
    from factory.run import sweep

    return _show_jobs(*sweep.planned(shared, partial(compiled, training=False)), form)


def _plan_recipe(line: compose.CommandLine) -> int:
    """Every run of a recipe, as far as it is known. 2 where one is refused."""
    refuse_unread(line, "plan")
    shared, form = _without_form(line)
    from factory.run import chain

    return _show_jobs(chain.planned(shared, partial(of_recipe, training=False)), True, form)


def _of_plan(override: str) -> bool:
    return name_of(override).startswith("plan.")


def _without_form(line: compose.CommandLine) -> tuple[compose.CommandLine, str]:
    """The line without plan.*, and how several plans are printed."""
    shared = tuple(text for text in line.overrides if not _of_plan(text))
    asked = settings_of([text for text in line.overrides if text not in shared], "plan").plan
    if asked.format == "yaml":
        raise plan_of_a_sweep("plan.format=yaml", "a file holds one plan")
    if asked.search:
        raise plan_of_a_sweep("plan.search=true", "the best settings of one run are sought at a time")
    return replace(line, overrides=shared), asked.format


def _show_jobs(found: "Sequence[Job]", known: bool, form: str) -> int:
    """`known`: whether these are the jobs, and not two of those that a sweeper may choose."""
    from factory.run import jobs

    if form == "json":
        print(json.dumps({**jobs.as_json(found), "known": known}, ensure_ascii=False))
    else:
        from factory.run.screen import Screen

        screen = Screen()
        screen.print(jobs.Shown(found))
        screen.print(jobs.summary(found) if known else jobs.AS_IT_GOES)
    for job in found:
        if job.refusals:
            print(f"\njob {job.name}\n{UserError(*job.refusals)}", file=sys.stderr)
    return REFUSED if any(job.refusals for job in found) else 0


def _diff(arguments: list[str]) -> int:
    """Two plans: files, run folders or MLflow run ids."""
    at = next(place for place, word in enumerate(arguments) if word.partition("=")[0] == "--diff")
    _, equals, first = arguments[at].partition("=")
    given = [first] * bool(equals) + arguments[at + 1 :]
    names, rest = given[:2], [*arguments[:at], *given[2:]]
    unread = [word for word in rest if not word.startswith(("plan.format=", "tracking.", "tracking="))]
    unnamed = len(names) < 2 or any("=" in name and not Path(name).exists() for name in names)
    if unread or unnamed:
        wrong = "two plans are needed" if unnamed else f"{unread[0]} is not read here"
        raise refuse(
            "diff-what",
            f"--diff {' '.join(names)}".strip(),
            wrong,
            because="two plans are compared as they are: files, folders of runs, or ids of MLflow runs",
            fix=(
                "as in: factory plan --diff outputs/DATE/ONE outputs/DATE/OTHER [plan.format=json] "
                "[tracking.uri=ADDRESS]"
            ),
        )
    chosen = settings_of(rest, "plan")
    one, other = (plan_named(name, chosen.tracking.mlflow) for name in names)
    found = diff.differences(one, other)
    if chosen.plan.format == "json":
        print(json.dumps(diff.as_json(found), ensure_ascii=False))
    else:
        from factory.plan.diff_shown import as_text
        from factory.run.screen import console

        print(as_text(found, (names[0], names[1]), console().width))
    return 0


def plan_named(name: str, tracking_uri: str | None) -> Plan:
    """The plan of a plan file, a run's folder or an MLflow run's id. Raises UserError."""
    path = Path(name)
    if path.is_dir():
        return read_plan(RunFolder(path).plan, setting=f"--diff {name}", example=_EXAMPLE)
    if not path.exists() and is_mlflow_id(name):
        return _of_mlflow(name, tracking_uri)
    return read_plan(path, setting=f"--diff {name}", example=_EXAMPLE)


def _of_mlflow(run: str, uri: str | None) -> Plan:
    setting = f"--diff {run}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            client = from_mlflow.reader(uri)
            from_mlflow.run_of(client, run, str(uri))
            found = from_mlflow.artifact(client, run, "plan.yaml", folder)
        except from_mlflow.Unknown as unknown:
            raise refuse(
                "plan-missing",
                setting,
                str(unknown),
                because="there is no plan to read",
                fix=f"name one, as in {_EXAMPLE}",
            ) from None
        return read_plan(found, setting=setting, example=_EXAMPLE)
