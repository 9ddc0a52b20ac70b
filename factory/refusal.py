"""What a user is told when something cannot work: one shape for every place that says it."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One problem: which rule fired, what was set, why it cannot work, what to do."""

    rule: str
    setting: str
    wrong: str
    because: str
    fix: str
    machine: bool = False  # lacking here, not wrong in itself: a warning in `plan`, a refusal in `train`

    def __str__(self) -> str:
        return f"[{self.rule}] {self.setting}: {self.wrong}.\n  because {self.because}\n  fix: {self.fix}"


class UserError(ValueError):
    """The user's mistake, or the machine's state: shown as refusals, never as a traceback."""

    def __init__(self, *refusals: Refusal):
        super().__init__("\n".join(str(refusal) for refusal in refusals))
        self.refusals = refusals


def refuse(rule: str, setting: str, wrong: str, *, because: str, fix: str, machine: bool = False) -> UserError:
    return UserError(Refusal(rule=rule, setting=setting, wrong=wrong, because=because, fix=fix, machine=machine))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`did you mean X? ` for the nearest of the names, or nothing."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not near:  # a key given without its group: `rank` for `method.rank`
        near = [known for known in names if known.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f"did you mean {near[0]}? " if near else ""
