"""Attach: reads the weights, once, as all steps before have said, and marks or adds what is trained."""

from typing import Any

from factory import registry
from factory.architecture import FAMILIES, Architecture, architecture
from factory.execute.context import Run
from factory.steps import source
from factory.steps.quantize import after_reading, while_reading
from factory.steps.vocabulary import as_said, grow, grown
from factory.steps.walk import model_class, walk
from factory.typed import Reader


def attach(run: Run, patched: Any, quantization: Any, dataset: Any) -> dict[str, Any]:
    import torch

    plan = run.plan.steps
    torch.manual_seed(run.plan.seed)
    torch.set_num_threads(plan.train.threads)
    settings, method = method_settings(run), registry.run("methods", plan.attach.method)
    model, arch, first = materialize(run, patched, quantization, settings)
    model = method.attach(model, settings, plan.attach, arch)
    if first:
        method.begin(model, first)
    if plan.load.adapter is not None:
        method.go_on(model, plan.load.adapter)
    dtype = getattr(torch, plan.attach.dtype)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    if plan.patch.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    _check_trainable(run, model, settings, arch)
    return {"model": model, "arch": arch}


def materialize(run: Run, config: Any, quantization: Any, settings: Any) -> tuple[Any, Architecture, dict[str, Any]]:
    """The one place where weights are read. The model, what it is, and where the method's own tensors start, by name.

    A method that starts from the weights gets them whole: what it leaves of them is then quantized.
    """
    method, held = registry.run("methods", run.plan.steps.attach.method), while_reading(quantization)
    from_weights = "initialize" in method.__all__ and _spec(run).starts_from_weights(settings)
    model = _read(run, config, None if from_weights else held)
    grow(model, as_said(run.plan.steps.patch), run.plan.seed)
    arch = as_planned(run, model)
    first = method.initialize(model, settings, run.plan.steps.quantize, arch) if from_weights else {}
    if from_weights and held is not None:
        model = _read(run, config, held, rest=model)
    after_reading(model, quantization, arch.linears())
    model.requires_grad_(False)
    return model, arch, first


def _read(run: Run, config: Any, held: Any, rest: Any = None) -> Any:
    """The model in the plan's type, quantized as `held` says; with the weights of `rest` instead of the saved ones."""
    import torch

    plan = run.plan.steps.load
    common: dict[str, Any] = {
        "dtype": getattr(torch, plan.dtype),
        "quantization_config": held,
        "device_map": {"": plan.device} if plan.device == "cuda" or held is not None else None,
    }
    if rest is not None:
        model = type(rest).from_pretrained(None, config=rest.config, state_dict=rest.state_dict(), **common)
        model.name_or_path = model.config._name_or_path = rest.name_or_path
        return model
    with source.readable(plan):
        return model_class(config).from_pretrained(
            source.folder(run),
            revision=plan.revision,
            config=config,
            trust_remote_code=plan.trust_remote_code,
            use_safetensors=None if plan.allow_pickle else True,
            **common,
        )


def method_settings(run: Run) -> Any:
    """The method's own settings, typed again from the plan."""
    reader = Reader()
    settings = reader.record(_spec(run).Settings, run.plan.steps.attach.settings, "method")
    assert not reader.problems, reader.problems
    return settings


def _spec(run: Run) -> Any:
    return registry.spec("methods", run.plan.steps.attach.method)


def as_planned(run: Run, model: Any) -> Architecture:
    """The architecture that the plan was made from, held against the model that was built: names, layers, shapes."""
    config, rows = run.plan.steps.load.config, as_said(run.plan.steps.patch)
    built = grown(walk(model), rows)
    if config["model_type"] not in FAMILIES:  # planned by the same walk, of the model on the meta device
        return built
    planned = grown(architecture(config), rows)
    assert planned.linears() == built.linears(), sorted(planned.linears().items() ^ built.linears().items())[:5]
    shaped = run.plan.steps.quantize.bits is None  # a quantized weight lies in another shape
    ours, theirs = dict(planned.tensors()), dict(built.tensors())
    assert ours == theirs if shaped else ours.keys() == theirs.keys(), sorted(ours.items() ^ theirs.items())[:5]
    return planned


def _check_trainable(run: Run, model: Any, settings: Any, arch: Architecture) -> None:
    """What requires a gradient is exactly, by name and shape, what the plan's formula says."""
    planned = _spec(run).trainable(settings, arch)
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found == planned, f"trainable tensors differ from the plan: {sorted(found.items() ^ planned.items())[:5]}"
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    run.check("trainable_as_planned", count == run.plan.steps.attach.trainable, f"{count:,} in {len(found)} tensors")
