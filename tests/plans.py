"""The golden plans: typical command lines, and what each plans. `python tests/plans.py` writes them anew.

`default.txt` holds the whole plan of `factory plan` without overrides, the others what differs from it: so a changed
default shows once. What is machine's or a package's own, and long, is left out.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pretended

from factory.config.refusal import UserError
from factory.config.values import plain
from factory.plan.diff import flat
from factory.plan.plan import Plan, tree_of

GOLDEN = Path(__file__).parent / "golden" / "plans"
_LEFT_OUT = re.compile(
    r"version|overrides|packages\.|notes|warnings"  # said on lines of their own, or the machine's
    r"|load\.(config|path|fingerprint|adapter_fingerprint)\b|align\.sources\.\w+\.(path|sha256)"
    r"|estimate\.memory\.(?!total)|estimate\.parameters\.trainable_by_module|estimate\.flops"
)
_BYTES = re.compile(r"estimate\.memory")

LINES: dict[str, tuple[str, str]] = {
    # name: (machine, overrides)
    "default": ("cpu", ""),
    "old_cpu": ("old cpu", ""),
    "gpu": ("gpu", ""),
    "old_gpu": ("old gpu", ""),
    "smoke": ("cpu", "recipe=smoke"),
    # methods
    "full": ("cpu", "method=full"),
    "full_pure_bf16": ("cpu", "method=full precision=pure_bf16"),
    "freeze": ("cpu", "method=freeze"),
    "llama_pro": ("cpu", "method=llama_pro"),
    "galore": ("cpu", "method=galore"),
    "galore_layerwise": ("cpu", "method=galore method.layerwise=true stage.max_grad_norm=null"),
    "apollo_mini": ("cpu", "method=apollo_mini"),
    "badam": ("cpu", "method=badam"),
    "badam_ratio": ("cpu", "method=badam_ratio"),
    "qlora": ("cpu", "method=qlora"),
    "lora_int8": ("gpu", "method.quantization.bits=8"),
    "dora": ("cpu", "method=dora"),
    "rslora": ("cpu", "method=rslora"),
    "lora_plus": ("cpu", "method=lora_plus"),
    "pissa": ("cpu", "method=pissa"),
    "loftq": ("cpu", "method=loftq"),
    "adalora": ("cpu", "method=adalora"),
    "oft": ("cpu", "method=oft"),
    "vera": ("cpu", "method=vera"),
    "ia3": ("cpu", "method=ia3"),
    "lokr": ("cpu", "method=lokr"),
    # stages
    "pt": ("cpu", "stage=pt"),
    "dpo": ("cpu", "stage=dpo"),
    "dpo_simpo": ("cpu", "stage=dpo stage.loss=simpo stage.gamma=0.5"),
    "orpo": ("cpu", "stage=orpo"),
    "kto": ("cpu", "stage=kto stage.batch_size=2"),
    "rm": ("cpu", "stage=rm"),
    "sft_neftune": ("cpu", "stage.neftune_alpha=5"),
    "optimizer": ("gpu", "stage.optimizer=paged_adamw_8bit stage.max_steps=100 stage.lr_scheduler=constant"),
    # models and cards
    "llama3_qlora_dpo": ("cpu", "model=llama3_8b method=qlora stage=dpo hardware=rtx4090"),
    "llama3_70b_qlora": ("cpu", "model=llama3_70b method=qlora hardware=h100_80gb"),
    "qwen2.5_full": ("cpu", "model=qwen2.5_7b method=full hardware=a100_40gb"),
    "gemma2": ("gpu", "model=gemma2_2b hardware=single_gpu"),
    "mixtral_experts": ("gpu", "model=mixtral_8x7b method.target_experts=true"),
    "llava": ("gpu", "model=llava1.5_7b data=demo_images method.parts=[language,projector]"),
    "flash_liger": ("gpu", "model=llama2_7b compute.attention=flash_attention_2 compute.kernels=liger"),
    "s2_yarn": ("gpu", "model=llama2_7b data.max_length=16384 model.rope_scaling=yarn compute.attention=s2"),
    "checkpointing": ("gpu", "model=llama2_7b compute.activation_checkpointing=selective"),
    "new_tokens": ("cpu", "model=qwen2.5_0.5b method=full model.template=chatml"),
    # data
    "packing": ("cpu", "data.packing=true"),
    "file": ("cpu", "data=file data.path=rows.jsonl data.truncation=keep_response"),
    "two_sets": ("cpu", "data=[alpaca_cleaned,file] data.path=rows.jsonl data.mixing=interleave_over"),
    "streaming": ("cpu", "stage=pt data=fineweb_edu data.streaming=true stage.max_steps=1000"),
    "hub_pairs": ("cpu", "stage=dpo data=ultrafeedback_binarized"),
    # what is refused
    "refused_typos": ("cpu", "method.rnk=3 stage.learning_rate=fast model=llama3_9b"),
    "refused_quantized": ("cpu", "method=full method.quantization.bits=4 precision=fp16"),
    "refused_data": ("cpu", "stage=pt data=alpaca_cleaned data.packing=false data.isolate_documents=true"),
}


def golden(name: str) -> str:
    """What the file of the command line holds."""
    machine, overrides = LINES[name]
    with pretended.facts(machine):
        head = [f"# factory plan {overrides}".rstrip(), f"# on: {machine}"]
        try:
            made = pretended.compiled(*overrides.split())
        except UserError as error:
            return "\n".join([*head, str(error)]) + "\n"
    lines = [*head, *_lines(made, {} if name == "default" else _values(_default()))]
    said, usual = _said(made), [] if name == "default" else _said(_default())
    lines += [line for line in said if line not in usual] + [f"- {line}" for line in usual if line not in said]
    return "\n".join(lines) + "\n"


@cache
def _default() -> Plan:
    with pretended.facts("cpu"):
        return pretended.compiled()


def _said(made: Plan) -> list[str]:
    return [f"note: {note}" for note in made.notes] + [f"warning: {warning}" for warning in made.warnings]


def _lines(made: Plan, default: dict[str, str]) -> list[str]:
    """`key = value`, of what the default has in the same way nothing; `- key` of what it has and this has not."""
    values = _values(made)
    gone = [f"- {key}" for key in default if key not in values]
    return [f"{key} = {value}" for key, value in values.items() if default.get(key) != value] + gone


def _values(made: Plan) -> dict[str, str]:
    tree = dict(flat(tree_of(made)))
    return {key: _shown(key, value) for key, value in tree.items() if not _LEFT_OUT.match(key)}


def _shown(key: str, value: Any) -> str:
    if _BYTES.match(key):
        return f"{value / 2**20:,.0f} MiB"
    return f"[{', '.join(map(plain, value))}]" if isinstance(value, list) else plain(value)


def write() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for old in GOLDEN.glob("*.txt"):
        old.unlink()
    for name in LINES:
        (GOLDEN / f"{name}.txt").write_text(golden(name), encoding="utf-8")


if __name__ == "__main__":
    write()
