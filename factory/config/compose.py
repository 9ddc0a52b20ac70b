"""Compose a command line: Hydra, once, with the user's overrides as they are.

Hydra refuses one unknown key or option at a time. So options are looked up before it composes, and where it refuses a
key, every override is set by itself on what the others compose to: all problems come back at once.
"""

import copy
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from factory.config import tables
from factory.config.extras import install
from factory.config.groups import CONF, GROUPS, folders, listed, options, runs_of, unusable_folders
from factory.config.refusal import Refusal, UserError, did_you_mean, refusal, refuse
from factory.config.settings import paths, validate
from factory.config.suggest import flag_meant, not_a_setting, option_meant
from factory.config.values import plain

if TYPE_CHECKING:
    from factory.config.settings import Settings
    from factory.plan.facts import Facts

T = TypeVar("T")
# the sections of conf/VERB.yaml, which only these verbs compose
OWN = {name: (name,) for name in ("plan", "preview", "compare", "export", "chat", "serve", "board", "sweep")}
OWN |= dict.fromkeys(("engine", "generation"), ("chat", "serve"))
_PLUGINS = {"hydra/launcher": ("joblib", "ray", "submitit"), "hydra/sweeper": ("optuna",)}  # with an extra of ours
_SHOWS = {  # what Hydra's own flags show
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
_FLAGS = ("--help", "--multirun", "--config-dir", "--cfg", "--info", "--package", "--resolve", "--from-plan", "--diff")
_FOLDER = ("--config-dir", "-cd")
_ALONE = ("-m", "--multirun", "--resolve", "--hydra-help", "--shell-completion", "-sc")  # that take no value
OF_A_VERB = {"--from-plan": ("train", "FILE"), "--diff": ("plan", "A B")}  # which reads it itself, and what it takes

_INNER = ("full_key: ", "object_type=", "reference_type=")  # details of OmegaConf's errors


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """The arguments after the verb, taken apart."""

    overrides: tuple[str, ...]
    verb: str = "train"
    words: tuple[str, ...] = ()  # that set nothing, of a verb that takes some
    multirun: bool = False
    config_dirs: tuple[str, ...] = ()
    hydra_flags: tuple[str, ...] = ()  # --cfg, --info, --shell-completion …: Hydra's own business
    planned: Mapping[str, dict[str, Any]] = field(
        default_factory=dict, hash=False
    )  # groups of a plan, which stand for options


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """A run's tree with its interpolations resolved. `problems` are of overrides that the tree is without."""

    tree: dict[str, Any]
    options: dict[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    run_dir: str = ""
    config_dirs: tuple[str, ...] = ()  # that hold options of the user's own
    problems: tuple[Refusal, ...] = ()
    run: str | None = None  # the folder of the run that `run=` names
    # of a run of a recipe: what is planned from, with what the runs that it reads will leave
    awaited: "Callable[[Settings, Facts], tuple[Settings, Facts]] | None" = None


def parse(argv: list[str], verb: str = "train", *, takes_words: bool = False) -> CommandLine:
    """Separate Hydra's flags from the overrides. Raises UserError for a flag or a word that nothing reads."""
    overrides, words, config_dirs, hydra_flags = list[str](), list[str](), list[str](), list[str]()
    multirun = False
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in ("-m", "--multirun"):
            multirun = True
        elif name in _FOLDER:
            config_dirs.append(value if equals else _argument(name, rest))
        elif name in ("--cfg", "-c"):
            hydra_flags += [name, _shown("--cfg", value if equals else _argument(name, rest))]
        elif name in ("--package", "-p"):
            hydra_flags += [name, value if equals else _argument(name, rest)]
        elif name in ("--info", "-i"):
            takes_value = not equals and rest and rest[0] in _SHOWS["--info"]
            given = value if equals else rest.pop(0) if takes_value else "all"
            hydra_flags.append(f"--info={_shown('--info', given)}")
        elif word in _ALONE:
            hydra_flags.append(word)
        elif word.startswith("-"):
            raise UserError(_unread_flag(word))
        elif "=" in word or word.startswith("~"):
            overrides.append(word)
        elif takes_words:
            words.append(word)
        else:
            raise UserError(not_a_setting(word, rest))
    return CommandLine(
        overrides=tuple(overrides),
        verb=verb,
        words=tuple(words),
        multirun=multirun or "hydra.mode=MULTIRUN" in overrides,
        config_dirs=tuple(config_dirs),
        hydra_flags=tuple(hydra_flags),
    )


def folders_named(argv: list[str]) -> tuple[str, ...]:
    """Return the folders of options, whatever else stands there."""
    flags = [(at, *word.partition("=")) for at, word in enumerate(argv)]
    named = [[value] if equals else argv[at + 1 : at + 2] for at, name, equals, value in flags if name in _FOLDER]
    return tuple(folder for folders in named for folder in folders)


def _unread_flag(word: str) -> Refusal:
    name = word.partition("=")[0]
    if name in OF_A_VERB:
        verb, value = OF_A_VERB[name]
        because = "here it would be ignored, or what follows it misread"
        fix = f"leave it out, or `factory {verb} {name} {value}` instead"
        return refusal("flag-of-another-verb", word, f"it belongs to `{verb}`", because=because, fix=fix)
    if name in _ALONE:
        return _bad_flag(word, "it takes no value", f"write {name} without one; ")
    return _bad_flag(word, "there is no such flag", flag_meant(name, paths()) or did_you_mean(name, _FLAGS))


def _bad_flag(word: str, wrong: str, hint: str = "") -> Refusal:
    fix = f"{hint}a setting is key=value, without dashes; `factory --help` lists what there is"
    return refusal("unknown-flag", word, wrong, because="it would be ignored, or what follows it misread", fix=fix)


def _argument(flag: str, rest: list[str]) -> str:
    if not rest:
        raise UserError(_bad_flag(flag, "it needs a value"))
    return rest.pop(0)


def _shown(flag: str, value: str) -> str:
    if value not in _SHOWS[flag]:
        raise UserError(_bad_flag(f"{flag} {value}", f"{flag} takes one of {', '.join(_SHOWS[flag])}"))
    return value


def recipe_of_runs(line: CommandLine) -> tuple[str, dict[str, Any]] | None:
    """Return the recipe of several runs that the line names, and its file's content. Raises UserError."""
    names = (text.lstrip("+").partition("recipe=") for text in line.overrides)
    found = ((name, runs_of(name, line.config_dirs)) for start, equals, name in names if equals and not start)
    return next(((name, runs) for name, runs in found if runs is not None), None)


def compose(line: CommandLine) -> Composed:
    """Return the tree of one run. Raises UserError where nothing can be composed."""
    config, problems = config_of(line)
    return replace(resolved(config, config.hydra, line, str(config.hydra.run.dir)), problems=tuple(problems))


def config_of(line: CommandLine) -> tuple[Any, list[Refusal]]:
    """Return Hydra's config, and the problems of overrides that it is without. Raises UserError."""
    texts, problems, bad_groups = checked(line)
    try:
        return _by_hydra(texts, line), problems
    except UserError as error:
        refused = error
    try:
        config, unknown = _key_by_key(texts, line, bad_groups)
    except UserError as error:  # no key is at fault
        raise UserError(*problems, *error.refusals) from None
    if not unknown and not bad_groups:
        raise UserError(*problems, *refused.refusals)
    return config, problems + unknown


def _by_hydra(texts: Sequence[str], line: CommandLine) -> Any:
    from hydra import compose as hydra_compose

    name = line.verb if line.verb in OWN else "config"
    chosen = {text.lstrip("+").partition("=")[0] for text in texts}
    planned = [f"{group}={tables.PLANNED}" for group in line.planned if group not in chosen]
    with hydra_of(line.config_dirs, line.planned):
        config = translated(lambda: hydra_compose(name, overrides=[*planned, *texts], return_hydra_config=True))
    if "recipe" in config:
        because = "its keys would stand under `recipe`, which nothing reads"
        fix = 'make "# @package _global_" the first line of the file, as text without a byte-order mark'
        option = f"recipe={config.hydra.runtime.choices.get('recipe')}"
        wrong = "its file does not begin with # @package _global_"
        raise refuse("recipe-package", option, wrong, because=because, fix=fix)
    return config


@contextmanager
def hydra_of(config_dirs: tuple[str, ...], planned: Mapping[str, dict[str, Any]] | None = None) -> Iterator[None]:
    """Initialize Hydra, inside a sweep's job too, with the user's own folders before the packaged one."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from factory.config.sources import Places

    Places.folders, Places.planned = tuple(folders(config_dirs)[:-1]), planned or {}
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = running


def resolved(config: Any, hydra: Any, line: CommandLine, run_dir: str) -> Composed:
    """Return a config as plain values, without its `hydra` node. Raises UserError."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    def plain_of(node: Any) -> Any:
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node

    held = HydraConfig.instance()
    before, held.cfg = held.cfg, config if "hydra" in config else held.cfg  # what ${hydra:job.num} reads
    try:
        tree = translated(lambda: {name: plain_of(config[name]) for name in config if name != "hydra"})
    finally:
        held.cfg = before
    chosen = {name: str(option) for name, option in hydra.runtime.choices.items() if name in GROUPS}
    chosen = {name: option for name, option in chosen.items() if option != tables.PLANNED}
    return Composed(tree=tree, options=chosen, overrides=line.overrides, run_dir=run_dir, config_dirs=line.config_dirs)


def checked(line: CommandLine) -> tuple[list[str], list[Refusal], set[str]]:
    """Return the overrides that name what there is, the problems of the others, and groups whose option is unknown."""
    problems, kept, bad_groups = list(unusable_folders(line.config_dirs)), list[str](), set[str]()
    searched = any(text.lstrip("+").startswith("hydra.searchpath=") for text in line.overrides)
    for text in line.overrides:
        try:
            override = parsed(text)
        except UserError as error:
            problems += error.refusals
            continue
        key, value = override.key_or_group, override.value()
        found = list[Refusal]()
        if override.is_sweep_override() and not line.multirun:
            because = "a run has one value of a key; several are a sweep, with a run for each"
            text_of = f"\"{key}='A,B'\""
            fix = f"add -m, which runs each; where a list is meant, {key}=[A,B], where a text with a comma, {text_of}"
            found.append(refusal("several-values", text, "it names several values", because=because, fix=fix))
        elif key == "recipe" and override.is_add():
            because, name = "the defaults have the group already, so that Hydra would add a second", override.value()
            found.append(refusal("recipe-added", text, "nothing is added", because=because, fix=f"write recipe={name}"))
        elif key in (*GROUPS, "recipe") and not isinstance(value, dict) and not override.is_delete():
            found += [] if searched else _unknown_options(key, value, line.config_dirs)
            bad_groups |= {key} if found else set()
        problems += found
        kept += [] if found else [text]
    return kept, problems, bad_groups


def parsed(text: str) -> Any:
    """Return Hydra's override of a text. Raises UserError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    override: Any = None
    try:
        override = OverridesParser.create().parse_override(text)
        detail = "" if override.key_or_group else "there is no key before the ="
    except (HydraException, ValueError) as error:  # the latter of numbers with thousands of digits
        detail = str(error).partition("\n")[0].rstrip(".") or "the grammar does not allow it"
    if detail:
        fix = (
            """put the value in two pairs of quotes, as in 'key="a, b"', or in a list each of its values, as in """
            """"key=['a, b','<c>']" (~, *, <, spaces, letters beyond ASCII need it)"""
        )
        raise refuse("syntax", text, "its value cannot be read", because=detail, fix=fix)
    return override


def _unknown_options(group: str, value: Any, config_dirs: tuple[str, ...]) -> Iterator[Refusal]:
    known = options(group, config_dirs)
    several = group in ("data", "recipe")  # of the others one option is chosen: the last of a list would win in silence
    names = [str(value)] if isinstance(value, list) and not several else list(_names(value))
    for name in names:
        if name not in known:
            yield _no_option(group, name, known)
        elif group == "recipe" and runs_of(name, config_dirs) is not None:
            because = "each of its runs has settings of its own, and runs of it may wait for others"
            fix = f"`factory recipe={name}` runs them, `factory plan recipe={name}` shows them; give it without -m"
            yield refusal(
                "recipe-of-runs", f"recipe={name}", "it is a recipe of several runs", because=because, fix=fix
            )
    if group == "data" and isinstance(value, list) and len(set(names)) < len(names):
        because, fix = "it would be read once", "name it once; data.sources.NAME.weight=2 takes its rows twice"
        yield refusal("option-twice", f"data=[{','.join(names)}]", "a set is named twice", because=because, fix=fix)


def _no_option(group: str, name: str, known: list[str]) -> Refusal:
    """Return the refusal of an option that does not exist."""
    others = {
        "model": ", or set model.path to a folder or hub id",
        "data": ", or data=file data.path=FILE for your rows",
    }
    fix = f"{option_meant(group, name, known)}choose one of them{others.get(group, '')}"
    because = f"the options are {listed(known) or 'none'}"
    return refusal("unknown-option", f"{group}={name}", f"there is no such {group}", because=because, fix=fix)


def _names(value: Any) -> Iterator[str]:
    """Yield the options that an override's value names: one, a list, or a choice sweep (others Hydra expands)."""
    inner = value if isinstance(value, list) else getattr(value, "list", None)
    if inner is not None:
        for item in inner:
            yield from _names(item)
    elif value is None or isinstance(value, str | int | float | bool):
        yield plain(value)


def _key_by_key(texts: Sequence[str], line: CommandLine, bad_groups: set[str]) -> tuple[Any, list[Refusal]]:
    """Set each `key=value` by itself on what the others compose to; return the config and what Hydra refuses."""
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    overrides = {text: parsed(text) for text in texts}
    keyed = {text: override for text, override in overrides.items() if _sets_a_key(override)}
    config = _by_hydra([text for text in texts if text not in keyed], line)
    unknown, problems = dict[str, Any](), list[Refusal]()
    for text, override in keyed.items():
        key, value = override.key_or_group, override.value()
        try:
            OmegaConf.update(config, key, value, merge=True)
        except (ConfigAttributeError, ConfigKeyError):
            unknown |= {} if key.partition(".")[0] in bad_groups else {text: override}
        except (OmegaConfBaseException, ValueError, TypeError, LookupError, AttributeError) as error:
            above = key.rpartition(".")[0] or key
            because, fix = str(error).partition("\n")[0], f"set {above} whole, as {above}=[A,B]"
            problems.append(refusal("bad-value", text, "it cannot be set", because=because, fix=fix))
    return config, [*problems, *_unknown(config, unknown)]


def _sets_a_key(override: Any) -> bool:
    key = override.key_or_group
    option = key in (*GROUPS, "recipe") and not isinstance(override.value(), dict)
    added = override.is_add() or override.is_force_add() or override.is_delete()
    return not (option or added or "/" in key or override.package is not None or key == "hydra.searchpath")


def _unknown(config: Any, overrides: dict[str, Any]) -> Iterator[Refusal]:
    """Yield what the settings say of new keys; a mapping's are allowed, and need Hydra's +."""
    from omegaconf import OmegaConf

    forced = copy.deepcopy(config)
    for override in overrides.values():
        OmegaConf.update(forced, override.key_or_group, override.value(), merge=True, force_add=True)
    tree: Any = OmegaConf.to_container(OmegaConf.masked_copy(forced, [*set(forced) - {"hydra"}]), resolve=True)
    try:
        validate(tree)
        found: tuple[Refusal, ...] = ()
    except UserError as error:
        found = error.refusals
    for text, override in overrides.items():
        key = override.key_or_group
        names = {each: each.setting.partition("=")[0] for each in found}
        own = [each for each, name in names.items() if f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}.")]
        because = "Hydra takes a key that no option has only where a + says that it is new"
        yield from own or [refusal("new-key", text, "there is no such key yet", because=because, fix=f"write +{text}")]


def hydra_main(task: Callable[[Any], Any], arguments: list[str], line: CommandLine) -> None:
    """Run Hydra's own program: sweeps with any launcher and sweeper, --cfg, --info, shell completion."""
    import hydra

    from factory.config.sources import Places

    os.environ["HYDRA_FULL_ERROR"] = "1"  # it raises instead of printing its own half of a traceback
    sys.argv = [sys.argv[0], *arguments]
    Places.folders = tuple(folders(line.config_dirs)[:-1])
    name = line.verb if line.verb in OWN else "config"
    translated(hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(task))


def translated(composing: Callable[[], T]) -> T:
    """Run it; what Hydra or OmegaConf refuse becomes a refusal of ours."""
    from hydra.errors import HydraException
    from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException
    from omegaconf.errors import UnsupportedInterpolationType as Unsupported
    from yaml import YAMLError

    try:
        return composing()
    except UserError:
        raise
    except RecursionError:
        because = "an option of your own stands for the packaged one of its name, in its own defaults too"
        fix = "give the file another name, or name another option in its defaults"
        wrong = "the defaults of a file name the file itself"
        raise refuse("defaults-circle", "--config-dir", wrong, because=because, fix=fix) from None
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeError) as error:
        group, _, name = str(getattr(error, "missing_cfg_file", None) or "").rpartition("/")
        if group in _PLUGINS:
            package = name.partition("_")[0]
            hint = f"{install(package)}, or " if package in _PLUGINS[group] else ""
            because = f"those that are installed bring {', '.join(sorted(getattr(error, 'options', None) or ()))}"
            fix = f"{hint}install the plugin of Hydra that brings it"
            wrong = "no such plugin is installed"
            raise refuse("no-plugin", f"{group}={name}", wrong, because=because, fix=fix) from None
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        where = getattr(cause, "full_key", None) or getattr(error, "full_key", None) or "the configuration"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if isinstance(error, MissingMandatoryValue):
            because = "??? in a file of options or on the line leaves the value to whoever runs it"
            fix = f"set {where}=VALUE (`factory explain {where}`)"
            raise refuse("value-missing", f"{where}=???", "it has no value yet", because=because, fix=fix) from None
        if isinstance(error, InterpolationResolutionError | Unsupported):
            wrong = lines[0].rpartition(" raised while resolving interpolation: ")[2].strip('"').rstrip(".")
            because = "${...} is replaced when the configuration is read, and by nothing else"
            fix = f"set {where}=VALUE, or fix what it points to: ${{KEY}} is a key, ${{oc.env:NAME,DEFAULT}} a variable"
            raise refuse("interpolation", where, wrong, because=because, fix=fix) from None
        wrong = lines[0].rstrip(".") if lines else type(error).__name__
        because = "; ".join(line for line in lines[1:4] if not line.startswith(_INNER)) or "it cannot be composed"
        fix = "`factory --help` lists groups and options, `factory explain KEY` a key"
        raise refuse("compose", where, wrong, because=because, fix=fix) from None
    except (ValueError, TypeError, AttributeError, LookupError, AssertionError, OSError) as error:
        if not _from_hydra(error):
            raise
        fix = "check the files of --config-dir: an option is a mapping of keys; and the values of the command"
        raise refuse("compose", "the configuration", "it is no config", because=str(error), fix=fix) from None


def _from_hydra(error: Exception) -> bool:
    """Whether Hydra or OmegaConf itself failed, at what a file or an override has; a task's errors are not theirs."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return place.partition(".")[0] in ("hydra", "omegaconf", "yaml")
