"""python -m fuzz TARGET[,TARGET…]|all CASES [--first NUMBER]: exit code 1 where a fault was found.

Ctrl-C ends it with what was found until then, and exit code 130.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fuzz import TARGETS
from fuzz.runner import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("targets", help=f"all, or some of {','.join(TARGETS)}")
    parser.add_argument("cases", type=int)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    faults = 0
    for target in TARGETS if asked.targets == "all" else asked.targets.split(","):
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            found = run(target, asked.cases, Path(folder), first=asked.first)
        print(f"{target}: {found}", flush=True)
        for kind, (number, text) in found.faults.items():
            print(f"--- {kind}, case {number}\n{text}", flush=True)
        faults += len(found.faults)
        if found.outcomes.total() < asked.cases:
            return 130
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
