"""The trained model as others load it: adapter or weights, tokenizer with its chat template, model card."""

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

from factory import registry
from factory.execute.checkpoint import write_errors
from factory.execute.context import Run
from factory.run.folder import base_config, unwritable
from factory.steps.attach import method_settings


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
            if _stretched(run):
                _save_base_config(run, model.get_base_model().config, base_config(aside).parent)
        else:
            model.config.use_cache = True
            state = model.state_dict()
            if run.plan.steps.train.autocast is not None:
                kept = getattr(torch, run.plan.steps.train.autocast)
                cast: dict[int, Any] = {}  # tied tensors stay one
                state = {name: cast.setdefault(value.data_ptr(), value.to(kept)) for name, value in state.items()}
                model.config.dtype = kept
            model.save_pretrained(aside, state_dict=state)
            _say_dtype(aside / "config.json", next(iter(state.values())).dtype)
        (aside / "README.md").write_text(_card(run, base_config(aside).is_file()), encoding="utf-8")
        shutil.rmtree(run.folder.model, ignore_errors=True)
        aside.rename(run.folder.model)
    except write_errors() as error:
        raise unwritable(run.folder.model, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _say_dtype(file: Path, dtype: Any) -> None:
    """transformers writes the type that the weights are trained in, not that which they are saved in."""
    config = json.loads(file.read_text(encoding="utf-8")) | {"dtype": str(dtype).removeprefix("torch.")}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _stretched(run: Run) -> bool:
    """Whether the base's positions are not those of its own config: by this run, or by that of the adapter before."""
    adapter = run.plan.steps.load.adapter
    return run.plan.steps.patch.rope_scaling != "none" or (adapter is not None and base_config(adapter).is_file())


def _save_base_config(run: Run, config: Any, folder: Path) -> None:
    """The base's config with the positions that the adapter was trained on, for the base as it lies on the disk."""
    config, original = copy.deepcopy(config), run.plan.steps.load.config
    config.use_cache = True
    text = config.get_text_config()
    text.vocab_size = original.get("text_config", original).get("vocab_size", text.vocab_size)
    if hasattr(config, "quantization_config"):  # how the base was held here
        del config.quantization_config
    if original.get("quantization_config"):  # how it is stored
        config.quantization_config = original["quantization_config"]
    config.save_pretrained(folder)


def _card(run: Run, stretched: bool) -> str:
    plan = run.plan
    data = ", ".join(f"{name} ({source.format})" for name, source in plan.steps.align.sources.items())
    return (
        f"# {plan.options.get('model', 'model')}, {plan.steps.attach.method}, {plan.steps.train.stage}\n\n"
        f"Fine-tuned by Factory; plan {plan.digest()}, seed {plan.seed}.\n\n"
        f"- base: {plan.steps.load.fingerprint if plan.steps.load.source != 'folder' else plan.options.get('model')}\n"
        f"- data: {data}\n"
        f"- trained parameters: {plan.estimate.parameters.trainable:,} of {plan.estimate.parameters.total:,}\n"
        f"{_loading(run, stretched) if stretched or run.plan.steps.patch.new_tokens else ''}"
    )


def _loading(run: Run, stretched: bool) -> str:
    """How an adapter is read whose base is not as it lies on the disk: PEFT alone would take it as it does."""
    patch = run.plan.steps.patch
    lines, why = ['base = AutoModelForCausalLM.from_pretrained("THE_BASE")'], ""
    if stretched:
        why = "- positions: stretched; its base is read with base/config.json\n"
        lines = [
            'config = AutoConfig.from_pretrained("THIS_FOLDER/base")',
            'base = AutoModelForCausalLM.from_pretrained("THE_BASE", config=config)',
        ]
    if patch.vocabulary != patch.rows:
        lines.append(f"base.resize_token_embeddings({patch.vocabulary})")
        why += f"- vocabulary: {patch.vocabulary:,} rows; its base is resized to them\n"
    lines.append('model = PeftModel.from_pretrained(base, "THIS_FOLDER")')
    return why + "\n```python\n" + "\n".join(lines) + "\n```\n"
