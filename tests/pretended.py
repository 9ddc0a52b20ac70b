"""Pretended facts: plans that are the same on every machine. `facts("gpu")` is a machine with a card, and so on."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from factory import cli
from factory.config import compose
from factory.data import hub
from factory.plan.facts import Gpu, Machine
from factory.plan.inspect import machine, model
from factory.plan.plan import Plan

ROWS = '{"instruction": "Say one.", "output": "It is one."}\n' * 40
H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30, compute_capability=9.0)
OLD = Gpu(name="Tesla T4", memory_bytes=15 * 2**30, compute_capability=7.5)
_PACKAGES = dict.fromkeys(sorted(set(machine.PACKAGES) - {"torch-npu"}), "1.0")  # which would be another device

# what a stage needs beside its defaults to be legal
NEEDS: dict[str, tuple[str, ...]] = {
    "kto": ("stage.batch_size=4",),
    "ppo": ("stage.reward=trl:think_format_reward", "stage.max_new_tokens=16"),
    "grpo": ("stage.reward=trl:think_format_reward", "stage.max_new_tokens=16"),
}

MACHINES = {
    name: Machine(threads=8, available_bytes=32 * 2**30, cpu_bf16=bf16, gpus=gpus, packages=_PACKAGES, hub_token=False)
    for name, bf16, gpus in (
        ("cpu", True, ()),
        ("old cpu", False, ()),
        ("gpu", True, (H100,)),
        ("two gpus", True, (H100, H100)),
        ("old gpu", True, (OLD,)),
    )
}


@contextmanager
def facts(name: str) -> Iterator[None]:
    """A machine of MACHINES, an empty cache, no model package, a hub that answers, and rows.jsonl where it works."""
    before = Path.cwd()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        (Path(folder) / "rows.jsonl").write_text(ROWS, encoding="utf-8")
        stack.enter_context(patch.object(machine, "look_at_machine", lambda: MACHINES[name]))
        stack.enter_context(patch.object(model, "package_file", lambda package: None))
        stack.enter_context(patch.object(hub, "unreachable", lambda path: None))
        stack.enter_context(patch.dict(os.environ, {"FACTORY_CACHE": str(Path(folder) / "cache")}))
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def compiled(*overrides: str) -> Plan:
    """As `factory plan` does it. Raises UserError."""
    return cli._compiled(compose.compose(compose.parse(list(overrides))), training=False)


def compiled_tree(composed: compose.Composed, tree: dict[str, Any]) -> Plan:
    """The plan of a composed command line with another tree. Raises UserError."""
    return cli._compiled(replace(composed, tree=tree), training=False)
