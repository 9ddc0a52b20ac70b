"""Attach: reads the weights, once, as all steps before have said, and marks or adds what is trained."""

from typing import Any

from factory import registry
from factory.architecture import architecture
from factory.execute.context import Run
from factory.steps import source
from factory.steps.quantize import keep_gradients
from factory.typed import Reader


def attach(run: Run, patched: Any, quantization: Any, dataset: Any) -> dict[str, Any]:
    import torch

    plan = run.plan.steps
    torch.manual_seed(run.plan.seed)
    torch.set_num_threads(plan.train.threads)
    model = materialize(run, patched, quantization)
    settings = method_settings(run)
    model = registry.run("methods", plan.attach.method).attach(model, settings, plan.attach)
    dtype = getattr(torch, plan.attach.dtype)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    if plan.patch.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    _check_trainable(run, model, settings)
    return {"model": model}


def materialize(run: Run, config: Any, quantization: Any) -> Any:
    """The one place where weights are read."""
    import torch
    from transformers import AutoModelForCausalLM

    plan = run.plan.steps.load
    with source.readable(plan):
        model = AutoModelForCausalLM.from_pretrained(
            source.folder(run),
            revision=plan.revision,
            config=config,
            dtype=getattr(torch, plan.dtype),
            quantization_config=quantization,
            device_map={"": plan.device} if plan.device == "cuda" or quantization is not None else None,
            trust_remote_code=plan.trust_remote_code,
            use_safetensors=True,
        )
    if quantization is not None:
        keep_gradients(model)
    model.requires_grad_(False)
    return model


def method_settings(run: Run) -> Any:
    """The method's own settings, typed again from the plan."""
    reader = Reader()
    settings = reader.record(
        registry.spec("methods", run.plan.steps.attach.method).Settings, run.plan.steps.attach.settings, "method"
    )
    assert not reader.problems, reader.problems
    return settings


def _check_trainable(run: Run, model: Any, settings: Any) -> None:
    """What requires a gradient is exactly, by name and shape, what the plan's formula says."""
    spec = registry.spec("methods", run.plan.steps.attach.method)
    planned = spec.trainable(settings, architecture(run.plan.steps.load.config))
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found == planned, f"trainable tensors differ from the plan: {sorted(found.items() ^ planned.items())[:5]}"
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    run.check("trainable_as_planned", count == run.plan.steps.attach.trainable, f"{count:,} in {len(found)} tensors")
