"""A recipe of several runs: all compiled first, as far as can be, then run in order; each may read a run before it."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from factory.compare.runs import red
from factory.config import compose, groups, registry, sweeps
from factory.config.line import again, name_of, spelt
from factory.config.refusal import Refusal, UserError, did_you_mean, refusal, refuse
from factory.config.settings import Settings, Sweep
from factory.config.values import plain
from factory.execute.__main__ import INTERRUPTED, REFUSED
from factory.execute.context import STARTED
from factory.plan.bases import words
from factory.plan.facts import Facts
from factory.plan.plan import Plan
from factory.plan.saved import BEFORE, positions
from factory.run import jobs
from factory.run.awaited import Awaited, as_model, as_reward
from factory.run.folder import RunFolder, read_json
from factory.run.jobs import Compile, Job
from factory.run.screen import Screen
from factory.run.sweep import Verbs, begun, beside, closed, noted, placed, recorded, refuse_secrets, worked_through
from factory.run.swept import SweepFolder, code_of

_recipe_form = partial(
    refusal,
    "recipe-form",
    because=(
        "such a file holds `runs` (by name a list of key=value, in the order in which they run) and "
        "`shared` (a list for all)"
    ),
    fix="write it so; what differs between runs belongs to each run's list",
)
_recipe_folder = partial(
    refusal,
    "recipe-folder",
    because="one folder holds one run",
    fix="set hydra.sweep.dir, under which each run gets a folder of its name",
)

_READING = re.compile(r"([\w.]+)=\$\{run:([^}]*)\}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")  # it becomes a folder's
_NAMING = ("stage", "method", "stage.reward_model")  # what a run of a recipe is, where the recipe says it of one
_HELD = "method.quantization"
_FOLDER, _APART = "hydra.run.dir", "each of several runs has a folder of its own"
_READS = "${run:"  # how a value that reads a run starts
_OWN = "runs."  # how an override for one run starts
_READERS = ("model", "stage.reward_model")  # keys that may read a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One run of the recipe. `reads` is {key: the run whose model it takes}, which `overrides` have not.

    `own` are the keys that are set for it alone.
    """

    name: str
    overrides: tuple[str, ...]
    reads: dict[str, str]
    own: frozenset[str]


def links(line: compose.CommandLine) -> list[Link]:
    """The recipe's runs with the command line's overrides. Raises UserError with all that is wrong."""
    found = compose.recipe_of_runs(line)
    assert found is not None
    recipe, content = found
    file = f"recipe={recipe}"
    if problems := list(_malformed(file, content)):
        raise UserError(*problems)
    runs = {str(name): texts for name, texts in content["runs"].items()}
    shared = content.get("shared", [])
    if problems := [*_misread(file, shared, runs), *_unusable(line, runs)]:
        raise UserError(*problems)
    given = [text for text in line.overrides if name_of(text) != "recipe" and not name_of(text).startswith(_OWN)]
    return [_link(name, shared, texts, given, _of_one(line, name)) for name, texts in runs.items()]


def _link(name: str, shared: Sequence[str], texts: Sequence[str], given: Sequence[str], own: Sequence[str]) -> Link:
    """The last override of a key wins; Hydra would refuse two options of one group."""
    every = _last_of_each([text for text in (*shared, *texts, *given, *own) if not _READING.fullmatch(text)])
    return Link(name=name, overrides=every, reads=_reads(texts), own=frozenset(map(name_of, (*texts, *own))))


def _last_of_each(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple({name_of(text): text for text in texts}.values())


def _reads(texts: Sequence[str]) -> dict[str, str]:
    return {found[1]: found[2] for text in texts if (found := _READING.fullmatch(text))}


def _of_one(line: compose.CommandLine, name: str) -> list[str]:
    """`runs.NAME.key=value` as `key=value`."""
    start = f"{_OWN}{name}."
    return [text.lstrip("+").removeprefix(start) for text in line.overrides if name_of(text).startswith(start)]


def _malformed(file: str, content: Mapping[str, Any]) -> Iterator[Refusal]:
    runs = content["runs"]
    if more := sorted(content.keys() - {"runs", "shared"}):
        yield _recipe_form(file, f"beside runs its file has {', '.join(more)}")
    if not isinstance(runs, dict) or not runs:
        yield _recipe_form(file, "runs is no {name: overrides}")
        return
    for name, texts in (("shared", content.get("shared", [])), *runs.items()):
        if not isinstance(texts, list) or not all(isinstance(text, str) and "=" in text for text in texts):
            yield _recipe_form(file, f"{name} is no list of overrides, each key=value")
            continue
        for text in texts:
            if name_of(text) == _FOLDER:
                yield _recipe_folder(text, f"{name} of {file} sets it: {_APART}")
    for name in runs:
        if not _NAME.fullmatch(str(name)):
            yield _recipe_form(file, f"{name} cannot be a run's name")


def _misread(file: str, shared: Sequence[str], runs: Mapping[str, Sequence[str]]) -> Iterator[Refusal]:
    """What is wrong with overrides that read a run."""
    before = list[str]()
    for text in shared:
        if _READS in text:
            yield _recipe_form(file, f"shared has {text}, and not every run can read one")
    for name, texts in runs.items():
        for text in texts:
            found = _READING.fullmatch(text)
            if found is None:
                if _READS in text:
                    yield _recipe_form(file, f"{text} of {name} is not KEY=${{run:NAME}}")
            elif found[1] not in _READERS:
                yield _recipe_form(file, f"{found[1]} of {name} cannot read a run, {' and '.join(_READERS)} can")
            elif found[2] not in before:
                hint = did_you_mean(found[2], before)
                there = f"the runs before it are {', '.join(before)}" if before else "there is none before it"
                yield refusal(
                    "recipe-order",
                    file,
                    f"{name} reads {found[2]}, and {there}",
                    because="the runs are run in the order of the file, and what is read must be there",
                    fix=f"{hint}put it after the run that it reads",
                )
        before.append(name)


def _unusable(line: compose.CommandLine, runs: Mapping[str, Sequence[str]]) -> Iterator[Refusal]:
    """Overrides of the command line that no run, or not every run, can have."""
    own = {name_of(text): name for name, texts in runs.items() for text in texts}
    for text in line.overrides:
        key = name_of(text)
        if _READS in text:
            yield _recipe_form(text, "which run reads which stands in the recipe's file alone")
        elif key.startswith(_OWN):
            name = next((name for name in runs if key.startswith(f"{_OWN}{name}.")), None)
            if name is None:
                hint = did_you_mean(key.split(".")[1], runs)
                yield refusal(
                    "recipe-run",
                    text,
                    "the recipe has no such run",
                    because="`runs.NAME.key=value` sets a key of one run",
                    fix=f"{hint}the runs are {', '.join(runs)}",
                )
            elif (inner := key.removeprefix(f"{_OWN}{name}.")) in _reads(runs[name]) and inner not in groups.GROUPS:
                wrong = f"{name} takes it from the run {_reads(runs[name])[inner]}"
                yield _recipe_key(text, wrong, one="")
            elif inner == _FOLDER:
                yield _recipe_folder(text, _APART)
        elif key == _FOLDER:
            yield _recipe_folder(text, _APART)
        elif key in own and key in _NAMING:
            wrong, one = f"{own[key]} has {key} of its own", f"set it for one run by runs.NAME.{key}, "
            yield _recipe_key(text, wrong, one=one)


def planned(line: compose.CommandLine, compile: Compile) -> list[Job]:
    """Every run as far as it is known, nothing of it executed. Raises UserError for what is wrong with the recipe."""
    found = links(line)
    folder, _ = sweeps.sweep_folder(_places(line, found))
    return _listed(found, SweepFolder(folder), line.config_dirs, compile)


def _places(line: compose.CommandLine, found: Sequence[Link]) -> compose.CommandLine:
    """What says where the runs go and are tracked: of the first, as of all."""
    texts = tuple(text for text in found[0].overrides if name_of(text).startswith(("hydra.", "tracking")))
    return replace(line, overrides=texts)


def _listed(found: Sequence[Link], folder: SweepFolder, config_dirs: tuple[str, ...], compile: Compile) -> list[Job]:
    """Each run's plan before what it reads is there, or why it is refused."""
    plans, listed = dict[str, Plan | None](), list[Job]()
    for link in found:
        listed.append(_ahead(link, plans, folder, config_dirs, compile))
        plans[link.name] = listed[-1].plan
    return listed


def _ahead(
    link: Link,
    plans: Mapping[str, Plan | None],
    folder: SweepFolder,
    config_dirs: tuple[str, ...],
    compile: Compile,
) -> Job:
    made = Job(name=link.name, overrides=link.overrides, plan=None, after=tuple(dict.fromkeys(link.reads.values())))
    reads = {key: Awaited(RunFolder(folder.path / name).model, plans[name]) for key, name in link.reads.items()}
    # null says nothing; of a stage that has no such key it is refused
    overrides = (*link.overrides, *("stage.reward_model=null" for key in reads if key == "stage.reward_model"))
    try:
        composed = _composed(overrides, folder.path / link.name, config_dirs, None)
        plan = compile(replace(composed, overrides=link.overrides, awaited=_awaited(link, reads)))
    except UserError as error:
        return replace(made, refusals=error.refusals, fate="refuse")
    return replace(made, plan=plan)


def _awaited(link: Link, reads: Mapping[str, Awaited]) -> Callable[[Settings, Facts], tuple[Settings, Facts]]:
    def with_all(settings: Settings, facts: Facts) -> tuple[Settings, Facts]:
        if (model := reads.get("model")) is not None:
            settings, facts = as_model(model, link.own)(settings, facts)
        if (reward := reads.get("stage.reward_model")) is not None:
            settings, facts = as_reward(reward)(settings, facts)
        return settings, facts

    return with_all


def _composed(
    overrides: tuple[str, ...], run_dir: Path, config_dirs: tuple[str, ...], parent: str | None
) -> compose.Composed:
    nested = (f"++tracking.parent_run={parent}",) if parent else ()
    line = compose.CommandLine(overrides=(*overrides, *nested), config_dirs=config_dirs)
    return replace(compose.compose(line), overrides=overrides, run_dir=str(run_dir))


def chain(line: compose.CommandLine, asked: Sweep, verbs: Verbs, screen: Screen) -> int:
    """Runs all of the recipe and returns the exit code: 0 when all finished, 130 when interrupted, else 1.

    2 where a run is refused that reads another, or is read: then none is started.
    """
    before = SweepFolder(asked.resume).read() if asked.resume else None
    line = recorded(line, asked.resume, before) if asked.resume else line
    if asked.reuse:
        raise refuse(
            "recipe-reuse",
            "sweep.reuse=true",
            "the runs of a recipe may read each other",
            because="a run that reads another is made from what that one has left, so no earlier run is the same",
            fix="leave it out; a recipe that was interrupted continues with `factory -m sweep.resume=FOLDER`",
        )
    found = links(line)
    name, common = sweeps.sweep_folder(_places(line, found))
    folder = placed(name, line, asked)
    compile = beside(verbs.compile) if asked.resume else verbs.compile
    listed = _listed(found, folder, line.config_dirs, compile)
    refuse_secrets(line, listed)
    screen.print(jobs.Shown(listed))
    screen.print(jobs.summary(listed))
    if told := _stuck(listed):
        print(told, file=sys.stderr)
        return REFUSED
    with begun(folder, common, line, before, listed) as (tracking, parent):
        runner = _Runner(folder, {job.name: job.plan for job in listed}, verbs, line.config_dirs, parent, screen)
        return worked_through(
            lambda: runner.all(found, resumed=bool(asked.resume)),
            lambda stopped: closed(folder, tracking, parent, stopped, screen, stays=_in_vain(found, folder)),
            folder,
        )


def _stuck(listed: Sequence[Job]) -> str:
    """The refusals of runs that others wait for, or that wait: it would be in vain to start."""
    read = {name for job in listed for name in job.after}
    stuck = [job for job in listed if job.refusals and (job.after or job.name in read)]
    return "\n".join(f"\nrun {job.name}\n{UserError(*job.refusals)}" for job in stuck)


def _in_vain(found: Sequence[Link], folder: SweepFolder) -> set[str]:
    """The runs that wait for one that is kept with a red check, or for one that so waits: they never start."""
    waiting = set[str]()
    for link in found:
        if any(read in waiting or _kept_red(folder, read) for read in link.reads.values()):
            waiting.add(link.name)
    return waiting


def _kept_red(folder: SweepFolder, name: str) -> list[str]:
    """The red checks of a run that is finished, and so is never run again."""
    report = read_json(RunFolder(folder.path / name).report) or {}
    return red(report) if report.get("status") == "finished" else []


@dataclass(frozen=True, slots=True)
class _Runner:
    """What the runs of one recipe are run with. `plans` are those made ahead."""

    folder: SweepFolder
    plans: Mapping[str, Plan | None]
    verbs: Verbs
    config_dirs: tuple[str, ...]
    parent: str | None
    screen: Screen

    def all(self, found: Sequence[Link], *, resumed: bool) -> int:
        """How they ended: 0, or interrupted. What reads a run that did not finish is not started."""
        done, places = set[str](), dict[str, tuple[str, ...]]()
        for link in found:
            if waits := [name for name in link.reads.values() if name not in done]:
                self._say_why_not(link, waits, places)
                continue
            places[link.name] = _start(link, self.plans, places, self.folder)
            code = self._one(link, places[link.name], resumed=resumed)
            self.folder.note(link.name, noted(code, RunFolder(self.folder.path / link.name)))
            if code == INTERRUPTED:
                return INTERRUPTED
            done |= {link.name} if code == 0 else set()
        return 0

    def _one(self, link: Link, start: tuple[str, ...], *, resumed: bool) -> int:
        overrides = self._overrides(link, start)
        self._say(" ".join([f"{self.folder.path / link.name}:", *overrides]))
        os.environ[STARTED] = str(time.monotonic())
        try:
            composed = _composed(overrides, self.folder.path / link.name, self.config_dirs, self.parent)
            fate = self._fate(composed) if resumed else "run"
        except UserError as error:
            print(error, file=sys.stderr)
            return REFUSED
        run = RunFolder(composed.run_dir)
        if fate == "keep":
            self.screen.print("It is finished, and kept.")
            return code_of(run)
        return self.verbs.go_on(run) if fate == "continue" else self.verbs.run(composed)

    def _fate(self, composed: compose.Composed) -> jobs.Fate:
        """Of a run that may have been started before. Raises UserError where it is refused, or was another one then."""
        made = jobs.compiled([composed], str(self.folder.path), beside(self.verbs.compile))
        (job,) = jobs.continued(made, self.folder)
        if job.fate == "refuse":
            raise UserError(*job.refusals)
        return job.fate

    def _say_why_not(self, link: Link, waits: Sequence[str], places: Mapping[str, tuple[str, ...]]) -> None:
        """What was kept with a red check is there to be read by hand, by whoever has looked at it."""
        checks = {name: _kept_red(self.folder, name) for name in waits}
        why = f"is finished with a red check ({', '.join(checks[waits[0]])})" if checks[waits[0]] else "is not done"
        self._say(f"{link.name} is not started, as {waits[0]}, which it reads, {why}")
        if all(checks.values()):
            start = _start(link, self.plans, places, self.folder)
            by_hand = again("train", self._overrides(link, start), self.config_dirs)
            self.screen.print(f"To start it all the same: {by_hand}", soft_wrap=True)

    def _overrides(self, link: Link, start: tuple[str, ...]) -> tuple[str, ...]:
        return _last_of_each([*link.overrides, *start, *self._rewarded(link)])

    def _rewarded(self, link: Link) -> tuple[str, ...]:
        read = link.reads.get("stage.reward_model")
        return () if read is None else (f"stage.reward_model={_model_of(self.folder, read)}",)

    def _say(self, text: str) -> None:
        self.screen.print(f"\nrun {text}", style="bold", soft_wrap=True)


def _start(
    link: Link, plans: Mapping[str, Plan | None], places: Mapping[str, tuple[str, ...]], folder: SweepFolder
) -> tuple[str, ...]:
    """Where the link's model is: the adapter that the run it reads has left, on that run's own base; or its weights.

    Of weights what was said of those before them is not said again, unless for this link alone.
    What is evaluated is the model that was trained, on a base that is held as it was then. Positions that it was
    trained with stretched are not stretched once more.
    """
    read = link.reads.get("model")
    if read is None:
        return ()
    plan, model = plans[read], _model_of(folder, read)
    assert plan is not None  # a run that is read and refused is never begun
    anew = [f"model.{key}={plain(value)}" for key, value in BEFORE.items() if f"model.{key}" not in link.own]
    reach = tuple(f"model.{key}={value}" for key, value in positions(plan).items())
    if registry.hook(registry.spec("methods", plan.settings.method.name), "peft") is None:
        return (f"model.path={model}", *anew, *reach)
    base = tuple(text for text in places[read] if name_of(text) == "model.path")
    place = (*base, *(anew if base else ()), f"model.adapter={model}", *reach)
    if plan.settings.method.quantization.bits is None or "method=none" not in link.overrides:
        return place
    asked = any(name_of(text).startswith(_HELD) for text in link.overrides)
    return place if asked else (*place, *words(plan.settings.method.quantization).split())


def _model_of(folder: SweepFolder, name: str) -> str:
    """As Hydra's grammar takes it."""
    return spelt(RunFolder(folder.path / name).model.as_posix())


def _recipe_key(setting: str, wrong: str, one: str) -> Refusal:
    return refusal(
        "recipe-key",
        setting,
        wrong,
        because="the runs would no longer be what the recipe calls them",
        fix=f"leave it out, {one}or write recipe/NAME.yaml in a folder that --config-dir names",
    )
