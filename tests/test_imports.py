"""Planning is quick because it leaves the heavy libraries alone: asked of `sys.modules` in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import side_by_side

HEAVY = {"torch", "transformers", "mlflow", "peft", "datasets", "accelerate", "bitsandbytes"}
SCRIPT = f"""
import json, re, sys
from factory import cli
code = cli.main(sys.argv[1:])
with open("/proc/self/status") as file:
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", file.read())[1]) * 1024
with open("found.json", "w") as file:
    json.dump([code, sorted({HEAVY!r} & set(sys.modules)), peak], file)
"""
REFUSED = ("method.rnk=3", "seed=x", "data=file", "data.path=nope.jsonl", "stage=zzz")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("plan",), 0),
        (("plan", "model=llama3_8b", "method=qlora", "stage=dpo", "plan.format=json"), 0),
        (("plan", *REFUSED), 2),
        (("plan", "stage=ppo", "stage.reward=a:b"), 0),
        (("train", *REFUSED), 2),
        (("preview", *REFUSED), 2),
        (("chat", *REFUSED), 2),
        (("serve", "serve.port=x"), 2),
        (("explain", "method.rank"), 0),
        (("compare", "run"), 0),
        (("export", "export.format=zzz"), 2),
        (("--help",), 0),
    ],
)
def test_planning_leaves_the_heavy_libraries_alone(arguments: tuple[str, ...], code: int, here: Path) -> None:
    if "compare" in arguments:
        side_by_side.run(here / "run", evaluate={"perplexity": 9.0}, nats=[(20.0, 10)])
    subprocess.run([sys.executable, "-c", SCRIPT, *arguments], check=True, capture_output=True, timeout=60)
    found, imported, peak = json.loads((here / "found.json").read_text())
    assert found == code
    assert imported == []
    assert peak < 150 * 2**20
