"""What the plan's panel says, read as a terminal would have it."""

import pytest
from conftest import compiled
from rich.console import Console

from factory.run.plan_shown import plan_panel


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compute.attention=blocks",), "a row each, nothing padded"),
        (("compute.attention=sdpa",), "a row each"),
        (("compute.attention=blocks", "stage=dpo"), "answers to a prompt share it, nothing padded"),
        (("compute.attention=sdpa", "stage=dpo"), "a row each"),
        (("stage=pt", "data.isolate_documents=true"), "packed, documents isolated"),
    ],
)
def test_how_rows_stand_in_a_batch(words: tuple[str, ...], said: str) -> None:
    console = Console(width=100)
    with console.capture() as seen:
        console.print(plan_panel(compiled("hardware=cpu", *words)))
    (line,) = (line.strip("│ ") for line in seen.get().splitlines() if " tokens, " in line and "up to" in line)
    assert line.split(" tokens, ")[1] == said
