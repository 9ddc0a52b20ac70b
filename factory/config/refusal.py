"""Refusals: what a user is shown when something cannot work, in one shape."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from factory.config.redact import redacted


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One problem: which rule fired, what was set, what is wrong, why it cannot work, what to do."""

    rule: str
    setting: str
    wrong: str
    because: str
    fix: str
    machine: bool

    def __str__(self) -> str:
        end = "" if self.wrong.endswith("?") else "."  # what is asked ends as a question
        return f"[{self.rule}] {self.setting}: {self.wrong}{end}\n  because {self.because}\n  fix: {self.fix}"


class UserError(ValueError):
    """The user's mistake, or the machine's state: shown as refusals, never as a traceback."""

    def __init__(self, *refusals: Refusal):
        super().__init__("\n".join(str(refusal) for refusal in refusals))
        self.refusals = refusals


def refusal(rule: str, setting: str, wrong: str, *, because: str, fix: str, machine: bool = False) -> Refusal:
    """Return one problem: what was set, what is wrong, why, and what to do. A secret in what was set is not shown.

    `machine`: lacking here, not wrong in itself, so a warning in `plan` and a refusal in `train`.
    """
    setting, wrong, because, fix = map(redacted, (setting, wrong, because, fix))
    return Refusal(rule=rule, setting=setting, wrong=wrong, because=because, fix=fix, machine=machine)


def refuse(rule: str, setting: str, wrong: str, *, because: str, fix: str, machine: bool = False) -> UserError:
    return UserError(refusal(rule, setting, wrong, because=because, fix=fix, machine=machine))


_ALIKE = 0.65  # as difflib counts: `loar` and `lora` are, `foo` and `olora` or `question` and `solution` are not
_BEGUN = 3  # letters that say which name was begun


def nearest(name: str, names: Iterable[str], cutoff: float = _ALIKE) -> list[str]:
    """The one of the names that is most like it, if any is."""
    return difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)


def alike(name: str, names: Iterable[str]) -> str | None:
    """The nearest of the names, or the shortest that begins so: `mixtral` for one with its size behind it."""
    names = list(names)
    begun = (known for known in names if len(name) >= _BEGUN and known.startswith(name))
    return next(iter(nearest(name, names)), None) or min(begun, key=len, default=None)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`did you mean X? ` for the name that is meant, or nothing."""
    names, last = list(names), name.rpartition(".")[2]
    # a key given without its group: `rank` for `method.rank`
    found = alike(name, names) or next((known for known in names if known.rpartition(".")[2] == last), None)
    return f"did you mean {found}? " if found else ""


def caused(error: BaseException | None) -> Iterator[BaseException]:
    """It, and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """What it says, of several lines the first, without its full stop; of none its class."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__).rstrip(".")
