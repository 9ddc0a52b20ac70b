"""A recipe of several runs: what is wrong with it is told first, what reads a run waits for it and takes its model."""

import errno
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pretended
import pytest
import side_by_side
from conftest import Done

from factory.config import compose, groups
from factory.config.refusal import UserError, refuse
from factory.config.settings import Sweep
from factory.execute.report import as_json, blank
from factory.plan.plan import Plan, read_plan, to_yaml
from factory.run import chain, sweep, swept
from factory.run.folder import RunFolder, unwritable
from factory.run.screen import Screen
from factory.run.sweep import Verbs
from factory.run.swept import SweepFolder
from factory.verbs.train import of_recipe

FOLDER = "multirun_sweeps/chained"
BEFORE = ["model.new_tokens=[]", "model.pad_vocabulary_to=null", "model.revision=null"]
THREE = """
shared: [tracking=none]
runs:
  one: [seed=1]
  two: [seed=2, 'model=${run:one}']
  three: [seed=3]
"""
Line = Callable[..., compose.CommandLine]


@pytest.fixture
def line(here: Path) -> Line:
    """The command line of a recipe of this text."""

    def line(text: str, *overrides: str) -> compose.CommandLine:
        (here / "own" / "recipe").mkdir(parents=True, exist_ok=True)
        (here / "own" / "recipe" / "mine.yaml").write_text(text)
        return compose.CommandLine(overrides=("recipe=mine", *overrides), config_dirs=("own",))

    return line


@pytest.mark.parametrize(
    ("text", "rule", "wrong"),
    [
        ("runs: {one: ['model=${run:two}'], two: [seed=1]}", "recipe-order", "one reads two, and there is none before"),
        ("runs: {one: [seed=1], two: ['model=${run:two}']}", "recipe-order", "two reads two, and the runs before it"),
        ("runs: {one: [seed=1], two: ['model=${run:on}']}", "recipe-order", "two reads on,"),
        ("runs: {one: [seed=1], two: ['data=${run:one}']}", "recipe-form", "data of two cannot read a run"),
        ("runs: {one: [seed=1], two: ['model=${run:one}/a']}", "recipe-form", "is not KEY=${run:NAME}"),
        ("runs: {one: [seed=1], one: [seed=2]}", "compose", "twice"),
        ("runs: {../one: [seed=1]}", "recipe-form", "../one cannot be a run's name"),
        ("runs: {one: {seed: 1}}", "recipe-form", "one is no list of overrides"),
        ("runs: {one: [seed]}", "recipe-form", "one is no list of overrides"),
        ("runs: {one: }", "recipe-form", "one is no list of overrides"),
        ("runs: {shared: [seed=1]}\nshared: 3", "recipe-form", "shared is no list of overrides"),
        (
            "runs: {one: [seed=1], two: [seed=2]}\nshared: ['model=${run:one}']",
            "recipe-form",
            "shared has model=${run:one}",
        ),
        ("runs: {one: [hydra.run.dir=x]}", "recipe-folder", "one of recipe=mine sets it"),
        ("runs: {one: [seed=1]}\nshared: [hydra.run.dir=x]", "recipe-folder", "shared of recipe=mine sets it"),
        ("runs: [seed=1]", "recipe-form", "runs is no {name: overrides}"),
        ("runs: {}", "recipe-form", "runs is no {name: overrides}"),
        ("runs: {one: [seed=1]}\nstage: {max_steps: 1}", "recipe-form", "beside runs its file has stage"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused(line: Line, text: str, rule: str, wrong: str) -> None:
    with pytest.raises(UserError) as refused:
        chain.links(line(text))
    (found,) = refused.value.refusals
    assert found.rule == rule and wrong in str(found)


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("stage=dpo", "recipe-key"),
        ("runs.two.stage.reward_model=outputs/x", "recipe-key"),
        ("runs.too.seed=1", "recipe-run"),
        ("hydra.run.dir=outputs/x", "recipe-folder"),
        ("runs.two.hydra.run.dir=outputs/x", "recipe-folder"),
        ("runs.two.model=${run:one}", "recipe-form"),
        ("model=${run:one}", "recipe-form"),
    ],
)
def test_an_override_that_the_runs_cannot_have_is_refused(line: Line, override: str, rule: str) -> None:
    text = "runs: {one: [stage=rm], two: [stage=ppo, 'stage.reward_model=${run:one}']}"
    with pytest.raises(UserError) as refused:
        chain.links(line(text, override))
    assert [found.rule for found in refused.value.refusals] == [rule]


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("runs.two.stage.reward_model=outputs/x", "leave it out, or write"),
        ("stage=dpo", "leave it out, set it for one run by runs.NAME.stage, or write"),
    ],
)
def test_what_is_advised_is_not_what_was_typed(line: Line, override: str, fix: str) -> None:
    text = "runs: {one: [stage=rm], two: [stage=ppo, 'stage.reward_model=${run:one}']}"
    with pytest.raises(UserError) as refused:
        chain.links(line(text, override))
    assert refused.value.refusals[0].fix.startswith(fix)


def test_a_runs_name_may_be_a_number(line: Line, here: Path) -> None:
    """And YAML has a space before its colon."""
    text = "runs : {1: [seed=1], 2: ['model=${run:1}']}"
    assert [(link.name, link.reads) for link in chain.links(line(text))] == [("1", {}), ("2", {"model": "1"})]
    assert [job.name for job in chain.planned(line(text), Runs().verbs.compile)] == ["1", "2"]
    with pytest.raises(UserError, match=r"the runs are 1, 2"):
        chain.links(line(text, "runs.3.seed=1"))


@pytest.mark.parametrize("folder", ["läufe", "it's, all"])
def test_a_model_is_read_from_a_folder_of_any_name(folder: str, here: Path) -> None:
    text = f"model.path={chain._model_of(SweepFolder(folder), 'one')}"
    composed = compose.compose(compose.CommandLine(overrides=(text,)))
    assert (composed.tree["model"]["path"], composed.problems) == (f"{folder}/one/model", ())


def test_overrides_go_to_all_runs_or_to_one_and_win(line: Line) -> None:
    found = chain.links(line(THREE, "data=demo", "seed=7", "runs.two.seed=9", "+method=full"))
    assert [link.overrides for link in found] == [
        ("tracking=none", "seed=7", "data=demo", "+method=full"),
        ("tracking=none", "seed=9", "data=demo", "+method=full"),
        ("tracking=none", "seed=7", "data=demo", "+method=full"),
    ]
    assert [link.reads for link in found] == [{}, {"model": "one"}, {}]


@pytest.mark.parametrize("verb", [["plan", "-m"], ["-m"], ["evaluate"], ["preview"]], ids=str)
def test_where_one_run_is_wanted_a_recipe_of_several_is_refused(verb: list[str], command: Any) -> None:
    said = command(*verb, "recipe=dpo_after_sft")
    assert (said.code, said.rules) == (2, ["recipe-of-runs"])


def test_a_sweeps_keys_are_refused_beside_it(command: Any) -> None:
    said = command("recipe=dpo_after_sft", "sweep.reuse=true")
    assert (said.code, said.rules) == (2, ["sweep-without-multirun"])


class Runs:
    """What a run leaves, without training. `codes` are what runs end with; `log` what was done; `asked` with what.

    `red` is the run that finishes with a red check.
    """

    def __init__(self, refused: str = "", red: str = "", **codes: int):
        self._refused, self._red, self._codes = refused, red, codes
        self.log, self.asked = list[str](), dict[str, tuple[str, ...]]()

    @property
    def verbs(self) -> Verbs:
        return Verbs(compile=self._compile, run=self._run, go_on=self._go_on)

    def _compile(self, composed: compose.Composed) -> Plan:
        self.log.append("compile")
        return self._plan(composed)

    def _plan(self, composed: compose.Composed) -> Plan:
        if self._refused and self._refused in composed.overrides:
            raise refuse("projection-rank", "method.rank=9", "it is too much", because="it is", fix="change it")
        own = ("seed=", "method=", "model.rope_scaling=", "model.context_length=", "data.max_length=")
        return side_by_side.plan(*(text for text in composed.overrides if text.startswith(own)))

    def _run(self, composed: compose.Composed) -> int:
        folder = RunFolder(composed.run_dir)
        folder.path.mkdir(parents=True, exist_ok=True)
        try:
            plan = self._plan(composed)
        except UserError:
            self.log.append(f"refuse {folder.path.name}")
            return 2
        folder.plan.write_text(to_yaml(plan))
        self.asked[folder.path.name] = composed.overrides
        return self._ended("run", folder, plan)

    def _go_on(self, folder: RunFolder) -> int:
        return self._ended("go on", folder, read_plan(folder.plan))

    def _ended(self, what: str, folder: RunFolder, plan: Plan) -> int:
        self.log.append(f"{what} {folder.path.name}")
        code = self._codes.get(folder.path.name, 0)
        is_red = folder.path.name == self._red
        if code == 0:
            checks = {"live_gradients": {"passed": not is_red, "detail": "-"}}
            more = {"evaluate": {"perplexity": 9.0}, "checks": checks}
            folder.report.write_text(as_json({**blank(plan, "finished"), **more}))
        return 1 if is_red else code

    @property
    def done(self) -> list[str]:
        return [each for each in self.log if each != "compile"]


def chained(line: compose.CommandLine, runs: Runs) -> int:
    line = compose.CommandLine(overrides=(*line.overrides, f"hydra.sweep.dir={FOLDER}"), config_dirs=line.config_dirs)
    return chain.chain(line, Sweep(resume=None, reuse=False), runs.verbs, Screen())


def resumed(runs: Runs) -> int:
    assert SweepFolder(FOLDER).is_of_a_recipe()
    bare = compose.CommandLine(overrides=(), multirun=True)
    return chain.chain(bare, Sweep(resume=FOLDER, reuse=False), runs.verbs, Screen())


def test_all_are_compiled_first_and_the_second_takes_the_firsts_adapter(line: Line) -> None:
    runs = Runs()
    assert chained(line(THREE), runs) == 0
    assert runs.log == ["compile"] * 3 + ["run one", "run two", "run three"]
    assert runs.asked["two"][-1] == f"model.adapter={FOLDER}/one/model"
    assert SweepFolder(FOLDER).names() == ["one", "two", "three"]
    assert not any("model.adapter" in text for text in (*runs.asked["one"], *runs.asked["three"]))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_all_stretch_is_stretched_by_the_first(method: str, line: Line) -> None:
    text = f"""
    shared: [tracking=none, model.rope_scaling=yarn, data.max_length=100000]
    runs:
      one: [method={method}]
      two: [method={method}, 'model=${{run:one}}']
    """
    runs = Runs()
    assert chained(line(text), runs) == 0
    assert "model.rope_scaling=yarn" in runs.asked["one"]
    assert {"model.rope_scaling=none", "model.context_length=100000"} < set(runs.asked["two"])
    assert "model.rope_scaling=yarn" not in runs.asked["two"]


def test_the_weights_of_a_run_that_trains_them_are_read_as_a_model(line: Line) -> None:
    text = """
    shared: [tracking=none]
    runs:
      one: [method=full]
      two: [method=lora, 'model=${run:one}']
      three: [method=lora, 'model=${run:two}']
    """
    runs = Runs()
    assert chained(line(text, "model.path=base"), runs) == 0
    models = {name: [text for text in texts if text.startswith("model.")] for name, texts in runs.asked.items()}
    assert models == {
        "one": ["model.path=base"],
        "two": [f"model.path={FOLDER}/one/model", *BEFORE],
        "three": [f"model.path={FOLDER}/one/model", *BEFORE, f"model.adapter={FOLDER}/two/model"],
    }


def test_what_was_said_of_the_first_base_is_not_said_of_the_weights_that_come_of_it(line: Line) -> None:
    """But where it is said of that run alone."""
    text = """
    shared: [tracking=none, model.revision=abc, 'model.new_tokens=[<a>]', model.pad_vocabulary_to=64]
    runs:
      one: [method=full]
      two: [method=full, 'model=${run:one}', 'model.new_tokens=[<b>]']
      three: [method=lora, 'model=${run:one}']
      four: [method=lora, 'model=${run:three}']
    """
    runs, keys = Runs(), [text.partition("=")[0] for text in BEFORE]
    assert chained(line(text, "runs.three.model.pad_vocabulary_to=8"), runs) == 0
    found = {
        name: {key: value for key, _, value in (text.partition("=") for text in texts) if key in keys}
        for name, texts in runs.asked.items()
    }
    first = {"model.revision": "abc", "model.new_tokens": "[<a>]", "model.pad_vocabulary_to": "64"}
    none = dict(text.split("=") for text in BEFORE)
    assert found == {
        "one": first,
        "two": none | {"model.new_tokens": "[<b>]"},
        "three": none | {"model.pad_vocabulary_to": "8"},
        "four": none,
    }


def test_a_failed_run_stops_what_reads_it_and_it_goes_on_there(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    first = Runs(one=1)
    assert chained(line(THREE), first) == 1
    assert first.done == ["run one", "run three"]
    told = " ".join(capsys.readouterr().out.split())
    assert "two is not started, as one, which it reads, is not done" in told
    assert f"-m sweep.resume={FOLDER}" in told
    second = Runs()
    assert resumed(second) == 0
    assert second.done == ["go on one", "run two"]
    assert {name: outcome.code for name, outcome in SweepFolder(FOLDER).ended().items()} == dict.fromkeys(
        ("one", "two", "three"), 0
    )


def test_what_waits_for_a_run_with_a_red_check_is_told_the_way_on(
    line: Line, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that is finished nothing becomes another by going on."""
    text = THREE.replace("[seed=3]", "[seed=3, 'model=${run:two}']\n  four: [seed=4]")
    runs, later = Runs(red="one"), Runs()
    assert chained(line(text), runs) == 1
    first = capsys.readouterr().out
    assert (resumed(later), runs.done, later.done) == (1, ["run one", "run four"], [])
    for told in (first, capsys.readouterr().out):
        whole = " ".join(told.split())
        assert "two is not started, as one, which it reads, is finished with a red check (live_gradients)" in whole
        assert whole.count("To start it all the same: ") == 1
        assert f" train --config-dir own tracking=none seed=2 model.adapter={FOLDER}/one/model" in whole
        assert "three is not started, as two, which it reads, is not done" in whole
        assert "sweep.resume" not in whole


def test_beside_a_run_with_a_red_check_others_go_on(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    assert chained(line(THREE), Runs(red="one", three=1)) == 1
    assert f"-m sweep.resume={FOLDER}" in capsys.readouterr().out


def test_an_interrupted_recipe_stops_there(line: Line) -> None:
    first, second = Runs(two=130), Runs()
    assert chained(line(THREE), first) == 130
    assert first.done == ["run one", "run two"]
    assert resumed(second) == 0
    assert second.done == ["go on two", "run three"]


def test_a_recipe_that_is_stopped_while_a_run_is_compiled_is_closed(
    line: Line, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, told = Runs(), list[bool]()
    monkeypatch.setattr(sweep, "_close_parent", lambda *values: told.append(values[-1]))

    def run(composed: compose.Composed) -> int:
        if Path(composed.run_dir).name == "two":
            raise KeyboardInterrupt
        return runs._run(composed)

    verbs = Verbs(compile=runs._compile, run=run, go_on=runs._go_on)
    asked = line(THREE, f"hydra.sweep.dir={FOLDER}")
    assert chain.chain(asked, Sweep(resume=None, reuse=False), verbs, Screen()) == 130
    assert runs.done == ["run one"] and told == [True]
    assert f"-m sweep.resume={FOLDER}" in capsys.readouterr().out
    assert "| one |" in SweepFolder(FOLDER).table.read_text()


def test_a_run_that_was_over_when_it_was_asked_to_stop_is_kept(line: Line) -> None:
    runs, later = Runs(), Runs()

    def run(composed: compose.Composed) -> int:
        ended = runs._run(composed)
        return 130 if Path(composed.run_dir).name == "two" else ended

    verbs = Verbs(compile=runs._compile, run=run, go_on=runs._go_on)
    asked = line(THREE, f"hydra.sweep.dir={FOLDER}")
    assert chain.chain(asked, Sweep(resume=None, reuse=False), verbs, Screen()) == 130
    assert runs.done == ["run one", "run two"] and SweepFolder(FOLDER).ended()["two"].code == 0
    assert resumed(later) == 0 and later.done == ["run three"]


def test_a_finished_run_is_kept_where_it_would_be_refused_by_now(line: Line) -> None:
    text = "shared: [tracking=none]\nruns:\n  one: [seed=1]\n  two: [seed=2]\n"
    assert chained(line(text), Runs(two=1)) == 1
    later = Runs(refused="seed=1")
    assert resumed(later) == 0 and later.done == ["go on two"]
    assert {name: outcome.code for name, outcome in SweepFolder(FOLDER).ended().items()} == {"one": 0, "two": 0}


def test_a_recipe_writes_no_secret(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that nobody waits for either, whose refusal would stop no other."""
    runs = Runs()
    with pytest.raises(UserError, match=r"\[secret-in-settings\]"):
        chained(line(THREE, "runs.three.tracking.uri=https://me:hunter2@host"), runs)
    assert runs.done == [] and not Path(FOLDER).exists()


def test_a_disk_that_a_run_filled_ends_the_recipe_with_what_there_is(
    line: Line, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of it was refused."""

    def full(path: Path, _line: Any) -> None:
        raise unwritable(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    monkeypatch.setattr(swept, "append", full)
    runs = Runs()
    assert chained(line(THREE), runs) == 1
    said = capsys.readouterr()
    assert runs.done == ["run one"] and "[cannot-write]" in said.err
    assert f"-m sweep.resume={FOLDER}" in said.out and "| one |" in SweepFolder(FOLDER).table.read_text()


def test_nothing_starts_where_a_run_of_a_chain_is_refused(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs(refused="seed=2")
    assert chained(line(THREE), runs) == 2
    assert runs.done == [] and not Path(FOLDER).exists()
    assert re.search(r"run two\n\[projection-rank\]", capsys.readouterr().err)


def test_a_refused_run_that_nobody_waits_for_stops_no_other(line: Line) -> None:
    runs = Runs(refused="seed=3")
    assert chained(line(THREE), runs) == 1
    assert runs.done == ["run one", "run two", "refuse three"]


def test_a_path_is_quoted_as_hydra_reads_it(here: Path) -> None:
    for name in ("plain/a-b", "a b,c", "it's", "back\\slash"):
        text = chain._model_of(SweepFolder(name), "one")
        tree = compose.compose(compose.parse([f"model.adapter={text}"])).tree
        assert tree["model"]["adapter"] == f"{name}/one/model"


# what the paper's Table 2 crosses out, and Unsloth, which needs a GPU
NEVER = {
    "table2": [
        *(f"{method}.quantization" for method in ("freeze", "galore")),
        *(f"{method}.unsloth" for method in ("freeze", "galore", "lora", "dora", "lora_plus", "pissa")),
    ]
}


@pytest.mark.parametrize("name", groups.options("recipe"))
def test_every_recipe_can_be_planned_without_a_network(name: str) -> None:
    """Each run has a plan, those that read another as far as it is known."""
    line = compose.parse([f"recipe={name}"])
    with pretended.facts("gpu"):
        if compose.recipe_of_runs(line) is None:
            pretended.compiled(f"recipe={name}")
            return
        found = chain.planned(line, partial(of_recipe, training=False))
    assert found and {job.name for job in found if job.refusals} == set(NEVER.get(name, ()))


def test_two_runs_that_are_executed(execute: Callable[..., Done], line: Line, tiny_model: Path) -> None:
    """The preferences go on from what the instructions have left: the second run starts with that adapter."""
    import torch
    from safetensors.torch import load_file

    text = """
    shared: [tracking=none, hardware=cpu, evaluate.samples=0, data.max_samples=12, data.max_length=200,
             data.truncation=keep_response, stage.max_steps=2, stage.learning_rate=1e-2]
    runs:
      sft: [stage=sft]
      dpo: [stage=dpo, 'model=${run:sft}']
    """
    done = dict[str, Done]()

    def run(composed: compose.Composed) -> int:
        plan = of_recipe(composed, training=True)
        done[Path(composed.run_dir).name] = made = execute(folder=composed.run_dir, plan=plan)
        made.run.folder.report.write_text(as_json(blank(plan, "finished")))
        return 0

    verbs = Verbs(compile=partial(of_recipe, training=True), run=run, go_on=lambda folder: 1)
    asked = line(text, f"model.path={tiny_model}", f"hydra.sweep.dir={FOLDER}")
    assert chain.chain(asked, Sweep(resume=None, reuse=False), verbs, Screen()) == 0
    saved = load_file(f"{FOLDER}/sft/model/adapter_model.safetensors")
    start = {name.replace(".default", ""): value for name, value in done["dpo"].start.items() if "lora_" in name}
    assert start.keys() == saved.keys()
    assert all(torch.equal(start[name].float(), saved[name].float()) for name in saved)
    assert any(value.abs().max() > 0 for name, value in saved.items() if "lora_B" in name)  # it had trained
