"""The front door: what is not in the schema is refused wherever it comes from, all at once and in one shape."""

import errno
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import compiled, refusals

from factory.config import compose, groups, settings, suggest, sweeps
from factory.config.refusal import UserError
from factory.plan.plan import to_yaml

Command = Callable[..., Any]
BLOCK = re.compile(r"\[[a-z][a-z0-9-]*\] \S.*: \S.*[.?]\n  because \S.*\n  fix: \S.*\n")


def _own(folder: Path, group: str, text: str) -> tuple[str, str]:
    (folder / "own" / group).mkdir(parents=True, exist_ok=True)
    (folder / "own" / group / "own.yaml").write_text(text)
    return "--config-dir", str(folder / "own")


# --- strictness


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("method.rnk", "method.rank"),
        ("method.quantization.bit", "method.quantization.bits"),
        ("data.sources.demo.colums", "data.sources.demo.columns"),
        ("seeed", "seed"),
        ("rank", "method.rank"),
        ("model.architectur.hidden_size", "model.architecture"),
        ("methd", "method"),
        ("modl", "model"),
        ("lr", "stage.learning_rate"),
        ("stage.lr", "stage.learning_rate"),
        ("epochs", "stage.num_epochs"),
        ("stage.rank", "method.rank"),
        ("generation.max_new_tokens", "generation.max_tokens"),
        ("stage.max_length", "data.max_length"),
        ("per_device_train_batch_size", "stage.batch_size"),
        ("cutoff_len", "data.max_length"),
        ("preview.samples", "preview.rows"),  # and not evaluate.samples, of another group
    ],
)
def test_an_unknown_key_is_refused_on_the_command_line(plus: str, key: str, near: str) -> None:
    (refusal,) = refusals(f"{plus}{key}=3", training=False)
    assert refusal.rule == "unknown-key"
    assert refusal.setting.partition("=")[0] in (key, key.rpartition(".")[0])
    assert f"did you mean {near}?" in refusal.fix


@pytest.mark.parametrize("key", ["model.nam", "stage.zzz"])
def test_nothing_is_suggested_where_no_key_is_alike(key: str) -> None:
    (refusal,) = refusals(f"{key}=3", training=False)
    assert "did you mean" not in refusal.fix


def test_other_names_are_of_keys_that_exist() -> None:
    keys = {key.path for key in settings.all_keys()}
    assert set(suggest.SHORT.values()) <= {*keys, *groups.GROUPS}
    assert {key for names in suggest.IN_GROUP.values() for key in names.values()} <= keys


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["plan", "method", "lora"], "method=lora"),
        (["method", "lora"], "method=lora"),
        (["plan", "stage.learning_rate", "1e-4"], "stage.learning_rate=1e-4"),
        (["chat", "outputs/a"], "run=outputs/a"),
        (["export", "outputs/a", "export.dir=x"], "run=outputs/a"),
        (["serve", "outputs/a"], "run=outputs/a"),
        (["evaluate", "outputs/a"], "run=outputs/a"),
        (["rows.jsonl"], "data=file data.path=rows.jsonl"),
        (["plan", "rows.jsonl"], "data=file data.path=rows.jsonl"),
        (["plan", "data=rows.jsonl"], "data=file data.path=rows.jsonl"),
        (["plan", "--lr", "1e-4"], "stage.learning_rate=…"),
        (["--lora_rank", "8"], "method.rank=…"),
        (["--learning-rate=1e-4"], "stage.learning_rate=…"),
        (["--hepl"], "--help"),
        (["plan", "model=HuggingFaceTB/SmolLM2-135M-Instruct"], "smollm2_135m"),
        (["plan", "method=norms.py"], "method=full method.name=norms.py"),
        (["plan", "stage=norms.py"], "stage.name=norms.py"),
        (["plan", "model=someone/some-model"], "model.path=someone/some-model"),
        (["plan", "data=rows"], "data=file data.path=rows.jsonl"),
        (["plan", "data=shop"], "--config-dir conf data=shop"),
        (["plan", "method=mine"], "--config-dir conf method=mine"),
        (["plan", "recipe=weekly"], "--config-dir conf recipe=weekly"),
        (["plan", "data=tatsu-lab/alpaca"], "alpaca"),
        (
            ["plan", "data=someone/some-rows"],
            "data=file data.path=someone/some-rows data.sources.file.origin=hub data.sources.file.format=FORMAT",
        ),
        (["plan", "method=lora+"], "lora_plus"),
        (["plan", "method=LoRA"], "lora"),
        (["plan", "stage=SFT"], "sft"),
        (["plan", "stage=pretrain"], "pt"),
        (["plan", "hardware=gpu"], "single_gpu"),
        (["plan", "hardware=8gb"], "hardware.memory=8gb"),
    ],
)
def test_what_people_type_is_refused_with_what_they_meant(
    words: list[str], near: str, command: Command, here: Path
) -> None:
    (here / "outputs" / "a").mkdir(parents=True)
    (here / "conf" / "data").mkdir(parents=True)
    (here / "conf" / "method").mkdir()
    (here / "conf" / "recipe").mkdir()
    for name in ("rows.jsonl", "norms.py", "conf/data/shop.yaml", "conf/method/mine.yaml", "conf/recipe/weekly.yaml"):
        (here / name).write_text("{}")
    said = command(*words)
    assert said.code == 2
    assert f"fix: did you mean {near}? " in said.err


def test_names_of_options_are_of_options_that_exist() -> None:
    for group, names in suggest.NAMES.items():
        assert set(names.values()) <= set(groups.options(group))


def test_a_folder_of_options_that_was_named_is_not_named_again(here: Path) -> None:
    (here / "conf" / "data").mkdir(parents=True)
    (here / "conf" / "data" / "shop.yaml").write_text("# @package data.sources.shop\npath: rows.jsonl\n")
    (refusal, *others) = refusals("--config-dir", "conf", "data=shop", training=False)
    assert not [other for other in others if other.rule == "bad-value"]
    assert (refusal.rule, refusal.setting) == ("bad-value", "data.sources.shop.origin=(missing)")
    assert "subset, split" in refusal.wrong and "defaults: [_base@_here_]" in refusal.fix


@pytest.mark.parametrize("verb", ["train", "plan", "preview", "board"])
def test_a_run_is_named_to_the_verbs_that_read_one(verb: str, command: Command) -> None:
    said = command(verb, "run=outputs/a")
    assert (said.code, said.rules) == (2, ["run-unread"])
    assert "evaluate, chat, serve and export" in said.err and "factory resume outputs/a" in said.err
    assert "model.adapter=outputs/a/model" in said.err


@pytest.mark.parametrize(
    ("run", "file", "model", "folder"),
    [
        ("a", "a/model/adapter_config.json", "model.adapter=a/model;", "resume a`"),
        ("a", "a/model/config.json", "model.path=a/model;", "resume a`"),
        ("a/model", "a/model/adapter_config.json", "model.adapter=a/model;", "resume FOLDER`"),
        ("saved", "saved/config.json", "model.path=saved;", "resume FOLDER`"),
        ("0123456789abcdef" * 2, "a/model/config.json", "model.adapter=FOLDER/model (", "resume FOLDER`"),
    ],
)
def test_what_is_advised_in_the_place_of_a_run_is_there(
    run: str, file: str, model: str, folder: str, here: Path, command: Command
) -> None:
    (here / file).parent.mkdir(parents=True)
    (here / file).write_text("{}")
    said = " ".join(command("plan", f"run={run}").err.split())
    assert "[run-unread]" in said and f"train on from its model, {model}" in said and folder in said


@pytest.mark.parametrize("flag", [["-m"], ["--multirun"], ["--cfg", "job"], ["--info"]], ids=str)
def test_models_refuses_what_it_does_not_read(flag: list[str], command: Command) -> None:
    said = command("models", "qwen", *flag)
    assert (said.code, said.rules, said.out) == (2, ["models-key"], "")


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), OSError(errno.ENAMETOOLONG, "long")])
def test_what_cannot_be_looked_at_is_none_that_was_meant(
    error: OSError, here: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """A folder beside, as lost+found, or one of another user's that was named."""
    (here / "closed").mkdir()
    real = os.stat

    def closed(path: Any, **more: Any) -> os.stat_result:
        if "closed" in str(path) and str(path) != "closed":
            raise error
        return real(path, **more)

    monkeypatch.setattr(os, "stat", closed)
    for word in ("model=llama3_8", "model=closed/llama", "data=demoo", "data=closed/rows"):
        said = command("plan", word)
        assert (said.code, said.rules) == (2, ["unknown-option"]), said.err


def test_a_run_that_is_not_there_is_told_with_the_last_that_is(command: Command, here: Path) -> None:
    said = command("export", "run=outputs/nope", "export.dir=x")
    assert said.rules == ["run-model"] and "the last runs" not in said.err
    for name in ("2026-01-01/10-00-00", "2026-01-02/09-00-00"):
        (here / "outputs" / name / "model").mkdir(parents=True)
        (here / "outputs" / name / "plan.yaml").write_text("")
    said = command("export", "run=outputs/nope", "export.dir=x")
    last = "the last runs here: outputs/2026-01-02/09-00-00, outputs/2026-01-01/10-00-00; "
    assert f"fix: {last}name one" in said.err
    for verb in ("export", "chat", "serve", "evaluate", "compare", "resume"):
        assert "outputs/nope: there is no such folder" in command(verb, "outputs/nope").err


def test_a_run_and_a_sweep_are_continued_each_by_its_own_command(command: Command, here: Path) -> None:
    """Each says so of the other's folder; and a plan that is broken is told of what was typed."""
    for name, file in (("a sweep", "sweep.json"), ("a run", "plan.yaml")):
        (here / name).mkdir()
        (here / name / file).write_text("{}")
    said = command("resume", "a sweep")
    assert said.rules == ["resume-missing"] and "-m 'sweep.resume=a sweep' goes on with it" in said.err
    said = command("-m", "sweep.resume=a run")
    assert said.rules == ["sweep-missing"] and "factory resume 'a run'`" in said.err
    (here / "a run" / "plan.yaml").write_text("a: [")
    assert "[plan-broken] resume a run: " in command("resume", "a run").err
    assert "[plan-broken] run=a run: " in command("evaluate", "run=a run").err


def test_help_is_a_verb(command: Command) -> None:
    assert command("help").out == command("--help").out != ""


@pytest.mark.parametrize(
    "words",
    [("help", "plan"), ("resume", "outputs/a"), ("models", "qwen"), ("train", "--from-plan", "x"), ("plan", "--hepl")],
    ids=" ".join,
)
def test_help_is_there_whatever_else_is_typed(words: tuple[str, ...], command: Command, here: Path) -> None:
    own = _option(here / "own", "method/mine_alone.yaml", "defaults: [lora]\n")
    said = command(*words, "--help", "--config-dir", own)
    assert said.code == 0 and "mine_alone" in said.out


def test_an_unknown_key_is_refused_in_a_file_of_options(here: Path) -> None:
    own = _own(here, "method", "defaults: [lora]\nrnk: 3\n")
    assert [found.rule for found in refusals(*own, "method=own", training=False)] == ["unknown-key"]
    own = _own(here, "method", "defaults: [lora]\nrank: 3\n")
    assert compiled(*own, "method=own", training=False).settings.method.rank == 3


def test_an_unknown_key_is_refused_in_a_recipe(here: Path) -> None:
    own = _own(here, "recipe", "# @package _global_\nmethod: {rnk: 3}\nstagee: {}\n")
    found = refusals(*own, "recipe=own", training=False)
    assert sorted(refusal.setting for refusal in found) == ["method.rnk=3", "stagee={}"]
    assert {refusal.rule for refusal in found} == {"unknown-key"}


def test_an_unknown_key_is_refused_in_a_plan_file(command: Command, here: Path) -> None:
    tree = yaml.safe_load(to_yaml(compiled(training=False)))
    tree["steps"]["train"]["lerning_rate"] = 1
    (here / "plan.yaml").write_text(yaml.safe_dump(tree))
    said = command("train", "--from-plan", "plan.yaml")
    assert said.code == 2
    assert said.rules == ["plan-broken"]
    assert "lerning_rate" in said.err
    assert not (here / "outputs").exists()


@pytest.mark.parametrize("group", [*groups.GROUPS, "recipe"])
@pytest.mark.parametrize("value", ["nope", "null"])
def test_an_unknown_option_is_refused_with_the_known(group: str, value: str) -> None:
    known = groups.options("recipe") if group == "recipe" else groups.options(group)
    (refusal,) = refusals(f"{group}={value}", training=False)
    assert (refusal.rule, refusal.setting) == ("unknown-option", f"{group}={value}")
    assert refusal.because.endswith(groups.listed(known))
    assert ", ".join(known) in refusal.because or (group == "model" and "`factory models`" in refusal.because)


@pytest.mark.parametrize("text", ["method=[lora,qlora]", "precision=[fp32,bf16]", "hardware=[cpu,rtx4090]"])
def test_two_options_where_one_is_chosen_are_refused(text: str) -> None:
    assert [found.rule for found in refusals(text, training=False)] == ["unknown-option"]


@pytest.mark.parametrize("text", ["data=[alpaca,alpaca]", "data=[alpaca,demo,alpaca]"])
def test_a_set_that_is_named_twice_is_refused(text: str) -> None:
    (found,) = compose.checked(compose.parse(["-m", text]))[1]
    assert (found.rule, found.setting) == ("option-twice", text)
    assert "weight=2" in found.fix
    assert not compose.checked(compose.parse(["-m", "data=demo,[alpaca,demo],demo"]))[1]


def test_what_is_said_of_a_set_that_is_not_selected_is_refused() -> None:
    (found,) = refusals("data=[demo,demo_tools]", "data.sources.demoo.weight=2", training=False)
    assert (found.rule, found.setting) == ("unknown-set", "data.sources.demoo.weight=2")
    assert found.wrong == "no set demoo is selected" and "did you mean demo?" in found.fix
    two = refusals("data.sources.alpaca.weight=2", "data.sources.alpaca.max_samples=3", training=False)
    assert [each.rule for each in two] == ["unknown-set", "unknown-set"]
    (found,) = refusals("data.sources.demo={weigth: 2}", training=False)
    assert found.rule == "unknown-key"


@pytest.mark.parametrize(
    ("argument", "rule"),
    [
        ("method=loraa", "unknown-option"),
        ("method@other=full", "compose"),
        ("method.name=zzz", "unknown-name"),
        ("method.num_layers=3", "key-of-another-method"),
        ("stage.beta=0.1", "key-of-another-stage"),
        ("method.quantization=4", "bad-value"),
        ("data.sources=null", "bad-value"),
        ("~method.rank", "bad-value"),
        ("~stage", "unknown-name"),
        ("~tracking", "bad-value"),
        ("~method", "interpolation"),
        ("~data.sources.demo", "no-data"),
        ("~nothing.there", "compose"),
        ("lora", "not-a-setting"),
        ("a" * 300, "not-a-setting"),  # no file's name is as long
        ("data=" + "a" * 300, "unknown-option"),
        ("method.rank=[" + "1" * 5000 + "]", "syntax"),  # no number of Python's
        ("stage.num_epochs=1e308", "bad-value"),
        ("stage.gradient_accumulation_steps=1e308", "bad-value"),
        ("method.rank", "not-a-setting"),
        ("=3", "syntax"),
        ("method.rank=[1", "syntax"),
        ("data.path={a}.jsonl", "syntax"),
        ("method.rank=1,2", "several-values"),
        ("method=lora,galore", "several-values"),
        ("method.rank=range(1,3)", "several-values"),
        ("method.rank=???", "value-missing"),
        ("method.rank=${method.nope}", "interpolation"),
        ("method.rank='${nope:3}'", "interpolation"),
        ("model.path='${oc.env:FACTORY_NOT_SET}'", "interpolation"),
        ("hydra.nope=1", "new-key"),
        ("method.parts.vision=true", "bad-value"),  # a list's
        ("evaluate.benchmarks.mmlu=true", "bad-value"),
        ("evaluate.benchmarks.mmlu.shots=3", "bad-value"),
        ("data.names.alpaca=1", "bad-value"),
        ("~method.parts.vision", "compose"),
        ("method.parts.9=vision", "bad-value"),
        ("seed=-1", "bad-value"),
        ("checks=all", "bad-value"),
        ("seed=99999999999999999999", "bad-value"),
        ("--nope", "unknown-flag"),
        ("--cfg", "unknown-flag"),
    ],
)
def test_a_mistake_is_refused_and_not_a_traceback(argument: str, rule: str, command: Command, here: Path) -> None:
    said = command("plan", argument)
    assert said.code == 2
    assert set(said.rules) == {rule}
    assert re.fullmatch(f"({BLOCK.pattern})+", said.err), said.err
    assert said.out == ""
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("recipe=rlhf", "hydra.run.dir=x"), "recipe-folder"),
        (("stage=nope", "--cfg", "job"), "unknown-option"),  # Hydra would show the config without it
        (("seed=1,2", "--cfg", "job"), "several-values"),
        (("recipe=rlhf", "--info", "defaults"), "recipe-of-runs"),
        (("-m", "seed=1,2", "--cfg", "job"), "plan-of-a-sweep"),
        (("--cfg", "jobs"), "unknown-flag"),
        (("--info=nope",), "unknown-flag"),
    ],
    ids=str,
)
def test_what_hydra_would_leave_aside_is_refused(
    words: tuple[str, ...], rule: str, command: Command, here: Path
) -> None:
    said = command("plan", *words)
    assert (said.code, said.rules, said.out) == (2, [rule], "")
    assert re.fullmatch(BLOCK, said.err), said.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method.rank=???", "method.rank=???: it has no value yet."),
        ("method.rank=${method.nope}", "method.rank: Interpolation key 'method.nope' not found."),
        ("model.path='${oc.env:FACTORY_NOT_SET}'", "model.path: Environment variable 'FACTORY_NOT_SET' not found."),
    ],
)
def test_a_value_that_is_not_there_is_told_without_omegaconfs_inner_names(text: str, says: str) -> None:
    with pytest.raises(UserError) as told:
        compose.compose(compose.parse([text]))
    assert says in str(told.value) and "object_type" not in str(told.value)
    assert f"set {text.partition('=')[0]}=VALUE" in str(told.value)


def test_an_interpolation_of_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("FACTORY_RANK", "4")
    plan = compiled("method.rank='${oc.env:FACTORY_RANK}'", training=False)
    assert plan.settings.method.rank == 4


def test_all_violated_rules_are_listed_at_once(command: Command, here: Path) -> None:
    said = command(
        "train",
        "model.path=./nope",
        "data=file",
        "data.path=nope.jsonl",
        "tracking.uri=./mlruns",
    )
    assert said.code == 2
    assert sorted(said.rules) == ["data-missing", "model-missing", "tracking"]
    assert not list(here.iterdir())  # nothing was written


def test_all_problems_are_listed_at_once(command: Command, here: Path) -> None:
    said = command(
        "train",
        "method=lroa",
        "methd.rank=3",
        "stage.max_steps=0",
        "stage.lr_scheduler=cosin",
    )
    assert said.code == 2
    assert sorted(said.rules) == ["bad-value", "bad-value", "unknown-key", "unknown-option"]
    assert len(BLOCK.findall(said.err)) == len(said.rules)
    assert BLOCK.sub("", said.err) == ""
    assert "did you mean lora?" in said.err
    assert "did you mean cosine?" in said.err
    assert said.out == ""
    assert not list(here.iterdir())  # nothing was written


def test_a_refused_value_is_not_judged_by_the_rules() -> None:
    found = refusals("data.isolate_documents=maybe", "data.train_on_prompt=5", "stage=zzz", training=False)
    assert sorted(refusal.rule for refusal in found) == ["bad-value", "bad-value", "unknown-option"]


# --- what is understood


def test_a_recipe_is_composed_and_overridden() -> None:
    (found,) = refusals("+recipe=smoke", training=False)
    assert (found.rule, found.fix) == ("recipe-added", "write recipe=smoke")
    plan = compiled("recipe=smoke", "stage.logging_steps=3", training=False)
    assert (plan.settings.stage.max_steps, plan.settings.stage.logging_steps) == (5, 3)
    assert (plan.settings.data.max_samples, plan.steps.evaluate.samples) == (40, 0)


@pytest.mark.parametrize(
    ("argv", "read"),
    [
        (["-m", "method=lora,full"], {"multirun": True, "overrides": ("method=lora,full",)}),
        (["a=1", "--multirun"], {"multirun": True, "overrides": ("a=1",)}),
        (["--config-dir", "x", "--config-dir=y"], {"config_dirs": ("x", "y")}),
        (["--cfg", "job", "--resolve"], {"hydra_flags": ("--cfg", "job", "--resolve")}),
        (["-c", "hydra", "-p", "model"], {"hydra_flags": ("-c", "hydra", "-p", "model")}),
        (["--info"], {"hydra_flags": ("--info=all",)}),
        (["--info", "defaults", "a=1"], {"hydra_flags": ("--info=defaults",), "overrides": ("a=1",)}),
        (["--info", "a=1"], {"hydra_flags": ("--info=all",), "overrides": ("a=1",)}),
    ],
    ids=str,
)
def test_flags_are_taken_from_the_overrides(argv: list[str], read: dict[str, Any]) -> None:
    expected: dict[str, Any] = {"overrides": (), "multirun": False, "config_dirs": (), "hydra_flags": ()} | read
    found = compose.parse(argv)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cfg", "job", "method.rank=4"), r"^  rank: 4$"),
        (("plan", "--cfg", "job", "method.rank=4"), r"^  rank: 4$"),
        (("train", "--info", "searchpath"), re.escape(str(groups.CONF))),
        (("--info", "method.rank=4"), r"^Config search path$"),
    ],
    ids=str,
)
def test_hydras_own_flags_work(arguments: tuple[str, ...], said: str, here: Path) -> None:
    run = [sys.executable, "-m", "factory", *arguments]  # hydra.main changes sys.argv, the environment and logging
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    assert re.search(said, done.stdout, re.MULTILINE)
    assert not list(here.iterdir())


@pytest.mark.parametrize("typed", ["factory method=dor", "factory plan method=dor", "factory train -m method=dor"])
def test_a_shell_completes_options_after_any_verb(typed: str, here: Path) -> None:
    run = [sys.executable, "-m", "factory", "-sc", "query=bash"]
    done = subprocess.run(
        run, capture_output=True, text=True, timeout=60, check=True, env={**os.environ, "COMP_LINE": typed}
    )
    assert done.stdout.split() == ["method=dora"]


def test_a_sweep_with_an_unknown_option_is_refused_before_it_starts(command: Command, here: Path) -> None:
    said = command("-m", "method=lora,zzz", "stage=choice(sft,yyy)")
    assert (said.code, said.rules) == (2, ["unknown-option", "unknown-option"])
    assert not list(here.iterdir())


def test_a_folder_of_options_that_is_not_there_is_refused(command: Command, here: Path) -> None:
    said = command("plan", "--config-dir", "nope")
    assert (said.code, said.rules) == (2, ["config-dir"])
    assert re.fullmatch(BLOCK, said.err), said.err


def _option(folder: Path, place: str, text: str) -> str:
    """A file of options in a folder of the user's own, which is returned."""
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_text(text)
    return str(folder)


def test_an_option_of_ones_own_stands_for_a_packaged_one(here: Path) -> None:
    """In runs and in sweeps, of the first folder that has it; a packaged option that names it inherits from it."""
    lora = (groups.CONF / "method" / "lora.yaml").read_text()
    first = _option(here / "my ö%20ne", "method/lora.yaml", lora.replace("rank: 8", "rank: 3"))
    second = _option(here / "two", "method/lora.yaml", lora.replace("rank: 8", "rank: 5"))
    _option(here / "two", "method/dora.yaml", "defaults: [lora]\nrank: 7\n")
    own = ("--config-dir", first, "--config-dir", second)

    def ranks(*overrides: str) -> list[int]:
        line = compose.parse([*own, "-m", *overrides])
        found = sweeps.jobs(line, "x")
        assert isinstance(found, list)
        return [job.tree["method"]["rank"] for job in found]

    assert compose.compose(compose.parse([*own])).tree["method"]["rank"] == 3
    assert compose.compose(compose.parse([])).tree["method"]["rank"] == 8
    assert ranks("method=lora,dora,rslora") == [3, 7, 3]
    run = [sys.executable, "-m", "factory", *own, "--cfg", "job"]
    assert "\n  rank: 3\n" in subprocess.run(run, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize(
    ("place", "text", "word", "rule"),
    [
        ("recipe/own.yaml", "stage: {max_steps: 2}", "recipe=own", "recipe-package"),
        ("recipe/own.yaml", "\ufeff# @package _global_\nseed: 3", "recipe=own", "recipe-package"),
        ("method/lora.yaml", "defaults: [lora]\nrank: 4", "method=lora", "defaults-circle"),
    ],
    ids=["no package", "a byte-order mark", "itself"],
)
def test_a_file_that_hydra_takes_otherwise_than_it_reads_is_refused(
    place: str, text: str, word: str, rule: str, command: Command, here: Path
) -> None:
    said = command("plan", "--config-dir", _option(here / "own", place, text), word)
    assert (said.code, said.rules) == (2, [rule])
    assert re.fullmatch(BLOCK, said.err), said.err


def test_an_option_in_a_folder_of_a_group_is_not_said_to_be_where_it_was_looked_for(
    command: Command, here: Path
) -> None:
    said = command("plan", "--config-dir", _option(here / "own", "recipe/deep/x.yaml", "seed: 3"), "recipe=deep/x")
    assert said.rules == ["unknown-option"] and "--config-dir" not in said.err


def test_a_folder_of_options_has_no_defaults_of_everything(command: Command, here: Path) -> None:
    own = _option(here / "own", "config.yaml", "seed: 7\n")
    said = command("plan", "--config-dir", own)
    assert (said.code, said.rules) == (2, ["config-dir-defaults"])


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("trian",), "unknown-verb"),
        (("import-config",), "import-what"),
        (("board", "board.host=0.0.0.0"), "board-password"),
        (("board", "board.share=true"), "board-password"),
        (("board", "board.folders=[/nope]"), "board-no-folder"),
        (("board", "board.folders=[.,gone]"), "board-no-folder"),
        (("board", "board.port=x"), "bad-value"),
        (("plan", "board.port=1"), "key-of-another-verb"),
        (("explain",), "explain-what"),
        (("explain", "method.rnk"), "unknown-key"),
        (("resume",), "resume-what"),
        (("resume", "nowhere"), "resume-missing"),
        (("train", "--from-plan"), "plan-missing"),
        (("train", "--from-plan=nope.yaml"), "plan-missing"),
    ],
    ids=str,
)
def test_a_verb_without_what_it_needs_is_refused(arguments: tuple[str, ...], rule: str, command: Command) -> None:
    said = command(*arguments)
    assert (said.code, said.rules) == (2, [rule])
    assert re.fullmatch(BLOCK, said.err), said.err


@pytest.mark.parametrize(
    ("words", "rule", "says"),
    [
        (("plan", "--from-plan", "nope.yaml"), "flag-of-another-verb", "`factory train --from-plan FILE`"),
        (("preview", "--from-plan=nope.yaml"), "flag-of-another-verb", "belongs to `train`"),
        (("--diff", "one", "other"), "flag-of-another-verb", "`factory plan --diff A B`"),
        (("train", "--diff=one"), "flag-of-another-verb", "belongs to `plan`"),
        (("plan", "--multirun=true"), "unknown-flag", "it takes no value"),
        (("--from-pln", "x"), "unknown-flag", "there is no such flag"),
        (("train", "--resume"), "unknown-flag", "`factory resume FOLDER`"),
    ],
    ids=str,
)
def test_a_flag_that_there_is_is_not_told_to_be_none(
    words: tuple[str, ...], rule: str, says: str, command: Command
) -> None:
    said = command(*words)
    assert (said.code, said.rules) == (2, [rule]) and says in said.err
    assert f"did you mean {words[1].partition('=')[0]}?" not in said.err


def test_the_version_is_told_beside_any_verb(command: Command) -> None:
    assert command("plan", "--version").out == command("--version").out != ""


def test_a_user_error_reads_as_its_blocks() -> None:
    with pytest.raises(UserError) as error:
        compiled("method.rnk=3", "seed=x", training=False)
    assert re.fullmatch(f"({BLOCK.pattern}){{2}}", f"{error.value}\n")


# --- files of somebody else


@pytest.mark.parametrize(
    "content",
    [
        b"# \x8e\n",
        b"# @package a b c\nrank: 1\n",
        b"a: !!timestamp x\n",
        b"7\n",
    ],
)
def test_a_file_that_is_no_config_is_refused(content: bytes, here: Path) -> None:
    (here / "own" / "method").mkdir(parents=True)
    (here / "own" / "method" / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError) as error:
        compose.compose(compose.parse(["--config-dir", str(here / "own"), "method=mine"]))
    assert [each.rule for each in error.value.refusals] == ["compose"]


def test_the_quotes_that_are_advised_are_read() -> None:
    (problem,) = compose.checked(compose.parse(["model.new_tokens=[<tool>]"]))[1]
    advised = [text for text in shlex.split(problem.fix) if text.startswith("key=")]
    assert len(advised) == 2
    assert not compose.checked(compose.parse([text.strip(",").replace("key=", "tags.a=") for text in advised]))[1]


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("./mlruns", "no longer keeps runs in plain folders"),
        ("file:///tmp/runs", "no longer keeps runs in plain folders"),
        ("postgres://host/runs", "knows no store of the kind postgres://"),
    ],
)
def test_where_runs_cannot_be_logged_is_told_as_what_it_is(uri: str, says: str, command: Command, here: Path) -> None:
    (here / "file").write_text("")
    said = command("train", f"tracking.uri={uri}", "hydra.run.dir=file/run")
    assert sorted(said.rules) == ["cannot-write", "tracking"] and says in said.err
    assert f"{here}/file is a file, and no folder" in said.err


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("-m", "sweep.resume=~/x"), "syntax"),
        (("plan", "-m", "method=lora,dora", "plan.format=json,yaml"), "several-values"),
        (("train", "--from-plan=plan.yaml", "tracking=tensorbord"), "unknown-option"),
        (("train", "--from-plan=plan.yaml", "tracking.uri=~/x"), "syntax"),
        (("compare", "a", "b", "compare.out=~/page.html"), "syntax"),
        (("track", "run", "tracking=mlfow"), "unknown-option"),
        (("chat", "chat.compare=[base,~/x]"), "syntax"),
    ],
    ids=str,
)
def test_a_key_of_a_verbs_own_that_is_not_understood_is_no_default(
    words: tuple[str, ...], rule: str, command: Command, here: Path
) -> None:
    (here / "plan.yaml").write_text(to_yaml(compiled(training=False)))
    said = command(*words)
    assert (said.code, said.rules, said.out) == (2, [rule], "")
    assert [file.name for file in here.iterdir()] == ["plan.yaml"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a board would be opened with."""
    from factory.board import server

    found: list[Any] = []
    monkeypatch.setattr(server, "serve", lambda board, _: found.append(board))
    return found


@pytest.mark.parametrize(
    ("word", "rule"),
    [
        ("board.password=correct,horse", "several-values"),
        ("board.password=correct~horse", "syntax"),
        ("board.password=correct<horse", "syntax"),
        ("board.password=correct(horse", "syntax"),
        ("board.password=ü-correct-horse", "syntax"),
        ("board.password=[correct,horse]", "bad-value"),
        ("board.pasword=correct-horse", "unknown-key"),
        ("board=correct-horse", "bad-value"),
    ],
)
def test_a_password_that_is_not_understood_opens_no_page(
    word: str, rule: str, command: Command, opened: list[Any]
) -> None:
    said = command("board", word)
    assert (said.code, said.rules, opened) == (2, [rule], [])
    assert f"{word.partition('=')[0]}=…: " in said.err and not re.search("correct|horse|ü", said.err)
    assert re.fullmatch(BLOCK, said.err), said.err


@pytest.mark.parametrize(
    ("word", "rule", "shown"),
    [
        ("board.folders=data,models", "several-values", "board.folders=data,models"),
        ("board.port=~1", "syntax", "board.port=~1"),
        ("~board", "bad-value", "board"),
        ("tracking.uri=http://me:hunter2@host", "board-unread", "tracking.uri"),
        ("stage.learning_rat=1", "board-unread", "stage.learning_rat"),
        ("method=qlora", "board-unread", "method"),
        ("password=hunter2", "board-unread", "password"),
        ("hydra.run.dir=x", "board-unread", "hydra.run.dir"),
        ("hydra.searchpath=[own]", "board-unread", "hydra.searchpath"),
    ],
)
def test_what_a_board_would_not_look_at_is_refused(
    word: str, rule: str, shown: str, command: Command, opened: list[Any]
) -> None:
    said = command("board", word)
    assert (said.code, said.rules, opened) == (2, [rule], [])
    assert shown in said.err and "hunter2" not in said.err
    assert re.fullmatch(BLOCK, said.err), said.err


def test_a_board_is_opened_with_its_own_keys(command: Command, opened: list[Any]) -> None:
    assert command("board", "board.port=0", "board.password='correct,horse'", "board.folders=[.]").code == 0
    ((board,),) = [opened]
    assert (board.port, board.password, board.folders) == (0, "correct,horse", (".",))


def test_a_search_path_that_is_none_is_refused(command: Command) -> None:
    said = command("plan", "hydra.searchpath=null")
    assert (said.code, said.rules) == (2, ["compose"])


@pytest.mark.parametrize(
    "words",
    [("plan",), ("plan", "--config-dir", "own"), ("plan", "-m", "seed=1,2"), ("plan", "-m", "method=lora,dora")],
)
def test_a_name_under_a_list_is_refused_wherever_it_is_composed(
    words: tuple[str, ...], command: Command, here: Path
) -> None:
    (here / "own").mkdir()
    said = command(*words, "stage.max_steps=3", "evaluate.benchmarks=[ceval]", "evaluate.benchmarks.mmlu=true")
    assert (said.code, said.rules, said.out) == (2, ["bad-value"], "")
    assert "[bad-value] evaluate.benchmarks.mmlu=true: " in said.err
    assert "fix: set evaluate.benchmarks whole, as evaluate.benchmarks=[A,B]\n" in said.err


def test_an_item_of_a_list_is_set_by_its_number() -> None:
    for also in ((), ("hydra.run.dir=x",)):
        line = compose.parse(["evaluate.benchmarks=[ceval,mmlu]", "evaluate.benchmarks.1=cmmlu", *also])
        assert compose.compose(line).tree["evaluate"]["benchmarks"] == ["ceval", "cmmlu"]
