"""The command line: which verb is meant, the verbs of a few lines, and what ends the process.

Exit codes: 0 done, 1 failed while running, 2 refused, 130 interrupted with a checkpoint saved.
"""

import contextlib
import errno
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from factory import __version__
from factory.config import compose
from factory.config.keys import walk
from factory.config.line import group_of, name_of
from factory.config.redact import redacting
from factory.config.refusal import Refusal, UserError, did_you_mean, refuse
from factory.config.settings import Board, group
from factory.config.suggest import not_a_setting, setting_meant
from factory.execute.__main__ import INTERRUPTED, REFUSED
from factory.outlet import Unread, outlets
from factory.plan.anew import compiled as _compiled
from factory.verbs import composed as composed_of
from factory.verbs import our_mistake, parsed, plan, settings_of, train, use


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    with (
        contextlib.redirect_stderr(redacting(sys.stderr)),  # what libraries and servers say of their errors too
        outlets(goes_on=_verb(arguments)[0] in _WORKING),
    ):
        return _said(arguments)


def _said(arguments: list[str]) -> int:
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(error, file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Unread as lost:
        if lost.error.errno != errno.EPIPE:  # `factory … | head`
            print(f"Standard output cannot be written ({lost.error.strerror}).", file=sys.stderr)
        return 1
    except Exception as error:
        return our_mistake(error)


def _verb(arguments: list[str]) -> tuple[str, list[str]]:
    """The word that stands for it, and the others."""
    is_verb = arguments and not arguments[0].startswith(("-", "+", "~")) and "=" not in arguments[0]
    return (arguments[0], arguments[1:]) if is_verb else ("train", arguments)


def _dispatch(arguments: list[str]) -> int:
    verb, rest = _verb(arguments)
    if "--help" in arguments or "-h" in arguments or verb == "help":
        from factory.help import of_verb, overview

        named = rest[0] if verb == "help" and rest else verb
        if named in VERBS and named in arguments:
            print(f"{of_verb(named, VERBS[named].__doc__)}\n")
        print(overview(VERBS, compose.folders_named(rest)))  # asked for with whatever was wrong too
        return 0
    if "--version" in arguments:
        print(f"factory {__version__}")
        return 0
    if verb not in VERBS and setting_meant(verb, rest):
        raise UserError(not_a_setting(verb, rest))
    if verb not in VERBS:
        wrong = "there is no such verb"
        raise refuse(
            "unknown-verb",
            verb,
            wrong,
            because=f"the verbs are {', '.join(VERBS)}",
            fix=f"{did_you_mean(verb, VERBS)}`factory --help` says what each does",
        )
    return VERBS[verb](rest)


def preview(arguments: list[str]) -> int:
    """the data steps only: what is trained, token by token, and what is dropped or cut; preview.html=PATH: as a page"""
    if (line := parsed(arguments, "preview", "one preview is shown at a time")) is None:
        return 0
    from factory.preview import show

    composed = composed_of(line, "preview")
    asked = composed.tree.get("preview")
    composed = replace(composed, problems=(*composed.problems, *show.unusable(asked)))
    with contextlib.redirect_stdout(sys.stderr):  # what a data function prints is no part of the preview
        made = _compiled(composed, training=False)
    return show.show(made, asked)


def compare(arguments: list[str]) -> int:
    """runs side by side: folders, a sweep's folder, MLflow ids, experiment=NAME or a filter; compare.out=page.html"""
    from factory.compare import show

    read = ("compare.", "tracking.", "tracking=")
    keys = [word for word in arguments if word.lstrip("+").startswith(read) and not Path(word).exists()]
    chosen = settings_of(keys, "compare")
    return show.show([word for word in arguments if word not in keys], chosen.compare, chosen.tracking)


def board(arguments: list[str]) -> int:
    """the page in the browser: configure, preview, train, compare, chat, export, on 127.0.0.1:7860"""
    if (line := parsed(arguments, "board", "one page is opened at a time")) is None:
        return 0
    try:
        chosen = _of_board(composed_of(line, "board"))
    except UserError as error:
        raise UserError(*map(_without_password, error.refusals)) from None
    from factory.board import server

    server.serve(chosen, line.config_dirs)
    return 0


def _of_board(composed: compose.Composed) -> Board:
    """Raises UserError: a password that cannot be read would be none."""
    if composed.problems:
        raise UserError(*composed.problems)
    return group(Board, "board", composed.tree.get("board", {}))


def _without_password(problem: Refusal) -> Refusal:
    """What was given may be it, unless the key is another that there is; a parser's words repeat some of it."""
    name = name_of(problem.setting)
    others = {key.path for key in walk(Board, "board")} - {"board.password"}
    if group_of(name) != "board" or name in others:
        return problem
    words = {"wrong": "its value cannot be read", "because": "Hydra reads some signs in it as its own"}
    return replace(problem, setting=f"{name}=…", **(words if problem.rule in ("syntax", "compose") else {}))


def explain(arguments: list[str]) -> int:
    """a key's, a group's or an option's meaning; of a key its type, range, default, and the rules that read it"""
    from factory.help import explained

    if len(arguments) != 1:
        raise refuse(
            "explain-what",
            " ".join(arguments) or "(nothing)",
            "one key or group is needed",
            because="keys are explained one at a time",
            fix="factory explain method.rank",
        )
    print(explained(arguments[0]))
    return 0


def models(arguments: list[str]) -> int:
    """the options of `model`, filtered by words: models llama apache; models vision; models.format=json"""
    from factory.verbs.models import as_json, rows, table

    line = compose.parse(arguments, takes_words=True)
    asked = line.overrides[-1].partition("=")[2] if line.overrides else "text"
    for word in (*["-m"] * line.multirun, *line.hydra_flags, *line.overrides):
        if word not in ("models.format=json", "models.format=text"):
            raise refuse(
                "models-key",
                word,
                "this verb reads models.format=text or json, and words",
                because="a filter that is not understood would show too much",
                fix="as in: factory models qwen apache, factory models vision, factory models models.format=json",
            )
    found = rows(line.words, line.config_dirs)
    if asked == "json":
        print(json.dumps(as_json(found), ensure_ascii=False))
    else:
        from factory.run.screen import Screen

        screen = Screen()
        screen.print(table(found, width=screen.console.width))
    return 0


def doctor(arguments: list[str]) -> int:
    """the machine and the installation: what is there, what is missing, what to do; doctor.format=json"""
    from factory import doctor

    return doctor.main(arguments)


def import_config(arguments: list[str]) -> int:
    """a config of LLaMA-Factory (FILE.yaml) as a command line of this one, with what has no equal, and why"""
    from factory.verbs import import_config as llamafactory
    from factory.verbs.import_config.said import as_script

    if len(arguments) != 1:
        raise refuse(
            "import-what",
            " ".join(arguments) or "(nothing)",
            "one file is needed",
            because="`factory import-config` takes one file",
            fix="give it a config of LLaMA-Factory, `factory import-config train_lora.yaml`",
        )
    said = llamafactory.translate(Path(arguments[0]))
    try:
        use.foreseen(said.verb, said.as_overrides())
        refused = []
    except UserError as error:
        refused = str(error).splitlines()
    print("\n".join(as_script(arguments[0], said, refused)))
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": train.train,
    "plan": plan.plan,
    "preview": preview,
    "evaluate": use.evaluate,
    "export": use.export,
    "chat": use.chat,
    "serve": use.serve,
    "board": board,
    "compare": compare,
    "resume": train.resume,
    "track": train.track,
    "models": models,
    "explain": explain,
    "doctor": doctor,
    "import-config": import_config,
}
# those whose work is more than what they print
_WORKING = ("train", "resume", "track", "evaluate", "export", "serve", "board")
