"""The jobs of a sweep, as Hydra's sweepers hand them out."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factory.config.compose import CommandLine, Composed, Prepared
from factory.config.compose.calling import as_composed, config_of, translated
from factory.config.refusal import UserError, refuse


def sweep_folder(line: CommandLine, ready: Prepared) -> tuple[str, Composed]:
    """Where a sweep goes, with the settings that all of its jobs share (what is swept left at its default)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if ready.problems:
        raise UserError(*ready.problems)
    parser = OverridesParser.create()
    given = [text for text in ready.overrides if not parser.parse_override(text).is_sweep_override()]
    config = config_of(given, line.config_dirs)
    if config.hydra.job.chdir:  # by a file: on the line it is refused before
        raise refuse(
            "hydra-unread",
            "hydra.job.chdir=true",
            "a sweep's jobs stay where they are started",
            because=(
                "Hydra composes the settings; a run is placed, started and logged by Factory, its paths those of "
                "the folder that the command is given in"
            ),
            fix=(
                "leave it out (of a run Hydra's hydra.run.dir and hydra.searchpath are read, of a sweep hydra.sweep.*)"
            ),
        )
    _number(config, 0)  # which a key of all jobs may name
    return translated(lambda: (str(config.hydra.sweep.dir), as_composed(config, config.hydra, line.overrides, "")))


def _number(config: Any, number: int) -> None:
    """As the launcher does."""
    from omegaconf import open_dict

    with open_dict(config.hydra.job):
        config.hydra.job.num, config.hydra.job.id = number, str(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choosing:
    """What is known of a sweep whose jobs are chosen one by one, by the results of those before.

    `ends`: two that may be chosen, with every swept key at its first value and at its last. `again`: the overrides with
    which the same are chosen another time; None where the sweeper takes no seed.
    """

    ends: tuple[Composed, ...]
    again: tuple[str, ...] | None


def jobs(line: CommandLine, ready: Prepared, folder: str) -> list[Composed] | Choosing:
    """Every job of a sweep, as Hydra will hand them out, where its sweeper does not choose them as it goes.

    Raises UserError where one cannot be composed.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    given = {text: parser.parse_override(text) for text in ready.overrides}
    alike = [text for text, override in given.items() if not override.is_sweep_override()]
    shared = config_of(alike, line.config_dirs)
    sweeper = shared.hydra.sweeper
    own = [text for text, override in given.items() if override.key_or_group.startswith("hydra")]
    task = [override for text, override in given.items() if text not in own]
    params = sweeper.get("params") or {}
    task = [*(parser.parse_override(f"{name}={value}") for name, value in params.items()), *task]
    if mixed := [each.input_line for each in task if getattr(each.value(), "shuffle", False)]:
        raise refuse(
            "jobs-shuffled",
            str(mixed[0]).lstrip("+"),
            "its values stand in another order at each reading",
            because=(
                "the jobs are planned and recorded before Hydra reads them again, and those that it starts would "
                "be others"
            ),
            fix="name the values in the order in which the jobs shall run",
        )
    if sweeper._target_ != f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}":
        return _choosing(line, shared, folder, own, task)
    if endless := [each.input_line for each in task if each.is_sweep_override() and not each.is_discrete_sweep()]:
        raise refuse(
            "interval-of-jobs",
            str(endless[0]).lstrip("+"),
            "an interval has no end of values",
            because="Hydra's own sweeper tries every value",
            fix=("name values, as in stage.learning_rate=1e-5,1e-4, or let a sweeper choose, by hydra/sweeper=optuna"),
        )
    (split,) = translated(lambda: BasicSweeper.split_arguments(task, None))
    return [_job(line, folder, own, texts, number) for number, texts in enumerate(split)]


def _choosing(line: CommandLine, shared: Any, folder: str, own: list[str], task: list[Any]) -> Choosing:
    """Raises UserError where it would look for the worst."""
    direction = shared.hydra.sweeper.get("direction", "minimize")
    if getattr(direction, "name", direction) != "minimize":
        said = f"hydra.sweeper.direction={getattr(direction, 'name', direction)}"
        raise refuse(
            "sweeper-direction",
            said,
            "a job tells one figure, and less of it is better",
            because=(
                "it is the perplexity, the loss, or the reward with its sign changed; the other way the worst "
                "run would be found"
            ),
            fix="leave it out",
        )
    texts = {"first": [_end(each, 0) for each in task], "last": [_end(each, -1) for each in task]}
    if texts["first"] == texts["last"]:
        del texts["last"]
    ends = (replace(_job(line, folder, own, each, 0), run_dir=f"{folder}/{name}") for name, each in texts.items())
    sampler: Any = shared.hydra.sweeper.get("sampler") or {}
    given = sampler.get("seed")
    again = (f"hydra.sweeper.sampler.seed={shared.seed if given is None else given}",) if "seed" in sampler else None
    return Choosing(ends=tuple(ends), again=again)


def _end(override: Any, at: int) -> str:
    """An override of one value: a swept one's first or last."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return f"{key}={override.get_value_element_as_str()}"
    if override.is_discrete_sweep():
        return f"{key}={list(override.sweep_string_iterator())[at]}"
    return f"{key}={(override.value().start, override.value().end)[at]}"


def _job(line: CommandLine, folder: str, own: list[str], texts: list[str], number: int) -> Composed:
    config = config_of([*own, *texts], line.config_dirs)

    def made() -> Composed:
        _number(config, number)
        config.hydra.sweep.dir = folder
        run_dir = Path(folder) / str(config.hydra.sweep.subdir)
        return as_composed(config, config.hydra, _asked(texts), str(run_dir))

    return replace(translated(made), config_dirs=line.config_dirs)


def of_job(config: Any) -> Composed:
    """What a sweep's job was composed to, inside Hydra's task function."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    return as_composed(config, hydra, _asked(hydra.overrides.task), _relative(str(hydra.runtime.output_dir)))


def _asked(texts: Iterable[Any]) -> tuple[str, ...]:
    """A job's overrides as a person would give them, without what the sweep adds."""
    given = (str(text) for text in texts)
    return tuple(
        text.removeprefix("++").replace("+recipes=", "recipe=")
        for text in given
        if not text.startswith("++tracking.parent_run=")
    )


def _relative(path: str) -> str:
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
