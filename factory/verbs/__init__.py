"""What a command does, by its verb; what the verbs have in common is here."""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from factory.config import compose, settings
from factory.config.line import group_of, name_of, run_of, setting
from factory.config.redact import redacted
from factory.config.refusal import Refusal, UserError, refusal, refuse
from factory.plan.anew import settings_of as settings_from
from factory.run.folder import is_mlflow_id

plan_of_a_sweep = partial(
    refuse, "plan-of-a-sweep", because="a sweep has many", fix="leave it out, or give the one that is meant"
)

READ_RUNS = ("evaluate", "chat", "serve", "export")


def parsed(arguments: list[str], verb: str, many: str | None = None) -> compose.CommandLine | None:
    """The line; None where it was Hydra's own business, and Hydra has answered: --cfg, --info, completion.

    `many`: why the verb is no sweep's. Raises UserError.
    """
    line = compose.parse(arguments, verb)
    if line.multirun and many:
        raise plan_of_a_sweep("-m", many)
    if not line.hydra_flags:
        return line
    if {"-sc", "--shell-completion"} & set(line.hydra_flags):  # whose words are no overrides
        os.environ["COMP_LINE"] = _without_verb(os.environ.get("COMP_LINE", ""))
    elif line.multirun:
        raise plan_of_a_sweep(f"-m {line.hydra_flags[0]}", "one config is shown at a time")
    elif problems := compose.config_of(line)[1]:
        raise UserError(*problems)
    compose.hydra_main(lambda _: None, [*line.hydra_flags, *line.overrides], line)
    return None


def _without_verb(typed: str) -> str:
    """`factory plan method=lo`, as a shell has it, as Hydra completes it: to which a verb is a broken override."""
    program, _, rest = typed.partition(" ")
    verb, space, settings = rest.partition(" ")
    return f"{program} {settings}" if space and "=" not in verb and not verb.startswith("-") else typed


def refuse_unread(line: compose.CommandLine, verb: str) -> None:
    """Raises UserError."""
    if problems := list(not_read(line, verb)):
        raise UserError(*problems)


def not_read(line: compose.CommandLine, verb: str) -> Iterator[Refusal]:
    """Yield the keys of other verbs: this one would not look at them."""
    wrong = f"`factory {verb}` does not read it"
    for text in line.overrides:
        group = group_of(text)
        if group != "sweep" and group in compose.OWN and verb not in compose.OWN[group]:
            shown = text if group not in ("serve", "board") else text.partition("=")[0]  # which may be a secret
            yield refusal(
                "key-of-another-verb",
                shown,
                wrong,
                because="only that verb does",
                fix=f"leave it out, or `factory {' or '.join(compose.OWN[group])}` instead",
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
    """Raises UserError where nothing can be composed; else the problems are in what is returned."""
    unread = list(not_read(line, verb))
    named = {refused.setting.partition("=")[0] for refused in unread}
    read = tuple(text for text in line.overrides if name_of(text) not in named)
    made = compose.compose(replace(line, overrides=read))
    return replace(made, overrides=line.overrides, problems=(*unread, *made.problems))


def settings_of(overrides: Sequence[str], verb: str = "train") -> settings.Settings:
    """The settings of these overrides and the defaults. Raises UserError: what is not understood would be a default."""
    return settings_from(compose.compose(compose.parse(list(overrides), verb)))


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
