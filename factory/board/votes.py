"""Which of two answers a person found better, without knowing whose was which: a line a vote."""

import json
import time
from pathlib import Path
from typing import Any

from factory.tracking.ledger import whole_lines


class Votes:
    """In a file of JSON lines."""

    def __init__(self, path: Path):
        self._path = path

    def add(self, vote: str, names: list[str], questions: list[dict[str, str]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = {"time": time.time(), "left": names[0], "right": names[1], "vote": vote, "questions": questions}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def counted(self, names: list[str]) -> dict[str, tuple[float, int]]:
        """Of each of two models: the votes between the two that it won, a tie by half, and how many there were."""
        lines: list[dict[str, Any]] = [
            line for line in whole_lines(self._path) if {line["left"], line["right"]} == {*names}
        ]
        won = dict.fromkeys(names, 0.0)
        for line in lines:
            for side in ("left", "right"):
                won[line[side]] += 0.5 if line["vote"] == "tie" else float(line["vote"] == side)
        return {name: (count, len(lines)) for name, count in won.items()}
