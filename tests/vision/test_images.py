"""With images or audios in the batch: the loss is the model's own, and just the named parts of the model learn."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sights
import torch
from conftest import compiled
from torch.nn import functional

from factory.architecture import FAMILIES, architecture
from factory.config import registry
from factory.losses import causal_lm, heads_agree
from factory.methods.lora.targets import PREFIX
from factory.methods.parts import part_of

METHODS = {"full": (), "freeze": ("method.num_layers=2",), "lora": ("method.rank=4",)}
PARTS: list[tuple[str, ...]] = [("language",), ("tower",), ("projector",), ("language", "tower", "projector")]
NO_LAYER = ("gemma3", "lora", "projector")  # it is a matrix of its own: there is no layer that LoRA could stand beside
CASES = [
    (kind, method, parts)
    for kind in sights.SIGHTS
    for method in METHODS
    for parts in (tuple(part.replace("tower", sights.SIGHTS[kind].tower) for part in parts) for parts in PARTS)
    if (kind, method, *parts) != NO_LAYER
]


def settings_of(plan: Any, parts: tuple[str, ...]) -> Any:
    """The method's settings with these parts: no data set has images yet, so that no command line can say so."""
    return plan.settings.method.model_copy(update={"parts": parts})


@pytest.mark.parametrize("kind", sights.SIGHTS)
def test_the_loss_and_its_gradients_are_the_models_own(kind: str) -> None:
    model = sights.built(kind).double().requires_grad_(True).train()
    batch = {name: value.double() if value.is_floating_point() else value for name, value in sights.batch(kind).items()}
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[:, :-1]
    own = functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="sum")
    mine = causal_lm(model, batch | {"labels": labels})
    torch.testing.assert_close(mine, own, rtol=1e-12, atol=1e-12)
    trained = dict(model.named_parameters())
    fixed = architecture(model.config.to_dict()).fixed
    slopes = [torch.autograd.grad(loss, list(trained.values()), allow_unused=True) for loss in (mine, own)]
    for name, left, right in zip(trained, *slopes, strict=True):
        assert (left is None) == (right is None), name
        assert left is not None or name in fixed, name
        if left is not None:
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        values = sights.SIGHTS[kind].values
        other = causal_lm(model, batch | {"labels": labels, values: batch[values].flip(0)})
    assert abs(other - mine) > 1e-4, "what is beside the text is not read"


@pytest.mark.parametrize(("kind", "method", "parts"), CASES)
def test_the_named_parts_alone_learn(kind: str, method: str, parts: tuple[str, ...], tiny_model: Path) -> None:
    """Two steps, as the first of LoRA moves only B."""
    plan = compiled(f"model.path={tiny_model}", "hardware=cpu", "precision=fp32", f"method={method}", *METHODS[method])
    settings, run = settings_of(plan, parts), registry.run("methods", method)
    model = sights.built(kind)
    assert kind in FAMILIES
    arch = architecture(model.config.to_dict())
    model = run.attach(model, settings, plan.steps.attach, arch)
    optimizer = run.optimizer(model, settings, plan, arch)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    before, alive = {name: value.detach().clone() for name, value in model.named_parameters()}, set[str]()
    for _ in range(2):
        causal_lm(model.train(), sights.batch(kind)).backward()
        alive |= {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
        optimizer.step()
        optimizer.zero_grad()
    planned = registry.spec("methods", method).trainable(settings, arch)
    without = {NO_LAYER[2]} if (kind, method) == NO_LAYER[:2] else set()
    assert {part_of(name.removeprefix(PREFIX), arch) for name in planned} == set(parts) - without
    assert alive == set(planned)
    assert {name for name, value in model.named_parameters() if not value.equal(before[name])} == set(planned)


HEAD = {"vision_config": sights.SIGLIP | {"vision_use_head": True}}
MASKED = {"vision_config": {"use_mask_token": True, "use_mean_pooling": False}}
FEATURES = [
    *[("llava", {"vision_feature_layer": layer}) for layer in (-3, -1, 1, [0, -2], [-1, 1])],
    *[
        ("llava", {**HEAD, "vision_feature_select_strategy": "full", "vision_feature_layer": layer})
        for layer in (-2, -1)
    ],
    *[("internvl", {**MASKED, "vision_feature_layer": layer}) for layer in (-2, -1, 2)],
    *[(kind, HEAD) for kind in ("paligemma", "gemma3")],
]


@pytest.mark.parametrize(("kind", "changes"), FEATURES)
def test_what_no_feature_follows_from_is_fixed(kind: str, changes: dict[str, Any]) -> None:
    model = sights.built(kind, changes).requires_grad_(True)
    batch = sights.batch(kind)
    causal_lm(model, batch).backward()
    dead = {name for name, value in model.named_parameters() if value.grad is None}
    assert dead and dead == set(architecture(model.config.to_dict()).fixed)


@pytest.mark.parametrize("parts", [("language",), ("language", "vision", "audio", "projector")])
@pytest.mark.parametrize("kind", ["llava", "idefics3", "gemma3", "qwen2_vl", "qwen2_audio"])
def test_recomputed_activations_give_the_same_gradients(kind: str, parts: tuple[str, ...], tiny_model: Path) -> None:
    from factory.steps.kernels import recompute

    plan = compiled(
        f"model.path={tiny_model}", "hardware=cpu", "precision=fp32", "compute.activation_checkpointing=true"
    )
    settings, slopes = settings_of(plan, parts), []
    for again in (False, True):
        model = sights.built(kind)
        torch.manual_seed(1)
        arch = architecture(model.config.to_dict())
        model = registry.run("methods", "lora").attach(model, settings, plan.steps.attach, arch)
        for name, value in model.named_parameters():
            if ".lora_B." in name:
                value.data.normal_(std=0.1)
        calls: list[str] = []
        layers = model.get_base_model().get_submodule(arch.layers_at)
        layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append("computed"))
        if again:
            recompute(model, plan, arch)
        causal_lm(model.train(), sights.batch(kind)).backward()
        assert len(calls) == 1 + again
        slopes.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert slopes[0].keys() == slopes[1].keys()
    for name, slope in slopes[0].items():
        torch.testing.assert_close(slopes[1][name], slope, rtol=1e-5, atol=1e-6)


def test_llama4_reads_text_by_its_language_model() -> None:
    """transformers 5.24 cannot call its class that sees; a text goes through the language model alone."""
    from families import built_of, of

    model = built_of(of("llama4"), "cpu").double().requires_grad_(False)
    assert type(model).__name__ == "Llama4ForConditionalGeneration"
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(2))
    embedded = model.get_input_embeddings()(ids)
    logits = model.language_model(inputs_embeds=embedded, use_cache=False).logits[:, :-1]
    own = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="sum")
    text = {"input_ids": ids, "labels": ids}
    torch.testing.assert_close(causal_lm(model, text), own, rtol=1e-12, atol=1e-12)
    assert heads_agree(model, text) < 1e-12
    with pytest.raises(AssertionError, match="no notice of an image"):
        causal_lm(model, text | {"pixel_values": sights.pixels(2).double()})


@pytest.mark.parametrize("kind", sights.SIGHTS)
def test_what_is_frozen_is_not_walked_back(kind: str) -> None:
    """Checkpointing or not, a frozen tower and the layers below the lowest trained one keep no graph."""
    from types import SimpleNamespace

    from factory.plan.plan import Patch
    from factory.steps.kernels import recompute

    graphs: list[set[str]] = []
    for again in (False, True):
        model, graph = sights.built(kind), set[str]()
        arch = architecture(model.config.to_dict())
        for name in arch.layer_tensors(1):
            model.get_parameter(name).requires_grad_(True)
        patch: Any = SimpleNamespace(activation_checkpointing=again, recomputed_layers=None)
        patch.recomputed = partial(Patch.recomputed, patch)
        compute = SimpleNamespace(compile=False)
        steps = SimpleNamespace(patch=patch, load=SimpleNamespace(device="cpu"))
        plan: Any = SimpleNamespace(settings=SimpleNamespace(compute=compute), steps=steps)
        recompute(model, plan, arch)
        for name in arch.linears() | arch.part_linears:

            def look(_module: Any, _given: Any, out: Any, name: str = name, graph: set[str] = graph) -> None:
                graph.update({name} if out.requires_grad else ())

            model.get_submodule(name).register_forward_hook(look)
        causal_lm(model.train(), sights.batch(kind)).backward()
        graphs.append(graph)
    assert graphs[0] == graphs[1] == {f"{arch.layers_at}.1.{name}" for name in arch.blocks[1].linears}
