"""Proofs of a run: what is frozen stayed so, the last checkpoint opens, what was saved is what was trained.

`witness` looks at the model before training and `prove` after it. `reload` reads the saved model anew when nobody holds
the trained one any more, so that two are never in memory together. The plan's `checks` says which of them are made
(`factory.execute.checks.LEVELS`).
"""

import copy
import gc
import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from typing import Any

from factory import own_base, saved_adapter
from factory.architecture import Architecture, Shape
from factory.config.words import counted
from factory.data.batches import halves
from factory.estimate.speed import precision
from factory.execute import checkpoint
from factory.execute.context import Run
from factory.plan import heads
from factory.quantizers.checkpoint import checkpoint_quantizer
from factory.run.folder import MANIFEST, base_config, read_json
from factory.stages.rows import samples_answers
from factory.steps import source
from factory.steps.attach import has_own_base, read_base, starts_from_weights, taking_out
from factory.steps.evaluate import TOKEN_ROUNDING
from factory.steps.feed import autocast, feed
from factory.steps.kernels import multiplying_as_trained, replace_kernels, whole_float32
from factory.steps.pack import Dataset
from factory.steps.quantize import quantize
from factory.steps.reference import Reference, is_bare_base, kept, keys_of
from factory.steps.walk import model_class

# nats a token, on average, by which arithmetic in 16 bits alone moves losses, twice over (docs/measurements.md)
_IN_16_BITS = 0.1
_TOKENS = 64  # of one row: enough to see whether two models are the same
_NAMED = 3  # tensors that a verdict names

Sums = dict[str, tuple[Shape, int]]  # a tensor's shape and checksum, by its name


@dataclass(frozen=True, slots=True)
class Expected:
    """What a model that is read anew must be: the trained tensors as they are saved, and the losses of some tokens."""

    trained: Sums
    types: dict[str, Any]  # of each tensor, by its name, as it was trained
    ids: list[int]
    losses: list[float]  # nats, of each of the ids but the first


@dataclass(frozen=True, slots=True)
class Seen:
    """Before the first step: the frozen tensors, and some tokens' losses in the reference's role, if it has one."""

    frozen: Sums
    reference: list[float]


def witness(run: Run, model: Any, dataset: Dataset) -> dict[str, Any]:
    """The model as it is before anything is trained or measured."""
    if run.plan.settings.checks == "none" or not _alone(run):
        return {"seen": Seen({}, [])}
    full = run.plan.settings.checks == "full"
    frozen = [name for name, value in model.named_parameters() if full and not value.requires_grad]
    return {"seen": Seen(checksums(model, frozen), _reference_losses(run, model, dataset))}


def prove(
    run: Run,
    model: Any,
    arch: Architecture,
    dataset: Dataset,
    reference: Reference | None,
    seen: Seen,
    trained: dict[str, Any],
) -> dict[str, Any]:
    """After training, with the trained model at hand."""
    if run.plan.settings.checks == "none" or not _alone(run):
        return {"expected": None}
    if frozen := seen.frozen:  # else there is nothing that could have changed
        now = checksums(model, frozen)
        other = [name for name in frozen if now.get(name) != frozen[name]]
        detail = f"{len(frozen) - len(other)} of {len(frozen)} frozen tensors are as they were before the first step"
        run.check("frozen_unchanged", not other, detail + _named(other))
    if reference is not None:
        run.check("reference_unchanged", *_numbers_hold(run, model, dataset, reference))
    elif seen.reference:
        apart = moved(_reference_losses(run, model, dataset), seen.reference)["most_nats"]
        detail = f"the reference's losses of single tokens have moved by {apart:.2g} nats at most"
        run.check("reference_unchanged", apart <= _REFERENCE_ROUNDING[precision(run.plan)], detail)
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    _check_resume_point(run, dict(model.named_parameters()), names, trained["summary"]["steps"])
    beside = heads.heads(run.plan.settings.stage.name, arch)  # saved as they were trained
    if run.plan.settings.checks == "fast":
        _check_saved(run, model, [*beside])
        return {"expected": None}
    ids = dataset.first.ids[:_TOKENS]
    saved = checksums(model, names, saved_type(run, model)) | checksums(model, beside)
    types = {name: value.dtype for name, value in model.named_parameters()}
    return {"expected": Expected(saved, types, ids, token_losses(run, model, ids))}


def reload(run: Run, expected: Expected | None, result: dict[str, Any]) -> dict[str, Any]:
    """The saved model, read as anybody else would: the same tensors, the same losses."""
    if expected is None:
        return {"proven": result}
    gc.collect()
    model = None
    try:
        model = read_saved(run)
        same, detail = _as_expected(run, model, expected)
    except Exception as error:  # whatever a library raises at what was saved is the verdict
        same, detail = False, f"what was saved cannot be read: {said(error)}"
    run.check("save_reload", same, detail)
    if same and _merges(run, model):
        run.check("merge", *_merged_alike(run, model, expected.ids))
    return {"proven": result}


def _alone(run: Run) -> bool:
    """Whether this process holds the whole model: of several, each may hold a part of each tensor."""
    return run.plan.settings.hardware.strategy == "none"


# --- checksums


def checksums(model: Any, names: Iterable[str], dtype: Any = None) -> Sums:
    """Return those of the named parameters, cast to `dtype` where one is given. Each device is read from once."""
    import torch

    there = dict(model.named_parameters())
    by_device: dict[Any, dict[str, Any]] = {}
    for name in names:
        if name in there:
            total = _total(there[name], dtype)
            by_device.setdefault(total.device, {})[name] = total
    return {
        name: (tuple(there[name].shape), number % 2**64)
        for totals in by_device.values()
        for name, number in zip(totals, torch.stack([*totals.values()]).tolist(), strict=True)
    }


def checksum(tensor: Any) -> tuple[Shape, int]:
    """Return a tensor's shape, and the sum of its bytes as `_total` takes it."""
    return tuple(tensor.shape), int(_total(tensor)) % 2**64


def _total(tensor: Any, dtype: Any = None) -> Any:
    """Return the sum of the bytes as 64-bit integers modulo 2^64, each block times another odd number, on the device.

    A single change always shows; several go unseen with a probability of about 2^-64. A quantizer's own kind of tensor
    is taken by the tensors that it holds: to read it as bytes is not what it is made for.
    """
    import torch

    value = tensor.detach()
    if dtype is None and hasattr(value, "__tensor_flatten__"):
        held = [_total(getattr(value, name)) for name in value.__tensor_flatten__()[0]]
        return sum(total * (2 * number + 1) for number, total in enumerate(held))
    value = (value if dtype is None else value.to(dtype)).contiguous().view(-1)
    data = value.view(torch.uint8)
    whole = data[: data.numel() // 8 * 8].view(torch.int64)
    blocks = whole[: whole.numel() // _BLOCK * _BLOCK].view(-1, _BLOCK).sum(1)
    odd = 2 * torch.arange(len(blocks) + 1, device=data.device) + 1
    rest = whole[blocks.numel() * _BLOCK :].sum() * odd[-1] + data[whole.numel() * 8 :].to(torch.int64).sum()
    return (blocks * odd[:-1]).sum() + rest


_BLOCK = 2**16  # 64-bit integers


# --- the reference

# nats a token, of the same model and the same tokens: on a GPU sums may be taken in another order
_REFERENCE_ROUNDING = {"float32": 1e-4, "bfloat16": 0.02, "float16": 0.01}


def _reference_losses(run: Run, model: Any, dataset: Dataset) -> list[float]:
    """By the frozen weights in the reference's role; nothing of a stage that reads none there."""
    if not samples_answers(run.plan):
        return []
    from factory.rollouts import roles

    if not roles.reads_reference(run):
        return []
    with roles.reference(model):
        return token_losses(run, model, dataset.first.ids[:_TOKENS])


def _numbers_hold(run: Run, model: Any, dataset: Dataset, reference: Reference) -> tuple[bool, str]:
    """Whether the numbers that the loss has read of the first batch are still the reference's.

    Where it is the base without its adapter they are measured again. Otherwise it is gone, and they must be those that
    were written down before the first step.
    """
    import torch

    from factory.losses import sequence_log_probs
    from factory.rollouts import roles

    batch = next(iter(feed(run, dataset, 0, 1))).batches[0]
    numbers = reference.of(batch)
    if not is_bare_base(run):
        written = Reference(kept(run))
        same = written.sums.keys() >= set(keys_of(batch)) and bool(torch.equal(numbers, written.of(batch)))
        return (
            same,
            f"the numbers of {len(numbers)} sequences are {'' if same else 'not '}those of {run.folder.reference.name}",
        )
    multiplying_as_trained(model)
    with torch.no_grad(), autocast(run.plan), roles.reference(model):
        parts = [sequence_log_probs(model, part) for part in halves(batch)]
        again, counts = (torch.cat(each) for each in zip(*parts, strict=True))
    apart = float(((again - numbers).abs() / counts.clamp(min=1)).max())
    detail = f"the base's log-probabilities of {len(numbers)} sequences have moved by {apart:.2g} nats a token at most"
    return apart <= _REFERENCE_ROUNDING[precision(run.plan)], detail


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
        run.check("resume_point", False, f"{last.name} cannot be opened: {said(error)}")
        return
    wrong = [name for name in names if shapes.get(name) != tuple(tensors[name].shape)]
    detail = (
        f"{last.name} of {counted(steps, 'step')} opens, with {len(names) - len(wrong)} of {len(names)} trained tensors"
    )
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


def saved_type(run: Run, model: Any) -> Any:
    """The type that trained weights are cast to when they are saved; None: they are saved as they are."""
    import torch

    kept = run.plan.steps.train.autocast
    return None if kept is None or hasattr(model, "peft_config") else getattr(torch, kept)


def _check_saved(run: Run, model: Any, beside: list[str]) -> None:
    """Check that model/ holds the trained tensors bit for bit, reading and comparing one after the other.

    `beside` names the stage's heads. Left out where the files name every tensor otherwise than the model does.
    """
    try:
        same, wrong, left = _compared(run, model, beside)
    except Exception as error:  # whatever a library raises at what was saved is the verdict
        run.check("saved", False, f"what was saved cannot be read: {said(error)}")
        return
    if not same and not wrong:
        run.emit("note", text="model/ names all tensors otherwise than the model: checks=full compares them.")
        return
    more = f", {left} are saved in another form" if left else ""
    detail = f"{same} of {same + len(wrong)} trained tensors are in model/ as they were trained{more}"
    run.check("saved", not wrong, detail + _named(wrong))


def _compared(run: Run, model: Any, beside: list[str]) -> tuple[int, list[str], int]:
    """Return how many trained tensors are saved as they are, which are not, and how many are saved in another form.

    An adapter that is saved with its start beside it (`methods.lora.run.export`) is the first block of what is saved.
    transformers saves some models' tensors under other names, stacks of experts one by one; PEFT does not.
    """
    import torch
    from safetensors import safe_open

    folder, kept = run.folder.model, saved_type(run, model)
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    files: dict[Path, dict[str, Any]] = {
        folder / heads.file_of(name): {heads.TENSOR: trained.pop(name)} for name in beside if name in trained
    }
    adapter = hasattr(model, "peft_config")
    if adapter:
        from peft import get_peft_model_state_dict

        files[folder / "adapter_model.safetensors"] = get_peft_model_state_dict(model, save_embedding_layers=False)
    else:
        files |= dict.fromkeys(sorted(folder.glob("model*.safetensors")), trained)
    same, wrong, seen = 0, list[str](), set[str]()
    for file, tensors in files.items():
        with safe_open(file, framework="pt") as saved:
            for key in sorted(tensors.keys() & set(saved.keys())):
                value, part = tensors[key], saved.get_slice(key)
                block = part[tuple(map(slice, value.shape))] if value.ndim else saved.get_tensor(key)
                wanted = value if kept is None or key == heads.TENSOR else value.to(kept)
                alike = block.dtype == wanted.dtype and torch.equal(block.to(wanted.device), wanted)
                same += alike
                wrong += [] if alike else [key]
                seen.add(key)
    missing = {key for tensors in files.values() for key in tensors} - seen
    return same, wrong + sorted(missing if adapter else ()), 0 if adapter else len(missing)


def read_saved(run: Run) -> Any:
    """The model of the run's folder: whole weights, or the adapter on its base, with the heads beside them."""
    from transformers import AutoConfig

    plan, folder = run.plan.steps, run.folder.model
    adapter = (folder / "adapter_config.json").is_file()
    if adapter and plan.load.source == "folder" and not Path(plan.load.path).exists():
        raise FileNotFoundError(f"its base {plan.load.path} is gone")
    stretched, trust = base_config(folder), run.plan.settings.model.trust_remote_code
    at = stretched.parent if stretched.is_file() else source.folder(run) if adapter else folder
    revision = plan.load.revision if adapter and not stretched.is_file() else None
    config = AutoConfig.from_pretrained(at, revision=revision, trust_remote_code=trust)
    config._attn_implementation, config.use_cache = plan.patch.attention, False
    if adapter:
        quantization = quantize(run)["quantization"]
        own = has_own_base(run)
        base, _ = read_base(run, config, quantization, taking_out(folder) if own else None)
        replace_kernels(base, plan.patch)  # in 16 bits another order of sums moves single tokens by tenths of a nat
        model = saved_adapter.read(base, folder, wide=plan.attach.dtype == "float32")
        if own:
            own_base.forget_the_start(model)
    else:
        model, info = model_class(config).from_pretrained(
            folder, config=config, dtype="auto", trust_remote_code=trust, output_loading_info=True
        )
        if info["missing_keys"]:
            raise ValueError(f"its files lack {', '.join(sorted(info['missing_keys'])[:_NAMED])}")
        replace_kernels(model, plan.patch)
    heads.load(model, folder)
    return model.to(plan.load.device) if run.plan.settings.method.quantization.bits is None else model


def _as_expected(run: Run, model: Any, expected: Expected) -> tuple[bool, str]:
    """Whether a model is what is expected, and how near it is.

    Tensors that are saved in another form are not compared.
    """
    found = checksums(model, expected.trained)
    same = [name for name, (shape, _) in expected.trained.items() if name in found and found[name][0] == shape]
    wrong = [name for name in same if found[name] != expected.trained[name]]
    for name, value in model.named_parameters():  # in another type the same weights add up to other losses
        if value.dtype != expected.types.get(name, value.dtype):
            value.data = value.data.to(expected.types[name])
    # over 8-bit weights PEFT reads an adapter in float32, and a class its routers, whatever they were saved in
    again = checksums(model, wrong, saved_type(run, model))
    wrong = [name for name in wrong if again[name] != expected.trained[name]]
    # rounded weights: it shows in some tokens more than in others
    figure, how = ("mean_nats", "on average") if _are_rounded(run, model) else ("most_nats", "at most")
    apart = moved(token_losses(run, model, expected.ids), expected.losses)[figure]
    detail = f"losses of single tokens differ by {apart:.2g} nats {how}"
    if same:
        detail = f"{len(same) - len(wrong)} of {len(same)} trained tensors are the same, {detail}"
    return not wrong and apart <= TOKEN_ROUNDING[precision(run.plan)], detail + _named(wrong)


def _are_rounded(run: Run, model: Any) -> bool:
    """Whether what is read differs from what was trained by the rounding of its weights.

    A base that an adapter's start was taken out of was rounded again, and what is saved stands on the base before.
    """
    base = starts_from_weights(run) and not has_own_base(run) and run.plan.steps.load.dtype != "float32"
    return base or saved_type(run, model) is not None


_MERGED_TOKENS = 16
_MERGED_ROUNDING = 0.01  # of what an adapter adds to its layer's answer
_FLOAT32_ROUNDING = 1e-5  # of the answer
UNMERGEABLE = (ValueError, RuntimeError)  # what PEFT raises of an adapter that it cannot merge


class _CannotMerge(Exception):
    """A layer's adapter that PEFT does not merge."""


def _merges(run: Run, model: Any) -> bool:
    """Whether it is an adapter on a whole base: into a quantized one it could only be merged by quantizing anew.

    And one that the text of the proof goes through: beside a tower or a projector alone it changes no answer to it.
    """
    plan = run.plan.steps
    if "language" not in getattr(run.plan.settings.method, "parts", ("language",)):
        return False
    quantized = (
        run.plan.settings.method.quantization.bits is not None or checkpoint_quantizer(plan.load.config) is not None
    )
    return hasattr(model, "peft_config") and not quantized


def _merged_alike(run: Run, model: Any, ids: list[int]) -> tuple[bool, str]:
    """Whether each layer's merged weights answer as its adapter on its base does.

    Layer by layer, as the model's forward pass reaches it and with what goes in there, in float32: what a narrow type
    rounds away would hide a wrong scale, and the whole model in float32 may not fit. Held to the adapter's own part of
    the answer.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, float] = {}
    layers: dict[str, Any] = {name: part for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)}
    hooks = []
    for name, layer in layers.items():

        def compare(layer: Any, inputs: tuple[Any, ...], named: dict[str, Any], _output: Any, name: str = name) -> None:
            if name not in found:  # it is called again here
                found[name] = 0.0
                found[name] = _moved_by_merging(layer, inputs, named)

        hooks.append(layer.register_forward_hook(compare, with_kwargs=True))
    try:
        token_losses(run, model, ids[:_MERGED_TOKENS])
    except _CannotMerge as error:
        return False, f"the adapter cannot be merged: {error}"
    finally:
        for hook in hooks:
            hook.remove()
    wrong = [name for name, share in found.items() if not share <= _MERGED_ROUNDING]
    most = max(found.values(), default=0.0, key=_nan_is_most)
    detail = f"merging moves what adapters add by {100 * most:.2g} % at most, in {len(found)} of {len(layers)} layers"
    return bool(found) and not wrong, detail + _named(wrong)


def _moved_by_merging(layer: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> float:
    """The largest difference as a share of the adapter's largest part; what float32 itself rounds does not count."""
    import torch

    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def answer(module: Any) -> Any:
        given = module(*map(wide, inputs), **{name: wide(value) for name, value in named.items()})
        return given[0] if isinstance(given, tuple) else given

    device = next(layer.parameters()).device.type
    with torch.autocast(device, enabled=False), whole_float32():
        alike = copy.deepcopy(layer).float()  # a copy: layers of VeRA share what would be widened for the next ones
        alone, apart = answer(alike.get_base_layer()), answer(alike)
        try:
            alike.merge()
        except UNMERGEABLE as error:
            raise _CannotMerge(said(error)) from error
        merged = answer(alike)
    rounding = _FLOAT32_ROUNDING * float(apart.abs().max())
    off = max(0.0, float((merged - apart).abs().max()) - rounding)
    return off / max(float((apart - alone).abs().max()), rounding) if off else 0.0


def token_losses(run: Run, model: Any, ids: list[int], *, mixed: bool = True) -> list[float]:
    """Of each of the ids but the first, in nats, by the model's own logits; `mixed`: as the plan computes them."""
    import torch

    from factory.attention.segments import with_masks
    from factory.logits import text_model

    tokens = torch.tensor([ids], device=run.plan.steps.load.device)
    training = model.training
    model.eval()
    inner = text_model(model)
    with torch.no_grad(), autocast(run.plan) if mixed else nullcontext(), with_masks(inner):
        logits = inner(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    model.train(training)
    return losses.tolist()


def moved(losses: list[float], before: list[float]) -> dict[str, float]:
    """In nats a token: on average, and at most; NaN where there is one in them."""
    apart = [abs(one - other) for one, other in zip(losses, before, strict=True)]
    return {"mean_nats": sum(apart) / max(1, len(apart)), "most_nats": max(apart, default=0.0, key=_nan_is_most)}


def judged(apart: dict[str, float], dtype: str) -> tuple[float, float]:
    """What tells another model from another order of sums, and what is allowed of it.

    In 16 bits that is the average: of one model single tokens move by tenths of a nat there.
    """
    if dtype == "float32":
        return apart["most_nats"], TOKEN_ROUNDING[dtype]
    return apart["mean_nats"], _IN_16_BITS


def _nan_is_most(value: float) -> float:
    return inf if isnan(value) else value


def _named(names: list[str]) -> str:
    return f"; not {', '.join(names[:_NAMED])}" if names else ""


def said(error: Exception) -> str:
    """An error's kind and its first line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason is given")
    return f"{type(error).__name__}: {first}"
