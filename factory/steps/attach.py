"""Attach: reads the weights, once, as all steps before have said, and marks or adds what is trained."""

import copy
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from factory import own_base
from factory.ahead import card
from factory.architecture import FAMILIES, Architecture, architecture
from factory.architecture.fit import other_layers, other_shape, places_of
from factory.config import registry
from factory.config.refusal import refuse
from factory.execute.context import Run
from factory.execute.memory import is_exhausted
from factory.plan import heads
from factory.plan.vocabulary import as_said, grown
from factory.quantizers.spec import stays_quantized
from factory.ranks.spec import reads_on_host
from factory.steps import source, unsloth
from factory.steps.kernels import (
    compile_layers,
    drop_nothing,
    recompute,
    replace_kernels,
)
from factory.steps.quantize import after_reading, cast_what_is_whole, while_reading, whole
from factory.steps.vocabulary import grow
from factory.steps.walk import model_class, outside_linears, walk

_weights_fit = partial(
    refuse,
    "weights-fit",
    because="the weights are of another model than the config.json beside them",
    fix="restore both from the model's source",
)


def attach(run: Run, patched: Any, quantization: Any) -> dict[str, Any]:
    import torch

    plan = run.plan.steps
    random.seed(run.plan.settings.seed)
    np.random.seed(run.plan.settings.seed)
    torch.manual_seed(run.plan.settings.seed)
    torch.set_num_threads(plan.train.threads)
    settings, method = run.plan.settings.method, registry.run("methods", run.plan.settings.method.name)
    model, arch, started = materialize(run, patched, quantization, settings)
    if run.plan.export is not None:
        model = whole(model, torch.float32).float()
    if plan.train.reference is not None and drop_nothing(model):
        run.emit("note", text="The model's own dropout is off: its reference is read without.")
    if plan.patch.kernels == "unsloth":
        model = unsloth.attach(run, model, settings, arch)
    else:
        model = method.attach(model, settings, plan.attach, arch)
    if started is not None:
        method.begin(model, started)
    if plan.load.adapter is not None:
        model = _going_on(method, model, plan.load.adapter)
        if rebuilds(run):
            own_base.forget_the_start(model)
    dtype = getattr(torch, plan.attach.dtype)
    for parameter in [] if registry.hook(_spec(run), "copied") else model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    _add_heads(run, model, arch, dtype)
    if beside := registry.hook(registry.run("stages", run.plan.settings.stage.name), "attach"):
        beside(run, model)
    recompute(model, run.plan, arch)
    if run.plan.settings.compute.compile:
        compile_layers(model, arch)
    _check_trainable(run, model, settings, arch)
    if run.plan.settings.hardware.strategy == "fsdp":
        from factory.ranks.fsdp import Split

        run.way = Split(run, model)
    elif run.plan.settings.hardware.strategy == "zero3":
        from factory.ranks.zero import Zero3

        run.way = Zero3(run, model, arch)
    return {"model": model, "arch": arch}


def _going_on(method: Any, model: Any, adapter: str) -> Any:
    """The model with the saved adapter. Raises UserError for one of another model: a rule knows some before."""
    try:
        return method.go_on(model, adapter)
    except (RuntimeError, ValueError, KeyError) as error:
        if is_exhausted(error):
            raise
        raise refuse(
            "adapter-fits",
            f"model.adapter={adapter}",
            " ".join(str(error).split())[:300],
            because="an adapter trains further only where each of its tensors has its place and its effect",
            fix=(
                "use the base and the method settings (rank, alpha, target_modules …) that it was made with; one "
                "that pissa, olora or loftq started is saved as lora, of the rank and alpha that its "
                "adapter_config.json has"
            ),
        ) from error


def _add_heads(run: Run, model: Any, arch: Architecture, dtype: Any) -> None:
    """The stage's own, going on from those that lie beside the adapter or the weights."""
    plan = run.plan.steps
    folders = (plan.load.adapter, plan.load.path if plan.load.source == "folder" else None)
    saved_in = tuple(folder for folder in folders if folder is not None)
    shapes = heads.heads(run.plan.settings.stage.name, arch)
    heads.add(
        model,
        shapes,
        saved_in,
        dtype=dtype,
        device=plan.load.device,
        seed=run.plan.settings.seed,
        start=heads.start(run.plan.settings.stage.name),
    )


def materialize(run: Run, config: Any, quantization: Any, settings: Any) -> tuple[Any, Architecture, Any]:
    """The one place where weights are read. The model, what it is, and how the method's own tensors start, or None.

    A method that starts from the weights takes its start out of them while they are whole.
    """
    plan, started = run.plan.steps, list[Any]()

    def start(model: Any, arch: Architecture) -> None:
        method = registry.run("methods", run.plan.settings.method.name)
        started.append(method.initialize(model, settings, run.plan.settings.method.quantization, arch))

    take = taking_out(plan.load.adapter) if rebuilds(run) else None
    model, arch = read_base(run, config, quantization, start if starts_from_weights(run) else take)
    if while_reading(quantization) is not None:
        _let_go_of_file(model)
    replace_kernels(model, plan.patch)
    model.requires_grad_(False)
    return model, arch, started[0] if started else None


Take = Callable[[Any, Architecture], None]


def taking_out(adapter: Path | str | None) -> Take:
    """Takes out of the whole weights what the run that saved the adapter had taken out of them."""
    return lambda model, _: own_base.take_out(model, Path(adapter or ""))


def read_base(run: Run, config: Any, quantization: Any, take: Take | None) -> tuple[Any, Architecture]:
    """The base as it is held. `take` takes out of the whole weights what they are then quantized without."""
    import torch

    plan, held = run.plan.steps, while_reading(quantization)
    model = read_weights(run, config, held if take is None else None)
    grow(model, as_said(plan.patch), run.plan.settings.seed)
    arch = as_planned(run, model)
    if take is not None:
        take(model, arch)
        model = model if held is None else read_weights(run, config, held, rest=model)
    after_reading(model, quantization, arch.linears())
    if plan.load.read_as != plan.load.dtype:
        cast_what_is_whole(model, getattr(torch, plan.load.dtype))
    return model, arch


def has_own_base(run: Run) -> bool:
    """Whether the run's adapter has a base to itself: its start leaves the weights before these are quantized."""
    return run.plan.settings.method.quantization.bits is not None and starts_from_weights(run)


def starts_from_weights(run: Run) -> bool:
    """Whether the run's method takes its start out of the weights."""
    return registry.starts_from_weights(_spec(run), run.plan.settings.method)


def rebuilds(run: Run) -> bool:
    """Whether the base that the plan's adapter has to itself is made again."""
    return run.plan.steps.load.own_base == "rebuilt"


def read_weights(run: Run, config: Any, held: Any, rest: Any = None) -> Any:
    """The model in the type that the plan reads, quantized as `held` says; of `rest` instead of the saved weights."""
    import torch

    plan = run.plan.steps.load  # transformers reads tensors in threads
    sharded = run.plan.steps.train.ranks.sharded_loading
    on_card = plan.device == "cuda" and not reads_on_host(run.plan, starts=starts_from_weights(run))
    common: dict[str, Any] = {
        "dtype": getattr(torch, plan.read_as),
        "quantization_config": _of_decoder(held, run, config),
        "device_map": {"": card(plan.device)} if (on_card and not sharded) or held is not None else None,
    }
    if run.plan.steps.patch.kernels == "unsloth":
        return unsloth.read(run, common["quantization_config"])
    if sharded:
        from factory.ranks.sharded import distributed

        common["distributed_config"] = distributed(run.plan)
    if rest is not None:
        model = type(rest).from_pretrained(None, config=rest.config, state_dict=rest.state_dict(), **common)
        model.name_or_path = model.config._name_or_path = rest.name_or_path
        return model
    with source.readable(plan, allow_pickle=run.plan.settings.model.allow_pickle):
        model, info = model_class(config).from_pretrained(
            source.folder(run),
            revision=plan.revision,
            config=config,
            trust_remote_code=run.plan.settings.model.trust_remote_code,
            use_safetensors=None if run.plan.settings.model.allow_pickle else True,
            ignore_mismatched_sizes=True,  # else all that is raised is that there are some
            output_loading_info=True,
            **common,
        )
    _check_fit(run, model, info)
    if sharded:
        from factory.ranks.sharded import without_hooks

        model = without_hooks(model)
    return model


def _check_fit(run: Run, model: Any, info: dict[str, Any]) -> None:
    """What of its files transformers did not read as they are, and says in a log line at most.

    Of a folder's files most of it is refused before; the hub's are not here then.
    """
    plan = run.plan.steps.load
    setting = f"model.path={plan.path}"
    if info["mismatched_keys"]:
        raise _weights_fit(setting, other_shape(*min(info["mismatched_keys"])))
    source.refuse_missing(info["missing_keys"], plan.path)
    if info["unexpected_keys"] and not plan.config.get("quantization_config"):  # left out
        arch = walk(model)
        places = places_of(info["unexpected_keys"], arch)
        beyond = {name: each for name, each in places.items() if max(each) >= arch.layers}
        if (wrong := other_layers(beyond, arch, plan.config)) is not None:
            raise _weights_fit(setting, wrong)
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    for name in sorted(tied.keys() - model.all_tied_weights_keys.keys()):  # not made one
        raise refuse(
            "weights-untied",
            setting,
            f"its config.json ties {name} to {tied[name]}, and its files differ in them",
            because="a tied head is the embedding, and only who made the model knows which of the two was meant",
            fix=(
                'set "tie_word_embeddings": false in the config.json of its folder (of a model on the hub: of a '
                "copy of it), which reads both as they are; or restore its files from the model's source"
            ),
        )


def _let_go_of_file(model: Any) -> None:
    """What was not quantized is copied: it lies in the mapped file, all of which stays resident otherwise."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


_STAYS_WHOLE = {"bitsandbytes": "llm_int8_skip_modules"}  # each library's word for it, where it has its own


def _of_decoder(held: Any, run: Run, config: Any) -> Any:
    """`held` for the decoder's linear layers alone, as the plan counts them: all others are named as exceptions.

    By themselves the libraries would quantize a vision tower, its projector and routers too.
    """
    asked = run.plan.settings.method.quantization
    if held is None or asked.bits is None:  # a quantized checkpoint says itself what of it is quantized
        return held
    narrowed, key = (
        copy.copy(held),
        _STAYS_WHOLE.get(asked.method, "modules_to_not_convert"),
    )
    setattr(narrowed, key, outside_linears(config, trust_remote_code=run.plan.settings.model.trust_remote_code))
    return narrowed


def _spec(run: Run) -> Any:
    return registry.spec("methods", run.plan.settings.method.name)


def as_planned(run: Run, model: Any) -> Architecture:
    """The architecture that the plan was made from, held against the model that was built: names, layers, shapes.

    What the stage never reaches is fixed in it, as in the plan.
    """
    return heads.reached(run.plan.settings.stage.name, _as_built(run, model))


def _as_built(run: Run, model: Any) -> Architecture:
    config, rows = run.plan.steps.load.config, as_said(run.plan.steps.patch)
    built = grown(walk(model), rows)
    if config["model_type"] not in FAMILIES:  # planned by the same walk, of the model on the meta device
        return built
    planned = grown(architecture(config), rows)
    assert planned.linears() == built.linears(), sorted(planned.linears().items() ^ built.linears().items())[:5]
    if not stays_quantized(
        run.plan.settings.method.quantization, config
    ):  # quantized weights lie in other shapes, under other names
        ours, theirs = dict(planned.tensors()), dict(built.tensors())
        assert ours == theirs, sorted(ours.items() ^ theirs.items())[:5]
    return planned


def _check_trainable(run: Run, model: Any, settings: Any, arch: Architecture) -> None:
    """What requires a gradient is exactly, by name and shape, what the plan's formula says."""
    planned = _spec(run).trainable(settings, arch) | heads.heads(run.plan.settings.stage.name, arch)
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found == planned, f"trainable tensors differ from the plan: {sorted(found.items() ^ planned.items())[:5]}"
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    run.check("trainable_as_planned", count == run.plan.steps.attach.trainable, f"{count:,} in {len(found)} tensors")
