"""The rules of a run: those of the model and the machine, and the modules that hold the others."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from factory import templates
from factory.config import registry
from factory.config.redact import secret_in
from factory.config.refusal import did_you_mean
from factory.config.settings import GROUPS, NAMED, Settings
from factory.config.values import to_tree
from factory.methods import parts
from factory.optimizers import spec as optimizers
from factory.plan import (
    adapters,
    attention,
    choices,
    data,
    evaluating,
    exporting,
    files,
    kernels,
    packages,
    positions,
    ranks,
    watching,
    writing,
)
from factory.plan.rule import Broken, Case, Rule, rule, rules_in
from factory.quantizers import spec as quantizers
from factory.tracking import spec as tracking

_MODULES = (
    sys.modules[__name__],
    positions,
    attention,
    kernels,
    packages,
    data,
    files,
    adapters,
    parts,
    watching,
    evaluating,
    writing,
    tracking,
    optimizers,
    quantizers,
    ranks,
)


def rules_for(settings: Settings) -> list[Rule]:
    """Return the rules of every run, of its verb, and of its method and stage: where these and their bases are."""
    modules = [*_MODULES, *([exporting] if settings.verb == "export" else [])]
    kinds: tuple[tuple[registry.Part, Any], ...] = (("methods", settings.method), ("stages", settings.stage))
    for kind, chosen in kinds:
        if chosen is not None:
            modules += [registry.spec(kind, chosen.name), *_bases(type(chosen))]
    return _rules(modules)


def all_rules() -> list[Rule]:
    """Return the rules of every packaged method and stage too."""
    kinds: tuple[registry.Part, ...] = ("methods", "stages")
    specs = [registry.spec(kind, name) for kind in kinds for name in registry.names(kind)]
    return _rules([*_MODULES, exporting, *specs, *(base for spec in specs for base in _bases(spec.Settings))])


def _bases(settings: type) -> list[ModuleType]:
    return [sys.modules[base.__module__] for base in settings.__mro__ if base is not object]


def _rules(modules: list[ModuleType]) -> list[Rule]:
    return list(dict.fromkeys(each for module in modules for each in rules_in(module)))


@rule(
    "fp16-on-cpu",
    keys=("precision.name", "hardware.device"),
    reason="CPUs have no float16 arithmetic and the loss scale would be lost",
    fix="set precision=bf16 or precision=fp32",
)
def fp16_on_cpu(case: Case) -> str | None:
    return "float16 needs a GPU" if case.settings.precision.name == "fp16" and case.device == "cpu" else None


@rule(
    "device-missing",
    keys=("hardware.device", "hardware.card"),
    reason="the run would have to move to another device",
    fix="set hardware=auto or hardware=cpu, or train on a machine that has it",
    machine=True,
)
def device_missing(case: Case) -> str | None:
    hardware, gpus = case.settings.hardware, case.facts.machine.gpus
    if hardware.card and not any(hardware.card.lower() in gpu.name.lower() for gpu in gpus):
        return f"there is no {hardware.card} here"
    if hardware.device != "cuda" or gpus:
        return None
    hidden = case.facts.machine.hidden
    return "there is no GPU here" + ("" if hidden is None else f" that CUDA_VISIBLE_DEVICES={hidden} names")


@rule(
    "evaluate-reference",
    keys=("stage.name",),
    reason="that model is not here any more",
    fix=(
        "set evaluate.perplexity=false to measure only answers or tasks; the run's own report has these "
        "figures; with stage=sft and instructions perplexity is measured"
    ),
)
def evaluate_reference(case: Case) -> str | None:
    stage = case.settings.stage
    if case.settings.verb == "train" or not case.settings.evaluate.perplexity:
        return None
    if registry.samples_answers(case.stage_spec):
        return f"what stage={stage.name} measures is scored beside the model that it trains"
    if not choices.needs_reference(case):
        return None
    return f"the loss of stage={stage.name} is measured from the model as it was before training"


@rule(
    "remote-code",
    keys=("model.trust_remote_code", "model.path"),
    reason="somebody else's code would run on this machine",
    fix="read that code, then set model.trust_remote_code=true",
    machine=True,
)
def remote_code(case: Case) -> str | None:
    needed = case.traits.remote_code and not case.settings.model.trust_remote_code
    return f"the architecture {case.arch.kind} is code that comes with the model" if needed else None


@rule(
    "hub-token",
    keys=("model.path", "export.push", "export.dry_run"),
    reason="the hub gives a gated model's files only to users who accepted the licence",
    fix="accept it on the model's page, then `hf auth login` or set HF_TOKEN",
    machine=True,
)
def hub_token(case: Case) -> Iterator[Broken]:
    model, export = case.settings.model, case.settings.export
    if case.facts.machine.hub_token:
        return
    if case.model.source == "hub" and model.gated:
        yield Broken(message="it is gated, and there is no hub token here")
    if case.settings.verb == "export" and export.push and not export.dry_run:
        yield Broken(
            key="export.push",
            message="there is no hub token here",
            reason="the hub takes files only of users that it knows",
            fix="run `hf auth login` or set HF_TOKEN; export.dry_run=true needs none",
        )


@rule(
    "unknown-template",
    keys=("model.template",),
    reason="a name is looked up among the templates",
    fix="set model.template=auto for the tokenizer's own",
)
def unknown_template(case: Case) -> Broken | None:
    name, known = case.settings.model.template, templates.names()
    if name == "auto" or name in known or templates.is_file(name):
        return None
    fix = "choose one of them, auto for the tokenizer's own, or a file of your own (docs/contributing.md)"
    return Broken(message=f"the templates are {', '.join(known)}", fix=f"{did_you_mean(name, known)}{fix}")


@rule(
    "no-chat-template",
    keys=("model.template", "model.path", "stage.name", "evaluate.chat"),
    reason="conversations need one to become text",
    fix="name one: model.template=chatml, llama3 or alpaca",
)
def no_chat_template(case: Case) -> str | Broken | None:
    evaluate = case.settings.evaluate
    if case.settings.model.template != "auto" or case.model.chat_template is not False:
        return None
    if templates.needed(case.settings.verb, case.stage_spec.KIND):
        return templates.MISSING
    if not evaluate.chat or not (evaluate.benchmarks or evaluate.harness):
        return None
    reason, fix = "the questions are to be asked as a conversation", "set model.template, or evaluate.chat=false"
    return Broken(key="evaluate.chat", message=templates.MISSING, reason=reason, fix=fix)


@rule(
    "secret-in-settings",
    keys=("tracking.uri", "data.path"),
    reason="it would be written to plan.yaml and shown, and a plan must work when it is replayed",
    fix=(
        "leave it out of the value and set it in the environment: MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN), HF_TOKEN, WANDB_API_KEY; a database's password "
        "in the file or variable that its driver reads (PGPASSFILE, PGPASSWORD)"
    ),
)
def secret_in_settings(case: Case) -> Broken | None:
    where = secret_in({name: to_tree(getattr(case.settings, name)) for name in (*GROUPS, *NAMED)})
    return Broken(key=where, message="there is a password or a token in it") if where else None


@rule(
    "new-tokens-never-learn",
    keys=("model.new_tokens", "method.name", "model.path"),
    reason="their rows would stay where they start",
    fix="use method=lora (or one of its kind), or method=full",
)
def new_tokens_never_learn(case: Case) -> str | Broken | None:
    arch = case.arch
    if not arch.new_rows or case.settings.verb != "train":  # they were trained already
        return None
    trained, head = case.trained, f"{arch.head}.weight"
    if f"{arch.embedding}.weight" in trained and (arch.tied or head in trained or head in arch.fixed):
        return None
    if not any("trainable_tokens_delta" in name for name in trained):
        return Broken(key="method.name", message="it trains no row of the embedding")
    if f"{arch.head}.bias" not in arch.outside:
        return None
    wrong = f"the head of a {arch.kind} model has a bias, which PEFT's trained tokens leave out"
    return Broken(key="model.path", message=wrong)


@rule(
    "vocabulary-unknown",
    keys=("model.new_tokens", "model.path"),
    reason="the plan is exact, and the new tokens' ids follow the tokenizer's",
    fix="download the model and set model.path to its folder",
    machine=True,
)
def vocabulary_unknown(case: Case) -> str | None:
    unknown = case.settings.model.new_tokens and case.model.tokens is None
    return "how many tokens the tokenizer has is not known before the model is there" if unknown else None
