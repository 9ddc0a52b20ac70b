"""Command line to plain tree: the one place that knows Hydra and OmegaConf.

Every plain `key=value` is composed as `++key=value`, and the composed tree is checked against the schema afterwards: so
a key that does not exist is refused in the same way whether it came from the command line, a recipe or a config folder.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from factory.meant import flag_meant, not_a_setting, option_meant
from factory.parsed import yaml_of
from factory.refusal import Refusal, UserError, did_you_mean, refusal, refuse
from factory.typed import plain

_HERE = Path(__file__).resolve().parent
# in a wheel, conf/ and recipes/ lie inside the package; in a checkout, beside it
ROOT = _HERE if (_HERE / "conf").is_dir() else _HERE.parent
CONF = ROOT / "conf"
T = TypeVar("T")
GROUPS = tuple(sorted(path.name for path in CONF.iterdir() if path.is_dir()))
_BASES = 256  # that a Recomposer keeps, of half a megabyte each
_KEYED = (*GROUPS, "plan", "preview")  # what has keys
PLUGINS = {"hydra/launcher": ("joblib", "ray", "submitit"), "hydra/sweeper": ("optuna",)}  # with an extra of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """The arguments after the verb, taken apart."""

    overrides: tuple[str, ...]
    multirun: bool = False
    config_dirs: tuple[str, ...] = ()
    hydra_flags: tuple[str, ...] = ()  # --cfg, --info, --shell-completion …: Hydra's own business


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    tree: dict[str, Any]
    options: dict[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    run_dir: str = ""
    config_dirs: tuple[str, ...] = ()  # that hold options of the user's own
    problems: tuple[Refusal, ...] = ()
    bad_groups: frozenset[str] = frozenset()  # whose option does not exist: left at its default
    run: str | None = None  # the folder of the run that `run=` names


def parse(argv: list[str]) -> CommandLine:
    """Takes Hydra's flags from the overrides. Raises UserError for a flag that nothing reads."""
    overrides: list[str] = []
    config_dirs: list[str] = []
    hydra_flags: list[str] = []
    multirun = False
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in ("-m", "--multirun"):
            multirun = True
        elif name in ("--config-dir", "-cd"):
            config_dirs.append(value if equals else _argument(name, rest))
        elif name in ("--cfg", "-c", "--package", "-p"):
            hydra_flags += [name, value if equals else _argument(name, rest)]
        elif name in ("--info", "-i"):
            takes_value = not equals and rest and rest[0] in _INFO
            hydra_flags.append(f"--info={rest.pop(0)}" if takes_value else word)
        elif word in ("--resolve", "--hydra-help", "--shell-completion", "-sc"):
            hydra_flags.append(word)
        elif word.startswith("-"):
            hint = flag_meant(name) or did_you_mean(name, _FLAGS)
            raise refuse("unknown-flag", word, "there is no such flag", hint=hint)
        elif "=" not in word and not word.startswith("~"):
            raise UserError(not_a_setting(word, rest))
        else:
            overrides.append(word)
    return CommandLine(
        overrides=tuple(overrides),
        multirun=multirun,
        config_dirs=tuple(config_dirs),
        hydra_flags=tuple(hydra_flags),
    )


_SHOWN = 60  # options that are listed by name
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_FLAGS = ("--help", "--multirun", "--config-dir", "--cfg", "--info", "--package", "--resolve", "--from-plan", "--diff")


def _argument(flag: str, rest: list[str]) -> str:
    if not rest:
        raise refuse("unknown-flag", flag, "it needs a value", hint="")
    return rest.pop(0)


def folders(config_dirs: tuple[str, ...], packaged: Path = CONF) -> list[Path]:
    """Where options lie, in the order in which they are looked for: one of the user's own stands for a packaged one.

    Without what `prepared` refuses.
    """
    unusable = {found.setting for found in _unusable_folders(config_dirs)}
    return [*(Path(folder).resolve() for folder in config_dirs if _said(folder) not in unusable), packaged]


def _unusable_folders(config_dirs: tuple[str, ...]) -> Iterator[Refusal]:
    for folder in config_dirs:
        if not Path(folder).is_dir():
            yield refusal("config-dir", _said(folder), "there is no such folder")
        elif (Path(folder) / "config.yaml").is_file():
            yield refusal("config-dir-defaults", _said(folder), "it has a config.yaml")


def _said(folder: str) -> str:
    return f"--config-dir {folder}"


def options(group: str, config_dirs: tuple[str, ...] = ()) -> list[str]:
    """The options of a group, those of the user's own folders included."""
    found = {path.stem for folder in folders(config_dirs) for path in (folder / group).glob("*.yaml")}
    return sorted(name for name in found if not name.startswith("_"))


def listed(found: list[str]) -> str:
    """Options by name, unless there are too many to read."""
    if len(found) <= _SHOWN:
        return ", ".join(found)
    return f"{', '.join(found[: _SHOWN // 4])} … ({len(found)}; `factory models` lists them)"


def recipes(config_dirs: tuple[str, ...] = ()) -> list[str]:
    """Those of the user's own folders included."""
    return sorted(_recipe_files(config_dirs))


def _recipe_files(config_dirs: tuple[str, ...]) -> dict[str, Path]:
    ordered = reversed(folders(config_dirs, ROOT))  # the first, which Hydra takes, comes last and stays
    return {path.stem: path for folder in ordered for path in (folder / "recipes").glob("*.yaml")}


def recipe_of_runs(line: CommandLine) -> tuple[str, dict[str, Any]] | None:
    """The recipe of several runs that the line names, and its file's content. Raises UserError where it is broken."""
    for text in line.overrides:
        name = text.lstrip("+").removeprefix("recipe=")
        if name != text.lstrip("+") and (found := _of_runs(name, line.config_dirs)) is not None:
            return name, found
    return None


def _of_runs(name: str, config_dirs: tuple[str, ...]) -> dict[str, Any] | None:
    """What the recipe's file holds, if it holds runs."""
    path = _recipe_files(config_dirs).get(name)
    if path is None or b"runs:" not in path.read_bytes():
        return None
    from omegaconf import OmegaConf

    found = translated(lambda: OmegaConf.to_container(OmegaConf.load(path), resolve=False))
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) and "runs" in found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The overrides as Hydra gets them, without those that it could not compose: they are in `problems`."""

    overrides: list[str]
    problems: list[Refusal]
    bad_groups: set[str]


def prepared(line: CommandLine) -> Prepared:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    problems = list(_unusable_folders(line.config_dirs))
    parser = OverridesParser.create()
    ready: list[str] = []
    bad_groups: set[str] = set()
    search: list[Any] = []
    for text in line.overrides:
        try:
            text, override = _override(parser, text, line.config_dirs)
        except UserError as error:
            problems += error.refusals
            continue
        key, chosen = override.key_or_group, override.value()
        if key == "recipe":
            unknown = _unknown_options("recipe", chosen, recipes(line.config_dirs))
            unknown = unknown or _several_runs(text, chosen, line.config_dirs)
            problems += unknown
            ready += [] if unknown else [f"+recipes={text.partition('=')[2]}"]
        elif key in GROUPS and not isinstance(chosen, dict) and not override.is_delete():
            unknown = _unknown_options(key, chosen, options(key, line.config_dirs))
            problems += unknown
            bad_groups |= {key} if unknown else set()
            ready += [] if unknown else [text.lstrip("+")]
        elif key == "hydra.searchpath":
            search += chosen if isinstance(chosen, list) else [chosen]
        elif key.startswith("hydra") or override.is_delete():
            if key in PLUGINS and not line.multirun:
                problems.append(refusal("launcher-without-multirun", text, "it only works in a sweep"))
            ready.append(text)
        else:
            ready.append(f"++{text.lstrip('+')}")
    ready.append(f"hydra.searchpath=[{','.join([ROOT.as_uri(), *search])}]")
    return Prepared(overrides=ready, problems=problems, bad_groups=bad_groups)


def _override(parser: Any, text: str, config_dirs: tuple[str, ...]) -> tuple[str, Any]:
    """The text with what a glob chooses in its place, and what Hydra reads in it. Raises UserError."""
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    try:
        override = parser.parse_override(text)
    except HydraException as error:
        raise UserError(_unparsable(text, str(error))) from None
    key, chosen = override.key_or_group, override.value()
    if not key:
        raise UserError(_unparsable(text, "there is no key before the ="))
    if not isinstance(chosen, Glob):
        return text, override
    known = _globbed(key, config_dirs)
    found = chosen.filter(known)
    if not found:
        raise UserError(_no_option(text, "none is named like that", known))
    text = f"{text.partition('=')[0]}={','.join(found)}"
    return text, parser.parse_override(text)


def _globbed(group: str, config_dirs: tuple[str, ...]) -> list[str]:
    """What a glob chooses from. Hydra would take private options too, and recipes of runs, which are no jobs."""
    if group == "recipe":
        return [name for name in recipes(config_dirs) if _of_runs(name, config_dirs) is None]
    return options(group, config_dirs) if group in GROUPS else []


def _no_option(text: str, wrong: str, known: list[str], hint: str = "", other: str = "") -> Refusal:
    return refusal("unknown-option", text, wrong, known=listed(known) or "none", hint=hint, other=other)


def compose(line: CommandLine) -> Composed:
    """The tree of one run, interpolations resolved. Raises UserError."""
    ready = prepared(line)

    def composed() -> Composed:
        config = _composed(ready.overrides, line.config_dirs)
        return translated(lambda: _plain(config, config.hydra, line.overrides, str(config.hydra.run.dir)))

    return _with_problems(ready, line.config_dirs, composed)


def _with_problems(ready: Prepared, config_dirs: tuple[str, ...], composing: Callable[[], Composed]) -> Composed:
    """What is composed of the overrides, with those that could not be. Raises UserError with all problems."""
    try:
        composed = composing()
    except UserError as error:
        raise UserError(*ready.problems, *error.refusals) from None
    return replace(
        composed, config_dirs=config_dirs, problems=tuple(ready.problems), bad_groups=frozenset(ready.bad_groups)
    )


class Recomposer:
    """Trees of command lines that differ in `key=value`s: Hydra composes what else stands there once.

    The keys are then set in their order, as Hydra does after all groups, before interpolations are resolved.
    """

    def __init__(self, config_dirs: tuple[str, ...]):
        self._config_dirs = config_dirs
        self._bases: dict[tuple[str, ...], Any] = {}

    def __call__(self, overrides: tuple[str, ...]) -> Composed:
        """As `compose` of these overrides. Raises UserError."""
        others = tuple(text for text in overrides if _plain_key(text) is None)
        ready = prepared(CommandLine(overrides=others, config_dirs=self._config_dirs))

        def changed() -> Composed:
            from omegaconf import OmegaConf

            config = copy.deepcopy(self._base(tuple(ready.overrides)))
            for key, value in filter(None, map(_plain_key, overrides)):
                OmegaConf.update(config, key, value, merge=True, force_add=True)
            return _plain(config, config.hydra, overrides, str(config.hydra.run.dir))

        return _with_problems(ready, self._config_dirs, lambda: translated(changed))

    def _base(self, overrides: tuple[str, ...]) -> Any:
        """The config of overrides as Hydra gets them."""
        if overrides not in self._bases:
            if len(self._bases) >= _BASES:
                self._bases.pop(next(iter(self._bases)))
            self._bases[overrides] = _composed(list(overrides), self._config_dirs)
        return self._bases[overrides]


@cache
def _plain_key(text: str) -> tuple[str, Any] | None:
    """The key and the value of an override that sets one key of a group; None of any other, or of a broken one."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return None
    key, value = override.key_or_group, override.value()
    plain_one = not override.is_delete() and not override.is_sweep_override()
    return (key, value) if plain_one and key.partition(".")[0] in _KEYED and "." in key else None


def sweep_folder(line: CommandLine, ready: Prepared) -> tuple[str, Composed]:
    """Where a sweep goes, with the settings that all of its jobs share (what is swept left at its default)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if ready.problems:
        raise UserError(*ready.problems)
    parser = OverridesParser.create()
    given = [text for text in ready.overrides if not parser.parse_override(text).is_sweep_override()]
    config = _composed(given, line.config_dirs)
    return translated(lambda: (str(config.hydra.sweep.dir), _plain(config, config.hydra, line.overrides, "")))


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
    shared = _composed(alike, line.config_dirs)
    sweeper = shared.hydra.sweeper
    own = [text for text, override in given.items() if override.key_or_group.startswith("hydra")]
    task = [override for text, override in given.items() if text not in own]
    params = sweeper.get("params") or {}
    task = [*(parser.parse_override(f"{name}={value}") for name, value in params.items()), *task]
    own.append(f"hydra.sweep.dir={folder}")
    if sweeper._target_ != f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}":
        return _choosing(line, shared, folder, own, task)
    if endless := [each.input_line for each in task if each.is_sweep_override() and not each.is_discrete_sweep()]:
        raise refuse("interval-of-jobs", str(endless[0]).lstrip("+"), "an interval has no end of values")
    (split,) = translated(lambda: BasicSweeper.split_arguments(task, None))
    return [_job(line, own, texts, number) for number, texts in enumerate(split)]


def _choosing(line: CommandLine, shared: Any, folder: str, own: list[str], task: list[Any]) -> Choosing:
    """Raises UserError where it would look for the worst."""
    direction = shared.hydra.sweeper.get("direction", "minimize")
    if getattr(direction, "name", direction) != "minimize":
        said = f"hydra.sweeper.direction={getattr(direction, 'name', direction)}"
        raise refuse("sweeper-direction", said, "a job tells one figure, and less of it is better")
    texts = {"first": [_end(each, 0) for each in task], "last": [_end(each, -1) for each in task]}
    if texts["first"] == texts["last"]:
        del texts["last"]
    ends = (replace(_job(line, own, each, 0), run_dir=f"{folder}/{name}") for name, each in texts.items())
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


def _job(line: CommandLine, own: list[str], texts: list[str], number: int) -> Composed:
    from omegaconf import open_dict

    config = _composed([*own, *texts], line.config_dirs)

    def made() -> Composed:
        with open_dict(config.hydra.job):  # what the launcher sets
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        run_dir = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
        return _plain(config, config.hydra, _asked(texts), str(run_dir))

    return replace(translated(made), config_dirs=line.config_dirs)


def of_job(config: Any) -> Composed:
    """What a sweep's job was composed to, inside Hydra's task function."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    return _plain(config, hydra, _asked(hydra.overrides.task), _relative(str(hydra.runtime.output_dir)))


def _asked(texts: Iterable[Any]) -> tuple[str, ...]:
    """A job's overrides as a person would give them, without what the sweep adds."""
    given = (str(text) for text in texts)
    return tuple(
        text.removeprefix("++").replace("+recipes=", "recipe=")
        for text in given
        if not text.startswith("++tracking.parent_run=")
    )


def _composed(overrides: list[str], config_dirs: tuple[str, ...]) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _refuse_endless(config_dirs)

    def composing() -> Any:
        with _beside_hydras_own(), _looking_first(config_dirs), initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                return hydra_compose("config", overrides=overrides, return_hydra_config=True)
            except (HydraException, OmegaConfBaseException):
                raise
            except (ValueError, TypeError, AttributeError, LookupError, AssertionError, OSError) as error:
                if not config_dirs:
                    raise
                raise refuse(
                    "compose", _said(config_dirs[-1]), "a file in it is no config", detail=str(error)
                ) from None

    made = translated(composing)
    _refuse_code(made.hydra)
    return made


def _refuse_endless(config_dirs: tuple[str, ...]) -> None:
    """Aliases of aliases: a few lines that OmegaConf would write out as gigabytes. Raises UserError."""
    for file in (file for folder in folders(config_dirs)[:-1] for file in folder.rglob("*.yaml")):
        content = file.read_bytes()
        if b"*" not in content or b"&" not in content:
            continue
        try:
            yaml_of(content)
        except ValueError as error:
            raise refuse("compose", str(file), "it is no config", detail=str(error)) from None


# by which Hydra and the standard library's logging find what they call, and where that may lie
_CALLS = ("_target_", "()", "class")
_CALLED = ("hydra.", "hydra_plugins.", "logging.", "optuna.")


def _refuse_code(hydra: Any) -> None:
    """A config is read, not run: of what it names to be called, Hydra's own alone is. Raises UserError."""
    from omegaconf import OmegaConf

    waiting: list[tuple[str, Any]] = [("hydra", OmegaConf.to_container(hydra, resolve=False))]
    while waiting:
        path, node = waiting.pop()
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, dict | list):
                waiting.append((f"{path}.{name}", value))
            elif name in _CALLS and not str(value).startswith(_CALLED):
                raise refuse("config-calls", f"{path}.{name}={plain(value)}", "a config may not name what is called")


@contextmanager
def _looking_first(config_dirs: tuple[str, ...]) -> Iterator[None]:
    """Hydra started here looks into the user's own folders before the packaged one: hydra.searchpath comes after it."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class OwnFirst(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in folders(config_dirs)[:-1]:
                search_path.prepend("own", folder.as_uri(), anchor="main")

    plugins = Plugins.instance()
    plugins.register(OwnFirst)
    try:
        yield
    finally:
        plugins.plugin_type_to_subclass_list[SearchPathPlugin].remove(OwnFirst)


@contextmanager
def _beside_hydras_own() -> Iterator[None]:
    """Inside a sweep's job Hydra is initialized, and would refuse to be so once more."""
    from hydra.core.global_hydra import GlobalHydra

    held = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = held


def _plain(config: Any, hydra: Any, overrides: tuple[str, ...], run_dir: str) -> Composed:
    """A config without its `hydra` node as plain values."""
    from omegaconf import OmegaConf

    own = OmegaConf.masked_copy(config, [name for name in config if name != "hydra"])
    tree: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    options = {name: str(option) for name, option in hydra.runtime.choices.items() if name in GROUPS}
    return Composed(tree=tree, options=options, overrides=overrides, run_dir=run_dir)


def _relative(path: str) -> str:
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def hydra_main(task: Callable[[Any], Any], arguments: list[str], config_dirs: tuple[str, ...]) -> None:
    """Hydra's own program: sweeps with any launcher and sweeper, --cfg, --info, shell completion."""
    import os
    import sys

    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # it raises instead of printing its own half of a traceback
    sys.argv = [sys.argv[0], *arguments]
    run = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)
    with _looking_first(config_dirs):
        translated(run)


def translated(composing: Callable[[], T]) -> T:
    """Runs it; what Hydra or OmegaConf refuse becomes a refusal of ours."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return composing()
    except Exception as error:
        # of files: the last two of those that are no text, or nested too deep
        own = isinstance(error, HydraException | OmegaConfBaseException | YAMLError | UnicodeError | RecursionError)
        if not own and "full_key: " not in str(error):  # what OmegaConf itself fails at names the key
            raise
        group, _, name = str(getattr(error, "missing_cfg_file", None) or "").rpartition("/")
        if group in PLUGINS:
            known = ", ".join(sorted(getattr(error, "options", None) or ()))
            package = name.partition("_")[0]
            hint = f"pip install 'factory[{package}]', or " if package in PLUGINS[group] else ""
            wrong = "no such plugin is installed"
            raise refuse("no-plugin", f"{group}={name}", wrong, known=known, hint=hint) from None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        where = getattr(error, "full_key", None) or "the configuration"
        wrong = lines[0].rstrip(".") if lines else type(error).__name__
        raise refuse("compose", where, wrong, detail="; ".join(lines[1:4]) or "it cannot be composed") from None


_OTHERS = {
    "model": ", or set model.path to a folder or hub id",
    "data": ", or data=file data.path=FILE for rows of your own",
}


def _unknown_options(group: str, chosen: Any, known: list[str]) -> list[Refusal]:
    several = group in ("data", "recipe")  # of the others one option is chosen, the last of a list would win in silence
    names = [str(chosen)] if isinstance(chosen, list) and not several else _names(chosen)
    other = _OTHERS.get(group, "")
    return [
        _no_option(f"{group}={name}", f"there is no such {group}", known, option_meant(group, name, known), other)
        for name in names
        if name not in known
    ]


def _several_runs(text: str, chosen: Any, config_dirs: tuple[str, ...]) -> list[Refusal]:
    """Where one run's settings are wanted, a recipe of several has none to give."""
    found = [name for name in _names(chosen) if _of_runs(name, config_dirs) is not None]
    return [refusal("recipe-of-runs", text, f"{name} is a recipe of several runs", name=name) for name in found]


def _names(chosen: Any) -> list[str]:
    """The options that an override's value names: one, a list, or a choice sweep (others Hydra expands)."""
    if isinstance(chosen, list):
        return [name for item in chosen for name in _names(item)]
    if hasattr(chosen, "list"):  # hydra's ChoiceSweep
        return [name for item in chosen.list for name in _names(item)]
    return [plain(chosen)] if chosen is None or isinstance(chosen, str | int | float | bool) else []


def _unparsable(text: str, message: str) -> Refusal:
    lines = message.splitlines()
    wrong = "its value cannot be read"
    return refusal("syntax", text, wrong, detail=lines[0].rstrip(".") if lines else "the grammar does not allow it")
