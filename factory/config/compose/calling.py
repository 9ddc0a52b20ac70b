"""Hydra and OmegaConf, called: overrides to a config and its values, Hydra's own program; their errors become ours."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from factory.config.extras import install
from factory.config.groups import CONF, GROUPS, folders
from factory.config.parsed import yaml_of
from factory.config.refusal import Refusal, refusal, refuse
from factory.config.values import plain

_compose = partial(refuse, "compose", fix="`factory --help` lists groups and options, `factory explain KEY` a key")

if TYPE_CHECKING:
    from factory.config.settings import Settings
    from factory.plan.facts import Facts

T = TypeVar("T")
PLUGINS = {"hydra/launcher": ("joblib", "ray", "submitit"), "hydra/sweeper": ("optuna",)}  # with an extra of ours
# by which Hydra and the standard library's logging find what they call, and where that may lie
_CALLS = ("_target_", "()", "class")
_CALLED = ("hydra.", "hydra_plugins.", "logging.", "optuna.")
_INNER = ("full_key: ", "object_type=", "reference_type=")  # how OmegaConf's errors go on: for who works on OmegaConf


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
    # of a run of a recipe: what is planned from, with what the runs that it reads will leave
    awaited: "Callable[[Settings, Facts], tuple[Settings, Facts]] | None" = None


def config_of(overrides: list[str], config_dirs: tuple[str, ...]) -> Any:
    """A config with its `hydra` node, of overrides as Hydra takes them. Raises UserError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _refuse_endless(config_dirs)

    def composing() -> Any:
        _look_in(config_dirs)
        with _beside_hydras_own(), initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                return hydra_compose("config", overrides=overrides, return_hydra_config=True)
            except (HydraException, OmegaConfBaseException):
                raise
            except RecursionError:
                if (file := _of_itself(config_dirs)) is None:
                    raise
                raise refuse(
                    "defaults-circle",
                    str(file),
                    "its defaults name the file itself",
                    because=(
                        "an option or a recipe of your own stands for the packaged one of its name, in its own "
                        "defaults too"
                    ),
                    fix=f"give {file} another name, or name another in its defaults",
                ) from None
            except (ValueError, TypeError, AttributeError, LookupError, AssertionError, OSError) as error:
                _refuse_named_items(overrides, config_dirs)
                if not config_dirs:
                    raise
                raise _compose(
                    f"--config-dir {config_dirs[-1]}", "a file in it is no config", because=str(error)
                ) from None

    made = translated(composing)
    _refuse_code(made.hydra)
    return made


def set_key(config: Any, key: str, value: Any) -> None:
    """As Hydra does for `++key=value`. Raises UserError."""
    from omegaconf import OmegaConf

    _refuse_named_item(config, key, value)
    OmegaConf.update(config, key, value, merge=True, force_add=True)


def _refuse_named_item(config: Any, key: str, value: Any) -> None:
    """A key under a list, at which OmegaConf fails without a word of where. Raises UserError."""
    from omegaconf import OmegaConf

    above, *parts = key.split(".")
    node = OmegaConf.select(config, above, throw_on_resolution_failure=False)
    for part in parts:
        if OmegaConf.is_list(node) and not part.isdecimal():
            wrong = f"{above} is a list, whose items have no names"
            raise refuse(
                "bad-value",
                f"{key}={plain(value)}",
                wrong,
                because="the schema gives each key one type and range",
                fix=f"set {above}=[A,B]",
            )
        if not OmegaConf.is_config(node):
            return
        node, above = OmegaConf.select(node, part, throw_on_resolution_failure=False), f"{above}.{part}"


def _refuse_named_items(overrides: list[str], config_dirs: tuple[str, ...]) -> None:
    """As Hydra sets keys: in their order, on what all else composes to. Raises UserError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    keyed: list[Any] = []
    others: list[str] = []
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True):
        is_set = "." in override.key_or_group and not (override.is_hydra_override() or override.is_delete())
        keyed += [override] if is_set else []
        others += [] if is_set else [text]
    config = config_of(others, config_dirs) if keyed else None
    for override in keyed:
        set_key(config, override.key_or_group, override.value())


def _refuse_endless(config_dirs: tuple[str, ...]) -> None:
    """Aliases of aliases: a few lines that OmegaConf would write out as gigabytes. Raises UserError."""
    for file in (file for folder in folders(config_dirs)[:-1] for file in folder.rglob("*.yaml")):
        content = file.read_bytes()
        if b"*" not in content or b"&" not in content:
            continue
        try:
            yaml_of(content)
        except ValueError as error:
            raise _compose(str(file), "it is no config", because=str(error)) from None


def _of_itself(config_dirs: tuple[str, ...]) -> Path | None:
    """A file of the user's own that its defaults name."""
    for file in (file for folder in folders(config_dirs)[:-1] for file in folder.glob("*/*.yaml")):
        with suppress(ValueError):  # another file that is no YAML
            found = yaml_of(file.read_bytes())
            names = found.get("defaults") if isinstance(found, dict) else None
            if isinstance(names, list) and file.stem in names:
                return file
    return None


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
                raise refuse(
                    "config-calls",
                    f"{path}.{name}={plain(value)}",
                    "a config may not name what is called",
                    because="a config says what is wanted; a file from somebody else would run code by it",
                    fix="take it out; hydra/launcher and hydra/sweeper choose among the installed plugins",
                )


def _look_in(config_dirs: tuple[str, ...]) -> None:
    """Have Hydra look into the user's own folders before the packaged one: hydra.searchpath comes after it."""
    from factory.config.sources import Places

    Places.folders = tuple(folders(config_dirs)[:-1])


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


def _plain(node: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node


def unplaced_recipe(config: Any) -> Iterator[Refusal]:
    """Hydra puts what a file holds under its folder's name, unless the file says otherwise."""
    if "recipes" in config:
        said = f"recipe={config.hydra.runtime.choices.get('recipes', '…')}"
        yield refusal(
            "recipe-package",
            said,
            "its file does not begin with # @package _global_",
            because="its keys would stand under recipes, which nothing reads",
            fix='make "# @package _global_" the first line of the file, as text without a byte-order mark',
        )


def sweep_in_a_file(config: Any) -> Iterator[Refusal]:
    """What only -m reads: on the line `unread` sees it."""
    mode = getattr(config.hydra.mode, "name", None)
    if mode == "MULTIRUN" or config.hydra.sweeper.get("params"):
        said = "hydra.mode=MULTIRUN" if mode == "MULTIRUN" else "hydra.sweeper.params"
        yield refusal(
            "launcher-without-multirun",
            f"{said} (in a file)",
            "it only works in a sweep",
            because="Hydra ignores it otherwise",
            fix="add -m",
        )


@contextmanager
def _hydra_asked_of(config: Any) -> Iterator[None]:
    """`${hydra:job.num}` is asked of what Hydra's own program sets, and its `compose` does not."""
    from hydra.core.hydra_config import HydraConfig

    held = HydraConfig.instance()
    before = held.cfg
    if "hydra" in config:  # which a job's has not: there Hydra has set it
        held.cfg = config
    try:
        yield
    finally:
        held.cfg = before


def as_composed(config: Any, hydra: Any, overrides: tuple[str, ...], run_dir: str) -> Composed:
    """A config without its `hydra` node as plain values."""
    with _hydra_asked_of(config):
        tree = {name: _plain(config[name]) for name in config if name != "hydra"}
    options = {name: str(option) for name, option in hydra.runtime.choices.items() if name in GROUPS}
    return Composed(tree=tree, options=options, overrides=overrides, run_dir=run_dir)


def hydra_main(task: Callable[[Any], Any], arguments: list[str], config_dirs: tuple[str, ...]) -> None:
    """Hydra's own program: sweeps with any launcher and sweeper, --cfg, --info, shell completion."""
    import os
    import sys

    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # it raises instead of printing its own half of a traceback
    sys.argv = [sys.argv[0], *arguments]
    run = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)
    _look_in(config_dirs)
    translated(run)


def translated(composing: Callable[[], T]) -> T:
    """Runs it; what Hydra or OmegaConf refuse becomes a refusal of ours."""
    from hydra.errors import HydraException
    from omegaconf.errors import (
        InterpolationResolutionError,
        MissingMandatoryValue,
        OmegaConfBaseException,
        UnsupportedInterpolationType,
    )
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
            hint = f"{install(package)}, or " if package in PLUGINS[group] else ""
            wrong = "no such plugin is installed"
            raise refuse(
                "no-plugin",
                f"{group}={name}",
                wrong,
                because=f"those that are installed bring {known}",
                fix=f"{hint}install the plugin of Hydra that brings it",
            ) from None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        where = getattr(error, "full_key", None) or "the configuration"
        if isinstance(error, MissingMandatoryValue):
            raise refuse(
                "value-missing",
                f"{where}=???",
                "it has no value yet",
                because="??? in a file of options or on the line leaves the value to whoever runs it",
                fix=f"set {where}=VALUE (`factory explain {where}`)",
            ) from None
        if isinstance(error, InterpolationResolutionError | UnsupportedInterpolationType):
            raise refuse(
                "interpolation",
                where,
                _unresolved(lines[0]),
                because="${...} is replaced when the configuration is read, and by nothing else",
                fix=(
                    f"set {where}=VALUE, or correct what it points to: ${{KEY}} is another key, "
                    "${oc.env:NAME,DEFAULT} a variable of the environment; the others are oc.select, oc.decode, "
                    "oc.create, oc.dict.keys, oc.dict.values, now and hydra"
                ),
            ) from None
        wrong = lines[0].rstrip(".") if lines else type(error).__name__
        detail = "; ".join(line for line in lines[1:4] if not line.startswith(_INNER))
        raise _compose(where, wrong, because=detail or "it cannot be composed") from None


def _unresolved(said: str) -> str:
    """`Environment variable 'A' not found`, of what OmegaConf has caught and told around it."""
    return said.rpartition(" raised while resolving interpolation: ")[2].strip('"').rstrip(".")
