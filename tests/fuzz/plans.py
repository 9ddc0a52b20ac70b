"""Plan files: what `--from-plan`, `resume`, `plan --diff` and everything that looks into a run's folder read."""

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import tiny
import yaml
from conftest import compiled

from factory.config.values import record
from factory.execute.verify import verify
from factory.plan import diff, saved
from factory.plan.diff_shown import as_text
from factory.plan.inspect import reward
from factory.plan.plan import Plan, read_plan, to_json, to_yaml
from factory.run.folder import RunFolder
from fuzz.mutation import YAML_PIECES, changed, twisted


def opened(folder: Path) -> Callable[[random.Random], str]:
    model = tiny.save(folder / "llama")
    plan = compiled(f"model.path={model}", "hardware=cpu", "tracking=none", "data.max_samples=8")
    content = to_yaml(plan)
    forms = (yaml.safe_load(content), to_json(plan))  # as a file holds it, and as plan.format=json prints it
    run = RunFolder(folder / "run")
    run.model.mkdir(parents=True)
    (run.model / "config.json").write_text("{}")

    def case(chance: random.Random) -> str:
        if chance.random() < 0.3:
            run.plan.write_bytes(changed(content.encode(), chance, YAML_PIECES))
        else:
            other = twisted(chance.choice(forms), chance)
            if chance.random() < 0.8:
                _sign(other)
            run.plan.write_text(json.dumps(other), encoding="utf-8", errors="replace")
        run.plan_digest()
        reward._trained_on(run.plan)
        found = read_plan(run.plan)
        saved.saved(str(run.path), None)
        as_text(diff.differences(plan, found), ("one", "other"), 80)
        json.dumps(to_json(found))
        to_yaml(found)
        verify(found)
        return "read"

    return case


def _sign(tree: object) -> None:
    """The digest is no secret: whoever changes a plan can write it anew."""
    if not isinstance(tree, dict):
        return
    tree.pop("digest", None)
    with suppress(ValueError, TypeError):
        tree["digest"] = record(Plan, tree).digest()
