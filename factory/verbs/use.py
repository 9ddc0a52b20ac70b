"""The verbs that use a trained model: evaluate, export, chat, serve."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from factory.config import compose, settings
from factory.config.line import name_of
from factory.config.refusal import UserError, refusal
from factory.config.settings import OF_TRAINING
from factory.plan.anew import compiled
from factory.plan.anew import settings_of as settings_from
from factory.plan.plan import Plan, Verb
from factory.plan.untrained import answering, exported, untrained
from factory.verbs import composed as composed_of
from factory.verbs import parsed, refuse_unread, settings_of
from factory.verbs.train import done_once, in_a_folder

if TYPE_CHECKING:
    from factory.inference import asked


def evaluate(arguments: list[str]) -> int:
    """measure a model, or run=FOLDER (a run's, a saved model's, or an MLflow run's id), on the held-out rows"""
    if (line := parsed(arguments, "evaluate", "one model is evaluated at a time")) is None:
        return 0
    return done_once(in_a_folder(line, _measured(line)), "evaluate", line.overrides)


def _measured(line: compose.CommandLine) -> compose.Composed:
    refuse_unread(line, "evaluate")
    _refuse_training(line.overrides)
    return untrained(line)


def _refuse_training(overrides: tuple[str, ...]) -> None:
    """Keys that say how one trains. What a run was made with says them too, and what a stage measures by is its own."""
    found = [text for text in overrides if name_of(text) in OF_TRAINING]
    if found:
        raise UserError(
            *(
                refusal(
                    "evaluate-unread",
                    text,
                    "`factory evaluate` does not read it",
                    because="evaluation trains nothing, and the key would be ignored",
                    fix="leave it out; evaluate.batch_size is how many rows are measured at a time, data.* which",
                )
                for text in found
            )
        )


def export(arguments: list[str]) -> int:
    """write run=FOLDER's model, or model=…, to export.dir for others: merged weights, an adapter, GGUF; to the hub"""
    if (line := parsed(arguments, "export", "one model is exported at a time")) is None:
        return 0
    return done_once(in_a_folder(line, _exported(line)), "export")


def _exported(line: compose.CommandLine) -> compose.Composed:
    refuse_unread(line, "export")
    return exported(line)


def chat(arguments: list[str]) -> int:
    """a conversation with a model or run=FOLDER in the terminal; compare=[base,run]: two of them side by side"""
    from factory.inference import asked

    if (line := parsed(arguments, "chat", "one `factory chat` runs at a time")) is None:
        return 0
    own = asked.taken_apart("chat", line.overrides)
    compared = [text for text in own.overrides if name_of(text) == "chat.compare"]
    chosen = settings_of(compared, "chat").chat.compare if compared else ()
    sides = asked.sides(asked.named_run(own), chosen)
    made = [to_write("chat", line, own, side) for side in sides]
    from factory.chat import show

    return show.show([show.Asked(side, plan) for side, (plan, _) in zip(sides, made, strict=True)], made[0][1])


def serve(arguments: list[str]) -> int:
    """an OpenAI-style API (chat, completions, embeddings, scores) for a model or run=FOLDER, on 127.0.0.1:8000"""
    from factory.inference import asked

    if (line := parsed(arguments, "serve", "one `factory serve` runs at a time")) is None:
        return 0
    own = asked.taken_apart("serve", line.overrides)
    (side,) = asked.sides(asked.named_run(own), ())
    made, chosen = to_write("serve", line, own, side)
    from factory.serve import show

    return show.show(made, chosen, side, own.secret)


def to_write(
    verb: Verb, line: compose.CommandLine, own: "asked.Line", side: "asked.Side"
) -> tuple[Plan, settings.Settings]:
    """The plan of a model that writes, and the settings beside it. Nothing is written into a folder."""
    composed = _to_write(replace(line, verb=verb), own, side)
    made = compiled(composed, training=True, verb=verb)
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return made, settings_from(composed, verb)


def _to_write(line: compose.CommandLine, own: "asked.Line", side: "asked.Side") -> compose.Composed:
    from factory.inference import asked

    words = replace(line, overrides=asked.with_run(own, side.run))
    return replace(untrained(words, answering, base=side.base), run_dir=asked.NOWHERE)


def _one_to_write(line: compose.CommandLine, verb: Verb) -> compose.Composed:
    from factory.inference import asked

    own = asked.taken_apart(verb, line.overrides)
    (side,) = asked.sides(asked.named_run(own), ())
    return _to_write(replace(line, verb=verb), own, side)


_COMPOSED: dict[Verb, Callable[[compose.CommandLine], compose.Composed]] = {
    "train": lambda line: composed_of(line, "train"),
    "evaluate": _measured,
    "export": _exported,
    "chat": lambda line: _one_to_write(line, "chat"),
}


def foreseen(verb: Verb, overrides: Sequence[str]) -> Plan:
    """The plan of a command that is not given yet, of one model; what this machine lacks is no refusal. UserError."""
    return compiled(_COMPOSED[verb](compose.parse(list(overrides), verb)), training=False, verb=verb)
