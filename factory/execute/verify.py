"""Whether what the plan was made from is still so: a replayed or late plan must not train something else."""

from pathlib import Path

from factory.benchmarks import questions
from factory.config import own
from factory.config.line import again
from factory.config.refusal import UserError, refusal, refuse
from factory.data import read
from factory.plan.diff import matter
from factory.plan.inspect import harness
from factory.plan.inspect.machine import installed_version, look_at_machine
from factory.plan.inspect.model import fingerprint_now, look_at_adapter
from factory.plan.inspect.reward import look_at_saved_reward
from factory.plan.packages import PACKAGES
from factory.plan.plan import Plan


def verify(plan: Plan) -> None:
    """Raises UserError with all that has changed."""
    try:
        asked = (*_benchmarks(plan), *_harness(plan))
        changed = [*_data(plan), *_model(plan), *_adapter(plan), *_reward(plan), *asked, *_own(plan), *_packages(plan)]
    except OSError as error:
        wrong = f"it cannot be read ({error.strerror})"
        raise refuse(
            "cannot-read",
            str(error.filename or "a file")[:200],
            wrong,
            because="it is needed to plan",
            fix="check its name and its permissions",
        ) from None
    if changed:
        command = again(plan.verb, plan.overrides, plan.config_dirs)
        raise UserError(
            *(
                refusal(
                    "facts-changed",
                    setting,
                    wrong,
                    because="the run would not be the one that was planned",
                    fix=f"bring it back as it was, or compile again: {command}",
                )
                for setting, wrong in changed
            )
        )


def _data(plan: Plan) -> list[tuple[str, str]]:
    """A hub set's content is known by its revision alone."""
    found = []
    for name, source in plan.sources.items():
        setting = f"data.sources.{name}.path={source.path}"
        if source.asked.origin == "file" and not Path(source.path).exists():
            found.append((setting, "the file is gone"))
        elif source.sha256 is not None and read.source_digest(source) != source.sha256:
            found.append((setting, "the file's content has changed"))
    return found


def _model(plan: Plan) -> list[tuple[str, str]]:
    load = plan.steps.load
    setting = f"model.path={load.path}"
    if load.device == "cuda" and not look_at_machine().gpus:
        return [("hardware.device=cuda", "there is no GPU here")]
    if load.source == "hub":
        return []
    if not Path(load.path).exists():
        return [(setting, "it is gone")]
    return [] if fingerprint_now(load.source, load.path) == load.fingerprint else [(setting, "its files have changed")]


def _adapter(plan: Plan) -> list[tuple[str, str]]:
    load = plan.steps.load
    if load.adapter is None or look_at_adapter(load.adapter).fingerprint == load.adapter_fingerprint:
        return []
    return [(f"model.adapter={load.adapter}", "its files have changed")]


def _reward(plan: Plan) -> list[tuple[str, str]]:
    load = plan.steps.load
    if load.reward is None:
        return []
    if look_at_saved_reward(Path(load.reward), load.reward).fingerprint == load.reward_fingerprint:
        return []
    return [(f"stage.reward_model={load.reward}", "its files have changed")]


def _benchmarks(plan: Plan) -> list[tuple[str, str]]:
    asked, found = plan.settings.evaluate, list[tuple[str, str]]()
    for name, each in plan.steps.evaluate.benchmarks.items():
        setting = f"evaluate.path={each.path}"
        if each.path is None or each.sha256 is None:
            continue
        if not Path(each.path).is_dir():
            found.append((setting, "the folder is gone"))
        elif questions.read(name, each.path, shots=asked.shots, max_samples=asked.max_samples).digest() != each.sha256:
            found.append((setting, f"its questions of {name} have changed"))
    return found


def _harness(plan: Plan) -> list[tuple[str, str]]:
    asked = plan.steps.evaluate.harness
    if asked is None:
        return []
    setting = f"evaluate.harness_path={asked.path}"
    if not Path(asked.path).is_dir():
        return [(setting, "the folder is gone")]
    return [] if harness.digest(Path(asked.path)) == asked.sha256 else [(setting, "its task files have changed")]


def _own(plan: Plan) -> list[tuple[str, str]]:
    return [(path, "the file has changed") for path, sha256 in plan.own.items() if own.digest(path) != sha256]


def _packages(plan: Plan) -> list[tuple[str, str]]:
    now = {name: version for name in PACKAGES if (version := installed_version(name))}
    return [
        (f"{name}={now.get(name, 'not installed')}", f"the plan was made with {plan.packages.get(name, 'none')}")
        for name in sorted({*now, *plan.packages})
        if name in matter(plan) and now.get(name) != plan.packages.get(name)
    ]
