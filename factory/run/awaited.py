"""What a run will leave, by its plan, for the plans of those that read it: so they are refused before it is started."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factory.architecture import Architecture, architecture
from factory.config import registry
from factory.config.settings import Settings
from factory.methods.lora.targets import as_saved
from factory.plan import heads, vocabulary
from factory.plan.facts import AdapterFacts, Facts, ModelFacts, RewardFacts
from factory.plan.plan import Plan
from factory.plan.saved import BEFORE
from factory.rollouts.spec import Settings as Rollouts


@dataclass(frozen=True, slots=True)
class Awaited:
    """`model` is where it will be saved, `plan` of the run that will save it; None: that is refused."""

    model: Path
    plan: Plan | None


def as_model(awaited: Awaited, own: frozenset[str]) -> Callable[[Settings, Facts], tuple[Settings, Facts]]:
    """The settings and the facts as they are when the model goes on from it. `own` are keys that its run alone sets."""

    def with_it(settings: Settings, facts: Facts) -> tuple[Settings, Facts]:
        if awaited.plan is None or facts.model is None:
            return settings, facts
        arch = _trained(awaited.plan, facts.model)
        if (adapter := _adapter(awaited, arch)) is not None:
            asked = settings.model.model_copy(update={"adapter": str(awaited.model)})
            return settings.model_copy(update={"model": asked}), replace(
                facts, model=replace(facts.model, adapter=adapter)
            )
        there = replace(
            facts.model,
            source="folder",
            revision=None,
            fingerprint=awaited.plan.digest(),
            heads=heads.heads(awaited.plan.settings.stage.name, arch),
        )
        # the new tokens stay, as `there` is still the base: what it grows to is what was saved
        asked = (
            settings.model
            if "model.revision" in own
            else settings.model.model_copy(update={"revision": BEFORE["revision"]})
        )
        return settings.model_copy(update={"model": asked}), replace(facts, model=there)

    return with_it


def as_reward(awaited: Awaited) -> Callable[[Settings, Facts], tuple[Settings, Facts]]:
    """The settings and the facts as they are when its scores are learnt from."""

    def with_it(settings: Settings, facts: Facts) -> tuple[Settings, Facts]:
        if not isinstance(settings.stage, Rollouts):  # which is refused: the key is another stage's
            return settings, facts
        settings = settings.model_copy(
            update={"stage": settings.stage.model_copy(update={"reward_model": str(awaited.model)})}
        )
        if awaited.plan is None or facts.model is None:
            return settings, facts
        load, arch = awaited.plan.steps.load, _trained(awaited.plan, facts.model)
        adapter = _adapter(awaited, arch)
        reward = RewardFacts(
            path=str(awaited.model),
            adapter=adapter,
            config=None if adapter else load.config,
            shapes=adapter.shapes if adapter else dict(arch.tensors()),
            heads=heads.heads(awaited.plan.settings.stage.name, arch),
            base=load.fingerprint,
            fingerprint=awaited.plan.digest(),
        )
        return settings, replace(facts, reward=reward)

    return with_it


def _with_model(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"model": settings.model.model_copy(update=changes)})


def _trained(plan: Plan, model: ModelFacts) -> Architecture:
    """The architecture that the run trains."""
    read = model.walked or architecture(plan.steps.load.config)
    return heads.reached(plan.settings.stage.name, vocabulary.grown(read, vocabulary.as_said(plan.steps.patch)))


def _adapter(awaited: Awaited, arch: Architecture) -> AdapterFacts | None:
    """None where the run trains weights."""
    assert awaited.plan is not None
    steps, settings = awaited.plan.steps, awaited.plan.settings
    trained: Any = settings.method
    spec = registry.spec("methods", trained.name)
    if registry.hook(spec, "peft") is None:
        return None
    written = registry.hook(spec, "written", lambda method: method)(trained)
    shapes = registry.hook(spec, "saved", lambda method, arch: as_saved(spec.trainable(method, arch)))(written, arch)
    new = settings.model.new_tokens
    return AdapterFacts(
        path=str(awaited.model),
        config=spec.peft(written, arch),
        base=None,  # of stretched positions: they are still to be stretched here
        context_length=None,
        shapes=shapes,
        tokens=dict(zip(new, range(steps.patch.new_rows[1] - len(new), steps.patch.new_rows[1]), strict=True)),
        fingerprint=awaited.plan.digest(),
        heads=heads.heads(settings.stage.name, arch),
        started=trained.quantization.bits is not None and registry.starts_from_weights(spec, trained),
        base_kind=steps.load.config.get("model_type"),
    )
