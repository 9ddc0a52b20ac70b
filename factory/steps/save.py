"""The trained model as others load it: adapter or weights, tokenizer with its chat template, model card."""

import copy
import os
import shutil
from pathlib import Path
from typing import Any

from factory import registry
from factory.execute.checkpoint import write_errors
from factory.execute.context import Run
from factory.run.folder import unwritable
from factory.steps.attach import method_settings

BASE = "base"  # in an adapter's folder: the config.json that its base must be read with


def save_model(run: Run, model: Any, tokenizer: Any, processor: dict[str, bytes]) -> None:
    """Writes `model/` aside and renames it. Weights are cast, once, to the type that they were computed in.

    `processor`: what a vision model's processor has beside the tokenizer, file by file.
    """
    import torch

    aside = run.folder.path / f".model.{os.getpid()}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        tokenizer.save_pretrained(aside)
        for name, content in processor.items():
            (aside / name).write_bytes(content)
        if hasattr(model, "peft_config"):
            registry.run("methods", run.plan.steps.attach.method).export(model, method_settings(run), aside)
            if run.plan.steps.patch.rope_scaling != "none":
                _save_base_config(run, model.get_base_model().config, aside / BASE)
        else:
            model.config.use_cache = True
            state = model.state_dict()
            if run.plan.steps.train.autocast is not None:
                kept = getattr(torch, run.plan.steps.train.autocast)
                cast: dict[int, Any] = {}  # tied tensors stay one
                state = {name: cast.setdefault(value.data_ptr(), value.to(kept)) for name, value in state.items()}
                model.config.dtype = kept
            model.save_pretrained(aside, state_dict=state)
        (aside / "README.md").write_text(_card(run, (aside / BASE).is_dir()), encoding="utf-8")
        shutil.rmtree(run.folder.model, ignore_errors=True)
        aside.rename(run.folder.model)
    except write_errors() as error:
        raise unwritable(run.folder.model, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _save_base_config(run: Run, config: Any, folder: Path) -> None:
    """The base's config with the positions that the adapter was trained on, for the base as it lies on the disk.

    It can't lie beside adapter_config.json: there transformers takes it as the sign of whole weights.
    """
    config, original = copy.deepcopy(config), run.plan.steps.load.config
    config.use_cache = True
    text = config.get_text_config()
    text.vocab_size = original.get("text_config", original).get("vocab_size", text.vocab_size)
    if hasattr(config, "quantization_config"):  # how the base was held here, not how it is stored
        del config.quantization_config
    config.save_pretrained(folder)


def _card(run: Run, scaled: bool) -> str:
    plan = run.plan
    data = ", ".join(f"{name} ({source.format})" for name, source in plan.steps.align.sources.items())
    return (
        f"# {plan.options.get('model', 'model')}, {plan.steps.attach.method}, {plan.steps.train.stage}\n\n"
        f"Fine-tuned by Factory; plan {plan.digest()}, seed {plan.seed}.\n\n"
        f"- base: {plan.steps.load.fingerprint if plan.steps.load.source != 'folder' else plan.options.get('model')}\n"
        f"- data: {data}\n"
        f"- trained parameters: {plan.estimate.parameters.trainable:,} of {plan.estimate.parameters.total:,}\n"
        f"{_loading(run) if scaled else ''}"
    )


def _loading(run: Run) -> str:
    """How an adapter is read whose base's positions were scaled: PEFT alone would leave them unscaled."""
    patch = run.plan.steps.patch
    return (
        f"- positions: {patch.rope_scaling}, factor {patch.rope_factor:g}; its base is read with {BASE}/config.json\n\n"
        "```python\n"
        f'config = AutoConfig.from_pretrained("THIS_FOLDER/{BASE}")\n'
        'base = AutoModelForCausalLM.from_pretrained("THE_BASE", config=config)\n'
        'model = PeftModel.from_pretrained(base, "THIS_FOLDER")\n'
        "```\n"
    )
