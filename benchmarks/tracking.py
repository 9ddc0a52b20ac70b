"""What tracking costs a training: the same child, logging 100 values a second, with a parent that tracks and without.

    python benchmarks/tracking.py [--steps N] [--rounds N]

The child multiplies matrices and writes a line of ten values every 0.1 s of its work. Rounds alternate, as a machine's
other work comes and goes; what counts is the child's work in a CPU second and the parent's CPU seconds beside it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import psutil

from factory import compose
from factory.anew import compiled
from factory.plan import Plan, to_yaml
from factory.run.folder import RunFolder
from factory.tracking.ledger import counts, of
from factory.tracking.tracker import Tracker

CHILD = """
import json, os, sys, time
import numpy as np
steps, path = int(sys.argv[1]), sys.argv[2]
a = np.random.default_rng(0).normal(size=(256, 256)).astype("float32")
products = 0
def work(seconds):
    global a
    end = time.process_time() + seconds
    while time.process_time() < end:
        a @ a
        globals()["products"] += 1
work(0.5)
products, start, cpu = 0, time.time(), time.process_time()
for step in range(1, steps + 1):
    work(0.1)
    line = {"step": step, "time": time.time(), "loss": 1 / step, "learning_rate": 1e-4}
    line |= {f"watched_{n}": float(n * step) for n in range(8)}
    with open(path, "ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\\n")
print(json.dumps({"products": products, "cpu": time.process_time() - cpu, "wall": time.time() - start}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="lines of ten values, 0.1 CPU seconds apart")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        base = compiled(compose.compose(compose.parse(["hardware=cpu"])), training=False)
        address = f"sqlite:///{place}/mlflow.db"
        found: dict[str, list[dict[str, float]]] = {"none": [], "mlflow": []}
        for number in range(asked.rounds):
            for tool, uri in (("none", None), ("mlflow", address)):
                tracking = replace(base.tracking, tool=tool, uri=uri)
                plan = replace(base, tracking=tracking)
                found[tool].append(one(plan, RunFolder(f"{place}/{tool}-{number}"), asked.steps))
                print(tool, {name: round(value, 3) for name, value in found[tool][-1].items()}, flush=True)
    rates = {tool: statistics.median(each["products_a_cpu_second"] for each in rows) for tool, rows in found.items()}
    parent = statistics.median(each["parent_share"] for each in found["mlflow"])
    print(f"work of the child in a CPU second: {100 * (rates['mlflow'] / rates['none'] - 1):+.2f} % with MLflow")
    print(f"the parent's CPU seconds: {100 * parent:.2f} % of the child's")


def one(plan: Plan, folder: RunFolder, steps: int) -> dict[str, float]:
    """Follows a child as `launch` does. MLflow is imported, and the run described, before the measuring."""
    folder.path.mkdir(parents=True)
    folder.plan.write_text(to_yaml(plan))
    tracker, own = Tracker(plan, folder), psutil.Process()
    tracker.wake()
    while plan.tracking.on and not tracker._delivery.ledger.described:
        time.sleep(0.1)
    command = [sys.executable, "-c", CHILD, str(steps), str(folder.metrics)]
    before, started = own.cpu_times(), time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while child.poll() is None:
        time.sleep(0.1)
    after, seconds = own.cpu_times(), time.monotonic() - started
    assert child.stdout is not None
    told = json.loads(child.stdout.read())
    tracker.finish(None)
    if plan.tracking.on:
        sent, unsent = counts(of(plan.tracking, folder), folder)
        assert (sent, unsent) == (steps + 2, 0), (sent, unsent)
    return {
        "products_a_cpu_second": told["products"] / told["cpu"],
        "values_a_second": 10 * steps / told["wall"],
        "wall": seconds,
        "parent_share": (after.user - before.user + after.system - before.system) / told["cpu"],
    }


if __name__ == "__main__":
    main()
