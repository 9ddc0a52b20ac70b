"""What a person would type after a run, printed under its report."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from factory.plan import Plan
from factory.run.folder import RunFolder
from factory.tracking.spec import shows
from factory.words import program

_ANSWERS = ("sft", "dpo", "kto", "orpo", "ppo", "grpo")  # stages whose model one talks to
_Command = tuple[str, str]  # and what it is for


def next_commands(plan: Plan, folder: RunFolder) -> str:
    """A line each, empty after a verb that nothing follows from."""
    commands = {"train": _after_training, "export": _after_export}.get(plan.verb, _nothing)(plan, folder)
    lines = [f"  {command}  # {purpose}" for command, purpose in commands]
    return "\n".join(["Next:", *lines]) if lines else ""


def _nothing(plan: Plan, folder: RunFolder) -> Iterator[_Command]:
    yield from ()


def _after_training(plan: Plan, folder: RunFolder) -> Iterator[_Command]:
    factory, run = program("factory"), shlex.quote(str(folder.path))
    method = "lora" if plan.steps.attach.method in plan.own else plan.steps.attach.method
    if plan.steps.train.stage in _ANSWERS:
        yield f"{factory} chat run={run}", "talk to it"
    yield f"{factory} export run={run} export.dir={shlex.quote(f'exports/{folder.path.name}')}", "for other programs"
    if (shown := shows(plan.tracking, folder.path)) is not None:
        yield shown, "curves and tables"
    yield f"{factory} train --from-plan {shlex.quote(str(folder.plan))}", "the same run again"
    yield f"{factory} -m method={method},{'lora' if method == 'qlora' else 'qlora'}", "compare methods"
    yield f"{factory} data=file data.path=YOURS.jsonl", "your own rows"


def _after_export(plan: Plan, folder: RunFolder) -> Iterator[_Command]:
    export = plan.exported
    if export.format == "gguf":
        if export.modelfile:
            yield f"ollama create NAME -f {shlex.quote(str(Path(export.dir) / 'Modelfile'))}", "into Ollama"
    elif export.format == "hf" and not export.scores:
        yield f"{program('factory')} chat model.path={shlex.quote(export.dir)}", "talk to it"
    if export.push and export.dry_run:
        again = " ".join(shlex.quote(text) for text in plan.overrides if not text.startswith("export.dry_run"))
        yield f"{program('factory')} export {again} export.overwrite=true", f"upload it to {export.push}"
