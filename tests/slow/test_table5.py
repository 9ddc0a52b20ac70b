"""The paper's Table 5 in small: the recipe on local files of the sets' names, a tiny model, in one process."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import Done

from factory.compare.columns import columns
from factory.compare.comparison import compared
from factory.compare.found import of_folder
from factory.config import compose
from factory.config.settings import Sweep
from factory.execute.report import as_json, blank
from factory.run import chain
from factory.run.folder import RunFolder
from factory.run.screen import Screen
from factory.run.sweep import Verbs
from factory.verbs.train import of_recipe

SETS = {  # prompt and answer, by the columns of each
    "cnn_dailymail": {"article": "Boat {} left the harbour at noon with nine men.", "highlights": "Boat {} left."},
    "xsum": {"document": "The council of town {} met and voted for a bridge.", "summary": "Town {} gets a bridge."},
    "adgen": {"content": "类型#上衣*颜色#白色*款式#{}", "summary": "这款白色的上衣{}十分百搭又舒适又时尚。"},
}
METHODS = ("baseline", "full", "galore", "lora", "qlora")
FOLDER = "multirun_sweeps/table5"
OWN = """\
# @package data.sources.{name}
defaults: [_base@_here_]
path: {file}
format: prompt_completion
columns: {{prompt: {prompt}, completion: {answer}}}
"""


@pytest.fixture
def own(here: Path) -> Path:
    """A folder of options that stand for the packaged ones: 8 rows to train, 5 others to answer."""
    (here / "own" / "data").mkdir(parents=True)
    for name, row in SETS.items():
        for part, numbers in (("", range(8)), ("_test", range(8, 13))):
            file = here / f"{name}{part}.jsonl"
            rows = ({key: text.format(number) for key, text in row.items()} for number in numbers)
            file.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows))
            prompt, answer = row
            text = OWN.format(name=f"{name}{part}", file=file, prompt=prompt, answer=answer)
            (here / "own" / "data" / f"{name}{part}.yaml").write_text(text)
    return here / "own"


@pytest.mark.slow
def test_table_5_is_run_compared_and_continued(
    own: Path, execute: Callable[..., Done], tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run fails at first: the others run, and it alone does when the recipe goes on."""
    asked = list[str]()

    def run(composed: compose.Composed, *, failing: str) -> int:
        name = Path(composed.run_dir).name
        asked.append(name)
        plan = of_recipe(composed, training=True)
        if name == failing:
            return 1
        done = execute(folder=composed.run_dir, plan=plan)
        told = {key: done.result[key] for key in ("train", "evaluate", "data") if key in done.result}
        RunFolder(composed.run_dir).report.write_text(as_json({**blank(plan, "finished"), **told}))
        return 0

    def go(line: compose.CommandLine, failing: str, resume: str | None = None) -> int:
        compile, go_on = partial(of_recipe, training=True), lambda folder: 1
        verbs = Verbs(compile=compile, run=partial(run, failing=failing), go_on=go_on)
        return chain.chain(line, Sweep(resume=resume, reuse=False), verbs, Screen())

    small = ("data.max_length=240", "evaluate.max_new_tokens=8", "precision=fp32", "stage.max_steps=1", "method.rank=4")
    small = (*small[:-1], *(f"runs.{name}_{method}.{small[-1]}" for name in SETS for method in METHODS[2:]))
    base = (f"model.path={tiny_model}", "hardware=cpu", "tracking=none", f"hydra.sweep.dir={FOLDER}")
    line = compose.CommandLine(overrides=("recipe=table5", *base, *small), config_dirs=(str(own),))
    names = [f"{name}_{method}" for name in SETS for method in METHODS]
    assert go(line, "xsum_lora") == 1 and asked == names
    asked.clear()
    assert go(compose.CommandLine(overrides=(), multirun=True), "", FOLDER) == 0 and asked == ["xsum_lora"]

    made = compared(of_folder(Path(FOLDER)))
    (column,) = (column for column in columns(made.runs) if column.key == "rouge")
    assert {run.name: run.status for run in made.runs} == dict.fromkeys(names, "finished")
    assert all(column.value(run) is not None for run in made.runs)
    assert len(made.verdicts["rouge"]) == len(SETS)  # each set's five are compared with each other alone
    for verdict, name in zip(made.verdicts["rouge"], SETS, strict=True):
        assert {made.runs[place].name.rpartition("_")[0] for place in (verdict.leading, *verdict.others)} == {name}
        assert {found.rows for found in verdict.others.values()} == {5}
    counted = {run.name: run.report["evaluate"]["generation"]["counted_by"] for run in made.runs}
    assert {name for name, by in counted.items() if by == "characters"} == set(names[10:])
    assert "ROUGE" in capsys.readouterr().out
