"""What a person would type after a run, printed under its report."""

import shlex
from collections.abc import Iterator
from itertools import starmap
from pathlib import Path

from factory.config import registry
from factory.config.line import arguments, setting
from factory.config.words import program
from factory.plan.heads import writes
from factory.plan.plan import DataSource, Plan
from factory.plan.saved import chats
from factory.run.folder import RunFolder
from factory.tracking.spec import shows

_OF_THE_METHOD = ("method", "method.*")
_OF_THE_ROWS = ("data", "data.path", "data.names", "data.sources*", "data.validation")
_NAMED_BY = {"hf": "model.path", "adapter": "run"}  # an adapter's own file says what it stands on
_PACKAGE = Path(__file__).parents[1]
_Command = tuple[str, str]  # and what it is for


def next_commands(plan: Plan, folder: RunFolder) -> str:
    """A line each, empty after a verb that nothing follows from."""
    after = {"train": _after_training, "export": _after_export}.get(plan.verb)
    lines = [f"  {command}  # {purpose}" for command, purpose in after(plan, folder)] if after else []
    return "\n".join(["Next:", *lines]) if lines else ""


def _after_training(plan: Plan, folder: RunFolder) -> Iterator[_Command]:
    factory, run = program("factory"), setting("run", folder.path)
    method = "lora" if plan.settings.method.name in plan.own else plan.settings.method.name
    stage = plan.settings.stage.name
    if writes(stage) and registry.spec("stages", stage).KIND != "text":
        yield f"{factory} chat {run}", "talk to it"
    yield f"{factory} export {run} {setting('export.dir', f'exports/{folder.path.name}')}", "for other programs"
    if (shown := shows(plan.settings.tracking, folder.path)) is not None:
        yield shown, "curves and tables"
    yield f"{factory} train --from-plan {shlex.quote(str(folder.plan))}", "the same run again"
    compared = f"method={method},{'lora' if method == 'qlora' else 'qlora'}"
    kept = arguments(plan.overrides, plan.config_dirs, _OF_THE_METHOD)
    yield " ".join((factory, "-m", *kept, compared)), "compare methods"
    if not any(starmap(_is_own, plan.sources.items())):
        kept = arguments(plan.overrides, plan.config_dirs, _OF_THE_ROWS)
        yield " ".join((factory, *kept, "data=file data.path=YOURS.jsonl")), "your own rows"


def _is_own(name: str, source: DataSource) -> bool:
    """Whether the user named its rows, and not one of our options."""
    if source.asked.origin == "hub":
        return name == "file"  # data=file with an origin
    if source.asked.origin == "function":
        return not source.path.startswith("factory.")
    return not Path(source.path).is_relative_to(_PACKAGE)


def _after_export(plan: Plan, folder: RunFolder) -> Iterator[_Command]:
    export = plan.settings.export
    if export.format == "gguf":
        if export.modelfile:
            yield f"ollama create NAME -f {shlex.quote(str(export.folder / 'Modelfile'))}", "into Ollama"
    elif not plan.exported.scores and chats(export.folder):
        yield f"{program('factory')} chat {setting(_NAMED_BY[export.format], export.folder)}", "talk to it"
    if export.push and export.dry_run:
        # the folder as it lies: to export again would overwrite it, and with it what the repository has
        # `hf upload --private` would take a public one that is there; `create` fails where there is one
        made = f"hf repos create {export.push} --private && " if export.private else ""
        yield f"{made}hf upload {export.push} {shlex.quote(str(export.folder))}", f"upload it to {export.push}"
