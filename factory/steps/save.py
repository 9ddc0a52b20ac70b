"""The trained model as others load it: adapter or weights, tokenizer with its chat template, model card."""

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

from factory import own_base
from factory.architecture import Architecture
from factory.config import registry
from factory.config.own import without_place
from factory.execute.checkpoint import refusal_of, save_tokenizer, take_place, write_errors
from factory.execute.context import Run
from factory.export.reading import reading
from factory.plan import heads
from factory.ranks.spec import SPLIT
from factory.run.folder import base_config, open_as
from factory.steps.attach import has_own_base
from factory.steps.proofs import saved_type, token_losses


def save_model(run: Run, model: Any, arch: Architecture, tokenizer: Any, processor: dict[str, bytes]) -> None:
    """Writes `model/` aside and renames it. Weights are cast, once, to the type that they were computed in.

    A stage's own heads lie beside it. `processor`: what a vision model's processor has beside the tokenizer, file by
    file.
    """
    every = model.named_parameters(remove_duplicate=False)  # a tied head is found under both its names
    names = [name for name, parameter in every if parameter.requires_grad or not _adapts(model)]
    with run.way.whole(model, names):
        if run.world.leads:
            _write(run, model, arch, tokenizer, processor)
    run.world.wait()


def settle(run: Run, model: Any, arch: Architecture) -> None:
    """What has been trained in float32 takes the numbers that it is saved with: what is measured is what is read later.

    Not a stage's heads, which are saved as they are, and not where processes hold parts of the weights: there they are
    rounded as they are gathered, to the nearest.
    """
    kept, strategy = saved_type(run, model), run.plan.settings.hardware.strategy
    if kept is None or "weights" in SPLIT[strategy]:
        return
    from factory import rounding

    beside = heads.heads(run.plan.settings.stage.name, arch)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in beside:
            rounding.settle(parameter, kept)


def _adapts(model: Any) -> bool:
    return hasattr(model, "peft_config")


def _write(run: Run, model: Any, arch: Architecture, tokenizer: Any, processor: dict[str, bytes]) -> None:
    beside = tuple(heads.heads(run.plan.settings.stage.name, arch))
    aside = run.folder.path / f".model.{os.getpid()}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        save_tokenizer(tokenizer, aside)
        for name, content in processor.items():
            (aside / name).write_bytes(content)
        if _adapts(model):
            method, settings = registry.run("methods", run.plan.settings.method.name), run.plan.settings.method
            method.export(model, settings, aside)
            if has_own_base(run):
                scale, taken = method.taken(model, settings)
                _save_own_base(run, model, tokenizer, scale, taken, aside)
            if _stretched(run):
                _save_base_config(run, model.get_base_model().config, base_config(aside).parent)
        else:
            model.config.use_cache = True
            state = {name: value for name, value in model.state_dict().items() if name not in beside}
            if (kept := saved_type(run, model)) is not None:
                exact = _kept_wide(run, model)
                cast: dict[int, Any] = {}  # tied tensors stay one
                for name, value in state.items():  # beside the GPU's memory, which has no room for a second model
                    wanted = value.dtype if name in exact else kept
                    state[name] = cast.setdefault(value.data_ptr(), value.to("cpu", wanted))
                model.config.dtype = kept
            dtype = str(next(iter(state.values())).dtype)
            model.save_pretrained(aside, state_dict=dict(state))  # which may take out of it what it has written
            say_dtype(aside / "config.json", dtype.removeprefix("torch."))
        heads.save(model, beside, aside)
        (aside / "README.md").write_text(_card(run, aside), encoding="utf-8")
        open_as(aside / "README.md")
        take_place(aside, run.folder.model)
    except write_errors() as error:
        raise refusal_of(error, run.folder.model) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _kept_wide(run: Run, model: Any) -> set[str]:
    """What is not trained, and which the model's own class holds in another type than is asked for: routers' biases."""
    import torch

    held = getattr(torch, run.plan.steps.load.dtype)
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad and value.dtype != held}
    return frozen | {name for name, _ in model.named_buffers()}


def say_dtype(file: Path, dtype: str) -> None:
    """transformers writes the type that the weights are held in, not that which they are saved in."""
    config = json.loads(file.read_text(encoding="utf-8")) | {"dtype": dtype}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _save_own_base(
    run: Run, model: Any, tokenizer: Any, scale: float, taken: dict[str, tuple[Any, Any]], folder: Path
) -> None:
    """What that base is made of again, and some of the losses that a model on it must come to."""
    plan, ids, losses = run.plan.steps, list[int](), list[float]()
    if run.plan.settings.hardware.strategy == "none":  # else a process may hold a part of the model
        ids = own_base.ids(tokenizer)
        losses = token_losses(run, model, ids)
    said = own_base.OwnBase(
        scale=scale,
        dtype=plan.load.dtype,
        quantization=run.plan.settings.method.quantization,
        computed_in=plan.train.autocast or plan.load.dtype,
        ids=tuple(ids),
        losses=tuple(losses),
    )
    own_base.save(folder, taken, said)


def _stretched(run: Run) -> bool:
    """Whether the base's positions are not those of its own config: by this run, or by that of the adapter before."""
    adapter = run.plan.steps.load.adapter
    return run.plan.settings.model.rope_scaling != "none" or (adapter is not None and base_config(adapter).is_file())


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


def _card(run: Run, folder: Path) -> str:
    plan = run.plan
    named = (plan.method, plan.settings.stage.name)
    data = ", ".join(f"{name} ({source.format})" for name, source in plan.sources.items())
    own = (
        "- base: it was quantized without the adapter's start, so on the published one PEFT gives another "
        "model; `factory` has this one with run=…, and writes it with `factory export`\n"
    )
    return (
        f"# {plan.options.get('model', 'model')}, {', '.join(map(without_place, named))}\n\n"
        f"Fine-tuned by Factory; plan {plan.digest()}, seed {plan.settings.seed}.\n\n"
        f"- base: {plan.steps.load.fingerprint if plan.steps.load.source != 'folder' else plan.options.get('model')}\n"
        f"- data: {data}\n"
        f"- trained parameters: {plan.estimate.parameters.trainable:,} of {plan.estimate.parameters.total:,}\n"
        f"{own if has_own_base(run) else ''}{reading(plan, folder)}\n"
    )
