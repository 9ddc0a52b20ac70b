"""What a form's state comes to, as fast as one types: its plan, or every problem with what would mend it."""

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from factory import verbs
from factory.board.fields import at
from factory.config.compose import CommandLine, Composed, parsed
from factory.config.line import Overrides, changed, name_of
from factory.config.refusal import Refusal, UserError, refusal
from factory.plan.anew import Anew
from factory.plan.inspect.model import local
from factory.plan.plan import Plan
from factory.plan.untrained import answering, untrained
from factory.run.advice import cheapest

_KEY = r"(?<![\w./])((?:[a-z_]+\.)*[a-z_]+)="
_OVERRIDE = re.compile(_KEY + r"([\w.+\-]+(?<!\.)|\[[^\]]*\])")
_FRESH, _MOST = 3.0, 32  # seconds that a plan holds for whoever asks again, and how many are kept
_TRIED = 4  # of what a refusal's words offer
# the last parts of keys whose texts may name a file or a folder, code too; `model.path` is `model.hub` by default
_PLACES = {
    *("adapter", "base", "calibration", "dir", "folder", "harness_path", "html", "hub", "metrics", "name", "out"),
    *("package", "path", "resume", "reward", "reward_model", "run", "template", "uri"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """`tree` is the composed config, None where it cannot be composed; of `plan` and `problems` one is there."""

    overrides: Overrides
    tree: dict[str, Any] | None
    options: dict[str, str]
    plan: Plan | None
    problems: tuple[Refusal, ...] = ()

    def of(self, path: str) -> list[Refusal]:
        """The problems of a key, or of a group's option."""
        return [problem for problem in self.problems if path in problem_keys(problem)]


def problem_keys(problem: Refusal) -> list[str]:
    """The keys that a refusal names as set: `method=qlora, precision=fp16` names two, `serve.port` hides its value."""
    return re.findall(_KEY, problem.setting) or [name_of(problem.setting)]


class Planner:
    """Shared by all who have the page open: it holds what was looked up, and nothing of anybody's form."""

    def __init__(self, folders: tuple[Path, ...], config_dirs: tuple[str, ...] = ()):
        self._folders, self.config_dirs = tuple(folder.resolve() for folder in folders), config_dirs
        self._anew = Anew(config_dirs)
        self._busy = threading.RLock()  # Hydra composes one config at a time
        self._known = OrderedDict[Overrides, tuple[float, Planned]]()

    def __call__(self, overrides: Overrides) -> Planned:
        """Whoever draws a part of the page asks: of one change many do."""
        with self._busy:
            when, found = self._known.get(overrides, (-_FRESH, None))
            if found is None or time.monotonic() - when > _FRESH:
                found = self._planned(overrides)
                self._known[overrides] = time.monotonic(), found
                while len(self._known) > _MOST:
                    self._known.popitem(last=False)
            return found

    def composed(self, overrides: Overrides) -> Composed:
        """Without its plan. Raises UserError."""
        with self._busy:
            return self._anew.composed(overrides)

    def untrained(self, *words: str, config_dirs: tuple[str, ...] = ()) -> Composed:
        """What `factory serve` of these words composes; of `run=` what the run started from. Raises UserError."""
        line = CommandLine(overrides=words, config_dirs=config_dirs or self.config_dirs)
        with self._busy:
            return untrained(line, answering, base=True)

    def _planned(self, overrides: Overrides) -> Planned:
        tree, options = None, dict[str, str]()
        try:
            composed = verbs.composed(CommandLine(overrides=overrides, config_dirs=self.config_dirs), "train")
            tree, options = composed.tree, composed.options
            problems = (*composed.problems, *_placed(overrides))
            if outside := self.outside(overrides):
                raise UserError(*outside, *problems)
            plan = self._anew.of(replace(composed, problems=problems))
        except UserError as error:
            return Planned(overrides=overrides, tree=tree, options=options, plan=None, problems=error.refusals)
        return Planned(overrides=overrides, tree=tree, options=options, plan=plan)

    def outside(self, overrides: Iterable[str]) -> list[Refusal]:
        """Of those that name a place which the page may not touch: asked of whatever it is about to run."""
        folders = ", ".join(map(str, self._folders))
        with self._busy:  # first, whoever asks: what is by default is composed once, behind a lock of its own
            found = [(text, self._wrong(text)) for text in overrides]
        return [
            refusal(
                "board-folder",
                text,
                wrong,
                because=f"the page reads and writes only inside {folders}, whoever opens it",
                fix="choose a place inside of these, upload the file, or start the board with board.folders=[…]",
            )
            for text, wrong in found
            if wrong is not None
        ]

    def _wrong(self, override: str) -> str | None:
        found = texts(override)
        if any("${" in text for _, text in found):
            return "what stands there is known when it is too late"
        if name_of(override).startswith("hydra.searchpath"):
            return "it lies outside"
        return None if all(self._inside(*each) for each in found) else "it lies outside"

    def _inside(self, key: str, text: str) -> bool:
        """Whether all that a text may name is: the words too, which are too short to be taken for names of files."""
        there = key.rpartition(".")[2] in _PLACES
        return all(
            self._allows(each, file=there and each == part) for part in _parts(text) for each in {part, *part.split()}
        ) or (there and text == at(self._by_default, key))

    @cached_property
    def _by_default(self) -> dict[str, Any]:
        """The settings of who says nothing."""
        return self.composed(()).tree

    def _allows(self, value: str, *, file: bool) -> bool:
        """Whether a text is no path, or one inside of the page's folders.

        `file`: where there is a file or a folder of this name, it is one.
        """
        named = value.startswith(("/", "~"))
        try:
            place = local(value).resolve()
            if any(place.is_relative_to(folder) for folder in self._folders):
                return True
            return not named and place.is_relative_to(Path.cwd()) and not (file and place.exists())
        except (OSError, ValueError, RuntimeError):  # too long for a name, or none: there is no such file
            return not named

    def fixes(self, planned: Planned, problem: Refusal) -> list[Overrides]:
        """The states that a refusal's own words lead to, and the one without what was set: those that mend it."""
        given = {name_of(text) for text in planned.overrides}
        removed = [changed(planned.overrides, key, None) for key in problem_keys(problem) if key in given]
        offered = [changed(planned.overrides, *found.groups()) for found in _OVERRIDE.finditer(problem.fix)]
        found: list[Overrides] = []
        for overrides in (*offered[:_TRIED], *removed):
            if overrides in (planned.overrides, *found):
                continue
            then = self(overrides).problems
            solved = not any((other.rule, other.setting) == (problem.rule, problem.setting) for other in then)
            fewer = len(then) < len(planned.problems) or problem.rule == "board-folder"  # which hides others
            found += [overrides] if solved and fewer else []
        return found

    def that_fit(self, planned: Planned) -> list[tuple[Overrides, int, bool]]:
        """The cheapest changes that need less memory: the state, its bytes, whether it fits."""
        if planned.plan is None or planned.plan.estimate.memory.fits is not False:
            return []
        with self._busy:
            found = cheapest(planned.plan, None, self._anew)
        return [(_with(planned.overrides, change.overrides), change.estimated_bytes, change.fits) for change in found]


@lru_cache(1024)
def texts(override: str) -> tuple[tuple[str, str], ...]:
    """Every text in an override's value with its key: as it is written, and as Hydra reads it, without quotes or casts.

    What is in a mapping has a key of its own.
    """
    key, _, written = override.partition("=")
    try:
        found = parsed(override)
        key, read = found.key_or_group, found.value()
    except UserError:  # it is refused where it is composed
        read = None
    return ((key, written), *_texts_in(key, read))


def _texts_in(key: str, value: Any) -> Iterator[tuple[str, str]]:
    value = getattr(value, "list", value)  # of hydra's ChoiceSweep
    value = getattr(value, "text", value)  # of its QuotedString
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        yield from _texts_in(key, [*value])
        for name, each in value.items():
            yield from _texts_in(f"{key}.{name}", each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts_in(key, each)


def _parts(text: str) -> Iterator[str]:
    """What may be a path in a text: all of it, what is in a list, a mapping, an address of a file."""
    place = _local(text)
    yield from (part for part in (place, *re.split(r"[\[\]{},'\"]|(?<=[^\\]):", place)) if part)


def _local(text: str) -> str:
    """Without hosts, and addresses of files as their paths."""
    text = re.sub(r"\b(?!file:)\w[\w+]*://[^/\s,\]}'\"][^\s,\]}'\"]*", "", text)
    return re.sub(r"\bfile:/+", "/", re.sub(r"\b(?!file:)\w[\w+]*:///", "", text))


def _placed(overrides: Overrides) -> Iterator[Refusal]:
    """Those that say where the run shall lie: the page would say otherwise, and the last word holds."""
    wanted = "each run that the page starts gets a folder of its own, by which it is found, queued and stopped"
    for text in overrides:
        if name_of(text) in ("hydra.run.dir", "hydra.sweep.dir"):
            yield refusal(
                "board-line",
                text,
                "it would not lie there",
                because=wanted,
                fix="paste a command line of one run, as `factory method=qlora stage=dpo`",
            )


def _with(overrides: Overrides, more: Iterable[str]) -> Overrides:
    for text in more:
        overrides = changed(overrides, name_of(text), text.partition("=")[2])
    return overrides


def difference(before: Overrides, after: Overrides, leave_out: str) -> str:
    """What a fix changes, as a button says it: `precision=bf16`, or `leave out method.rank` where a key goes."""
    new = [text for text in after if text not in before]
    gone = [
        f"{leave_out} {name_of(text)}" for text in before if name_of(text) not in {name_of(other) for other in after}
    ]
    return ", ".join([*new, *gone])
