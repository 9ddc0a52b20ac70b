"""compute.kernels=unsloth: the model is read, and the adapter attached, by Unsloth's FastLanguageModel.

Written against the published source of unsloth 2026.10.9. The loop, the loss and the checks stay ours: its classes keep
PEFT's names, give hidden states below the head, and part packed rows where position_ids start again and there is no
mask (`models/llama.py`, LlamaModel_fast_forward). What it does not do is refused by the rule `kernels`.
"""

import os
from typing import Any

from factory import cache
from factory.ahead import card
from factory.architecture import Architecture
from factory.config import registry
from factory.execute.context import Run
from factory.methods.lora.targets import targets
from factory.steps import source


def import_first() -> None:
    """Import Unsloth before transformers and PEFT, which it patches; only in the process that trains with it.

    Its count of downloads, with the card's memory, is turned off; the code that it writes goes to the cache folder and
    not to the working folder.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache.folder() / "unsloth"))
    import unsloth  # type: ignore[import-not-found]  # noqa: F401


def read(run: Run, quantization: Any) -> Any:
    """Return the base as FastLanguageModel reads it; `quantization` is bitsandbytes' configuration, or None.

    `use_exact_model_name`: otherwise the name is looked up in a table of Unsloth's own uploads, which are read in its
    place. `max_seq_length=None` is the length in config.json: above it positions would be stretched, below it longer
    rows would be cut without an error.
    """
    import torch
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]  # an extra

    load = run.plan.steps.load
    with source.readable(load, allow_pickle=run.plan.settings.model.allow_pickle):
        model, _ = FastLanguageModel.from_pretrained(
            model_name=source.folder(run),
            revision=load.revision,
            max_seq_length=None,
            dtype=getattr(torch, load.read_as),
            load_in_4bit=quantization is not None,
            device_map={"": card(load.device)},
            use_exact_model_name=True,
            use_gradient_checkpointing=False,  # transformers' own, as of any other model
            offload_embedding=False,
            random_state=run.plan.settings.seed,
            use_safetensors=None if run.plan.settings.model.allow_pickle else True,
            **({} if quantization is None else {"quantization_config": quantization}),
        )
    model.config.use_cache = False
    return model


def attach(run: Run, model: Any, settings: Any, arch: Architecture) -> Any:
    """Return the model with LoRA's matrices, as PEFT's PeftModelForCausalLM, attached by `get_peft_model`.

    Unsloth's fused layers need all of q, k and v, or of gate, up and down, adapted; others it leaves to PEFT.
    """
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]  # an extra

    attached = registry.spec("methods", run.plan.settings.method.name).peft(settings, arch)
    return FastLanguageModel.get_peft_model(
        model,
        r=attached["r"],
        lora_alpha=attached["lora_alpha"],
        lora_dropout=settings.dropout,
        target_modules=_names(arch, set(targets(settings, arch))),
        use_rslora=attached["use_rslora"],
        init_lora_weights="gaussian" if settings.initialization == "gaussian" else True,
        use_gradient_checkpointing=False,
        random_state=run.plan.settings.seed,
        **({"use_dora": True} if attached["use_dora"] else {}),
    )


def _names(arch: Architecture, chosen: set[str]) -> list[str]:
    """Return the adapted layers by their last names where all of a name are, else by their paths."""
    last = {path.rpartition(".")[2] for path in chosen}
    whole = {path for path in arch.linears() if path.rpartition(".")[2] in last}
    return sorted(last if whole == chosen else chosen)
