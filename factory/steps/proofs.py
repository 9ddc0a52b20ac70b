"""Proofs of a run: what is frozen stayed so, the last checkpoint opens, what was saved is what was trained.

`witness` looks at the model before training and `prove` after it. `reload` reads the saved model anew when nobody holds
the trained one any more, so that two are never in memory together.
"""

import gc
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory import heads, registry
from factory.architecture import Architecture, Shape
from factory.execute import checkpoint
from factory.execute.context import Run
from factory.run.folder import MANIFEST, base_config, read_json
from factory.steps import source
from factory.steps.attach import method_settings, read_weights
from factory.steps.evaluate import HEAD_ROUNDING
from factory.steps.feed import autocast
from factory.steps.pack import Dataset
from factory.steps.quantize import after_reading, quantize, while_reading
from factory.steps.vocabulary import grow
from factory.steps.walk import model_class
from factory.vocabulary import as_said

_TOKENS = 64  # of one row: enough to see whether two models are the same
_NAMED = 3  # tensors that a verdict names

Sums = dict[str, tuple[Shape, int]]  # a tensor's shape and checksum, by its name


@dataclass(frozen=True, slots=True)
class Expected:
    """What a model that is read anew must be: the trained tensors as they are saved, and the losses of some tokens."""

    trained: Sums
    ids: list[int]
    losses: list[float]  # nats, of each of the ids but the first


def witness(run: Run, model: Any) -> dict[str, Any]:
    """The frozen tensors as they are before anything is trained or measured."""
    if not _alone(run):
        return {"frozen": {}}
    return {"frozen": checksums(model, frozen_names(model))}


def prove(
    run: Run, model: Any, arch: Architecture, dataset: Dataset, frozen: Sums, trained: dict[str, Any]
) -> dict[str, Any]:
    """After training, with the trained model at hand."""
    if not _alone(run):
        return {"expected": None}
    if frozen:  # else there is nothing that could have changed
        now = checksums(model, frozen)
        moved = [name for name in frozen if now.get(name) != frozen[name]]
        detail = f"{len(frozen) - len(moved)} of {len(frozen)} frozen tensors are as they were before the first step"
        run.check("frozen_unchanged", not moved, detail + _named(moved))
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    _check_resume_point(run, dict(model.named_parameters()), names, trained["summary"]["steps"])
    ids = dataset.first.ids[:_TOKENS]
    beside = heads.heads(run.plan.steps.train.stage, arch)  # saved as they were trained
    saved = checksums(model, names, saved_type(run, model)) | checksums(model, beside)
    return {"expected": Expected(saved, ids, token_losses(run, model, ids))}


def reload(run: Run, expected: Expected | None, result: dict[str, Any]) -> dict[str, Any]:
    """The saved model, read as anybody else would: the same tensors, the same losses."""
    gc.collect()
    if expected is not None and exact_reading(run):
        try:
            model = read_saved(run)
            wrong, detail = _compared(run, model, expected)
        except Exception as error:  # whatever a library raises at what was saved is the verdict
            wrong, detail = True, f"what was saved cannot be read: {type(error).__name__}: {_first_line(error)}"
        run.check("save_reload", not wrong, detail)
    return {"proven": result}


def _alone(run: Run) -> bool:
    """Whether this process holds the whole model: of several, each may hold a part of each tensor."""
    return run.plan.steps.train.ranks.strategy == "none"


# --- checksums


def checksums(model: Any, names: Iterable[str], dtype: Any = None) -> Sums:
    """Of the named parameters, cast to `dtype` where one is given."""
    there = dict(model.named_parameters())
    return {name: checksum(there[name], dtype) for name in names if name in there}


def checksum(tensor: Any, dtype: Any = None) -> tuple[Shape, int]:
    """Shape, and the sum of the bytes read as 64-bit integers, each block times another odd number: one pass, exact.

    A single change always shows; several go unseen with a probability of about 2^-64.
    """
    import torch

    value = tensor.detach()
    value = (value if dtype is None else value.to(dtype)).contiguous().view(-1)
    data = value.view(torch.uint8)
    whole = data[: data.numel() // 8 * 8].view(torch.int64)
    total = int(data[whole.numel() * 8 :].to(torch.int64).sum())
    for number, block in enumerate(whole.split(_BLOCK)):
        total += int(block.sum()) * (2 * number + 1)
    return tuple(tensor.shape), total % 2**64


_BLOCK = 2**16  # 64-bit integers


def frozen_names(model: Any) -> list[str]:
    return [name for name, value in model.named_parameters() if not value.requires_grad]


# --- the checkpoint


def _check_resume_point(run: Run, tensors: dict[str, Any], names: list[str], steps: int) -> None:
    last = run.folder.checkpoint()
    if last is None:
        run.check("resume_point", False, "no whole checkpoint is there")
        return
    try:
        shapes = opened(last)
        step = checkpoint.state_of(last)["step"]
    except Exception as error:  # whatever a library raises at a file of it is the verdict
        run.check("resume_point", False, f"{last.name} cannot be opened: {type(error).__name__}: {_first_line(error)}")
        return
    wrong = [name for name in names if shapes.get(name) != tuple(tensors[name].shape)]
    detail = f"{last.name} of {steps} steps opens, with {len(names) - len(wrong)} of {len(names)} trained tensors"
    run.check("resume_point", not wrong and step == steps, detail + _named(wrong))


def opened(folder: Path) -> dict[str, Shape]:
    """Opens every file of a checkpoint without reading what is in its tensors; the shapes of what is in safetensors."""
    import torch
    from safetensors import safe_open

    shapes: dict[str, Shape] = {}
    for name in (read_json(folder / MANIFEST) or {})["files"]:
        file = folder / name
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                shapes |= {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
        elif file.suffix == ".pt":
            torch.load(file, weights_only=True, mmap=True, map_location="cpu")
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
    return shapes


# --- what was saved


def exact_reading(run: Run) -> bool:
    """Whether the saved model is the trained one, but for rounding.

    Not where an adapter starts from the weights and what it leaves of them was quantized: it is saved for the base as
    it was.
    """
    plan = run.plan.steps
    starts = registry.hook(registry.spec("methods", plan.attach.method), "starts_from_weights")
    return not (plan.quantize.bits and starts is not None and starts(method_settings(run)))


def saved_type(run: Run, model: Any) -> Any:
    """The type that trained weights are cast to when they are saved; None: they are saved as they are."""
    import torch

    kept = run.plan.steps.train.autocast
    return None if kept is None or hasattr(model, "peft_config") else getattr(torch, kept)


def read_saved(run: Run) -> Any:
    """The model of the run's folder: whole weights, or the adapter on its base, with the heads beside them."""
    import torch
    from transformers import AutoConfig

    plan, folder = run.plan.steps, run.folder.model
    adapter = (folder / "adapter_config.json").is_file()
    own = base_config(folder)
    at = own.parent if own.is_file() else source.folder(run) if adapter else folder
    revision = plan.load.revision if adapter and not own.is_file() else None
    config = AutoConfig.from_pretrained(at, revision=revision, trust_remote_code=plan.load.trust_remote_code)
    config._attn_implementation, config.use_cache = plan.patch.attention, False
    if adapter:
        from peft import PeftModel

        quantization = quantize(run)["quantization"]
        base = read_weights(run, config, while_reading(quantization))
        grow(base, as_said(plan.patch), run.plan.seed)
        after_reading(base, quantization, ())
        model = PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=plan.attach.dtype == "float32")
    else:
        trust = plan.load.trust_remote_code
        model, info = model_class(config).from_pretrained(
            folder, config=config, dtype="auto", trust_remote_code=trust, output_loading_info=True
        )
        if info["missing_keys"]:
            raise ValueError(f"its files lack {', '.join(sorted(info['missing_keys'])[:_NAMED])}")
        model = model.to(plan.load.device)
    heads.load(model, folder)
    return model.to(torch.device(plan.load.device)) if plan.quantize.bits is None else model


def _compared(run: Run, model: Any, expected: Expected) -> tuple[bool, str]:
    """Whether a model is not what is expected, and how near it is.

    Tensors that are saved in another form are not compared.
    """
    found = {} if _pruned(model) else checksums(model, expected.trained)
    same = [name for name, (shape, _) in expected.trained.items() if name in found and found[name][0] == shape]
    wrong = [name for name in same if found[name] != expected.trained[name]]
    losses = token_losses(run, model, expected.ids)
    apart = max((abs(one - other) for one, other in zip(losses, expected.losses, strict=True)), default=0.0)
    plan = run.plan.steps
    allowed = HEAD_ROUNDING[plan.train.autocast or plan.load.dtype]
    detail = f"losses of single tokens differ by {apart:.2g} nats at most"
    if same:
        detail = f"{len(same) - len(wrong)} of {len(same)} trained tensors are the same, {detail}"
    return bool(wrong) or not apart <= allowed, detail + _named(wrong)


def _pruned(model: Any) -> bool:
    """Whether its adapter's ranks were pruned: such a one PEFT reads in its base's type, rounded."""
    adapters = getattr(model, "peft_config", {}).values()
    return any(each.peft_type == "ADALORA" and bool(each.rank_pattern) for each in adapters)


def token_losses(run: Run, model: Any, ids: list[int]) -> list[float]:
    """Of each of the ids but the first, in nats, by the model's own logits."""
    import torch

    from factory.losses import text_model

    tokens = torch.tensor([ids], device=run.plan.steps.load.device)
    training = model.training
    model.eval()
    with torch.no_grad(), autocast(run.plan):
        logits = text_model(model)(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    model.train(training)
    return losses.tolist()


def _named(names: list[str]) -> str:
    return f"; not {', '.join(names[:_NAMED])}" if names else ""


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason is given")
