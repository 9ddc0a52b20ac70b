"""The files of docs/contributing.md, written as they stand there, do what the page says."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Done, Said, compiled

PAGE = (Path(__file__).parents[1] / "docs" / "contributing.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^    (factory .*)$", PAGE, re.MULTILINE)]


@pytest.fixture
def written(here: Path) -> Path:
    for name, text in FILES.items():
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    rows = [{"instruction": f"Where is order {number}?", "output": "On its way."} for number in range(40)]
    (here / "shop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return here


def test_each_way_is_shown_with_its_file() -> None:
    titles = re.findall(r"^## An? (\w+( set)?)$", PAGE, re.MULTILINE)
    assert [title for title, _ in titles] == ["data set", "model", "template", "method", "stage", "metric", "recipe"]
    assert len(FILES) == len(COMMANDS) == len(titles) + 1  # a stage's option has a command of its own


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_is_a_plan(words: list[str], written: Path) -> None:
    made = compiled(*(word for word in words if word != "plan"), training=False)
    options = made.options
    assert ("--config-dir" in words) or bool(made.own) or "lengths:brevity" in made.settings.evaluate.metrics
    if "--config-dir" in words:
        group, _, name = words[-1].partition("=")
        assert options[group] == name if group != "recipe" else options["method"] == "dora"


def test_a_command_without_its_file_is_refused(written: Path, command: Callable[..., Said]) -> None:
    """So the plans above are those of the files."""
    for name in FILES:
        (written / name).unlink()
    for words in COMMANDS:
        said = command("plan", *(word for word in words if word != "plan"))
        if "lengths:brevity" not in words[-1]:  # a function is looked for when it is needed
            assert said.code == 2, words


def test_they_run_together(written: Path, execute: Callable[..., Done], tiny_model: Path) -> None:
    done = execute(
        *("--config-dir", "own", "data=shop", "stage=dft", "method=full", "method.name=norms.py"),
        *("model.template=calm.yaml", "evaluate.generation=true", "evaluate.metrics=[rougeL,lengths:brevity]"),
        *(
            "evaluate.max_new_tokens=4",
            "evaluate.max_samples=2",
            "stage.max_steps=2",
            "stage.learning_rate=0.01",  # norms are near 1, where bfloat16's numbers are 0.008 apart
            "data.max_length=200",
            f"model.path={tiny_model}",
        ),
    )
    assert {"gradients_alive", "loss_mask"} <= done.run.checks.keys()
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    trained = {name for name, value in done.model.named_parameters() if not value.equal(done.start[name])}
    assert trained and all("norm" in name for name in trained)
    template = (done.run.folder.model / "chat_template.jinja").read_text()
    assert "You answer in one calm sentence." in template
    assert 0 <= done.result["evaluate"]["brevity"] <= 1
