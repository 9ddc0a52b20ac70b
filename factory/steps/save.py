"""The trained model as others load it: adapter or weights, tokenizer with its chat template, model card."""

import os
import shutil
from typing import Any

from factory.execute.checkpoint import write_errors
from factory.execute.context import Run
from factory.run.folder import unwritable


def save_model(run: Run, model: Any, tokenizer: Any) -> None:
    """Writes `model/` aside and renames it. Weights are cast, once, to the type that they were computed in."""
    import torch

    aside = run.folder.path / f".model.{os.getpid()}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        tokenizer.save_pretrained(aside)
        if hasattr(model, "peft_config"):
            # "auto" would ask the hub whether the vocabulary has changed
            model.save_pretrained(aside, save_embedding_layers=False)
        else:
            model.config.use_cache = True
            state = model.state_dict()
            if run.plan.steps.train.autocast is not None:
                kept = getattr(torch, run.plan.steps.train.autocast)
                cast: dict[int, Any] = {}  # tied tensors stay one
                state = {name: cast.setdefault(value.data_ptr(), value.to(kept)) for name, value in state.items()}
                model.config.dtype = kept
            model.save_pretrained(aside, state_dict=state)
        (aside / "README.md").write_text(_card(run), encoding="utf-8")
        shutil.rmtree(run.folder.model, ignore_errors=True)
        aside.rename(run.folder.model)
    except write_errors() as error:
        raise unwritable(run.folder.model, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _card(run: Run) -> str:
    plan = run.plan
    data = ", ".join(f"{name} ({source.format})" for name, source in plan.steps.align.sources.items())
    return (
        f"# {plan.options.get('model', 'model')}, {plan.steps.attach.method}, {plan.steps.train.stage}\n\n"
        f"Fine-tuned by Factory; plan {plan.digest()}, seed {plan.seed}.\n\n"
        f"- base: {plan.steps.load.fingerprint if plan.steps.load.source != 'folder' else plan.options.get('model')}\n"
        f"- data: {data}\n"
        f"- trained parameters: {plan.estimate.parameters.trainable:,} of {plan.estimate.parameters.total:,}\n"
    )
