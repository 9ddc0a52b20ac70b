"""The jobs of a sweep, as Hydra's sweepers hand them out."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factory.config.compose import CommandLine, Composed, checked, config_of, hydra_of, resolved, translated
from factory.config.refusal import UserError, refuse

_PARENT = "++tracking.parent_run="  # which the sweep adds to its jobs' overrides


@dataclass(frozen=True, slots=True, kw_only=True)
class Choosing:
    """What is known of a sweep whose jobs are chosen one by one, by the results of those before.

    `ends`: two that may be chosen, with every swept key at its first value and at its last. `again`: the overrides with
    which the same are chosen another time; None where the sweeper takes no seed.
    """

    ends: tuple[Composed, ...]
    again: tuple[str, ...] | None


def sweep_folder(line: CommandLine) -> tuple[str, Composed]:
    """Return where a sweep goes, and the settings that all of its jobs share. Raises UserError."""
    with _parser(line.config_dirs) as parser:
        alike = [text for text in line.overrides if not _swept(parser, text)]
    if problems := checked(line)[1]:
        raise UserError(*problems)
    config, problems = config_of(replace(line, overrides=tuple(alike)))
    if problems:
        raise UserError(*problems)
    _number(config, 0)  # which a key of all jobs may name
    return translated(lambda: str(config.hydra.sweep.dir)), resolved(config, config.hydra, line, "")


def jobs(line: CommandLine, folder: str) -> list[Composed] | Choosing:
    """Every job of a sweep, as Hydra will hand them out, where its sweeper does not choose them as it goes.

    Raises UserError where one cannot be composed: Hydra would start none.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    with _parser(line.config_dirs) as parser:
        alike = tuple(text for text in line.overrides if not _swept(parser, text))
        sweeper = config_of(replace(line, overrides=alike))[0].hydra.sweeper
        params = [f"{name}={value}" for name, value in (sweeper.get("params") or {}).items()]
        given = translated(lambda: parser.parse_overrides([*params, *line.overrides]))  # with the options of a glob
        own = [each.input_line for each in given if each.is_hydra_override()]
        task = [each for each in given if not each.is_hydra_override()]
        if mixed := [each.input_line for each in task if getattr(each.value(), "shuffle", False)]:
            because = "the jobs are planned before Hydra reads them again, and those that it starts would be others"
            fix = "name the values in the order in which the jobs shall run"
            wrong = "its values stand in another order at each reading"
            raise refuse("jobs-shuffled", str(mixed[0]), wrong, because=because, fix=fix)
        if none := [each for each in task if each.is_discrete_sweep() and not list(each.sweep_string_iterator())]:
            because, fix = "nothing fits its pattern", "check the pattern; `factory --help` lists the options"
            raise refuse("unknown-option", str(none[0].input_line), "it chooses nothing", because=because, fix=fix)
        if sweeper._target_ != f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}":
            return _choosing(line, sweeper, folder, own, task)
        (split,) = translated(lambda: BasicSweeper.split_arguments(task, None))
    made = [_job(line, folder, [*own, *texts], number) for number, texts in enumerate(split)]
    if problems := dict.fromkeys(problem for composed in made for problem in composed.problems):
        raise UserError(*problems)
    return made


@contextmanager
def _parser(config_dirs: tuple[str, ...]) -> Iterator[Any]:
    """Yield Hydra's parser of overrides, which knows the options that a glob chooses from."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with hydra_of(config_dirs):
        yield OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())


def _swept(parser: Any, text: str) -> bool:
    """Whether it names several values; what cannot be read is refused where it is composed."""
    from hydra.errors import HydraException

    try:
        return parser.parse_override(text).is_sweep_override()
    except (HydraException, ValueError):
        return False


def _number(config: Any, number: int) -> None:
    """As the launcher does."""
    from omegaconf import open_dict

    with open_dict(config.hydra.job):
        config.hydra.job.num, config.hydra.job.id = number, str(number)


def _choosing(line: CommandLine, sweeper: Any, folder: str, own: list[str], task: list[Any]) -> Choosing:
    """Raises UserError where it would look for the worst."""
    direction = sweeper.get("direction", "minimize")
    direction = getattr(direction, "name", direction)
    if direction != "minimize":
        because = "it is the perplexity, the loss, or the reward with its sign changed: the worst run would be found"
        wrong = "a job tells one figure, and less of it is better"
        setting = f"hydra.sweeper.direction={direction}"
        raise refuse("sweeper-direction", setting, wrong, because=because, fix="leave it out")
    texts = {"first": [_end(each, 0) for each in task], "last": [_end(each, -1) for each in task]}
    if texts["first"] == texts["last"]:
        del texts["last"]
    made = {name: _job(line, folder, [*own, *each], 0) for name, each in texts.items()}
    ends = tuple(replace(composed, run_dir=f"{folder}/{name}") for name, composed in made.items())
    sampler: Any = sweeper.get("sampler") or {}
    seed = sampler.get("seed")
    seed = ends[0].tree["seed"] if seed is None else seed
    again = (f"hydra.sweeper.sampler.seed={seed}",) if "seed" in sampler else None
    return Choosing(ends=ends, again=again)


def _end(override: Any, at: int) -> str:
    """An override of one value: a swept one's first or last."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return f"{key}={override.get_value_element_as_str()}"
    if override.is_discrete_sweep():
        return f"{key}={list(override.sweep_string_iterator())[at]}"
    return f"{key}={(override.value().start, override.value().end)[at]}"


def _job(line: CommandLine, folder: str, texts: list[str], number: int) -> Composed:
    """Compose one job, whose words are `texts` without Hydra's own."""
    config, problems = config_of(replace(line, overrides=tuple(texts), multirun=False))
    _number(config, number)
    config.hydra.sweep.dir = folder
    run_dir = translated(lambda: str(Path(folder) / str(config.hydra.sweep.subdir)))
    words = replace(line, overrides=_given(config.hydra.overrides.task))
    return replace(resolved(config, config.hydra, words, run_dir), problems=tuple(problems))


def of_job(config: Any, config_dirs: tuple[str, ...]) -> Composed:
    """Return what a sweep's job was composed to, inside Hydra's task function."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    place, here = Path(str(hydra.runtime.output_dir)), Path.cwd()
    run_dir = str(place.relative_to(here)) if place.is_relative_to(here) else str(place)
    words = CommandLine(overrides=_given(hydra.overrides.task), config_dirs=config_dirs)
    return resolved(config, hydra, words, run_dir)


def _given(texts: Iterable[Any]) -> tuple[str, ...]:
    """A job's overrides without what the sweep adds."""
    return tuple(str(text) for text in texts if not str(text).startswith(_PARENT))
