"""The base that a saved adapter stands on: the published one, or one that it has to itself and that is made again."""

from pathlib import Path
from typing import Literal

from factory import cache
from factory.config.settings import Quantization
from factory.config.values import plain, to_tree
from factory.own_base import FILE as OWN_BASE
from factory.own_base import OwnBase
from factory.plan.plan import Dtype
from factory.plan.rule import Case


def own_base(case: Case) -> Literal["rebuilt", "published"] | None:
    """What becomes of the base that the adapter has to itself; None: it has none.

    Training goes on over the published weights: what it saved over another base would need that base beside it, and
    the pair that every adapter before it took out.
    """
    if case.model.adapter is None or not case.model.adapter.started:
        return None
    asked, own = case.settings.method.quantization, _said(case)
    if case.settings.verb == "export":  # where other quantized weights are refused
        return "rebuilt" if case.settings.export.format != "adapter" and asked.bits is not None else "published"
    again = case.settings.verb != "train" and own is not None and own.quantization == asked
    return "rebuilt" if again else "published"


def _said(case: Case) -> OwnBase | None:
    return case.model.adapter and case.model.adapter.own_base


def read_as(case: Case, dtype: Dtype) -> Dtype:
    """The type that the weights are read in, which are held as `dtype`: a base is made again as the run has made it."""
    own = _said(case)
    return own.dtype if own is not None and own_base(case) == "rebuilt" else dtype


def words(quantization: Quantization) -> str:
    """As on the command line."""
    return " ".join(f"method.quantization.{name}={plain(value)}" for name, value in to_tree(quantization).items())


def notes(case: Case) -> list[str]:
    """Of an export see `exporting`."""
    if own_base(case) != "rebuilt" or case.settings.verb == "export":
        return []
    return ["the adapter's own base is made again: the weights without its start, quantized as its run had them"]


def warnings(case: Case) -> tuple[str, ...]:
    """Where the adapter stands on another base than it was trained over."""
    return (*_other_name(case), *_not_its_own(case))


def _not_its_own(case: Case) -> tuple[str, ...]:
    """Of an export see `exporting`."""
    if case.settings.verb == "export" or own_base(case) != "published":
        return ()
    return (
        f"model.adapter={case.settings.model.adapter}: it was trained over weights that were quantized without its "
        f"start; on the published ones, quantized or not, it is another model; {_instead(case)}",
    )


def _instead(case: Case) -> str:
    own = _said(case)
    if case.settings.verb == "train":
        return (
            "training goes on from there. `factory chat`, `serve`, `evaluate` and `export` with run= have the model "
            "that was trained"
        )
    if own is None:
        return f"there is no {OWN_BASE} beside it to make its own of"
    return f"the model that was trained has {words(own.quantization)}"


def _other_name(case: Case) -> tuple[str, ...]:
    """The same model may lie elsewhere."""
    if (adapter := case.model.adapter) is None:
        return ()
    model, said = case.settings.model, adapter.config.get("base_model_name_or_path")
    there = Path(said).name if isinstance(said, str) else ""
    here = {Path(path or "").name.removesuffix(".gguf").lower() for path in (model.path, model.hub, case.model.path)}
    if not there or there.lower() in here or cache.CONVERTED.sub("", there.lower()) in here:
        return ()
    return (f"model.adapter={model.adapter}: it was trained on {there}, here is {model.path}",)
