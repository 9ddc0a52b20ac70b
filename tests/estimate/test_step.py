"""What a tape says of a training step against what torch keeps and allocates in one."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
from allocated import most_allocated
from conftest import compiled

from factory.architecture import architecture
from factory.config import registry
from factory.estimate.step import Step, step
from factory.plan.plan import Plan

ROWS, LENGTH = 2, 192
_OF_PRODUCTS = 320_000  # bytes: what torch.mm takes for itself here, and no tape knows
SIZES = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 8, "num_key_value_heads": 2}
ALL_HEADS = {**SIZES, "num_key_value_heads": 8}
KINDS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "qwen3": {**SIZES, "head_dim": 16},
    "gemma": {**SIZES, "head_dim": 16},
    "gemma2": {**SIZES, "head_dim": 16},
    "gemma3_text": {**SIZES, "head_dim": 16},
    "olmo2": SIZES,
    "phi": ALL_HEADS,
    "phi3": ALL_HEADS,
    "gpt_neox": ALL_HEADS,
    "bloom": ALL_HEADS,
    "tied": {**SIZES, "model_type": "llama", "tie_word_embeddings": True},
    "deep": {**SIZES, "model_type": "llama", "num_hidden_layers": 12},
    "odd heads": {**SIZES, "model_type": "llama", "hidden_size": 96, "num_attention_heads": 6},
}


@dataclass
class Found:
    saved: int  # bytes that autograd keeps at the forward pass's end
    peak: int  # the most that torch's allocator had out in a step


@cache
def _folder(root: Path, kind: str) -> Path:
    return tiny.save(root / kind, **{"model_type": kind, **KINDS[kind]})


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("estimate")


def _plan(models: Path, kind: str, words: str) -> Plan:
    return compiled(
        f"model.path={_folder(models, kind)}",
        "hardware=cpu",
        f"data.max_length={LENGTH}",
        *words.split(),
        training=False,
    )


def _estimated(plan: Plan) -> Step:
    spec = registry.spec("methods", plan.settings.method.name)
    arch, settings = architecture(plan.steps.load.config), _settings(plan)
    stage = registry.spec("stages", plan.settings.stage.name)
    reads = registry.hook(stage, "READS", "tokens")
    shapes = spec.trainable(settings, arch)
    kept = registry.hook(spec, "kept", lambda *_: {})(settings, shapes, arch, plan)
    return step(arch, shapes, plan, settings, rows=ROWS, length=LENGTH, reads=reads, kept=kept)


def _settings(plan: Plan) -> Any:
    return plan.settings.method


def _measured(plan: Plan, *, peak: bool) -> Found:
    """Of the model of the plan, its method attached, in a batch of tokens drawn at random."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks
    from transformers import AutoModelForCausalLM

    from factory import attention
    from factory.steps.kernels import recompute, replace_kernels

    steps = plan.steps
    attention.register(steps.patch.attention, steps.patch.group_size)
    kind = getattr(torch, steps.load.dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(
        steps.load.path, dtype=kind, attn_implementation=steps.patch.attention
    )
    replace_kernels(model, steps.patch)
    model.requires_grad_(False)
    arch = architecture(steps.load.config)
    model = registry.run("methods", plan.settings.method.name).attach(model, _settings(plan), steps.attach, arch)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, steps.attach.dtype))
    recompute(model, plan, arch)
    model.train()
    projecting = _project(plan, model, arch)
    held = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def pack(value: Any) -> Any:
        storage = value.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage
        return value

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 512, (ROWS, LENGTH), generator=generator)
    with saved_tensors_hooks(pack, lambda value: value):
        loss = _loss(plan, model, ids)
    saved = sum(storage.nbytes() for storage in kept.values())
    kept.clear()
    del loss
    found = Found(saved, _peak(plan, model, ids) if peak else 0)
    del projecting  # a model does not hold it
    return found


def _project(plan: Plan, model: Any, arch: Any) -> Any:
    """What projects gradients in the backward pass, with projectors that are there; None where nothing does."""
    import torch

    if plan.settings.method.name != "galore":
        return None
    made = registry.run("methods", "galore").optimizer(model, _settings(plan), plan, arch)
    for name, matrix in made._low.matrices.items():
        side = min(matrix.shape)
        made._low.steps[name], made._low.projectors[name] = 1, torch.eye(side, min(side, made._low.rank))
    return made


def _loss(plan: Plan, model: Any, ids: Any) -> Any:
    import torch

    from factory import losses

    reads = registry.hook(registry.spec("stages", plan.settings.stage.name), "READS", "tokens")
    kind = plan.steps.train.autocast
    with torch.autocast("cpu", getattr(torch, kind or "float32"), enabled=kind is not None):
        batch = {"input_ids": ids, "labels": ids}
        if plan.steps.pack.isolate_documents:  # two in each row
            batch["position_ids"] = torch.arange(LENGTH // 2).repeat(ROWS, 2)
            batch["sequence_lengths"] = (LENGTH // 2,) * (2 * ROWS)
        return losses.causal_lm(model, batch) if reads == "tokens" else losses.sequence_log_probs(model, batch)[0].sum()


def _peak(plan: Plan, model: Any, ids: Any) -> int:
    return most_allocated(lambda: _loss(plan, model, ids).backward())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_kept_is_what_autograd_keeps(models: Path, kind: str, method: str) -> None:
    plan = _plan(models, kind, f"method={method} stage=pt precision=bf16")
    assert _estimated(plan).saved == pytest.approx(_measured(plan, peak=False).saved, rel=0.02)


@pytest.mark.parametrize(
    "words",
    [
        "method=lora precision=fp32",
        "method=lora precision=pure_bf16",
        "method=lora precision=bf16 method.dropout=0.1",
        "method=lora precision=bf16 compute.attention=eager",
        "method=lora precision=bf16 stage=dpo",
        "method=full precision=fp32",
        "method=full precision=pure_bf16",
        "method=full precision=bf16 stage=orpo",
        "method=freeze method.num_layers=1 precision=bf16",
        "method=oft precision=bf16",
        "method=vera precision=bf16",
        "method=ia3 precision=bf16",
        "method=loha precision=bf16",
        "method=lokr precision=bf16",
        *(f"method={method} precision=fp32" for method in ("oft", "vera", "ia3", "loha", "lokr")),
    ],
)
def test_a_step_is_what_torch_allocates(models: Path, words: str) -> None:
    _allocates(models, "llama", words)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_head_that_is_the_embedding_has_one_gradient(models: Path, precision: str) -> None:
    _allocates(models, "tied", f"method=full precision={precision}")


@pytest.mark.parametrize("precision", ["fp32", "pure_bf16"])
def test_of_a_projected_gradient_little_stays(models: Path, precision: str) -> None:
    """Where layers are recomputed, gradients are most of what a step takes."""
    words = f"method=galore method.rank=8 precision={precision} stage=pt compute.activation_checkpointing=true"
    plan = _plan(models, "deep", words)
    said = _estimated(plan)
    assert max(said.forward, said.backward) == pytest.approx(_measured(plan, peak=True).peak, rel=0.05)


@pytest.mark.parametrize("kind", ["llama", "phi"])  # with keys for two heads, and for all
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "per_document"])
def test_isolated_documents_are_what_torch_allocates(models: Path, attention: str, precision: str, kind: str) -> None:
    """Where a mask of each row is built, and where none is."""
    words = f"method=lora precision={precision} stage=pt data.isolate_documents=true"
    _allocates(models, kind, f"{words} compute.attention={attention}", 0.06)


def test_a_mask_costs_what_it_holds(models: Path) -> None:
    """The square of a row in each layer, and keys for each head of queries."""
    words = "method=lora precision=bf16 stage=pt data.isolate_documents=true compute.attention="
    masked, free = (_estimated(_plan(models, "llama", f"{words}{name}")).saved for name in ("sdpa", "per_document"))
    layers, narrow = 2, 2
    repeated = 2 * ROWS * LENGTH * (8 - 2) * 16 * narrow
    laid_out = ROWS * LENGTH * 128 * narrow
    assert masked - free >= layers * (ROWS * LENGTH**2 * narrow + repeated)
    assert masked - free <= layers * (ROWS * LENGTH**2 * narrow + repeated + laid_out)


@pytest.mark.parametrize("kind", ["llama", "odd heads"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_attention_in_groups_is_what_torch_allocates(models: Path, precision: str, kind: str) -> None:
    """Of 6 heads with 2 of keys, both halves share one."""
    _allocates(models, kind, f"method=lora precision={precision} compute.attention=s2 compute.group_size=48", 0.05)


def _allocates(models: Path, kind: str, words: str, near: float = 0.02) -> None:
    plan = _plan(models, kind, words if "stage=" in words else f"{words} stage=pt")
    found, said = _measured(plan, peak=True), _estimated(plan)
    assert said.saved == pytest.approx(found.saved, rel=near)
    assert max(said.forward, said.backward) == pytest.approx(found.peak, rel=0.08, abs=_OF_PRODUCTS)


@pytest.mark.parametrize("kind", [True, "selective"])
@pytest.mark.parametrize("layers", [1, 11])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_of_some_layers_the_others_keep_theirs(models: Path, method: str, layers: int, kind: bool | str) -> None:
    words = f"method={method} precision=bf16 stage=pt compute.activation_checkpointing={str(kind).lower()}"
    plan = _plan(models, "deep", f"{words} compute.recomputed_layers={layers} compute.attention=sdpa")
    said = _estimated(plan)
    assert max(said.forward, said.backward) == pytest.approx(_measured(plan, peak=True).peak, rel=0.08)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("kind", [True, "selective"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("attention", ["sdpa", "per_document"])
def test_recomputed_layers_are_there_one_at_a_time(
    models: Path, method: str, kind: bool | str, precision: str, attention: str
) -> None:
    words = f"method={method} precision={precision} stage=pt compute.activation_checkpointing={str(kind).lower()}"
    plan = _plan(models, "llama", f"{words} compute.attention={attention}")
    said = _estimated(plan)
    assert max(said.forward, said.backward) == pytest.approx(_measured(plan, peak=True).peak, rel=0.08)
