"""One set of base weights in several roles: adapters are switched by PEFT, and frozen ones stand beside the trained.

The paper, section 4.3. The reference is the model before its first step: the base with its adapters off, or a frozen
copy of the trained adapter's start where that is not the bare base (docs/decisions/0010).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factory.config import registry
from factory.execute.context import Run
from factory.plan import heads
from factory.plan.plan import stage_keys
from factory.stages.rm.spec import SCORE

POLICY, REFERENCE, REWARD = "default", "reference", "reward"


def is_adapter(folder: str) -> bool:
    return (Path(folder) / "adapter_config.json").is_file()


def attach(run: Run, model: Any) -> None:
    """Adds the frozen adapters of the plan. What trains stays what it was."""
    plan = run.plan.steps
    wide = plan.attach.dtype == "float32"
    with _marks_kept(model):
        if plan.load.reward is not None and is_adapter(plan.load.reward):
            model.load_adapter(
                plan.load.reward, REWARD, torch_device=plan.load.device, autocast_adapter_dtype=wide, is_trainable=False
            )
            heads.load_one(model, SCORE, Path(plan.load.reward))
        if reads_reference(run) and starts_off_the_base(run):
            _copy_start(model, wide=wide)
    for name, parameter in model.named_parameters():
        if REWARD in name.split(".") or REFERENCE in name.split("."):
            parameter.requires_grad_(False)


def reads_reference(run: Run) -> bool:
    return registry.spec("stages", run.plan.settings.stage.name).reads_reference(stage_keys(run.plan))


def starts_off_the_base(run: Run) -> bool:
    """Whether the model before its first step is not the base with its adapters off."""
    from factory.steps.attach import starts_from_weights

    return run.plan.steps.load.adapter is not None or starts_from_weights(run)


def _copy_start(model: Any, *, wide: bool) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    config = copy.deepcopy(model.peft_config[POLICY])
    config.inference_mode = True
    model.add_adapter(REFERENCE, config, autocast_adapter_dtype=wide)
    start = get_peft_model_state_dict(model, adapter_name=POLICY, save_embedding_layers=False)
    result = set_peft_model_state_dict(model, start, adapter_name=REFERENCE)
    assert not result.unexpected_keys, result.unexpected_keys


@contextmanager
def reference(model: Any) -> Iterator[None]:
    """The model is its reference here."""
    with _marks_kept(model):
        if REFERENCE not in model.peft_config:
            with model.disable_adapter():
                yield
            return
        with _switched(model, REFERENCE):
            yield


@contextmanager
def reward(model: Any) -> Iterator[None]:
    """The model is the reward model here."""
    with _marks_kept(model), _switched(model, REWARD):
        yield


@contextmanager
def _switched(model: Any, adapter: str) -> Iterator[None]:
    model.set_adapter(adapter, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(POLICY)


@contextmanager
def _marks_kept(model: Any) -> Iterator[None]:
    """PEFT's switches say anew which tensors train, and not always as the method did."""
    marks = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, trains in marks:
            if parameter.requires_grad != trains:
                parameter.requires_grad_(trains)
