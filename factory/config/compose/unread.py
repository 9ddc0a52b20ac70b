"""Hydra's own keys that nothing would read: it composes every run, and starts those of a sweep alone."""

from collections.abc import Iterator

from factory.config.compose.calling import PLUGINS
from factory.config.line import name_of
from factory.config.refusal import Refusal, refusal

_OF_SWEEPS = ("callbacks", "env", "hydra_logging", "job.env_copy", "job.env_set", "job_logging", "launcher", "output")
_OF_SWEEPS += ("output_subdir", "sweep", "sweeper", "verbose")
_OF_NONE = ("help", "hydra_help", "job.chdir", "mode")
_OFF = ("false", "null")  # which is so without them too


def of_one(texts: tuple[str, ...]) -> Iterator[Refusal]:
    """What a run that is no sweep's would not look at."""
    for text, key in _own(texts):
        if _among(key, _OF_SWEEPS) and name_of(text) not in PLUGINS:  # which are refused where they are composed
            yield refusal(
                "launcher-without-multirun",
                text,
                "it only works in a sweep",
                because="Hydra ignores it otherwise",
                fix="add -m",
            )
        elif _among(key, _OF_NONE):
            yield _hydra_unread(text, "a run does not read it", hint="")


def of_a_sweep(texts: tuple[str, ...]) -> Iterator[Refusal]:
    for text, key in _own(texts):
        if _among(key, ("run",)):
            yield _hydra_unread(text, "a sweep does not read it", hint="set hydra.sweep.dir, or ")
        elif _among(key, _OF_NONE):
            yield _hydra_unread(text, "a sweep does not read it", hint="")


def of_a_recipe(texts: tuple[str, ...]) -> Iterator[Refusal]:
    """Of several runs, which are placed as a sweep's and started by no launcher."""
    for text, key in _own(texts):
        if key != "sweep.dir" and _among(key, (*_OF_SWEEPS, *_OF_NONE)):
            wrong = "a recipe of several runs does not read it"
            yield _hydra_unread(text, wrong, hint="")


def _own(texts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each with `job.chdir` of `hydra.job.chdir=true`, and `launcher` of `hydra/launcher=joblib`."""
    for text in texts:
        start, dot, key = name_of(text).replace("/", ".").partition(".")
        if start == "hydra" and dot and text.partition("=")[2] not in _OFF:
            yield text, key


def _among(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _hydra_unread(setting: str, wrong: str, hint: str) -> Refusal:
    return refusal(
        "hydra-unread",
        setting,
        wrong,
        because=(
            "Hydra composes the settings; a run is placed, started and logged by Factory, its paths those of "
            "the folder that the command is given in"
        ),
        fix=(
            f"{hint}leave it out (of a run Hydra's hydra.run.dir and hydra.searchpath are read, of a sweep "
            "hydra.sweep.*)"
        ),
    )
