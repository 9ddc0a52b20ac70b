"""`factory evaluate`: of a run it measures what the run itself measured at its end, whatever it trained."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import quantized_checkpoints
import tiny
import torch
from conftest import compiled, refusals
from forbidden import forbid
from safetensors.torch import load_file, save_file
from test_methods import FITTING

from factory import cli, templates
from factory.config import compose
from factory.config.refusal import UserError
from factory.config.words import program
from factory.evaluation import rows
from factory.execute import executor
from factory.execute.context import Run
from factory.execute.verify import verify
from factory.inference import asked
from factory.plan.plan import VERSION, Plan, Verb, read_plan, to_yaml
from factory.plan.saved import saved
from factory.plan.untrained import answering, exported, untrained
from factory.run.folder import RunFolder
from factory.steps.load import read_tokenizer
from factory.verbs.use import to_write

Execute = Callable[..., Any]
SHORT = (
    "stage.max_steps=3",
    "stage.learning_rate=1e-2",
    "data.max_length=256",
    "data.max_samples=30",
    "precision=fp32",
    "stage.save_steps=null",
)
HERE = ("hardware=cpu", "tracking=none", "evaluate.samples=0")


def evaluated(*words: str, folder: str = "evaluated") -> Run:
    """The run of `factory evaluate WORDS`, walked in this process; its result is in `run.result`."""
    composed = untrained(compose.parse(list(words)))
    plan = cli._compiled(replace(composed, run_dir=folder), training=True, verb="evaluate")
    where = RunFolder(folder)
    where.path.mkdir(exist_ok=True)
    return Run(plan=plan, folder=where, resume_from=None)


def perplexity(*words: str, folder: str = "evaluated") -> float:
    return executor.walk(evaluated(*words, folder=folder))["evaluate"]["perplexity"]


@pytest.mark.parametrize(
    "method", ["full", "freeze", "lora", "dora", "qlora", "pissa", "adalora", "oft", "ia3", "galore"]
)
def test_a_run_is_measured_as_it_was_at_its_end(method: str, execute: Execute) -> None:
    done = execute(f"method={method}", *FITTING[method], *SHORT)
    wanted = done.result["evaluate"]
    assert wanted["perplexity"] < wanted["perplexity_before"] * (1 - 1e-5)
    # what starts from the weights is saved as its difference from them
    rounding = {"pissa": 1e-4}.get(method, 1e-6)
    assert perplexity("run=run") == pytest.approx(wanted["perplexity"], rel=rounding)


def test_weights_that_have_grown_do_not_grow_once_more(execute: Execute) -> None:
    done = execute("method=full", "model.new_tokens=['<a>']", "model.pad_vocabulary_to=64", *SHORT)
    assert perplexity("run=run") == pytest.approx(done.result["evaluate"]["perplexity"], rel=1e-6)
    assert exported(compose.parse(["run=run"])).tree["model"]["new_tokens"] == []


def test_weights_that_were_read_from_eight_bits_are_saved(
    execute: Execute, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whole by then: transformers writes them in the checkpoint's own names."""
    wide = tiny.save(tmp_path_factory.mktemp("wide"), hidden_size=128, intermediate_size=256)
    base = quantized_checkpoints.write("fp8", wide, here / "base")
    done = execute("method=full", *SHORT, f"model.path={base}")
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert "quantization_config" not in json.loads((done.run.folder.model / "config.json").read_text())
    assert perplexity("run=run") == pytest.approx(done.result["evaluate"]["perplexity"], rel=1e-6)


def test_what_a_class_keeps_wide_is_saved_so(execute: Execute, here: Path) -> None:
    """A router's bias, which nothing trains: in bfloat16 it would choose other experts. Its weights are trained."""
    base = tiny.save(here / "base", **tiny.GLM4_MOE)
    tensors, name = load_file(base / "model.safetensors"), "model.layers.1.mlp.gate.e_score_correction_bias"
    bias = tensors[name] = 7 + torch.arange(len(tensors[name])) / 1000
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    done = execute("method=full", *SHORT, "precision=bf16", f"model.path={base}")
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    saved = load_file(done.run.folder.model / "model.safetensors")
    assert saved[name].equal(bias)
    assert saved["model.embed_tokens.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("scaling", ["linear", "dynamic", "yarn", "llama3"])
def test_stretched_positions_are_not_stretched_once_more(scaling: str, method: str, execute: Execute) -> None:
    """Nor is the context that the run was told of, which was the one before."""
    own = ("stage=pt", "data.max_length=384", "model.context_length=256", f"model.rope_scaling={scaling}")
    done = execute(f"method={method}", *SHORT[:2], *SHORT[3:], *own, "evaluate.perplexity=true")
    measured = evaluated("run=run")
    assert measured.plan.steps.patch.reach == 384
    wanted = done.result["evaluate"]["perplexity"]
    assert executor.walk(measured)["evaluate"]["perplexity"] == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(UserError) as refused:
        evaluated("run=run", "model.rope_scaling=linear", "data.max_length=600")
    assert [refusal.rule for refusal in refused.value.refusals] == ["rope-scaling"]


def test_weights_that_were_trained_stretched_are_gone_on_from(execute: Execute, here: Path) -> None:
    own = ("stage=pt", "data.max_length=384", "method=full", *SHORT[:2], *SHORT[3:], "evaluate.perplexity=true")
    first = execute(*own, "model.rope_scaling=linear")
    again = (*own, f"model.path={here / 'run/model'}")
    before = execute(*again, folder="again").result["evaluate"]["perplexity_before"]
    assert before == pytest.approx(first.result["evaluate"]["perplexity"], rel=1e-5)
    assert [refusal.rule for refusal in refusals(*again, *HERE, "model.rope_scaling=linear")] == ["rope-scaling"]


def test_the_base_is_measured_where_no_run_is_named(execute: Execute, tiny_model: Path) -> None:
    done = execute("method=lora", *SHORT)
    base = (f"model.path={tiny_model}", *SHORT[2:5], *HERE)
    assert perplexity(*base) == pytest.approx(done.result["evaluate"]["perplexity_before"], rel=1e-6)


def test_a_saved_model_alone_will_do(execute: Execute) -> None:
    """An adapter names its base; whole weights are their own."""
    own = (*SHORT[2:5], *HERE)
    for method in ("lora", "full"):
        done = execute(f"method={method}", *SHORT, folder=method)
        shutil.copytree(Path(method) / "model", f"{method}-model")
        wanted = done.result["evaluate"]["perplexity"]
        assert perplexity(f"run={method}-model", *own) == pytest.approx(wanted, rel=1e-6)
        assert perplexity(f"run={method}/model") == pytest.approx(wanted, rel=1e-6)


def test_an_adapter_alone_has_the_template_that_it_was_trained_with(execute: Execute) -> None:
    """And not its base's; the user's own word comes first."""
    done = execute("method=lora", *SHORT, "model.template=vicuna", "stage.max_steps=1")
    shutil.copytree(done.run.folder.model, "alone")
    alone = evaluated("run=alone", *HERE).plan
    read = read_tokenizer(alone.steps.load.path, None, False, alone.settings.model.template)
    assert read.chat_template == templates.read("vicuna") != tiny.tokenizer().chat_template
    assert evaluated("run=alone", "model.template=chatml", *HERE).plan.settings.model.template == "chatml"
    Path("alone/chat_template.jinja").unlink()
    assert evaluated("run=alone", *HERE).plan.settings.model.template == "auto"


def test_an_adapter_alone_names_the_revision_of_its_base(here: Path, tiny_model: Path) -> None:
    def found(base: str, *words: str) -> str | None:
        said = {"peft_type": "LORA", "base_model_name_or_path": base, "revision": "v2"}
        (here / "alone" / "adapter_config.json").write_text(json.dumps(said))
        return exported(compose.parse(["run=alone", "export.dir=x", *words])).tree["model"]["revision"]

    (here / "alone").mkdir()
    save_file({"a.lora_A.weight": torch.zeros(2, 4)}, here / "alone" / "adapter_model.safetensors")
    assert found("me/base") == "v2"
    assert found("me/base", "model.revision=v3") == "v3"
    assert found("me/base", "model.path=me/other") is found(str(tiny_model)) is None


def test_a_run_is_measured_on_other_rows_and_by_its_id(execute: Execute) -> None:
    from mlflow import MlflowClient

    execute("method=lora", *SHORT)
    client = MlflowClient("sqlite:///mlflow.db")
    run = client.create_run(client.create_experiment("x"), tags={"folder": str(Path("run").resolve())})
    Path("run/tracking.json").write_text(json.dumps({"run_id": run.info.run_id}))
    words = (f"run={run.info.run_id}", "tracking.uri=sqlite:///mlflow.db")
    plan = evaluated(*words, "data.max_samples=20").plan
    assert plan.settings.data.max_samples == 20 and plan.steps.pack.max_length == 256
    assert plan.steps.load.adapter == str(Path("run").resolve() / "model")
    with pytest.raises(UserError, match=r"\[run-model\].*no such run"):
        evaluated(f"run={'0' * 32}", "tracking.uri=sqlite:///mlflow.db")


def test_to_ask_for_an_id_makes_no_store(here: Path) -> None:
    with pytest.raises(UserError, match=r"\[run-model\].*no tracking at"):
        evaluated(f"run={'0' * 32}", "tracking.uri=sqlite:///mlflow.db")
    assert not (here / "mlflow.db").exists()


def test_a_runs_own_files_are_found_from_elsewhere(
    execute: Execute, tiny_model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its overrides are relative to where it was started."""
    (here / "rows.jsonl").write_text("".join(f'{{"instruction": "Say {n}.", "output": "{n}"}}\n' for n in range(30)))
    shutil.copytree(tiny_model, "base")
    done = execute("method=lora", *SHORT, "data=file", "data.path=rows.jsonl", "model.path=base")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert perplexity("run=../run") == pytest.approx(done.result["evaluate"]["perplexity"], rel=1e-6)
    monkeypatch.chdir(here)
    (here / "dataset_info.json").write_text('{"mine": {"file_name": "rows.jsonl"}}')
    listed = ("data=llamafactory", "data.path=dataset_info.json", "data.names=[mine]", "+data.sources.mine.weight=2")
    done = execute("method=lora", *SHORT, *listed, folder="listed")
    monkeypatch.chdir(here / "elsewhere")
    assert perplexity("run=../listed", folder="l") == pytest.approx(done.result["evaluate"]["perplexity"], rel=1e-6)
    assert evaluated('run="../run"').plan.steps == evaluated("run=../run").plan.steps
    with pytest.raises(UserError, match="data-missing"):  # that is said here, and means a file here
        evaluated("run=../run", "data.path=rows.jsonl")


def test_a_base_that_is_gone_is_named_as_the_folder_that_it_was(
    execute: Execute, tiny_model: Path, here: Path, command: Callable[..., Any]
) -> None:
    """A path of two parts is no id of the hub's where the run read a folder there."""
    shutil.copytree(tiny_model, "exports/base")
    execute("method=lora", *SHORT, "model.path=exports/base")
    shutil.move("exports/base", "moved")
    said = command("evaluate", "run=run", *HERE)
    assert said.rules == ["model-missing"] and f"model.path={here}/exports/base: " in said.err
    assert "model.path= names its place" in said.err
    assert evaluated("run=run", "model.path=moved").plan.steps.load.path == str(here / "moved")
    (here / "run" / "model" / "adapter_model.safetensors").write_bytes(b"cut")
    said = command("evaluate", "run=run", "model.path=moved", *HERE)
    assert said.rules == ["model-broken"] and "model.adapter=run/model: adapter_model" in said.err


def test_the_quantized_base_of_a_run_stays_quantized(execute: Execute) -> None:
    execute("method=qlora", *FITTING["qlora"], *SHORT)
    assert evaluated("run=run").plan.settings.method.quantization.bits == 4
    assert evaluated("run=run", "method.quantization.bits=8").plan.settings.method.quantization.bits == 8


def test_how_a_run_was_trained_is_nothing_to_refuse_its_measuring_for(
    execute: Execute, tiny_model: Path, machine: Callable[..., None]
) -> None:
    """`factory evaluate` takes no such key, so that nobody could set it otherwise."""
    execute("method=lora", *SHORT, "stage.eval_steps=2")
    answers = ("evaluate.generation=true", "evaluate.max_new_tokens=4", "data.max_length=252")
    assert evaluated("run=run", "evaluate.perplexity=false", *answers).plan.settings.evaluate.generation
    base = (f"model.path={tiny_model}", *SHORT[2:5], *HERE)
    assert evaluated(*base, "stage.optimizer=paged_adamw_8bit").plan.steps.load.device == "cpu"
    machine(packages={})
    evaluated(*base, "stage.optimizer=lion")
    with pytest.raises(UserError, match=r"\[package-missing\] compute.attention=flash_attention_2"):
        evaluated(*base, "stage.optimizer=lion", "compute.attention=flash_attention_2")


def test_what_a_run_said_of_its_answers_goes_with_them(execute: Execute) -> None:
    """It is nothing that the user asks for where no answers are, nor could anybody take it back."""
    own = ("evaluate.metrics=[rouge1]", "evaluate.temperature=0.5", "evaluate.max_samples=2")
    answers = ("evaluate.generation=true", "evaluate.max_new_tokens=4", "data.max_length=252", *own)
    execute("method=lora", *SHORT, "evaluate.perplexity=false", *answers)
    kept = evaluated("run=run").plan.settings.evaluate
    assert (kept.generation, list(kept.metrics), kept.temperature, kept.max_samples) == (True, ["rouge1"], 0.5, 2)
    measured = evaluated("run=run", "evaluate.generation=false", "evaluate.perplexity=true").plan
    assert not measured.settings.evaluate.generation and not {*own} & {*measured.overrides}


@pytest.mark.parametrize(("stage", "method"), [("dpo", "full"), ("kto", "lora"), ("grpo", "lora")])
def test_answers_of_what_was_trained_beside_a_reference_are_measured_without_it(
    stage: str, method: str, execute: Execute, here: Path
) -> None:
    (here / "scoring.py").write_text("def same(completions):\n    return [1.0 for _ in completions]\n")
    own = ("stage.reward=scoring:same", "stage.max_new_tokens=4", "stage.rollout_batch_size=8", "stage.group_size=2")
    own += ("data.max_length=200",)
    execute(f"stage={stage}", f"method={method}", *SHORT, *(own if stage == "grpo" else ()))
    answers = ("evaluate.generation=true", "evaluate.max_new_tokens=4", "evaluate.max_samples=2")
    with pytest.raises(UserError, match=r"\[evaluate-reference\]"):
        evaluated("run=run", "evaluate.perplexity=true", *answers)
    plan = evaluated("run=run", "evaluate.perplexity=false", "data.max_length=200", *answers).plan
    done = execute(plan=plan, folder="measured")
    assert rows.read(done.run.folder.evaluation / "generation.jsonl")


def test_what_is_no_model_is_refused(here: Path, command: Callable[..., Any], execute: Execute) -> None:
    execute("method=lora", *SHORT)
    shutil.rmtree("run/model")
    (here / "empty").mkdir()
    (here / "adapter").mkdir()
    (here / "adapter" / "adapter_config.json").write_text("{}")
    for words, wrong in {
        "run=nowhere": "there is no such folder",
        "run=empty": "no run and no saved model in it",
        "run=adapter": "names no base",
        f"run={'a' * 32}": "no tracking at",
    }.items():
        said = command("evaluate", words)
        assert (said.code, said.rules) == (2, ["run-model"]), said.err
        assert wrong in said.err
    said = command("evaluate", "run=run")
    assert said.rules == ["run-unfinished"] and "end it by: factory resume run\n" in said.err
    (here / "run" / "report.json").write_text('{"status": "finished"}')  # which `factory resume` does not go on with
    said = command("evaluate", "run=run")
    assert said.rules == ["run-emptied"] and "train it again: factory train --from-plan run/plan.yaml\n" in said.err
    assert command("evaluate", "method=lora").rules == ["evaluate-method"]
    assert command("evaluate", "stage=dpo").rules == ["evaluate-reference"]
    said = command("evaluate", "stage.batch_size=1", "compute.activation_checkpointing=true", "evaluate.samples=0")
    assert (said.code, said.rules) == (2, ["evaluate-unread"] * 2) and "evaluate.batch_size is how many" in said.err
    assert command("train", "method=none").rules == ["nothing-trains"]
    assert command("evaluate", "-m", "seed=1,2").rules == ["plan-of-a-sweep"]


@pytest.mark.parametrize("place", ["shut", "shut/run"])
def test_a_run_that_may_not_be_read_is_told(
    place: str, command: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "shut" / "run").mkdir(parents=True)
    forbid(here / "shut", monkeypatch)
    said = command("evaluate", f"run={place}")
    assert (said.code, said.rules) == (2, ["cannot-read"]), said.err
    assert f"run={place}: " in said.err and "cannot be read (Permission denied)" in said.err


def test_a_run_that_trained_nothing_names_what_has_the_model(
    execute: Execute, command: Callable[..., Any], here: Path
) -> None:
    """Neither waiting nor `factory resume` would give it one."""
    execute("method=lora", *SHORT)
    cases: tuple[tuple[Verb, tuple[str, ...], str], ...] = (
        ("evaluate", (), str(here / "run" / "model")),
        ("export", ("export.dir=out/one", "export.format=gguf"), "out/one"),
    )
    for verb, words, model in cases:
        line = compose.parse(["run=run", *words, "tracking=none"])
        tree = exported(line) if verb == "export" else untrained(line)
        plan = cli._compiled(replace(tree, run_dir="other"), training=True, verb=verb)
        (here / "outputs" / verb).mkdir(parents=True)
        (here / "outputs" / verb / "plan.yaml").write_text(to_yaml(plan))
        said = command("chat", f"run=outputs/{verb}")
        assert (said.code, said.rules) == (2, ["run-of-no-model"]) and f"run={model};" in said.err
    assert "the last runs here" not in command("chat", "run=nowhere").err  # none of them has a model
    (here / "out" / "one").mkdir(parents=True)
    (here / "out" / "one" / "model.gguf").write_text("")
    assert "model.path=out/one/model.gguf;" in command("chat", "run=out/one").err


def test_the_verb_is_part_of_the_plan(execute: Execute) -> None:
    execute("method=lora", *SHORT)
    run = evaluated("run=run")
    assert run.plan.verb == "evaluate" and run.plan.digest() != read_plan(Path("run/plan.yaml")).digest()
    assert run.plan.estimate.memory.gradients == run.plan.estimate.memory.optimizer == 0
    assert saved("run", None).adapter == "run/model"


def test_a_measuring_that_cannot_go_on_says_how_it_was_asked_for(
    execute: Execute, command: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not how its model was trained, nor into which folder: what is told can be typed."""
    made = list[Plan]()
    monkeypatch.setattr("factory.verbs.train._launch", lambda plan, *_: made.append(plan) or 0)
    execute("method=lora", *SHORT)
    rows = "".join(json.dumps({"instruction": f"Say {n}.", "output": f"It is {n}."}) + "\n" for n in range(20))
    (here / "ev.jsonl").write_text(rows)
    (here / "own").mkdir()
    told = ("--config-dir own", "run=run", *HERE, "data=file", "data.path=ev.jsonl")
    typed = f"compile again: {program('factory')} evaluate {' '.join(told)}\n"
    said = " ".join(told).split()
    assert command("evaluate", *said, "hydra.run.dir=outputs/ev").code == 0
    (here / "outputs" / "ev").mkdir(parents=True)
    plan = here / "outputs" / "ev" / "plan.yaml"
    plan.write_text(to_yaml(made[0]))
    (here / "ev.jsonl").write_text(rows * 2)
    changed = command("resume", "outputs/ev").err
    assert "[facts-changed]" in changed and typed in changed
    plan.write_text(plan.read_text().replace(f"version: {VERSION}", "version: 2"))
    older = command("resume", "outputs/ev").err
    assert "[plan-version]" in older and typed in older
    assert command("evaluate", *said).code == 0
    assert made[0].steps.load.adapter == made[1].steps.load.adapter and made[0].digest() != made[1].digest()


OWN = "# @package data.sources.shop\ndefaults: [_base@_here_]\npath: shop.jsonl\nformat: alpaca\nlicense: mit\n"


def test_the_options_of_ones_own_are_those_of_the_run(
    execute: Execute, command: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to name their folder again, and what is printed to compile it again does."""
    (here / "own" / "data").mkdir(parents=True)
    (here / "own" / "data" / "shop.yaml").write_text(OWN)
    rows = '{"instruction": "a", "output": "b"}\n' * 20
    (here / "shop.jsonl").write_text(rows)
    execute("--config-dir", "own", "data=shop", "method=lora", "hydra.run.dir=run", *SHORT)
    assert list(evaluated("run=run").plan.steps.align.sources) == ["shop"]
    (here / "shop.jsonl").write_text(rows * 2)
    said = command("train", "--from-plan", "run/plan.yaml")
    (again,) = re.findall(rf"compile again: {re.escape(program('factory'))} train (.*)", said.err)
    assert "hydra.run.dir" not in again  # where there is a run
    assert compiled(*shlex.split(again)).steps.align.sources["shop"].bytes == 2 * len(rows)
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    shutil.rmtree(here / "own")
    line = compose.parse([f"run={here / 'run'}", "export.dir=out", "tracking=none"])
    exporting = cli._compiled(exported(line), training=True, verb="export")
    assert exporting.export is not None and exporting.config_dirs == ()


def test_a_run_keeps_the_template_that_it_was_trained_with(
    execute: Execute, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its file is by now, and wherever one stands."""
    (here / "calm.yaml").write_text("source: me\nlike: chatml\ndefault_system: Calm.")
    execute("method=lora", "model.template=calm.yaml", *SHORT)
    (here / "calm.yaml").write_text("source: me\nlike: chatml\ndefault_system: Loud.")
    assert "Loud." in templates.read(evaluated("run=run", "model.template=calm.yaml").plan.settings.model.template)
    (here / "calm.yaml").unlink()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    line = compose.parse(["tracking=none"])
    for run in (f"{here}/run", f"{here}/run/model"):
        made = [
            to_write("chat", line, asked.Line(("tracking=none",), None), asked.Side("x", run, base))[0]
            for base in (False, True)
        ]
        made.append(evaluated(f"run={run}").plan)
        made.append(
            cli._compiled(exported(compose.parse([f"run={run}", "export.dir=out"])), training=True, verb="export")
        )
        for plan in made:
            assert "Calm." in templates.read(plan.settings.model.template)
            verify(plan)


def test_a_recipes_model_is_that_of_its_run(execute: Execute, here: Path) -> None:
    """Of a conversation too, which takes nothing else over that a recipe says."""
    (here / "own" / "recipe").mkdir(parents=True)
    recipe = "# @package _global_\nmodel:\n  template: alpaca\ndata:\n  max_samples: 31\n"
    (here / "own" / "recipe" / "mine.yaml").write_text(recipe)
    execute("--config-dir", "own", "recipe=mine", "method=lora", *(word for word in SHORT if "samples" not in word))
    line, side = asked.Line(("tracking=none",), None), asked.Side("x", "run")
    plan = to_write("chat", compose.parse([]), line, side)[0]
    assert plan.settings.model.template == "alpaca" and plan.settings.data.max_samples is None
    assert evaluated("run=run").plan.settings.data.max_samples == 31
    shutil.rmtree(here / "own")
    assert to_write("chat", compose.parse([]), line, side)[0].settings.model.template == "alpaca"
    assert not untrained(compose.parse(["run=run", "model=smollm2_135m"]), answering).problems
    (here / "run" / "model" / "adapter_config.json").rename(here / "run" / "model" / "config.json")
    assert not untrained(compose.parse(["run=run"]), answering).problems  # its own weights need no other model


def test_a_recipe_that_stretches_positions_is_gone_on_from(execute: Execute, tiny_model: Path) -> None:
    """As long_context_s2 does; a conversation is held as far as it reaches, and with its base as far as that does."""
    small = ("data=demo", "data.max_length=384", "data.streaming=false", "stage.max_steps=1", "precision=fp32")
    execute("recipe=long_context_s2", f"model.path={tiny_model}", "method=lora", *small)
    assert evaluated("run=run").plan.steps.patch.reach == 384
    sides: tuple[tuple[Verb, bool, int], ...] = (("chat", False, 384), ("serve", False, 384), ("chat", True, 256))
    for verb, base, reach in sides:
        line, side = asked.Line(("tracking=none",), None), asked.Side("x", "run", base=base)
        made = to_write(verb, compose.parse([]), line, side)[0]
        assert (made.settings.model.rope_scaling, made.steps.patch.reach) == ("none", reach)
    line = asked.Line(("tracking=none", "engine=vllm"), None)
    with pytest.raises(UserError, match=r"\[engine-vllm-weights\] model\.adapter"):
        to_write("chat", compose.parse([]), line, asked.Side("x", "run"))
