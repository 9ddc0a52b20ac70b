"""What tracking costs a training that uses all cores: its speed while 100 values a second are sent, and while none are.

    python benchmarks/tracking.py [--turns N] [--seconds S] [--threads T]

One child multiplies matrices without a pause and writes a line of ten values every 0.1 s: for some seconds where its
parent sends them to MLflow (sqlite), for as long beside it, in the order of ABBA. Neighbouring windows are compared, so
that what else the machine does takes part in both. Of each window the first seconds are left out: the parent is still
busy with the one before.

Where Linux tells it (/proc/self/task/*/schedstat), the second figure needs no comparison of speeds: for how long the
child's threads were ready and waited for a core. A wait of one may hold up all, so their sum over the time is the most
that the training can lose.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace

import psutil

from factory.config import compose
from factory.plan.anew import compiled
from factory.plan.plan import Plan, to_yaml
from factory.run.folder import RunFolder
from factory.tracking import tracker as tracking
from factory.tracking.ledger import counts, of

CHILD = """
import json, sys, time
from pathlib import Path
import torch
turns, seconds, left_out, threads = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
a = torch.randn(384, 384)
files = [open(path, "ab", buffering=0) for path in sys.argv[5:7]]
def work(until):
    done = 0
    while time.monotonic() < until:
        torch.mm(a, a)
        done += 1
    return done
def waited():
    told = (task.joinpath("schedstat") for task in Path("/proc/self/task").glob("*"))
    return sum(int(file.read_text().split()[1]) for file in told if file.exists()) / 1e9
work(time.monotonic() + 2)
step, found, written, waits = 0, [], [0, 0], []
for which in [0, 1, 1, 0] * turns:
    began, done, before = time.monotonic(), 0, None
    next_line = began
    while next_line < began + seconds:
        next_line += 0.1
        if before is None and next_line > began + left_out:
            before = waited()
        products = work(next_line)
        done += products if next_line > began + left_out else 0
        step += 1
        written[which] += 1
        line = {"step": step, "time": time.time(), "loss": 1 / step, "learning_rate": 1e-4}
        line |= {f"watched_{n}": float(n * step) for n in range(8)}
        files[which].write(json.dumps(line).encode() + b"\\n")
    found.append(done)
    waits.append((waited() - before) / (seconds - left_out))
print(json.dumps({"products": found, "written": written, "waits": waits}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=8, help="of four windows each")
    parser.add_argument("--seconds", type=float, default=20, help="of a window")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(), help="of the child (all cores)")
    asked = parser.parse_args()
    left_out = tracking._EVERY + 2
    with tempfile.TemporaryDirectory() as place:
        base = compiled(compose.compose(compose.parse(["hardware=cpu"])), training=False)
        on = replace(base.settings.tracking, tool="mlflow", uri=f"sqlite:///{place}/mlflow.db")
        found, waits, share = measured(replace(base, tracking=on), RunFolder(f"{place}/run"), asked, left_out)
    for number, (products, wait) in enumerate(zip(found, waits, strict=True)):
        sent = "sent" if number % 4 in (0, 3) else "not "
        print(f"window {number + 1:3} {sent}  {products} products, waited for a core {100 * wait:.2f} % of the time")
    speeds = [100 * (sent / beside - 1) for sent, beside in pairs(found)]
    waited = [100 * (sent - beside) for sent, beside in pairs(waits)]
    print(f"speed while values are sent: {mean_and_error(speeds)}")
    print(f"the child's waiting for a core while values are sent, less that beside it: {mean_and_error(waited)}")
    print(f"the parent's CPU seconds: {100 * share:.2f} % of a core while values are sent")


def pairs(windows: Sequence[float]) -> list[tuple[float, float]]:
    """Neighbours in the order of ABBA: first the one where values were sent."""
    both = zip(windows[0::2], windows[1::2], strict=True)
    return [(one, other) if number % 2 == 0 else (other, one) for number, (one, other) in enumerate(both)]


def mean_and_error(changes: list[float]) -> str:
    error = statistics.stdev(changes) / len(changes) ** 0.5
    return f"{statistics.mean(changes):+.2f} % ± {error:.2f} (standard error)"


def measured(
    plan: Plan, folder: RunFolder, asked: argparse.Namespace, left_out: float
) -> tuple[list[int], list[float], float]:
    """Products and waiting in each window, and the parent's share of a core. It follows a child as `launch` does."""
    folder.path.mkdir(parents=True)
    folder.plan.write_text(to_yaml(plan))
    tracker, own = tracking.Tracker(plan, folder), psutil.Process()
    tracker.wake()
    while not tracker._delivery.ledger.described:  # MLflow is imported, and the run described, before the measuring
        time.sleep(0.1)
    numbers = map(str, (asked.turns, asked.seconds, left_out, asked.threads))
    command = [sys.executable, "-c", CHILD, *numbers, str(folder.metrics), str(folder.path / "beside.jsonl")]
    before, started = own.cpu_times(), time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while child.poll() is None:
        time.sleep(0.1)
    after, seconds = own.cpu_times(), time.monotonic() - started
    assert child.stdout is not None
    told = json.loads(child.stdout.read())
    tracker.finish(None)
    sent, unsent = counts(of(plan.settings.tracking, folder), folder)
    assert (sent, unsent) == (told["written"][0] + 2, 0), (sent, unsent, told["written"])
    share = (after.user - before.user + after.system - before.system) / (seconds / 2)
    return told["products"], told["waits"], share


if __name__ == "__main__":
    main()
