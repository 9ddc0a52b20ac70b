"""Whether a saved adapter can be trained further, or measured, with this model and this method."""

from typing import Any

from factory.architecture.fit import times
from factory.config import registry
from factory.methods.lora.targets import as_saved
from factory.plan.rule import Case, rule

_CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
# of PEFT's config, what no method here sets: other scales of single layers, and tokens before which nothing is adapted
_NOT_OURS = ("alpha_pattern", "alora_invocation_tokens")


@rule(
    "adapter-fits",
    keys=("model.adapter", "model.path", "model.new_tokens", "method.name"),
    reason="an adapter trains further only where each of its tensors has its place and its effect",
    fix=(
        "use the base and the method settings (rank, alpha, target_modules …) that it was made with; one that pissa, "
        "olora or loftq started is saved as lora, of the rank and alpha that its adapter_config.json has"
    ),
)
def adapter_fits(case: Case) -> str | None:
    adapter, method = case.model.adapter, case.settings.method
    if adapter is None:
        return None
    if adapter.base_kind not in (None, kind := case.model.config.get("model_type")):
        base = adapter.config.get("base_model_name_or_path")
        return (
            f"it was trained on a {adapter.base_kind} model, {base}, and {case.settings.model.path} is a {kind} model"
        )
    spec = case.method_spec
    if registry.hook(spec, "ANY_ADAPTER"):
        return None
    if (peft := registry.hook(spec, "peft")) is None:
        return f"method={method.name} trains the model's own weights, not an adapter"
    if (wrong := _said_otherwise(adapter.config, peft(method, case.arch))) is not None:
        return wrong
    own = registry.hook(spec, "saved")
    wanted = own(method, case.arch) if own else as_saved(case.trained)
    if wanted == adapter.shapes:
        return None
    different = sorted(wanted.items() ^ adapter.shapes.items())[0][0]
    ours, theirs = wanted.get(different), adapter.shapes.get(different)
    return (
        f"its tensors are not those of method={method.name} on this model: {different} is "
        f"{times(theirs) if theirs else 'not there'}, {times(ours) if ours else 'nothing'} is needed"
    )


def _said_otherwise(saved: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """Where an adapter_config.json differs in what changes an adapter's effect: off, null and absent are the same."""
    start = str(saved.get("init_lora_weights"))
    if start.startswith(_CHANGE_THE_BASE):
        return f"its start ({start}) changed the base that it stands beside, which is not this one"
    names = [name for name in (*ours, *_NOT_OURS) if (saved.get(name) or None) != (ours.get(name) or None)]
    if not names:
        return None
    theirs, wanted = (" ".join(f"{name}={said.get(name)}" for name in names) for said in (saved, ours))
    return f"its adapter_config.json has {theirs}, this run {wanted}"
