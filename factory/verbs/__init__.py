"""What a command does, by its verb; what the verbs have in common is here."""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from factory.config import compose, settings
from factory.config.compose import unread
from factory.config.compose.calling import hydra_main
from factory.config.line import group_of, name_of, run_of, setting
from factory.config.redact import redacted
from factory.config.refusal import Refusal, UserError, refusal, refuse
from factory.plan.anew import settings_of as settings_from
from factory.run.folder import is_mlflow_id

# the verbs that read a group of keys of their own
OWN = {name: (name,) for name in ("plan", "preview", "compare", "export", "chat", "serve", "board")}
OWN |= dict.fromkeys(("engine", "generation"), ("chat", "serve"))

plan_of_a_sweep = partial(
    refuse, "plan-of-a-sweep", because="a sweep has many", fix="leave it out, or give the one that is meant"
)

READ_RUNS = ("evaluate", "chat", "serve", "export")


def parsed(arguments: list[str], many: str | None = None) -> compose.CommandLine | None:
    """The line; None where it was Hydra's own business, and Hydra has answered: --cfg, --info, completion.

    `many`: why the verb is no sweep's. Raises UserError.
    """
    line = compose.parse(arguments)
    if line.multirun and many:
        raise plan_of_a_sweep("-m", many)
    if not line.hydra_flags:
        return line
    completing = {"-sc", "--shell-completion"} & set(line.hydra_flags)  # whose words are no overrides
    if completing:
        os.environ["COMP_LINE"] = _without_verb(os.environ.get("COMP_LINE", ""))
    given = line.overrides if completing else _composable(line)
    hydra_main(lambda _: None, [*line.hydra_flags, *given], line.config_dirs)
    return None


def _without_verb(typed: str) -> str:
    """`factory plan method=lo`, as a shell has it, as Hydra completes it: to which a verb is a broken override."""
    program, _, rest = typed.partition(" ")
    verb, space, settings = rest.partition(" ")
    return f"{program} {settings}" if space and "=" not in verb and not verb.startswith("-") else typed


def _composable(line: compose.CommandLine) -> Sequence[str]:
    """The overrides for what Hydra shows of them. Raises UserError: it would show the config without what is wrong."""
    if line.multirun:
        raise plan_of_a_sweep(f"-m {line.hydra_flags[0]}", "one config is shown at a time")
    ready = compose.prepared(line)
    if ready.problems:
        raise UserError(*ready.problems)
    return ready.overrides


def refuse_unread(line: compose.CommandLine, verb: str) -> None:
    """Raises UserError."""
    if problems := list(not_read(line, verb)):
        raise UserError(*problems)


def not_read(line: compose.CommandLine, verb: str) -> Iterator[Refusal]:
    """The keys of what another verb prints, and Hydra's own: this one would not look at them."""
    many = unread.of_a_sweep if line.multirun else unread.of_a_recipe if compose.recipe_of_runs(line) else unread.of_one
    yield from many(line.overrides)
    wrong = f"`factory {verb}` does not read it"
    for text in line.overrides:
        group = group_of(text)
        if group in OWN and verb not in OWN[group]:
            shown = text if group not in ("serve", "board") else text.partition("=")[0]  # which may be a secret
            yield refusal(
                "key-of-another-verb",
                shown,
                wrong,
                because="only that verb does",
                fix=f"leave it out, or `factory {' or '.join(OWN[group])}` instead",
            )
        elif group == "sweep" and not line.multirun:
            yield refusal(
                "sweep-without-multirun",
                text,
                "it is read by sweeps alone",
                because="one run is no sweep",
                fix="add -m; one run is continued by `factory resume FOLDER`",
            )
        elif name_of(text) == "run" and verb not in READ_RUNS:
            yield refusal(
                "run-unread",
                text,
                wrong,
                because="a run is read by evaluate, chat, serve and export, whose model it names",
                fix=_trained_on(run_of(text) or "RUN"),
            )
        elif verb == "board" and group != "board":
            yield refusal(
                "board-unread",
                name_of(text),
                wrong,
                because="the page starts with the defaults, and what a run is made of is set in it",
                fix="leave it out; the page's own keys are board.*, and options of your own come by --config-dir",
            )


def _trained_on(run: str) -> str:
    """Return how a run's folder or a saved model's is trained further or resumed, by the files in it."""
    folder = "FOLDER" if is_mlflow_id(run) else run
    model = f"model.adapter={folder}/model (of whole weights model.path={folder}/model)"
    for place, resumed in ((run, "FOLDER"), (f"{run}/model", run)):
        for key, file in (("model.adapter", "adapter_config.json"), ("model.path", "config.json")):
            if os.path.isfile(f"{place}/{file}"):  # noqa: PTH113  of a name that is too long, Path raises
                return _further(setting(key, place), resumed)
    return _further(model, folder)


def _further(model: str, folder: str) -> str:
    return f"to train on from its model, {model}; a stopped run continues with `factory resume {folder}`"


def composed(line: compose.CommandLine, verb: str) -> compose.Composed:
    """Raises UserError."""
    refuse_unread(line, verb)
    return compose.compose(line)


def settings_of(overrides: Sequence[str]) -> settings.Settings:
    """The settings of these overrides and the defaults. Raises UserError: what is not understood would be a default."""
    return settings_from(compose.compose(compose.parse(list(overrides))))


def our_mistake(error: Exception, folder: Path | None = None) -> int:
    """A traceback is ours, not the user's: it goes to a log, one line says where."""
    log = (folder or Path("outputs")) / "run.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(redacted("".join(traceback.format_exception(error))))
        where = f"the traceback is in {log}"
    except OSError:
        where = "no log could be written"
    first = str(error).splitlines()[0] if str(error) else ""
    print(f"Internal error ({type(error).__name__}: {first}); {where}", file=sys.stderr)
    return 1
