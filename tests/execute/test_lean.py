"""A child imports what its plan needs and no more, asked of `sys.modules` in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import compiled

from factory.plan import to_yaml

ASKED = ("bitsandbytes", "scipy", "pandas", "sklearn", "datasets", "mlflow", "trl", "torch._inductor.compile_fx")
ASKED += ("torchvision", "av", "sympy.core", "torch._dynamo.symbolic_convert", "torch.distributed.tensor._api")
SCRIPT = """
import gc, json, sys
from pathlib import Path
from factory.execute import __main__, lean
from factory.ranks.world import from_environment
from factory.run.folder import RunFolder

usual = gc.get_threshold()
code = __main__.execute(RunFolder("run"), None, from_environment())
found = [name for name in sys.argv[1:] if sys.modules.get(name) is not None]
import bitsandbytes, scipy.optimize, torchvision  # nothing stays hidden
print(json.dumps([code, found, gc.get_threshold() == usual]))
"""


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ("method=lora", []),
        ("method=full precision=fp32", []),
        ("method=qlora", ["bitsandbytes"]),
        ("method=full stage.optimizer=adamw_8bit", ["bitsandbytes"]),
    ],
)
def test_a_child_imports_what_its_plan_needs(overrides: str, needed: list[str], tiny_model: Path, here: Path) -> None:
    short = ("stage.max_steps=1", "stage.batch_size=2", "data.max_samples=12", "evaluate.samples=0", "tracking=none")
    plan = compiled(f"model.path={tiny_model}", "hardware=cpu", *short, *overrides.split())
    (here / "run").mkdir()
    (here / "run" / "plan.yaml").write_text(to_yaml(plan))
    done = subprocess.run([sys.executable, "-c", SCRIPT, *ASKED], capture_output=True, text=True, timeout=300)
    code, found, as_usual = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    assert found == needed
    assert as_usual
