"""The command line of a verb that writes: which keys it reads, what it takes over from a run, which models it is of."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from factory.config.groups import GROUPS
from factory.config.line import group_of, run_of, unquoted
from factory.config.refusal import Refusal, UserError, did_you_mean, refusal
from factory.config.settings import Verb, all_keys
from factory.config.words import ends

_chat_compare = partial(
    refusal,
    "chat-compare",
    because="two models answer side by side",
    fix="name two, as compare=[base,run] with run=FOLDER, or compare=[outputs/one,outputs/other]",
)

# what chat and serve read beside the group of their own name: whole groups, and single keys of others
_GROUPS = ("model", "precision", "tracking", "engine", "generation")
_KEYS = (
    *("hardware.device", "hardware.card", "hardware.compute_capability", "hardware.memory", "hardware.threads"),
    *("compute.attention",),
    *("data.reasoning", "data.tools"),
    *("seed", "run", "stage", "hardware"),
)
_STAGES = ("sft", "rm")  # a reward model's scores are served; whatever else was trained writes
SECRET = "serve.api_key"  # noqa: S105  a key's name
# what a plan has where its run's folder would be
NOWHERE = str(Path(tempfile.gettempdir()) / "factory-writes-no-folder")


@dataclass(frozen=True, slots=True)
class Line:
    """The overrides of a verb, without `serve.api_key`, which is in no plan and in no message."""

    overrides: tuple[str, ...]
    secret: str | None


def taken_apart(verb: Verb, overrides: Iterable[str]) -> Line:
    """Raises UserError for what the verb does not read."""
    kept, secret, problems = list[str](), None, list[Refusal]()
    for text in overrides:
        name, _, value = text.lstrip("+").partition("=")
        if verb == "chat" and name == "compare":
            name, text = "chat.compare", f"chat.compare={value}"
        if name == SECRET and verb == "serve":
            secret = unquoted(value)
        elif not _read(verb, name):
            problems.append(_unread(verb, text, name))
        elif name == "stage" and value not in _STAGES:
            problems.append(
                refusal(
                    "writes-untrained",
                    text,
                    f"`factory {verb}` trains no stage",
                    because="nothing is trained, and every model but a reward model (stage=rm) answers in the same way",
                    fix="leave it out; run=FOLDER knows what was trained",
                )
            )
        else:
            kept.append(text)
    if problems:
        raise UserError(*problems)
    return Line(tuple(kept), secret if secret not in ("", "null") else None)


def _read(verb: Verb, name: str) -> bool:
    group = name.partition(".")[0]
    return group in (*_GROUPS, verb) or name in _KEYS or name.startswith(("method.quantization", "hydra.searchpath"))


def _unread(verb: Verb, text: str, name: str) -> Refusal:
    shown = f"{SECRET}=…" if name == SECRET else text
    known = (*_GROUPS, *_KEYS, verb, "method.quantization")
    others = (*GROUPS, *(key.path for key in all_keys()))  # one that is right elsewhere is no slip of the fingers
    return refusal(
        "writes-unread",
        shown,
        f"`factory {verb}` does not read it",
        because=(
            f"it reads the keys of {', '.join((*_GROUPS, verb))}, precision=, hardware=, data.tools, "
            "data.reasoning and method.quantization"
        ),
        fix=f"{'' if name in others else did_you_mean(name, known)}leave it out",
    )


BASE, RUN = "base", "run"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the models of a conversation: what `run=` names (None: the model option), or what that started from."""

    title: str
    run: str | None
    base: bool = False


def sides(run: str | None, compare: tuple[str, ...]) -> list[Side]:
    """Raises UserError."""
    if not compare:
        return [Side(name_of(run) or "model", run)]
    setting = f"chat.compare=[{','.join(compare)}]"
    if len(compare) != 2:
        raise UserError(_chat_compare(setting, f"{len(compare)} models are named"))
    others = [name for name in compare if name not in (BASE, RUN)]
    if RUN in compare and run is None:
        raise UserError(_chat_compare(setting, "`run` is what run= names, and it is not set"))
    of_base = run or (others[0] if others else None)
    named = {BASE: Side(BASE, of_base, base=True), RUN: Side(name_of(run) or RUN, run)}
    found = [named.get(name) or Side(name_of(name) or name, name) for name in compare]
    titles = None if compare[0] == compare[1] else _titles(found)
    if titles is None:
        raise UserError(_chat_compare(setting, "both are the same"))
    return [replace(side, title=title) for side, title in zip(found, titles, strict=True)]


def _titles(found: list[Side]) -> list[str] | None:
    """Those that they have; where these are equal, of their places as much as tells them apart."""
    titles = [side.title for side in found]
    if len(set(titles)) == len(titles):
        return titles
    return ends([Path(BASE) if side.base else _place(side.run or "").absolute() for side in found])


def name_of(run: str | None) -> str | None:
    """The last name of a path that says something: not that of the folder that every run has its model in."""
    return None if run is None else _place(run).name


def _place(run: str) -> Path:
    path = Path(run).resolve() if Path(run).exists() else Path(run)
    return path.parent if path.name == "model" else path


def with_run(line: Line, run: str | None) -> tuple[str, ...]:
    own = tuple(text for text in line.overrides if group_of(text) != "run")
    return own if run is None else (*own, f"run={run}")


def named_run(line: Line) -> str | None:
    return next((run_of(text) for text in reversed(line.overrides) if group_of(text) == "run"), None)
