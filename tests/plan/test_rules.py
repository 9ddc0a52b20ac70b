"""Each rule fires, alone, where it should; its nearest legal neighbour compiles and runs."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import compiled, refusals
from families import KINDS, built_of, roomy

import factory
from factory import own_base
from factory.config.refusal import UserError
from factory.config.settings import Quantization
from factory.plan import exporting, writing
from factory.plan.facts import Gpu
from factory.plan.inspect import machine as look
from factory.plan.plan import to_yaml
from factory.plan.rule import rules_in
from factory.plan.rules import all_rules
from factory.quantizers import spec as quantizers

RULES = {rule.id: rule for rule in all_rules()}
HERE = look.look_at_machine().packages
H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30, compute_capability=9.0)
WITH_GPU = {"gpus": (H100,), "packages": HERE | {"flash-attn": "2.8", "liger-kernel": "0.8", "unsloth": "2026"}}
WITH_FLASH_3 = {"gpus": (H100,), "packages": HERE | {"flash-attn-3": "3.0"}}
GALORE = ("method=galore", "method.rank=8")
BASE = ("evaluate.samples=0", "hardware=cpu", "tracking=none", "stage.max_steps=1", "data.max_samples=12")


@dataclass(frozen=True)
class Legal:
    """`machine`: what this one would need; then it is only compiled."""

    overrides: tuple[str, ...]
    machine: dict[str, Any] | None = None


@dataclass(frozen=True)
class Row:
    rule: str
    fires: tuple[str, ...]
    legal: tuple[Legal, ...]
    machine: dict[str, Any] | None = None


def row(rule: str, fires: str, *legal: str | Legal, machine: dict[str, Any] | None = None) -> Row:
    cases = tuple(case if isinstance(case, Legal) else Legal(tuple(case.split())) for case in legal)
    return Row(rule, tuple(fires.split()), cases, machine)


def on_gpu(overrides: str) -> Legal:
    return Legal(tuple(overrides.split()), WITH_GPU)


OTHERS = ("deepspeed", "lm-eval", "tensorboardX", "wandb", "av", "torchvision")
ALL = {"packages": HERE | dict.fromkeys((*quantizers.PACKAGES, *OTHERS), "1")}
ON_GPU = {"gpus": (H100,), **ALL}
GPUS = {"gpus": (H100, H100), **ALL}


def without(name: str) -> dict[str, Any]:
    return {"packages": {other: version for other, version in ALL["packages"].items() if other != name}}


def compiles(overrides: str) -> Legal:
    """Not run: it needs a package that is not installed, or a checkpoint's real weights."""
    return Legal(tuple(overrides.split()), ALL)


def on_gpus(overrides: str) -> Legal:
    return Legal(tuple(overrides.split()), GPUS)


def compiles_on_gpu(overrides: str) -> Legal:
    return Legal(tuple(overrides.split()), ON_GPU)


# what a quantized checkpoint's config.json says, by the row's word for it
SAID = {
    "ck_bnb": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "ck_gptq0": {"quant_method": "gptq", "bits": 4},
    "ck_gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32},
    "ck_awq": {"quant_method": "awq", "bits": 4, "group_size": 32},
    "ck_aqlm8": {
        "quant_method": "aqlm",
        "nbits_per_codebook": 8,
        "num_codebooks": 1,
        "in_group_size": 8,
        "out_group_size": 1,
    },
    "ck_aqlm16": {
        "quant_method": "aqlm",
        "nbits_per_codebook": 16,
        "num_codebooks": 1,
        "in_group_size": 8,
        "out_group_size": 1,
    },
    "ck_int8": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
    "ck_int4": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
    "ck_hqq": {"quant_method": "hqq"},
    "ck_fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


TABLE = (
    row("quantized-weights", "method=full method.quantization.bits=4", "method=full", "method=qlora"),
    row("quantized-weights", "method=freeze method.num_layers=1 method.quantization.bits=4", "method=freeze {one}"),
    row("quantized-weights", "method=galore method.rank=8 method.quantization.bits=4", "method=lora {four}"),
    row("no-data", "data=[]", "data=demo"),
    row("data-path-unread", "data.path=chat.jsonl", "data=file data.path=chat.jsonl"),
    row("columns-for-stage", "data=file data.path=chat.jsonl stage=pt", "data=file data.path=chat.jsonl stage=sft"),
    row(
        "columns-for-stage",
        "data=file data.path=judged.jsonl stage=sft",
        "data=file data.path=judged.jsonl stage=kto",
        "data=file data.path=judged.jsonl stage=sft data.sources.file.format=alpaca",
    ),
    row("columns-for-stage", "data=file data.path=plain.txt", "data=file data.path=plain.txt stage=pt"),
    row("columns-for-stage", "{asked} data.sources.file.format=prompts", "{asked} {groups} {short} {scored}"),
    row("fp16-on-cpu", "precision=fp16", "precision=bf16", "precision=fp32", on_gpu("precision=fp16 {gpu}")),
    row("beyond-context", "data.max_length=257", "data.max_length=256", "data.max_length=257 {linear}"),
    row("beyond-context", "{scaled} data.max_length=513", "{scaled} data.max_length=512"),  # made for 256, times 2
    row("rope-scaling", "model.rope_scaling=yarn", "model.rope_scaling=yarn data.max_length=300"),
    row("rope-scaling", "{linear} data.max_length=256", "model.rope_scaling=dynamic data.max_length=300"),
    row("reward", "stage=ppo", "stage=ppo {short} {scored}", "{groups} {short} {scored}"),
    row("reward", "stage=ppo {scored} {judge}", "stage=ppo {short} {judge}", "{groups} {short} {judge}"),
    row("reward", "stage=ppo stage.reward=short", "stage=ppo {short} {scored}"),
    row("reward", "stage=ppo stage.reward=trl:short", "stage=ppo {short} stage.reward=trl:think_format_reward"),
    row(
        "package-missing",
        "stage=ppo stage.reward=trl:accuracy_reward",
        "stage=ppo {short} stage.reward=trl:think_format_reward",
        machine={"packages": {name: version for name, version in HERE.items() if name != "math-verify"}},
    ),
    row("reward-model", "stage=ppo {judge} method=ia3", "stage=ppo {short} {scored} method=ia3"),
    row("reward-model", "stage=ppo {judge} method=full {lone}", "stage=ppo {short} {scored} method=full {lone}"),
    row("reward-model", "stage=ppo {judge} method=pissa", "stage=ppo {short} {scored} method=pissa"),
    row("reward-model", "stage=ppo {elsewhere}", "stage=ppo {short} {judge}"),
    row("reward-model", "stage=ppo {apart}", "stage=ppo {short} {judge}"),
    row("reward-model", "stage=ppo {worded}", "stage=ppo {short} {judge} method=dora"),
    row("reward-model", "stage=ppo {headless}", "stage=ppo {short} {judge}"),
    row("reward-model", "stage=ppo {misjudge}", "stage=ppo {short} {judge}"),
    row("reference-needs-adapter", "stage=ppo {scored} method=full", "stage=ppo {short} {scored} method=full {lone}"),
    row(
        "reference-needs-adapter",
        "{groups} {scored} method=galore method.rank=8",
        "{groups} {short} {scored} method=galore method.rank=8 stage.beta=0",
    ),
    row("rollout-method", "stage=ppo {scored} method=adalora", "stage=ppo {short} {scored} method=lora"),
    row("rollout-method", "stage=ppo {scored} method.dropout=0.1", "stage=ppo {short} {scored} method.dropout=0"),
    row("streaming", "stage=ppo {scored} {stream}", "stage=ppo {short} {scored}"),
    row("rows-packed", "stage=ppo {scored} data.packing=true", "stage=ppo {short} {scored}"),
    row(
        "media-not-taken",
        "{llava} stage=ppo {scored} data=file data.path=seen.jsonl",
        compiles("{llava} data=file data.path=seen.jsonl"),
    ),
    row("rollout-batches", "stage=ppo {scored} stage.batch_size=3", "stage=ppo {short} {scored} stage.batch_size=4"),
    row(
        "rollout-room",
        "stage=ppo {scored} data.max_length=200 stage.max_new_tokens=57",
        "stage=ppo {short} {scored} data.max_length=200 stage.max_new_tokens=56",
    ),
    row("rollout-room", "stage=ppo {scored} stage.max_new_tokens=256", "stage=ppo {short} {scored}"),
    row("rollout-groups", "{groups} {scored} {short} stage.rollout_batch_size=10", "{groups} {short} {scored}"),
    row("head-fits", "stage=ppo {scored} {misheaded}", "stage=ppo {short} {scored} {adapter}"),
    row(
        "nothing-written",
        "stage=rm evaluate.samples=2",
        "stage=rm evaluate.samples=0",
        "stage=dpo evaluate.samples=2",
    ),
    row(
        "freeze-modules",
        "stage=rm method=freeze {one} method.extra_modules=[lm_head]",
        "stage=rm method=freeze {one} method.extra_modules=[norm]",
        "stage=orpo method=freeze {one} method.extra_modules=[lm_head]",
    ),
    row("head-fits", "{misheaded} stage=rm", "{misheaded} stage=dpo", "{adapter} stage=rm"),
    row("rows-packed", "stage=dpo data.packing=true", "data.packing=true"),
    row(
        "label-smoothing",
        "stage=dpo stage.loss=hinge stage.label_smoothing=0.1",
        "stage=dpo stage.label_smoothing=0.1",
        "stage=dpo stage.loss=hinge",
    ),
    row(
        "label-smoothing", "stage=dpo stage.loss=exo_pair", "stage=dpo stage.loss=exo_pair stage.label_smoothing=0.001"
    ),
    row(
        "one-pair-to-rank",
        "stage=dpo stage.loss=aot stage.batch_size=1",
        "stage=dpo stage.loss=aot stage.batch_size=2",
        "stage=dpo stage.batch_size=1",
    ),
    row(
        "streaming",
        "{stream} stage=dpo",
        "{stream} stage=dpo stage.loss=simpo",
        "{stream} stage=orpo",
        "stage=dpo",
    ),
    row("streaming", "{stream} stage=kto", "stage=kto"),
    row(
        "stride-too-long",
        "stage=pt evaluate.stride=256",
        "stage=pt evaluate.stride=255",
        "stage=pt evaluate.stride=63 data.max_length=64",
    ),
    row(
        "no-chat-template",
        "{bare} stage=pt {tasks} evaluate.chat=true",
        compiles("{bare} stage=pt {tasks}"),
        machine=ALL,
    ),
    row("package-missing", "{tasks}", compiles("{tasks} evaluate.chat=true"), machine=without("lm-eval")),
    row("benchmark-path", "evaluate.benchmarks=[mmlu,cmmlu] evaluate.path=me/all", compiles("{all} evaluate.path=all")),
    row("no-chat-template", "{bare} stage=pt {sums} evaluate.chat=true", compiles("{bare} stage=pt {sums}")),
    row("nothing-written", "stage=rm {sums}", compiles("stage=dpo {sums}")),
    row("nothing-written", "stage=rm {answers}", "stage=rm"),
    row("nothing-written", "stage=rm {tasks}", compiles("stage=dpo {tasks}"), machine=ALL),
    row(
        "trained-rows",
        "evaluate.rows=train",
        "evaluate.rows=train data.validation_fraction=0",
        "evaluate.rows=train data.validation_fraction=0 stage.eval_steps=1",
    ),
    row("trained-rows", "{two} evaluate.rows=train data.validation_fraction=0 data.validation=file", "{two}"),
    row(
        "trained-rows",
        "stage=pt {stream} evaluate.rows=train data.validation_fraction=0",
        "stage=pt {stream}",
    ),
    row("nothing-to-answer", "stage=pt {answers}", "stage=pt"),
    row(
        "nothing-to-answer",
        "{answers} data.validation_fraction=0",
        "{two} {answers} data.validation_fraction=0 data.validation=file",
    ),
    row(
        "nothing-to-answer",
        "{asked} {groups} {short} {scored} {answers}",
        "data=file data.path=chat.jsonl {groups} {short} {scored} {answers}",
        "data=file data.path=talks.jsonl data.sources.file.format=prompts {groups} {short} {scored} {answers}",
    ),
    row(
        "generation-room",
        "evaluate.generation=true data.max_length=200 evaluate.max_new_tokens=57",
        "evaluate.generation=true data.max_length=252 evaluate.max_new_tokens=4",
    ),
    row("generation-metrics", "{answers} evaluate.metrics=[]", "{answers} evaluate.metrics=[bleu4]"),
    row("generation-metrics", "{answers} evaluate.metrics=[bleu]", "{answers} evaluate.metrics=[mine:overlap]"),
    row("generation-metrics", "{answers} evaluate.metrics=[mine:bleu4]", "{answers} evaluate.metrics=[mine:bleu]"),
    row("generation-metrics", "{answers} evaluate.metrics=[mine:perplexity]", "{answers} evaluate.metrics=[mine:nats]"),
    row(
        "generation-metrics",
        "{answers} evaluate.metrics=[rouge1,mine:rouge1]",
        "{answers} evaluate.metrics=[rougeL,rouge1]",
    ),
    row("eval-unmeasured", "stage.eval_steps=1 evaluate.perplexity=false", "stage.eval_steps=1"),
    row(
        "eval-unmeasured",
        "stage.eval_steps=1 data.validation_fraction=0",
        "data.validation_fraction=0",
        "{two} stage.eval_steps=1 data.validation_fraction=0 data.validation=file",
    ),
    row("eval-unmeasured", "stage.load_best_model_at_end=true", "stage.load_best_model_at_end=true stage.eval_steps=1"),
    row("eval-unmeasured", "stage.early_stopping_patience=2", "stage.early_stopping_patience=2 stage.eval_steps=1"),
    row(
        "metric-of-stage",
        "stage.metric_for_best_model=rewards/accuracy stage.eval_steps=1",
        "stage=rm stage.metric_for_best_model=rewards/accuracy stage.eval_steps=1",
        "stage=dpo stage.metric_for_best_model=rewards/margin stage.eval_steps=1",
    ),
    row(
        "metric-of-stage",
        "stage=kto stage.metric_for_best_model=rewards/margin stage.eval_steps=1",
        "stage=kto stage.metric_for_best_model=loss stage.eval_steps=1",
    ),
    row(
        "layerwise",
        "method=full method.layerwise=true stage.max_grad_norm=null stage.on_bad_update=skip",
        "method=full method.layerwise=true stage.max_grad_norm=null",
        "method=full stage.on_bad_update=skip",
    ),
    row("one-to-mismatch", "stage=kto stage.batch_size=1", "stage=kto stage.batch_size=2 evaluate.batch_size=1"),
    row(
        "media-not-taken",
        "{llava} stage=kto data=file data.path=seen_labelled.jsonl",
        compiles("{llava} stage=dpo data=file data.path=seen_pairs.jsonl"),
    ),
    row("data-path-unread", "data.names=[a]", "data=llamafactory data.path=dataset_info.json data.names=[said]"),
    row("validation-set", "data.validation=demo", "{two} data.validation=file"),
    row("validation-set", "{two} data.validation=files", "{two} data.validation=demo"),
    row("streaming", "{stream} stage.max_steps=null", "{stream} stage.max_steps=1"),
    row("streaming", "{stream} data.max_samples=12", "{stream}", "data.max_samples=12"),
    row("streaming", "{stream} data.sources.demo.max_samples=9", "data.sources.demo.max_samples=9"),
    row(
        "streaming",
        "{two} {stream} data.sources.demo.weight=2",
        "{two} data.sources.demo.weight=2",
        "{two} {stream} data.mixing=interleave_over data.sources.demo.weight=2",
    ),
    row("media-not-taken", "data=file data.path=seen.jsonl", compiles("{llava} data=file data.path=seen.jsonl")),
    row(
        "rows-packed",
        "{llava} data=file data.path=seen.jsonl data.packing=true",
        compiles("{llava} data=file data.path=seen.jsonl data.packing=false"),
    ),
    row("media-not-taken", "{llava} data=file data.path=films.jsonl", compiles("{onevision} {films}")),
    row("media-not-taken", "{onevision} data=file data.path=heard.jsonl"),
    row("package-missing", "{onevision} {films}", compiles("{onevision} {films}"), machine=without("av")),
    row("package-missing", "{onevision} {films}", compiles("{onevision} {films}"), machine=without("torchvision")),
    row(
        "media-not-taken",
        "{onevision} data=file data.path=films.jsonl data.video_fps=1",
        compiles("{onevision} {films}"),
    ),
    row(
        "attention",
        "compute.attention=flash_attention_2 precision=bf16",
        "compute.attention=sdpa",
        "compute.attention=eager",
        on_gpu("compute.attention=flash_attention_2 {gpu}"),
        machine={"packages": WITH_GPU["packages"]},
    ),
    row(
        "attention",
        "compute.attention=varlen precision=bf16",
        "compute.attention=per_document",
        on_gpu("compute.attention=varlen {gpu}"),
    ),
    row(
        "attention",
        "compute.attention=flash_attention_2 {gpu}",
        on_gpu("compute.attention=flash_attention_2 {gpu} hardware.compute_capability=8.0"),
        machine=WITH_GPU | {"gpus": (replace(H100, compute_capability=7.5),)},
    ),
    row(
        "attention",
        "compute.attention=flash_attention_3 {gpu} hardware.compute_capability=10.0",
        Legal(("compute.attention=flash_attention_3", "hardware=single_gpu"), WITH_FLASH_3),
        machine=WITH_FLASH_3,
    ),
    row(
        "kernels",
        "compute.kernels=liger",
        "compute.kernels=none",
        machine={"packages": HERE | {"liger-kernel": "0.8"}},
    ),
    row("kernels", "compute.kernels=unsloth", "compute.kernels=none", machine={"packages": WITH_GPU["packages"]}),
    row(
        "kernels",
        "method=full compute.kernels=unsloth {gpu}",
        on_gpu("method=full compute.kernels=liger {gpu}"),
        machine=WITH_GPU,
    ),
    row(
        "recomputation",
        "compute.activation_checkpointing=false compute.recomputed_layers=2",
        "compute.activation_checkpointing=true compute.recomputed_layers=2",
        "compute.recomputed_layers=2",
        "compute.activation_checkpointing=false",
    ),
    row("recomputation", "{japanese} compute.activation_checkpointing=true", "{japanese}"),
    row("recomputation", "{japanese} compute.recomputed_layers=1"),
    row("recomputation", "compute.recomputed_layers=3", "compute.recomputed_layers=2"),
    row(
        "recomputation",
        "compute.recomputed_layers=4 method=llama_pro method.num_new_layers=1",
        "compute.recomputed_layers=3 method=llama_pro method.num_new_layers=1",
    ),
    row("device-missing", "hardware=single_gpu", "hardware=auto", on_gpu("hardware=single_gpu")),
    row("device-missing", "hardware=a100_40gb", on_gpu("hardware=h100_80gb"), machine=WITH_GPU),
    row("package-missing", "stage.optimizer=adamw_8bit", "stage.optimizer=adamw_8bit", machine={"packages": {}}),
    row("unknown-template", "model.template=chatmll", "model.template=chatml", "model.template=llama3"),
    row("no-chat-template", "{bare}", "{bare} model.template=alpaca", "{bare} stage=pt"),
    row("tracking", "tracking=mlflow tracking.uri=./mlruns", "tracking=mlflow tracking.uri=sqlite:///m.db"),
    row(
        "tracking",
        "tracking=mlflow tracking.uri=file:///tmp/runs",
        "tracking=mlflow tracking.uri=http://localhost:5000",
    ),
    row(
        "tracking",
        "tracking=mlflow tracking.uri=sqlite:///nowhere/m.db",
        "tracking=mlflow tracking.uri=sqlite:///m.db",
    ),
    row("secret-in-settings", "tracking=mlflow tracking.uri=https://me:secret@host", "tracking=none"),
    row(
        "tracking",
        "tracking=tensorboard tracking.uri=http://h",
        compiles("tracking=tensorboard tracking.uri=board"),
        machine=ALL,
    ),
    row("tracking", "tracking=tensorboard tracking.uri=null", compiles("tracking=tensorboard"), machine=ALL),
    row(
        "tracking",
        "tracking=wandb tracking.mode=offline tracking.uri=board",
        compiles("tracking=wandb tracking.mode=offline tracking.uri=http://h"),
        machine=ALL,
    ),
    row(
        "tracking",
        "tracking=wandb tracking.mode=offline tracking.experiment=team/llama",
        compiles("tracking=wandb tracking.mode=offline tracking.experiment=team-llama"),
        compiles("tracking=tensorboard tracking.experiment=team/llama"),
        machine=ALL,
    ),
    row(
        "tracking",
        f"tracking=wandb tracking.mode=offline tracking.experiment={'a' * 129}",
        compiles(f"tracking=wandb tracking.mode=offline tracking.experiment={'a' * 128}"),
        machine=ALL,
    ),
    row("package-missing", "tracking=wandb", compiles("tracking=tensorboard"), machine=without("wandb")),
    row("tracking-login", "tracking=wandb", compiles("tracking=wandb tracking.mode=offline"), machine=ALL),
    row(
        "attention",
        "compute.attention=flash_attention_2 precision=fp32 {gpu}",
        on_gpu("compute.attention=flash_attention_2 precision=fp16 {gpu}"),
        "compute.attention=sdpa precision=fp32",
        machine=WITH_GPU,
    ),
    row("context-unknown", "{endless}", "{endless} model.context_length=256"),
    row("weights-fit", "{misfit}", "data.max_length=200"),
    row("weights-fit", "{shallow}", "data.max_length=200"),
    row("weights-fit", "{deep}", "data.max_length=200"),
    row("new-tokens", "model.new_tokens=[a1,a1]", "model.new_tokens=[a1,a2]"),
    row("new-tokens", "model.new_tokens=['']", "model.new_tokens=[a1,a2]"),
    row("new-tokens", "{mllama} model.new_tokens=[a1]", "{mllama}"),
    row(
        "adapter-tokens",
        "{tokened} model.new_tokens=['<b>']",
        "{tokened} model.new_tokens=['<a>']",
    ),
    row("adapter-fits", "{adapter} method.rank=4", "{adapter} method.rank=8"),
    row("adapter-fits", "{adapter} method.target_modules=[q_proj]", "{adapter}"),
    row("adapter-fits", "{adapter} method=full", "method=full"),
    row("remote-code", "{remote}", Legal(("{remote}", "model.trust_remote_code=true"), {"hub_token": True})),
    row(
        "hub-token",
        "{hub} model.gated=true",
        Legal(("{hub}", "model.gated=true"), {"hub_token": True}),
        Legal(("{hub}", "model.gated=false"), {"threads": 2}),
        machine={"hub_token": False},
    ),
    row("s2-attention", "compute.group_size=63 {s2}", "compute.group_size=32 {s2}", "{s2}"),
    row(
        "s2-attention",
        "compute.group_size=200 data.max_length=200 {s2}",
        "compute.group_size=126 data.max_length=200 {s2}",
    ),
    row("s2-attention", "stage=dpo {s2}", "stage=dpo", "stage=dpo stage.loss=simpo {s2}", "stage=orpo {s2}"),
    row("s2-attention", "stage=kto {s2}", "stage=kto", "stage=rm {s2}"),
    row("s2-attention", "stage=ppo {short} {scored} {s2}", "stage=ppo {short} {scored}"),
    row("s2-attention", "{groups} {short} {scored} stage.beta=0 {s2}", "{groups} {short} {scored}"),
    row("attention", "{gemma2} compute.attention=sdpa", "{gemma2}", "{gemma2} compute.attention=eager"),
    row("attention", "{gemma2} {s2}", "{s2} method=full"),
    row("attention", "{gemma2} compute.attention=per_document", "compute.attention=per_document"),
    row(
        "attention",
        "{gemma2} compute.attention=flash_attention_2 data.packing=true {gpu}",
        on_gpu("{gemma2} compute.attention=flash_attention_2 {gpu}"),
        on_gpu("compute.attention=flash_attention_2 data.packing=true {gpu}"),
        machine=WITH_GPU,
    ),
    row(
        "attention",
        "compute.attention=varlen precision=fp32 {gpu}",
        on_gpu("compute.attention=varlen precision=fp16 {gpu}"),
        on_gpu("compute.attention=per_document precision=fp32 {gpu}"),
        machine=WITH_GPU,
    ),
    row(
        "rope-scaling",
        "{opt} model.rope_scaling=linear data.max_length=300",
        "{opt} data.max_length=256",
        "{linear} data.max_length=300",
    ),
    row(
        "isolation-unsupported",
        "{opt} data.packing=true",
        "{opt} data.packing=true data.isolate_documents=false",
        "data.packing=true",
    ),
    row(
        "new-tokens-never-learn",
        "model.new_tokens=['<a>'] method=freeze {one}",
        "model.new_tokens=['<a>']",
        "model.new_tokens=['<a>'] method=full",
    ),
    row("new-tokens-never-learn", "model.new_tokens=['<a>'] method=oft", "model.new_tokens=['<a>'] method=qlora"),
    row(
        "new-tokens-never-learn",
        "{phi} model.new_tokens=['<a>']",
        "{phi} model.new_tokens=['<a>'] method=full",
        "{phi}",
    ),
    row(
        "vocabulary-unknown",
        "{hub} model.new_tokens=['<a>']",
        Legal(("{hub}",), {"threads": 2}),
        "model.new_tokens=['<a>']",
    ),
    row("parts-need-images", "{llava} method=lora method.parts=[vision]", "{llava} method=lora"),
    row("parts-need-images", "{llava} method=full method.parts=[language,projector]", "{llava} method=full"),
    row(
        "parts-need-images", "{llava} method=freeze {one} method.parts=[language,vision]", "{llava} method=freeze {one}"
    ),
    row("rope-scaling", "{scaled} model.rope_scaling=linear data.max_length=512", "{scaled} data.max_length=200"),
    row("rope-scaling", "{scaled} model.rope_scaling=linear data.max_length=600", "{scaled} data.max_length=512"),
    row(
        "rope-scaling",
        "{scaled_layers} model.rope_scaling=linear data.max_length=512",
        "{scaled_layers} data.max_length=200",
    ),
    row(
        "rope-scaling",
        "{scaled_llava} model.rope_scaling=linear data.max_length=512",
        "{turned_llava} model.rope_scaling=linear data.max_length=512",
        "{llava} model.rope_scaling=linear data.max_length=512",
    ),
    row("target-modules", "method.target_modules=[q_prj]", "method.target_modules=[q_proj,mlp.down_proj]"),
    row("target-modules", "method.target_modules=[]", "method.target_modules=all-linear"),
    row("target-modules", "method.target_modules=[lm_head]", "method.target_modules=[self_attn.o_proj]"),
    row(
        "target-modules",
        "{llava} data=file data.path=seen.jsonl method.parts=[language,vision] method.target_modules=[o_proj,up_proj]",
        compiles(
            "{llava} data=file data.path=seen.jsonl method.parts=[language,vision] method.target_modules=[q_proj]"
        ),
        compiles("{llava} data=file data.path=seen.jsonl method.target_modules=[o_proj,up_proj]"),
    ),
    row("freeze-modules", "method=freeze method.num_layers=3", "method=freeze method.num_layers=2"),
    row("freeze-modules", "method=freeze method.layers=[0,2]", "method=freeze method.layers=[1,1]"),
    row("freeze-modules", "method=freeze method.layers=[-1]", "method=freeze {one} method.position=first"),
    row("freeze-modules", "method=freeze method.layers=[]", "method=freeze {one}"),
    row("projection-rank", "method=galore method.rank=17", "method=galore method.rank=16"),
    # adapters
    row("target-modules", "method=lora method.parts=[vision]", "method=lora"),
    row("target-modules", "{glm4_moe} method=lora method.target_modules=[gate_proj]", "{glm4_moe} method=lora"),
    row("quantized-weights", "method=loha {four}", "method=loha {eight}", "method=loha"),
    row("quantized-weights", "method=lokr {four}", "method=lokr {eight}", "method=vera {four}"),
    row("quantized-weights", "method=dora {eight}", "method=dora {four}"),
    row("quantized-weights", "method=oft {eight} {quanto}", compiles("{eight} {quanto}"), machine=ALL),
    row("quantized-weights", "method=ia3 {eight} {torchao}", "method=ia3 {eight}", machine=ALL),
    row("adapter-fits", "{adapter} method.alpha=8", "{adapter} method.dropout=0.1"),
    row("adapter-fits", "{adapter} method=dora", "{adapter} method=lora_plus"),
    row("adapter-fits", "{adapter} method=vera", "{adapter} method=qlora"),
    row(
        "adapted-experts", "method=lora method.target_experts=true", "{mixtral} method=lora method.target_experts=true"
    ),
    row(
        "adapted-experts",
        "{mixtral} method=lora method.target_experts=true method.dropout=0.1",
        "{mixtral} method=lora method.dropout=0.1",
    ),
    row("adapted-experts", "{mixtral} method=dora method.target_experts=true", "{mixtral} method=dora"),
    row(
        "adapted-experts",
        "{mixtral} method=pissa method.target_experts=true",
        "{mixtral} method=lora method.target_experts=true method.initialization=gaussian",
    ),
    row("adapter-start", "method=dora method.initialization=pissa", "method=dora", "method=pissa"),
    row("adapter-start", "method=loftq method.iterations=null", "method=loftq", "method=loftq method.iterations=1"),
    row("adapter-start", "method=loftq method.quantization.bits=null", "method=loftq"),
    row("adapter-start", "method=olora {four}", "method=olora", "method=pissa {four}"),
    row("adapter-start", "{ck_bnb} method=pissa", compiles("{ck_fp8} method=pissa"), machine=ALL),
    row("adapter-start", "method=pissa method.rank=17", "method=pissa method.rank=16", "method=lora method.rank=17"),
    row("adapter-start", "{adapter} method=pissa", "{adapter} method=lora"),
    row("oft-blocks", "method=oft method.block_size=12", "method=oft method.block_size=16"),
    row(
        "ia3-inputs",
        "method=ia3 method.scaled_inputs=[up_proj]",
        "method=ia3",
        "method=ia3 method.scaled_inputs=[]",
    ),
    row(
        "quantized-weights",
        "method=vera {eight} precision=pure_bf16",
        "method=vera {eight} precision=bf16",
        "method=vera {four} precision=pure_bf16",
        "method=lora {eight} precision=pure_bf16",
    ),
    row("quantized-weights", "method=ia3 {four} precision=pure_bf16", "method=ia3 {four} precision=bf16"),
    # quantizers
    row("quantizer-limits", "{four} {torchao}", compiles("{eight} {torchao}"), "{four}", "{eight}", machine=ALL),
    row("quantizer-limits", "{four} {quanto}", compiles("{eight} {quanto}"), machine=ALL),
    row("package-missing", "method=qlora", "method=lora", machine=without("bitsandbytes")),
    row("package-missing", "{four} {hqq}", compiles("{four} {hqq}"), machine=without("hqq")),
    row("quantizer-limits", "{gpt2} {eight} {torchao}", compiles("{gpt2} {eight}"), machine=ALL),
    row("quantizer-limits", "{odd} {four} {hqq}", compiles("{odd} {eight} {hqq}"), machine=ALL),
    row("quantized-weights", "{ck_bnb} {four}", compiles("{ck_bnb}"), machine=ALL),
    row("quantized-weights", "{ck_gptq} method=qlora", compiles("{ck_gptq} method=lora"), machine=ALL),
    row("checkpoint-quantizer", "{ck_hqq}", compiles("{ck_fp8}"), machine=ALL),
    row("checkpoint-quantizer", "{ck_int4}", compiles("{ck_int8}"), machine=ALL),
    row("checkpoint-broken", "{ck_gptq0}", compiles("{ck_gptq}"), machine=ALL),
    row("package-missing", "{ck_gptq}", compiles("{ck_gptq}"), machine=without("optimum")),
    row("package-missing", "{ck_awq}", compiles("{ck_awq}"), machine=without("gptqmodel")),
    row(
        "checkpoint-quantizer", "{ck_aqlm8}", compiles("{ck_aqlm16}"), compiles_on_gpu("{ck_aqlm8} {gpu}"), machine=ALL
    ),
    row(
        "quantized-weights", "{ck_bnb} method=full", compiles("{ck_bnb}"), compiles("{ck_fp8} method=full"), machine=ALL
    ),
    row("quantized-weights", "{ck_gptq} method=vera", compiles("{ck_bnb} method=vera"), machine=ALL),
    row("quantized-weights", "{ck_gptq} method=dora", compiles("{ck_bnb} method=dora"), machine=ALL),
    row(
        "checkpoint-precision",
        "{ck_awq} {gpu} precision=bf16",
        compiles_on_gpu("{ck_awq} {gpu} precision=fp16"),
        compiles_on_gpu("{ck_awq} {gpu}"),
        machine=ON_GPU,
    ),
    row("adalora-ranks", "method=adalora method.rank=12", "method=adalora method.rank=11"),
    row(
        "adalora-ranks",
        "method=adalora method.initial_phase=0.5 method.final_phase=0.5",
        "method=adalora method.initial_phase=0 method.final_phase=0",
    ),
    row("adalora-ranks", "method=adalora {ranks}", "method=adalora method.ranks=null"),
    # optimizers and the methods made of them
    row(
        "optimizer",
        "stage.optimizer=paged_adamw_8bit",
        "stage.optimizer=adamw_8bit",
        on_gpu("stage.optimizer=paged_adamw_8bit {gpu}"),
    ),
    row("package-missing", "stage.optimizer=lion", "stage.optimizer=adafactor", machine={"packages": {}}),
    row("nothing-trains", "method=full method.parts=[vision]", "method=full"),
    row("freeze-modules", "method=freeze {one} method.parts=[projector]", "method=freeze {one}"),
    row("nothing-trains", "method=badam method.parts=[vision]", "method=badam"),
    row("nothing-trains", "method=badam_ratio method.parts=[vision]", "method=badam_ratio"),
    row("nothing-trains", "method=galore method.rank=8 method.parts=[vision]", "method=galore method.rank=8"),
    row(
        "layerwise",
        "method=full {layerwise} {free} stage.gradient_accumulation_steps=2",
        "method=full {layerwise} {free} stage.gradient_accumulation_steps=1",
        "method=full stage.gradient_accumulation_steps=2",
    ),
    row("layerwise", "method=full {layerwise}", "method=full {layerwise} {free}"),
    row(
        "layerwise",
        "method=galore method.rank=8 {layerwise}",
        "method=galore method.rank=8 {layerwise} {free} method.max_grad_norm_per_tensor=1",
    ),
    row(
        "layerwise",
        "method=full {layerwise} {free} precision=fp16 {gpu}",
        on_gpu("method=full {layerwise} {free} precision=bf16 {gpu}"),
        on_gpu("method=full precision=fp16 {gpu}"),
        machine=WITH_GPU,
    ),
    row(
        "optimizer",
        "method=galore method.rank=8 stage.optimizer=muon",
        "method=galore method.rank=8 stage.optimizer=adamw_8bit",
        "method=galore method.rank=8 stage.optimizer=adafactor",
        "method=full stage.optimizer=muon",
    ),
    row("projection-rank", "method=apollo method.rank=17", "method=apollo method.rank=16", "method=apollo_mini"),
    row(
        "optimizer",
        "method=apollo_mini stage.optimizer=lion",
        "method=apollo_mini stage.optimizer=adamw_8bit",
    ),
    row("optimizer", "method=badam stage.optimizer=muon", "method=badam stage.optimizer=adamw_8bit"),
    row("optimizer", "method=badam_ratio stage.optimizer=sgd", "method=badam_ratio"),
    row(
        "optimizer",
        "method=badam stage.optimizer=paged_adamw {gpu}",
        compiles_on_gpu("method=badam stage.optimizer=adamw_8bit {gpu}"),
        compiles_on_gpu("method=apollo method.rank=8 stage.optimizer=paged_adamw {gpu}"),
        machine=ON_GPU,
    ),
    row(
        "optimizer",
        "method=badam_ratio stage.optimizer=paged_adamw_8bit {gpu}",
        compiles_on_gpu("method=badam_ratio stage.optimizer=adamw_8bit {gpu}"),
        machine=ON_GPU,
    ),
    row("freeze-modules", "method=freeze {one} method.modules=[ml]", "method=freeze {one} method.modules=[mlp]"),
    row("freeze-modules", "method=freeze {one} method.modules=[]", "method=freeze {one} method.modules=all"),
    row(
        "freeze-modules",
        "method=freeze {one} method.extra_modules=[mlp]",
        "method=freeze {one} method.extra_modules=[embed_tokens,lm_head]",
    ),
    row(
        "llama-pro-architecture", "method=llama_pro method.num_new_layers=3", "method=llama_pro method.num_new_layers=1"
    ),
    row("llama-pro-architecture", "{gpt2} method=llama_pro", "method=llama_pro"),
    # several processes
    row("processes", "{ddp} hardware.num_nodes=3", compiles("{ddp}")),
    row("nodes-need-launcher", "{ddp} hardware.num_nodes=2", compiles("{ddp}")),
    row("processes", "hardware.num_processes=2", compiles("{ddp}")),
    row("ranks-beyond-gpus", "{gpu} {ddp}", on_gpus("{gpus} {ddp}"), machine=ON_GPU),
    row("offload-useless", "{fsdp} {offload}", on_gpus("{gpus} {fsdp} {offload}"), machine=ALL),
    row("offload-useless", "{gpus} {ddp} {offload}", on_gpus("{gpus} {zero2} {offload}"), machine=GPUS),
    row("package-missing", "{zero2}", compiles("{zero2}"), machine=without("deepspeed")),
    row("streaming", "{stream} {ddp}", "{stream}"),
    row("stage-of-one-process", "{ddp} stage=ppo {scored}", compiles("stage=ppo {scored}")),
    row("stage-of-one-process", "{ddp} {groups} {scored}", compiles("{groups} {scored}")),
    *(
        row(
            "stage-of-one-process",
            f"{{gpus}} {stage} {{scored}} hardware.strategy={strategy} {{offload}}",
            on_gpus(f"{{gpus}} {stage} {{scored}} hardware.strategy=zero2 {{offload}}"),
            machine=GPUS,
        )
        for stage, strategy in (("stage=ppo", "fsdp"), ("{groups}", "zero3"))
    ),
    row("method-of-ranks", "{ddp} method=apollo method.rank=8", compiles("{ddp} method=galore method.rank=8")),
    row("method-of-ranks", "{ddp} method=badam", compiles("{ddp} method=freeze {one}")),
    row("method-of-ranks", "{ddp} method=full {layerwise} {free}", compiles("{ddp} method=full {free}")),
    row("method-of-ranks", "{fsdp} method=galore method.rank=8", compiles("{fsdp} method=full")),
    row("method-of-ranks", "{zero2} method=adalora", compiles("{ddp} method=adalora"), machine=ALL),
    row(
        "optimizer-of-ranks",
        "{fsdp} stage.optimizer=muon method=full",
        compiles("{ddp} stage.optimizer=muon method=full"),
    ),
    row(
        "optimizer-of-ranks", "{zero2} stage.optimizer=adamw_8bit", compiles("{zero2} stage.optimizer=sgd"), machine=ALL
    ),
    row("strategy-limits", "{gpus} {fsdp} precision=fp16", on_gpus("{gpus} {ddp} precision=fp16"), machine=GPUS),
    row(
        "strategy-limits",
        "{zero2} stage.on_bad_update=skip",
        compiles("{ddp} stage.on_bad_update=skip"),
        machine=ALL,
    ),
    row("nothing-trains", "method=none", "method=lora"),
    row("quantized-and-split", "{zero3} {four}", compiles("{fsdp} {four}"), compiles("{zero2} {four}"), machine=ALL),
    row("quantized-and-split", "{fsdp} {eight}", compiles("{ddp} {eight}"), machine=ALL),
    row(
        "strategy-limits",
        "{fsdp} compute.compile=true precision=fp32",
        compiles("{ddp} compute.compile=true precision=fp32"),
    ),
)
WORDS = {
    "one": "method.num_layers=1",
    "four": "method.quantization.bits=4",
    "ranks": "method.ranks={model.layers.0.mlp.up_proj:3}",
    "linear": "model.rope_scaling=linear",
    "films": "data=file data.path=films.jsonl data.video_fps=null",
    "gpu": "hardware=single_gpu",
    "single": "method.quantization.double_quantization=false",
    "eight": "method.quantization.bits=8",
    "hqq": "method.quantization.method=hqq",
    "torchao": "method.quantization.method=torchao",
    "quanto": "method.quantization.method=quanto",
    "layerwise": "method.layerwise=true",
    "free": "stage.max_grad_norm=null",
    "s2": "compute.attention=s2",
    "hub": "model.path=me/tiny",
    "asked": "data=file data.path=asked.jsonl",
    "seen": "data=file data.path=seen.jsonl",
    "two": "data=[demo,file] data.path=chat.jsonl",
    "gpus": "hardware=single_gpu",
    "ddp": "hardware.num_processes=2 hardware.strategy=ddp",
    "fsdp": "hardware.num_processes=2 hardware.strategy=fsdp",
    "zero2": "hardware.num_processes=2 hardware.strategy=zero2",
    "zero3": "hardware.num_processes=2 hardware.strategy=zero3",
    "offload": "hardware.offload=true",
    "stream": "data.streaming=true data.max_samples=null",
    "short": "stage.max_new_tokens=4 stage.rollout_batch_size=8 stage.batch_size=2 stage.gradient_accumulation_steps=1",
    "lone": "stage.kl_coefficient=0 stage.kl_target=null",
    "groups": "stage=grpo stage.group_size=4",
    "sums": "evaluate.benchmarks=[mmlu] evaluate.path=sums",
    "tasks": "evaluate.harness=[arc_easy,hellaswag]",
    "all": "evaluate.benchmarks=[mmlu,cmmlu]",
    "answers": "evaluate.generation=true evaluate.max_new_tokens=4 data.max_length=200",
}


# of the hub: tests/plan/inspect/test_look.py; of a method of one's own: tests/config/test_own.py
PRETENDED = {"evaluate-reference", "hub-unreachable"}
# of chat and serve: tests/inference/test_writing_asked.py; of exports: tests/export/test_export_rules.py
PRETENDED |= {rule.id for module in (exporting, writing) for rule in rules_in(module)}


def test_the_table_has_every_rule() -> None:
    assert {row.rule for row in TABLE} == set(RULES) - PRETENDED


@pytest.mark.parametrize("word", ["scaled", "opt"])
def test_what_to_do_beyond_the_context_is_not_refused_then(word: str, models: dict[str, Path]) -> None:
    base = (*BASE, f"model.path={models[word]}", "data.max_length=600")
    (refusal,) = refusals(*base)
    assert refusal.rule == "beyond-context" and "model.rope_scaling" not in refusal.fix
    assert not refusals(*base, "model.context_length=600")


def test_no_pull_to_the_reference_is_what_the_rule_says_it_is(tiny_model: Path, scoring: str) -> None:
    said = (*BASE, f"model.path={tiny_model}", "stage=ppo", *WORDS["short"].split(), scoring, "method=full")
    (refusal,) = refusals(*said)
    assert refusal.rule == "reference-needs-adapter"
    found = re.search(r"reference: (.*) of ppo", refusal.fix)
    assert found and not refusals(*said, *found[1].split())


def test_the_smoothing_that_exo_is_told_to_set_is_its_papers(tiny_model: Path) -> None:
    """arXiv 2402.00856, as TRL 1.16 has it: 1e-3. A tenth would be of labels that are often wrong."""
    exo = (*BASE, f"model.path={tiny_model}", "stage=dpo", "stage.loss=exo_pair")
    (refusal,) = refusals(*exo)
    assert "stage.label_smoothing=0.001 for exo_pair" in refusal.fix
    assert not refusals(*exo, "stage.label_smoothing=0.001")


@pytest.mark.parametrize(
    ("rule", "asked", "text"),
    [
        (
            "stage-of-one-process",
            ("stage=grpo", "stage.name=mine.py", "stage.reward=mine:scored"),
            "from factory.stages.grpo.spec import *\ndef loss(model, batch, own): ...\ndef scored(answers): ...",
        ),
        (
            "method-of-ranks",
            ("method=badam", "method.name=mine.py"),
            "from factory.methods.badam.spec import *\ndef attach(*_): ...\ndef optimizer(*_): ...",
        ),
    ],
)
def test_what_one_process_must_do_is_known_of_files_of_the_users_too(
    rule: str, asked: tuple[str, ...], text: str, tiny_model: Path, here: Path
) -> None:
    (here / "mine.py").write_text(text)
    base = (*BASE, f"model.path={tiny_model}", *asked)
    assert not refusals(*base)
    assert [found.rule for found in refusals(*base, "hardware.num_processes=2", "hardware.strategy=ddp")] == [rule]


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without a chat template."""
    return tiny.save(tmp_path_factory.mktemp("bare"), template=False)


@pytest.fixture(scope="session")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with positions that are scaled already."""
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    return tiny.save(tmp_path_factory.mktemp("scaled"), rope_parameters=rope)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, bare: Path, scaled: Path) -> dict[str, Path]:
    """The models that rules speak about, by the row's word for them."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save(folder / "gemma2", model_type="gemma2", head_dim=8)
    tiny.save(folder / "opt", model_type="opt", ffn_dim=64, word_embed_proj_dim=32)
    tiny.save(folder / "phi", model_type="phi")
    tiny.save(folder / "mixtral", model_type="mixtral", num_local_experts=4)
    tiny.save(folder / "gpt2", model_type="gpt2", n_inner=64, num_key_value_heads=4)
    tiny.save(folder / "japanese", model_type="gpt_neox_japanese", intermediate_multiple_size=2)
    tiny.save(folder / "odd", hidden_size=24, intermediate_size=24, num_attention_heads=3, num_key_value_heads=3)
    tiny.save(folder / "glm4_moe", **tiny.GLM4_MOE)
    see_apart(folder / "mllama")
    see(folder / "onevision", "llava_onevision")
    for name, rope in ROPES.items():
        see(folder / f"{name}llava", **({"rope_parameters": rope} if rope else {}))
    said: dict[str, dict[str, Any]] = {name: {"quantization_config": said} for name, said in SAID.items()}
    said["misfit"] = {"intermediate_size": 65}
    said["shallow"], said["deep"] = {"num_hidden_layers": 1}, {"num_hidden_layers": 3}
    said["remote"] = {"model_type": "baichuan", "auto_map": {}}
    said["scaled_layers"] = {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": UNSCALED}}
    said["endless"] = {"max_position_embeddings": None}
    for name, changes in said.items():
        config = json.loads((tiny.save(folder / name) / "config.json").read_text()) | changes
        config = {key: value for key, value in config.items() if value is not None}
        (folder / name / "config.json").write_text(json.dumps(config))
    return {path.name: path for path in folder.iterdir()} | {"bare": bare, "scaled": scaled}


LINEAR, UNSCALED = ({"rope_theta": 10000.0, "rope_type": name, "factor": 2.0} for name in ("linear", "default"))
ROPES = {"": None, "scaled_": LINEAR, "turned_": {"type": "mrope", "mrope_section": [1, 1, 2]}}  # of models that see


def see(folder: Path, kind: str = "llava", **text: Any) -> None:
    """A tiny model that sees."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    eyes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    eyes |= {"model_type": "clip_vision_model", "image_size": 8, "patch_size": 2, "projection_dim": 16}
    config = AutoConfig.for_model(kind, vision_config=eyes, text_config=tiny.config().to_dict())
    model = AutoModelForImageTextToText.from_config(config)
    model.config.text_config.update(text)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def see_apart(folder: Path) -> None:
    """A tiny model whose embedding has more rows than its head: those of images."""
    built_of(roomy(KINDS["mllama"]), "cpu").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """LoRA of rank 8 on every linear layer of the tiny model, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokened(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """An adapter with rows of one new token, and its tokenizer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("tokened")
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(513)
    rows = {"model.embed_tokens": [512], "lm_head": [512]}
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", trainable_token_indices=rows
    )
    get_peft_model(model, config).save_pretrained(folder, save_embedding_layers=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<a>"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def misheaded(tmp_path_factory: pytest.TempPathFactory, adapter: Path) -> Path:
    """The adapter with a reward model's head of another width."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("misheaded") / "model"
    shutil.copytree(adapter, folder)
    for head in ("score", "value"):
        save_file({"weight": torch.zeros(1, 33)}, folder / f"{head}_head.safetensors")
    return folder


_OVER_FOUR_BITS = own_base.OwnBase(
    scale=2,
    dtype="float32",
    quantization=Quantization(method="bitsandbytes", bits=4, type="nf4", double_quantization=True),
    computed_in="float32",
    ids=(),
    losses=(),
)


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory, adapter: Path, misheaded: Path, tokened: Path) -> dict[str, Path]:
    """Adapters with a score's head: one that fits, and others that do not."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("judges")
    for name, start in (("judge", adapter), ("elsewhere/model", adapter), ("worded", tokened)):
        shutil.copytree(start, folder / name)
        save_file({"weight": torch.ones(1, 32)}, folder / name / "score_head.safetensors")
    (folder / "elsewhere" / "plan.yaml").write_text("steps: {load: {fingerprint: another}}")
    (folder / "begun").mkdir()
    (folder / "begun" / "plan.yaml").write_text("steps: {load: {fingerprint: another}}")
    shutil.copytree(folder / "judge", folder / "apart")
    own_base.save(folder / "apart", {}, _OVER_FOUR_BITS)
    own = {name: folder / name for name in ("judge", "elsewhere", "worded", "apart")}
    return {**own, "headless": adapter, "misjudge": misheaded}


def _questions(folder: Path, name: str) -> None:
    """One subject of a benchmark, in its published layout."""
    shots, asked, header = {
        "mmlu": ("dev/astronomy_dev.csv", "test/astronomy_test.csv", ""),
        "cmmlu": ("dev/arts.csv", "test/arts.csv", "number,Question,A,B,C,D,Answer\n"),
    }[name]
    for file in (shots, asked):
        rows = (f"{n},What is {n}?,1,2,3,4,A\n".removeprefix("" if header else f"{n},") for n in range(6))
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(header + "".join(rows))


@pytest.fixture
def filled(
    here: Path,
    tiny_model: Path,
    models: dict[str, Path],
    adapter: Path,
    misheaded: Path,
    tokened: Path,
    judges: dict[str, Path],
    scoring: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[tuple[str, ...]], list[str]]:
    """Data beside the run, and a row's words as overrides. The hub has the tiny model."""
    config = json.loads((tiny_model / "config.json").read_text())
    monkeypatch.setattr("factory.plan.inspect.model._hub_config", lambda path, revision: (config, "a1b2c3"))
    rows = [{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(20)]
    (here / "chat.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    judged = ({**row, "label": number % 2 == 0} for number, row in enumerate(rows))
    (here / "judged.jsonl").write_text("\n".join(json.dumps(row) for row in judged))
    (here / "asked.jsonl").write_text("\n".join(json.dumps({"prompt": row["instruction"]}) for row in rows))
    talks = ([{"from": "human", "value": row["instruction"]}, {"from": "gpt", "value": row["output"]}] for row in rows)
    (here / "talks.jsonl").write_text("\n".join(json.dumps({"conversations": talk}) for talk in talks))
    catalogue = {"said": {"file_name": "chat.jsonl"}}
    (here / "dataset_info.json").write_text(json.dumps(catalogue))
    picture = {"messages": [{"role": "user", "content": "<image>Red?"}, {"role": "assistant", "content": "Yes."}]}
    (here / "seen.jsonl").write_text("\n".join(json.dumps({**picture, "images": ["red.png"]}) for _ in range(20)))
    for name, kind in (("films", "video"), ("heard", "audio")):
        said = json.dumps(picture).replace("<image>", f"<{kind}>")
        (here / f"{name}.jsonl").write_text("\n".join([json.dumps(json.loads(said) | {f"{kind}s": ["a.mp4"]})] * 20))
    asked, places = {"prompt": "<image>Red?"}, {"images": ["red.png"]}
    for name, said in (
        ("seen_pairs", {"chosen": "Yes.", "rejected": "No."}),
        ("seen_labelled", {"completion": "Yes.", "label": True}),
    ):
        (here / f"{name}.jsonl").write_text("\n".join(json.dumps({**asked, **said, **places}) for _ in range(20)))
    for folder, name in (("sums", "mmlu"), ("all/mmlu", "mmlu"), ("all/cmmlu", "cmmlu")):
        _questions(here / folder, name)
    (here / "tasks").mkdir()
    (here / "tasks" / "own.yaml").write_text("task: own\n")
    (here / "mine.py").write_text(
        "def rouge1(answers, references):\n    return [float(len(each)) for each in answers]\n"
        "overlap = bleu = nats = rouge1\n"
    )
    (here / "plain.txt").write_text("\n\n".join(f"The number {n} follows {n - 1}." for n in range(20)))

    def filled(words: tuple[str, ...]) -> list[str]:
        paths = {name: f"model.path={path}" for name, path in models.items()}
        saved = {"adapter": adapter, "misheaded": misheaded, "tokened": tokened}
        adapters = {name: f"model.adapter={path}" for name, path in saved.items()}
        rewards = {name: f"stage.reward_model={path}" for name, path in judges.items()} | {"scored": scoring}
        own = {f"{{{name}}}" for name in (*models, "hub")} & set(words)
        model = [] if own else [f"model.path={tiny_model}"]
        return [
            *BASE,
            *model,
            *(part for word in words for part in word.format(**paths, **adapters, **WORDS, **rewards).split()),
        ]

    return filled


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.rule}: {' '.join(row.fires)}")
def test_fires_and_nothing_else_does(row: Row, filled: Callable[..., list[str]], machine: Callable[..., None]) -> None:
    if row.machine:
        machine(**row.machine | {"packages": _installed(row.machine)})
    (refusal,) = refusals(*filled(row.fires))
    assert refusal.rule == row.rule
    assert refusal.setting.partition("=")[0] in RULES[row.rule].keys
    assert refusal.wrong
    assert not re.search(r"\w\(\w+=", refusal.setting), "a Python object"
    if refusal.machine:  # what only this machine lacks is a warning where nothing is run
        plan = compiled(*filled(row.fires), training=False)
        assert [text.partition(" ")[0] for text in plan.warnings] == [f"[{row.rule}]"]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.rule}: {' '.join(row.fires)}")
def test_a_key_that_is_forced_is_asked_for(
    row: Row, filled: Callable[..., list[str]], machine: Callable[..., None]
) -> None:
    if row.machine:
        machine(**row.machine | {"packages": _installed(row.machine)})
    words = [f"++{word}" if "." in word.partition("=")[0] else word for word in filled(row.fires)]
    assert [refusal.rule for refusal in refusals(*words)] == [row.rule]


def _installed(machine: dict[str, Any]) -> dict[str, str]:
    return {name: version for name, version in machine.get("packages", HERE).items() if version}


def _legal() -> Iterator[Legal]:
    seen = set()
    for row in TABLE:
        for case in row.legal:
            if (key := (case.overrides, case.machine is None)) not in seen:
                seen.add(key)
                yield case


@pytest.mark.parametrize("case", list(_legal()), ids=lambda case: " ".join(case.overrides))
def test_the_legal_neighbour_runs(
    case: Legal, filled: Callable[..., list[str]], machine: Callable[..., None], execute: Callable[..., Any]
) -> None:
    overrides = filled(case.overrides)
    if case.machine:
        machine(**case.machine)
        assert not compiled(*overrides).warnings
        return
    done = execute(*overrides, folder="walked")
    assert [line["step"] for line in done.metrics] == [1]
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks


# --- what the compiler itself refuses


def test_what_cannot_fit_is_refused(machine: Callable[..., None], tiny_model: Path, here: Path) -> None:
    base = (*BASE, f"model.path={tiny_model}", "method=full")
    made = compiled(*base).estimate.memory
    exact = made.weights + made.gradients + made.optimizer
    machine(available_bytes=exact)
    assert not compiled(*base).estimate.memory.fits  # the activations are a guess: told, not refused
    machine(available_bytes=exact - 1)
    assert [refusal.rule for refusal in refusals(*base)] == ["memory"]
    plan = compiled(*base, training=False)
    assert [text.partition(" ")[0] for text in plan.warnings] == ["[memory]"]
    assert plan.estimate.memory.capacity == exact - 1


def test_the_card_is_the_capacity(machine: Callable[..., None]) -> None:
    full = ("model=llama2_7b", "method=full")
    assert compiled(*full, "hardware=rtx4090", training=False).estimate.memory.capacity == 24 * 2**30
    assert not compiled(*full, "hardware=h100_80gb", training=False).estimate.memory.fits
    assert compiled("model=llama2_7b", "method=qlora", "hardware=h100_80gb", training=False).estimate.memory.fits
    machine(gpus=(H100,))
    assert compiled(training=False).steps.load.device == "cuda"
    assert compiled(training=False).estimate.memory.capacity == H100.memory_bytes


def test_what_is_free_is_the_capacity(machine: Callable[..., None], tiny_model: Path) -> None:
    """Of the cards that the run takes the fullest counts; to train there is no more than is free, whatever is set."""
    half, other = (replace(H100, free_bytes=count * 2**30) for count in (40, 70))
    machine(gpus=(other, half, replace(H100, free_bytes=2**30)), packages=ALL["packages"], available_bytes=8 * 2**30)

    def capacity(*overrides: str, training: bool = False) -> int | None:
        return compiled(f"model.path={tiny_model}", *overrides, training=training).estimate.memory.capacity

    two = ("hardware.num_processes=2", "hardware.strategy=ddp")
    assert capacity() == 70 * 2**30
    assert capacity(*two) == 40 * 2**30
    assert capacity("hardware=h100_80gb") == 80 * 2**30
    assert capacity("hardware=h100_80gb", training=True) == 70 * 2**30
    assert capacity("hardware.memory=24GB", training=True) == 24 * 10**9
    machine(gpus=(), packages=ALL["packages"], available_bytes=8 * 2**30)
    assert capacity("hardware=single_gpu") is None  # this machine's own memory is not a card's
    assert capacity("hardware=single_gpu", "hardware.memory=24GB") == 24 * 10**9
    assert capacity("hardware=cpu") == capacity("hardware=cpu", "hardware.memory=9GB", training=True) == 8 * 2**30
    assert capacity("hardware=cpu", "hardware.memory=24GB", *two) == 12 * 10**9


def test_a_stage_that_takes_the_rows_is_named(tiny_model: Path, here: Path) -> None:
    (here / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (refusal,) = refusals(*BASE, f"model.path={tiny_model}", "data=file", "data.path=pairs.jsonl")
    assert refusal.fix.startswith("set stage=dpo (orpo, rm take them too), or map ")


def test_labelled_answers_are_no_examples_unless_somebody_says_so(tiny_model: Path, here: Path) -> None:
    (here / "judged.jsonl").write_text('{"prompt": "a", "completion": "b", "label": false}\n')
    words = (*BASE, f"model.path={tiny_model}", "data=file", "data.path=judged.jsonl")
    (refusal,) = refusals(*words)
    assert (refusal.rule, refusal.wrong) == (
        "columns-for-stage",
        "file holds labelled (completion, label, prompt), stage=sft needs messages",
    )
    by_hand = "data.sources.file.format=prompt_completion"
    assert refusal.fix.startswith(f"set stage=kto, or {by_hand} to train each answer whatever its label, or map ")
    compiled(*words, by_hand, training=False)


def test_a_stage_that_answers_itself_is_not_told_to_train_the_answers(
    tiny_model: Path, here: Path, scoring: str
) -> None:
    (here / "judged.jsonl").write_text('{"prompt": "a", "completion": "b", "label": false}\n')
    stage = (scoring, *WORDS["groups"].split(), *WORDS["short"].split())
    words = (*BASE, f"model.path={tiny_model}", *stage, "data=file", "data.path=judged.jsonl")
    (refusal,) = refusals(*words, "data.sources.file.format=kto")
    by_hand = "data.sources.file.format=prompts"
    assert refusal.fix.startswith(f"set stage=kto, or {by_hand} to read the prompts alone, or map ")
    compiled(*words, by_hand, training=False)


def test_answers_are_not_missing_where_nobody_has_looked(tiny_model: Path, scoring: str) -> None:
    """A set of the hub may have a column of just that name, which no key says then."""
    stage = (scoring, *(word for words in ("groups", "short", "answers") for word in WORDS[words].split()))
    data = ("data=file", "data.sources.file.origin=hub", "data.path=me/asked", "data.sources.file.format=prompts")
    compiled(*BASE, f"model.path={tiny_model}", *stage, *data, training=False)


@pytest.mark.parametrize(("name", "hint"), [("chatmll", "did you mean chatml? choose"), ("zzzzzz", "choose")])
def test_a_template_that_was_meant_is_named(name: str, hint: str, tiny_model: Path) -> None:
    (refusal,) = refusals(f"model.path={tiny_model}", f"model.template={name}")
    assert refusal.fix.startswith(hint)


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ("stage.optimizer=lion", "install it: pip install bitsandbytes; "),
        ("compute.kernels=liger", "install it: pip install -e '{root}[liger]'; "),
        ("compute.attention=flash_attention_2", "pip install --no-build-isolation -e '{root}[flash-attn]'; "),
        ("compute.attention=flash_attention_3", "build it from the folder hopper of github.com/Dao-AILab/"),
    ],
)
def test_a_package_is_told_with_what_installs_it(
    words: str, fix: str, tiny_model: Path, machine: Callable[..., None]
) -> None:
    machine(gpus=(H100,), packages={})
    on_card = ("evaluate.samples=0", "hardware=h100_80gb", "tracking=none")
    found = refusals(*on_card, f"model.path={tiny_model}", "data.packing=false", words)
    (refusal,) = (refusal for refusal in found if refusal.rule == "package-missing")
    assert fix.format(root=Path(factory.__file__).parents[1]) in refusal.fix


def test_a_taken_folder_is_refused_or_continued(tiny_model: Path, here: Path) -> None:
    base = (*BASE, f"model.path={tiny_model}", "hydra.run.dir=run")
    plan = compiled(*base)  # nothing there
    assert compiled(*base, "stage.resume=auto").digest() == plan.digest()
    (here / "run").mkdir()
    assert not refusals(*base)  # an empty folder is nobody's
    (here / "run" / "plan.yaml").write_text(to_yaml(plan))
    for rest, rule in [
        ((), "folder-taken"),
        (("stage.resume=auto", "seed=1"), "folder-of-another-plan"),
        (("stage.resume=auto", "stage.learning_rate=1e-3"), "folder-of-another-plan"),
    ]:
        (found,) = refusals(*base, *rest)
        assert found.rule == rule
        if rest:
            assert re.search(r"\): (seed was 42, is 1|stage.learning_rate was [\d.e-]+, is 0.001)$", found.wrong)
        else:
            assert found.fix.startswith("continue it by `factory resume run`, or ")
    assert compiled(*base, "stage.resume=auto").digest() == plan.digest()
    assert not refusals(*base, "stage.resume=auto", "stage.logging_steps=3", "tracking.experiment=other")
    (here / "run" / "report.json").write_text('{"status": "interrupted"}')
    assert not refusals(*base, "stage.resume=auto")
    (here / "run" / "report.json").write_text('{"status": "finished"}')
    assert [refusal.rule for refusal in refusals(*base, "stage.resume=auto")] == ["run-finished"]
    (finished,) = refusals(*base)
    assert finished.rule == "folder-taken" and "resume" not in finished.fix  # which would be refused


def test_a_checkpoint_must_be_whole(tiny_model: Path, here: Path) -> None:
    base = (*BASE, f"model.path={tiny_model}", "hydra.run.dir=run")
    step = here / "run" / "checkpoints" / "step-000002"
    (refusal,) = refusals(*base, f"stage.resume={step}")
    assert (refusal.rule, refusal.setting) == ("no-checkpoint", f"stage.resume={step}")
    step.mkdir(parents=True)
    (step / "state.json").write_text("{}")
    (step / "manifest.json").write_text('{"files": {"state.json": 3}}')  # one byte is lacking
    assert [refusal.rule for refusal in refusals(*base, f"stage.resume={step}")] == ["no-checkpoint"]
    (step / "manifest.json").write_text('{"files": {"state.json": 2}}')
    assert not refusals(*base, f"stage.resume={step}")
    (step / "manifest.json").write_text('{"files": {"state.json": 2}, "plan_digest": "another"}')
    (other,) = refusals(*base, f"stage.resume={step}")
    assert (other.rule, other.setting) == ("resume-other-run", f"stage.resume={step}")
    assert other.wrong.startswith("it was saved by the plan another, this is ") and ":" not in other.wrong
    saved = compiled(
        *base, "stage.max_steps=3", "seed=1", "data.train_on_prompt=true", "method.rank=4", "method.alpha=3"
    )
    (here / "run" / "plan.yaml").write_text(to_yaml(saved))
    (step / "manifest.json").write_text(json.dumps({"files": {}, "plan_digest": saved.digest()}))
    (other,) = refusals(*base, f"stage.resume={step}")
    assert ": seed was 1, is 42; " in other.wrong and "; method.rank was 4, is 8; 2 more" in other.wrong


def test_the_only_set_may_be_measured_whole_and_not_held_out_of_a_training(here: Path) -> None:
    (here / "own.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 3)
    words = (*BASE, "method=none", "data=file", "data.path=own.jsonl", "data.validation=file")
    made = compiled(*words, verb="evaluate", training=False)
    assert made.settings.data.validation == "file" and made.estimate.steps.high == 1
    assert any(note.startswith("data.max_samples=12: data.validation=file is measured whole") for note in made.notes)
    for verb, more, rule in (
        ("train", ("method=lora",), "validation-set"),
        ("evaluate", ("data.validation=shop",), "validation-set"),
        ("evaluate", ("data.streaming=true", "stage.max_steps=1", "data.max_samples=null"), "streaming"),
    ):
        with pytest.raises(UserError) as error:
            compiled(*words, *more, verb=verb, training=False)
        assert [each.rule for each in error.value.refusals] == [rule], (verb, more)


@pytest.mark.parametrize(("count", "told"), [(0, None), (1, "of 1 row are"), (2, "of 2 rows are")])
def test_a_note_counts_the_rows_that_are_not_read_as_they_stand(count: int, told: str | None, here: Path) -> None:
    cells = ['"one\r\ntwo"' if number < count else f"{number}" for number in range(4)]
    text = "".join(f"{line}\r\n" for line in ("instruction,output", *(f"Say it.,{cell}" for cell in cells)))
    (here / "own.csv").write_bytes(text.encode())
    made = compiled(*BASE, "data=file", "data.path=own.csv", training=False)
    found = [note for note in made.notes if "line ends of Windows" in note]
    assert len(found) == (told is not None) and all(told and told in note for note in found)


@pytest.mark.parametrize(("text", "told"), [("a\nb\nc\n", "its 3 lines are"), ("a\n\nb\n", None), ("a\n", None)])
def test_a_note_tells_a_text_file_that_nothing_divides(text: str, told: str | None, here: Path) -> None:
    (here / "own.txt").write_text(text)
    made = compiled(*BASE, "stage=pt", "data=file", "data.path=own.txt", "data.validation_fraction=0", training=False)
    found = [note for note in made.notes if "are one document" in note]
    assert len(found) == (told is not None) and all(told and told in note for note in found)
