"""Command line to plain tree: the one room that knows Hydra and OmegaConf.

Every plain `key=value` is composed as `++key=value`, and the composed tree is checked against the schema afterwards: so
a key that does not exist is refused in the same way whether it came from the command line, a recipe or a config folder.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from factory.config.compose.calling import (
    PLUGINS,
    Composed,
    as_composed,
    config_of,
    set_key,
    sweep_in_a_file,
    translated,
    unplaced_recipe,
)
from factory.config.groups import GROUPS, ROOT, listed, options, recipe_files, recipes, unusable_folders
from factory.config.refusal import Refusal, UserError, did_you_mean, refusal, refuse
from factory.config.settings import no_such_key, paths
from factory.config.suggest import flag_meant, not_a_setting, option_meant
from factory.config.values import plain

_BASES = 256  # that a Recomposer keeps, of half a megabyte each
_TEXTS = 1024  # overrides of which what Hydra reads in them is kept
_KEYED = (*GROUPS, "plan", "preview", "compare", "export", "sweep", "chat", "serve", "board")  # what has keys
_LONGEST = 255  # bytes of a key: Hydra asks whether there is a folder of that name, and no name may be longer
_SHOWS = {  # what Hydra's own flags show
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
_FLAGS = ("--help", "--multirun", "--config-dir", "--cfg", "--info", "--package", "--resolve", "--from-plan", "--diff")
_FOLDER = ("--config-dir", "-cd")
_ALONE = ("-m", "--multirun", "--resolve", "--hydra-help", "--shell-completion", "-sc")  # that take no value
OF_A_VERB = {"--from-plan": ("train", "FILE"), "--diff": ("plan", "A B")}  # which reads it itself, and what it takes
_OTHERS = {
    "model": ", or set model.path to a folder or hub id",
    "data": ", or data=file data.path=FILE for rows of your own",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """The arguments after the verb, taken apart."""

    overrides: tuple[str, ...]
    words: tuple[str, ...] = ()  # that set nothing, of a verb that takes some
    multirun: bool = False
    config_dirs: tuple[str, ...] = ()
    hydra_flags: tuple[str, ...] = ()  # --cfg, --info, --shell-completion …: Hydra's own business


def parse(argv: list[str], *, takes_words: bool = False) -> CommandLine:
    """Takes Hydra's flags from the overrides. Raises UserError for a flag or a word that nothing reads."""
    overrides: list[str] = []
    words: list[str] = []
    config_dirs: list[str] = []
    hydra_flags: list[str] = []
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
        words=tuple(words),
        multirun=multirun,
        config_dirs=tuple(config_dirs),
        hydra_flags=tuple(hydra_flags),
    )


def folders_named(argv: list[str]) -> tuple[str, ...]:
    """The folders of options alone, whatever else stands there."""
    flags = [(at, *word.partition("=")) for at, word in enumerate(argv)]
    named = [[value] if equals else argv[at + 1 : at + 2] for at, name, equals, value in flags if name in _FOLDER]
    return tuple(folder for folders in named for folder in folders)


def _unread_flag(word: str) -> Refusal:
    name = word.partition("=")[0]
    if name in OF_A_VERB:
        verb, value = OF_A_VERB[name]
        return refusal(
            "flag-of-another-verb",
            word,
            f"it belongs to `{verb}`",
            because="here it would be ignored, or what follows it misread",
            fix=f"leave it out, or `factory {f'{verb} {name} {value}'}` instead",
        )
    if name in _ALONE:
        return refusal(
            "unknown-flag",
            word,
            "it takes no value",
            because="it would be ignored, or what follows it misread",
            fix=(
                f"{f'write {name} alone; '}a setting is key=value, without dashes; `factory --help` lists what there is"
            ),
        )
    return refusal(
        "unknown-flag",
        word,
        "there is no such flag",
        because="it would be ignored, or what follows it misread",
        fix=(
            f"{flag_meant(name, paths()) or did_you_mean(name, _FLAGS)}a setting is key=value, without "
            "dashes; `factory --help` lists what there is"
        ),
    )


def _argument(flag: str, rest: list[str]) -> str:
    if not rest:
        raise refuse(
            "unknown-flag",
            flag,
            "it needs a value",
            because="it would be ignored, or what follows it misread",
            fix="a setting is key=value, without dashes; `factory --help` lists what there is",
        )
    return rest.pop(0)


def _shown(flag: str, value: str) -> str:
    known = ", ".join(_SHOWS[flag])
    if value not in _SHOWS[flag]:
        raise refuse(
            "unknown-flag",
            f"{flag} {value}",
            f"{flag} takes one of {known}",
            because="it would be ignored, or what follows it misread",
            fix="a setting is key=value, without dashes; `factory --help` lists what there is",
        )
    return value


def recipe_of_runs(line: CommandLine) -> tuple[str, dict[str, Any]] | None:
    """The recipe of several runs that the line names, and its file's content. Raises UserError where it is broken."""
    for text in line.overrides:
        name = text.lstrip("+").removeprefix("recipe=")
        if name != text.lstrip("+") and (found := _of_runs(name, line.config_dirs)) is not None:
            return name, found
    return None


def _of_runs(name: str, config_dirs: tuple[str, ...]) -> dict[str, Any] | None:
    """What the recipe's file holds, if it holds runs."""
    path = recipe_files(config_dirs).get(name)
    if path is None or b"runs" not in path.read_bytes():
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

    problems = list(unusable_folders(line.config_dirs))
    parser = OverridesParser.create()
    ready: list[str] = []
    bad_groups: set[str] = set()
    search: list[Any] = []
    swept: dict[str, str] = {}  # the words of a sweep that name several values, by their keys
    for text in line.overrides:
        try:
            text, override = _override(parser, text, line.config_dirs)
        except UserError as error:
            problems += error.refusals
            continue
        key, chosen = override.key_or_group, override.value()
        if key in swept:
            problems.append(
                refusal(
                    "swept-again",
                    text,
                    f"{swept[key]} before it names several values",
                    because="every job would have the last one's value, and some would be alike",
                    fix=f"say {key} once",
                )
            )
            continue
        if line.multirun and override.is_sweep_override():
            swept[key] = text
        if len(key.encode()) > _LONGEST:
            problems.append(no_such_key(key, chosen, []))
        elif override.is_sweep_override() and not line.multirun and not key.startswith("hydra"):
            problems.append(
                refusal(
                    "several-values",
                    text,
                    "it names several values",
                    because="a run has one value of a key; several are a sweep, with a run for each",
                    fix=(
                        f"add -m, which runs each; where a list is meant, {key}=[A,B], where a text with a comma, "
                        f"\"{key}='A,B'\""
                    ),
                )
            )
        elif key == "recipe":
            unknown = _unknown_options("recipe", chosen, recipes(line.config_dirs))
            unknown = unknown or _several_runs(text, chosen, line.config_dirs)
            problems += unknown
            ready += [] if unknown else [f"+recipes={text.partition('=')[2]}"]
        elif key in GROUPS and not isinstance(chosen, dict) and not override.is_delete():
            unknown = _unknown_options(key, chosen, options(key, line.config_dirs)) + _named_twice(key, chosen)
            problems += unknown
            bad_groups |= {key} if unknown else set()
            ready += [] if unknown else [text.lstrip("+")]
        elif key == "hydra.searchpath":
            search += chosen if isinstance(chosen, list) else [chosen]
        elif key.startswith("hydra") or override.is_delete():
            if key in PLUGINS and not line.multirun:
                problems.append(
                    refusal(
                        "launcher-without-multirun",
                        text,
                        "it only works in a sweep",
                        because="Hydra ignores it otherwise",
                        fix="add -m",
                    )
                )
            ready.append(text)
        else:
            ready.append(f"++{text.lstrip('+')}")
    ready.append(f"hydra.searchpath=[{','.join(map(_quoted, [f'file://{ROOT}', *search]))}]")
    return Prepared(overrides=ready, problems=problems, bad_groups=bad_groups)


def _quoted(place: Any) -> str:
    """A place as Hydra's grammar takes any name of a folder; it decodes no URI. What is no text it refuses itself."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(place, Quote.single).with_quotes() if isinstance(place, str) else plain(place)


def _override(parser: Any, text: str, config_dirs: tuple[str, ...]) -> tuple[str, Any]:
    """The text with what a glob chooses in its place, and what Hydra reads in it. Raises UserError."""
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    try:
        override = parser.parse_override(text)
    except (HydraException, ValueError) as error:  # the latter of numbers with thousands of digits
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


def _unknown_options(group: str, chosen: Any, known: list[str]) -> list[Refusal]:
    several = group in ("data", "recipe")  # of the others one option is chosen, the last of a list would win in silence
    names = [str(chosen)] if isinstance(chosen, list) and not several else _names(chosen)
    other = _OTHERS.get(group, "")
    return [
        _no_option(f"{group}={name}", f"there is no such {group}", known, option_meant(group, name, known), other)
        for name in names
        if name not in known
    ]


def _named_twice(group: str, chosen: Any) -> list[Refusal]:
    """Sets that stand twice in one list: Hydra would take each once in silence."""
    if group != "data":
        return []
    lists = [each for each in (getattr(chosen, "list", None) or [chosen]) if isinstance(each, list)]
    twice = {name for names in map(_names, lists) for name in names if names.count(name) > 1}
    wrong = "it is named twice in a list"
    return [
        refusal(
            "option-twice",
            f"{group}={name}",
            wrong,
            because="it would be read once, and nothing of it twice",
            fix=f"name it once; data.sources.{name}.weight=2 takes its rows twice",
        )
        for name in sorted(twice)
    ]


def _several_runs(text: str, chosen: Any, config_dirs: tuple[str, ...]) -> list[Refusal]:
    """Where one run's settings are wanted, a recipe of several has none to give."""
    found = [name for name in _names(chosen) if _of_runs(name, config_dirs) is not None]
    return [
        refusal(
            "recipe-of-runs",
            text,
            f"{name} is a recipe of several runs",
            because="each of its runs has settings of its own, and runs of it may wait for others",
            fix=(
                f"`factory recipe={name}` runs them, `factory plan recipe={name}` shows them; give it by itself, "
                "without -m"
            ),
        )
        for name in found
    ]


def _no_option(text: str, wrong: str, known: list[str], hint: str = "", other: str = "") -> Refusal:
    return refusal(
        "unknown-option",
        text,
        wrong,
        because=f"the options are {listed(known) or 'none'}",
        fix=f"{hint}choose one of them{other}",
    )


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
    return refusal(
        "syntax",
        text,
        wrong,
        because=lines[0].rstrip(".") if lines else "the grammar does not allow it",
        fix=(
            "put the value in two pairs of quotes, as in 'key=\"a, b\"', or in a list each of its values, as "
            "in \"key=['a, b','<c>']\" (~, *, <, spaces, letters beyond ASCII need it)"
        ),
    )


def compose(line: CommandLine) -> Composed:
    """The tree of one run, interpolations resolved. Raises UserError."""
    changes = line.config_dirs or any(text.lstrip("+~").startswith("hydra") for text in line.overrides)
    return compose_alone(line) if changes else _PACKAGED(line.overrides)


def compose_alone(line: CommandLine) -> Composed:
    """As `compose`, all of it by Hydra: of files that may change, and where its own settings may read the overrides."""
    ready = prepared(line)

    def composed() -> Composed:
        config = config_of(ready.overrides, line.config_dirs)
        if problems := [*unplaced_recipe(config), *sweep_in_a_file(config)]:
            raise UserError(*problems)
        return translated(lambda: as_composed(config, config.hydra, line.overrides, str(config.hydra.run.dir)))

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
        self._bases: dict[tuple[str, ...], tuple[Any, Any]] = {}

    def __call__(self, overrides: tuple[str, ...]) -> Composed:
        """As `compose` of these overrides. Raises UserError."""
        others = tuple(text for text in overrides if _plain_key(text) is None)
        ready = prepared(CommandLine(overrides=others, config_dirs=self._config_dirs))

        def changed() -> Composed:
            from omegaconf import flag_override

            own, hydra = self._base(tuple(ready.overrides))
            config = copy.deepcopy(own)
            for key, value in filter(None, map(_plain_key, overrides)):
                set_key(config, key, value)
            with flag_override(config, ["struct", "no_deepcopy_set_nodes"], [False, True]):
                config.hydra = hydra  # most of a config, and nothing here changes it
            return as_composed(config, hydra, overrides, str(hydra.run.dir))

        return _with_problems(ready, self._config_dirs, lambda: translated(changed))

    def _base(self, overrides: tuple[str, ...]) -> tuple[Any, Any]:
        """The config of overrides as Hydra gets them, and its `hydra` node apart."""
        from omegaconf import OmegaConf

        if overrides not in self._bases:
            if len(self._bases) >= _BASES:
                self._bases.pop(next(iter(self._bases)))
            config = config_of(list(overrides), self._config_dirs)
            own = OmegaConf.masked_copy(config, [name for name in config if name != "hydra"])
            self._bases[overrides] = own, config.hydra
        return self._bases[overrides]


_PACKAGED = Recomposer(())  # a command composes up to four trees, a recipe one for each run, a board any number


@lru_cache(_TEXTS)
def texts(override: str) -> tuple[tuple[str, str], ...]:
    """Every text in an override's value with its key: as it is written, and as Hydra reads it, without quotes or casts.

    What is in a mapping has a key of its own.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, _, written = override.partition("=")
    try:
        parsed = OverridesParser.create().parse_override(override)
        key, read = parsed.key_or_group, parsed.value()
    except (HydraException, ValueError):  # it is refused where it is composed
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


@cache
def _plain_key(text: str) -> tuple[str, Any] | None:
    """The key and the value of an override that sets one key of a group; None of any other, or of a broken one."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(text)
    except (HydraException, ValueError):
        return None
    key, value = override.key_or_group, override.value()
    plain_one = not override.is_delete() and not override.is_sweep_override()
    known = key in ("seed", "checks") or ("." in key and key.partition(".")[0] in _KEYED)
    return (key, value) if plain_one and known else None
