"""How far an export is from its run, where the adapter has a base to itself: by the losses that the run has left."""

import copy
import gc
from pathlib import Path
from typing import Any

from factory import own_base
from factory.config.refusal import refuse
from factory.execute.context import Run
from factory.own_base import OwnBase
from factory.steps.attach import attach
from factory.steps.proofs import judged, moved, token_losses

# mean nats a token that another base may move the losses by, by the bits of the run's own: a guard against what is
# wrong, not a measure of how good it is
_PUBLISHED = {4: 1.5, 8: 0.3}
_IN_INTEGERS = ("bitsandbytes", 8)  # computes with 8-bit activations too (LLM.int8), an export with whole ones
_WHOLE, _QUANTIZED = "in full precision", "quantized"


def merged(run: Run, model: Any) -> str:
    """Holds a merged model against its run; what the card says of it. Raises UserError where it is another."""
    own = _own_base(run)
    if run.plan.steps.load.own_base is None:
        return ""
    if own is None:
        run.emit("note", text="The run left no losses: how far this is from it is not known.")
        return _UNKNOWN if run.plan.steps.load.own_base == "published" else ""
    apart = moved(token_losses(run, model, list(own.ids), mixed=False), list(own.losses))
    if run.plan.steps.load.own_base == "published":
        _check(run, {_WHOLE: apart}, own)
        return f"{_NOT_EXACT}: {_figures({_WHOLE: apart})}."
    quantization = own.quantization
    if (quantization.method, quantization.bits) == _IN_INTEGERS:
        found, allowed = apart["mean_nats"], _PUBLISHED[8]
    else:
        found, allowed = judged(apart, own.computed_in)
    detail = (
        f"on its own base, made again, token losses differ from the run's by {apart['mean_nats']:.2g} nats "
        f"on average, {apart['most_nats']:.2g} at most"
    )
    _hold(run, detail, found, allowed)
    return ""


def adapter(run: Run, patched: Any, quantization: Any) -> dict[str, Any]:
    """An adapter on the bases that people have, each read in its turn."""
    own, found = _own_base(run), dict[str, dict[str, float]]()
    if own is None or not run.plan.settings.export.check:
        return {"apart": {"figures": found, "card": _UNKNOWN}}
    bases = {_WHOLE: None} | (
        {_QUANTIZED: quantization} if run.plan.settings.method.quantization.bits is not None else {}
    )
    for name, held in bases.items():
        model = attach(run, copy.deepcopy(patched), held)["model"]
        found[name] = moved(token_losses(run, model, list(own.ids), mixed=False), list(own.losses))
        del model
        gc.collect()
    _check(run, found, own)
    return {"apart": {"figures": found, "card": f"{_NOT_EXACT}: {_figures(found)}."}}


_NOT_EXACT = (
    "It was trained over quantized weights without what its adapter took out of them at its start. Over the published "
    "weights it is another model than the trained one"
)
_UNKNOWN = f"{_NOT_EXACT}; how far is not measured."


def _check(run: Run, found: dict[str, dict[str, float]], own: OwnBase) -> None:
    """The tolerance is that of the published weights in full precision."""
    assert own.quantization.bits is not None
    detail = f"not as it was trained: {_figures(found)}"
    _hold(run, detail, found[_WHOLE]["mean_nats"], _PUBLISHED[own.quantization.bits])


def _figures(found: dict[str, dict[str, float]]) -> str:
    each = [
        f"on the published weights {name} token losses differ from the run's by {apart['mean_nats']:.2g} nats "
        f"on average, {apart['most_nats']:.2g} at most"
        for name, apart in found.items()
    ]
    return "; ".join(each)


def _hold(run: Run, detail: str, found: float, allowed: float) -> None:
    detail = f"{detail} ({allowed:g} are allowed)"
    if not found <= allowed:
        raise refuse(
            "export-differs",
            f"run={run.plan.settings.export.run or run.plan.steps.load.adapter}",
            detail,
            because="an export must answer as the run did",
            fix=(
                "name the weights that it was trained on by model.path, as they were then; export.check=false "
                "writes an adapter without the check"
            ),
        )
    run.check("as_trained", True, detail)


def _own_base(run: Run) -> OwnBase | None:
    """With losses to compare with; None: there are none."""
    folder = Path(run.plan.steps.load.adapter or "")
    found = own_base.read(folder) if (folder / own_base.FILE).is_file() else None
    return found if found is not None and found.losses else None
