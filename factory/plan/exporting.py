"""Rules of an export, and what the plan says of it."""

from pathlib import Path
from typing import Any

from factory.architecture import elements, sliding_window
from factory.config.extras import install
from factory.config.hub import ID as HUB_ID
from factory.config.line import setting
from factory.config.values import plain, to_tree
from factory.config.words import size
from factory.export import spec
from factory.own_base import FILE as OWN_BASE
from factory.plan import plan
from factory.plan.bases import own_base, words
from factory.plan.rule import Case, Rule
from factory.quantizers.checkpoint import checkpoint_quantizer
from factory.stages.rm.spec import SCORE


def scores(case: Case) -> bool:
    """Whether the model is a reward model: a head of scores lies beside its weights or its adapter."""
    there = case.model.adapter.heads if case.model.adapter else {}
    return SCORE in there or SCORE in case.model.heads


def planned(case: Case) -> plan.Export:
    asked = case.settings.export
    values: dict[str, Any] = to_tree(asked)
    return plan.Export(
        **values
        | {
            "dtype": spec.dtype_of(asked.dtype, asked.format, case.model.config),
            "modelfile": asked.modelfile and asked.format == "gguf",
            "scores": scores(case),
            "bytes": _bytes(case),
        }
    )


def notes(case: Case) -> list[str]:
    """What becomes of the parts of a run that are no weights of its model."""
    asked, found = case.settings.export, list[str]()
    heads = {**case.model.heads, **(case.model.adapter.heads if case.model.adapter else {})}
    left = [name for name in heads if name != SCORE]
    if left and asked.format != "adapter":
        found.append(f"left out: {', '.join(left)}, which only training reads")
    if scores(case) and asked.format == "hf":
        found.append("a reward model: written as a sequence classifier with one label, whose logit is the score")
    if asked.format == "hf" and case.model.adapter is None:
        found.append("nothing to merge: there is no adapter")
    if asked.format != "adapter" and case.model.adapter is not None:
        found += _merged_into(case)
    return found


def _merged_into(case: Case) -> list[str]:
    if own_base(case) == "rebuilt":
        return [f"merged into the run's own base, quantized without the adapter's start: made again of {OWN_BASE}"]
    if case.settings.method.quantization.bits is None:
        return []
    return ["merged into the quantized weights that it was trained over, made whole in float32"]


def warnings(case: Case) -> tuple[str, ...]:
    return (*_window(case), *_not_as_trained(case), *_base_here(case))


def _not_as_trained(case: Case) -> tuple[str, ...]:
    """Where another base stands in the place of the one that the adapter was trained over."""
    if own_base(case) != "published":
        return ()
    assert case.model.adapter is not None
    asked, own = case.settings.export, case.model.adapter.own_base
    measured = own is not None and own.losses
    told = "the report says how far" if measured else "how far is not known, as its run left no losses to compare with"
    if asked.format == "adapter":
        told = "how far is not measured (export.check=false)" if measured and not asked.check else told
        return (
            "export.format=adapter: it was trained over quantized weights without the adapter's start, which it cannot "
            "carry: on the published weights, quantized or not, it is another model; "
            f"{told}{'; exact is export.format=hf' if own is not None else ''}",
        )
    exact = f"; exact is {words(own.quantization)}" if own is not None else ""
    return (
        "method.quantization.bits=null: merged into the published weights, and not those that it was trained "
        f"over, which were quantized without the adapter's start; {told}{exact}",
    )


def _base_here(case: Case) -> tuple[str, ...]:
    """Of an adapter that is uploaded: where its base lies is nobody's business, and no place of theirs."""
    asked = case.settings.export
    if asked.format != "adapter" or asked.push is None or asked.base is not None or case.model.source == "hub":
        return ()
    return (
        "export.push: adapter_config.json names the base by its folder on this machine; set export.base=owner/name",
    )


def _window(case: Case) -> tuple[str, ...]:
    window = sliding_window(case.model.config)
    if case.settings.export.format != "gguf" or not window:
        return ()
    return (f"export.format=gguf: llama.cpp has no sliding window here; beyond {window:,} tokens answers differ",)


def _bytes(case: Case) -> int:
    asked, adapter = case.settings.export, case.model.adapter
    dtype = spec.dtype_of(asked.dtype, asked.format, case.model.config)
    adapted = elements(adapter.shapes.values()) if adapter else 0
    return spec.bytes_of(case.arch, asked.format, dtype, asked.quantization, adapted)


def _dir(case: Case) -> str | None:
    return None if case.settings.export.dir else "it is not set"


def _there(case: Case) -> str | None:
    found, asked = case.facts.export, case.settings.export
    return "there is an export in it" if found and found.there == "export" and not asked.overwrite else None


def _not_ours(case: Case) -> str | None:
    there = case.facts.export and case.facts.export.there
    if there == "file":
        return "it is a file, and an export is a folder"
    return "there is something in it that no export has written" if there == "other" else None


def _unwritable(case: Case) -> str | None:
    found = case.facts.export
    if found is None or found.there == "file":
        return None
    if found.mounted:
        return "a disk is mounted there, and nothing can be renamed to it"
    return "the folder that it lies in cannot be written" if found.free_bytes is None else None


def _writing(case: Case) -> dict[str, str]:
    asked, found = case.settings.export, case.facts.export
    within = found is not None and found.mounted and asked.dir is not None
    return {
        "fix": f"name a folder within it: {setting('export.dir', Path(asked.dir or '') / 'mine')}"
        if within
        else "name a folder in one that you may write to"
    }


def _space(case: Case) -> str | None:
    found = case.facts.export
    if found is None or found.free_bytes is None or _quantization(case) or _no_adapter(case):
        return None
    needed = _bytes(case)
    if case.settings.export.quantization in spec.CALIBRATED:  # what is quantized is read from a whole copy
        needed += spec.bytes_of(case.arch, "hf", "bfloat16", None, 0)
    free = found.free_bytes
    return f"about {size(needed)} are written, {size(free)} are free there" if needed > free else None


def _no_adapter(case: Case) -> str | None:
    none = case.settings.export.format == "adapter" and case.model.adapter is None
    return "there is no adapter: the weights themselves were trained" if none else None


def _family(case: Case) -> str | None:
    """What llama.cpp computes as transformers does."""
    if case.settings.export.format != "gguf":
        return None
    kind, config = case.arch.kind, case.model.config
    if kind not in spec.GGUF:
        return f"a {kind} model is not among {', '.join(spec.GGUF)}"
    said = spec.rope(config)
    if (way := said["rope_type"]) not in (known := spec.GGUF[kind].rope):
        return f"its positions are stretched by {way}, llama.cpp has {', '.join(known[1:])} for {kind}"
    if own := [name for name in spec.GGUF_UNSAID if said.get(name) is not None]:
        return f"its positions are stretched with {own[0]}={plain(said[own[0]])}, which llama.cpp does not read"
    if (act := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        return f"its layers compute with {act}, llama.cpp with silu"
    return "a reward model's scores have no place in it" if scores(case) else None


def _quantization(case: Case) -> str | None:
    asked = case.settings.export
    if asked.quantization is None:
        return None
    found = spec.QUANTIZED[asked.quantization]
    if asked.format != found.format:
        return f"it is one of export.format={found.format}"
    return "the head of scores is lost in it" if scores(case) else None


def _package(case: Case) -> str | None:
    name = case.settings.export.quantization
    found = spec.QUANTIZED.get(name or "")
    if found is None or found.package is None or found.package in case.facts.machine.packages:
        return None
    return f"it needs the package {found.package}, which is not installed"


def _getting_package(case: Case) -> dict[str, str]:
    return {"install": install(spec.QUANTIZED[case.settings.export.quantization or ""].package or "")}


def _unread(case: Case) -> tuple[str, str] | None:
    """A key that somebody set and that this export would not look at."""
    asked = case.settings.export
    adapter, gguf = asked.format == "adapter", asked.format == "gguf"
    unread = {
        "dtype": (gguf and asked.quantization is not None, f"export.quantization={asked.quantization} says it"),
        "shard_size": (asked.format != "hf", f"export.format={asked.format} writes one file"),
        "modelfile": (not gguf, "only export.format=gguf has one"),
        "base": (not adapter, "only export.format=adapter names its base"),
        "calibration": (asked.quantization not in spec.CALIBRATED, "only gptq and awq read it"),
        "private": (asked.push is None, "nothing is uploaded (export.push)"),
        "dry_run": (asked.push is None, "nothing is uploaded (export.push)"),
        # of a model that cannot be read nobody knows whether its adapter has a base to itself
        "check": (adapter and case.known and own_base(case) is None, "an adapter is written as it is"),
    }
    if asked.quantization in spec.CALIBRATED:
        unread["check"] = (True, f"what {asked.quantization} writes is not read anew")
    for name, (is_unread, why) in unread.items():
        if is_unread and case.asked(f"export.{name}"):
            return f"export.{name}", why
    return None


def _unmergeable(case: Case) -> str | None:
    """Adapters over weights that no library makes whole again."""
    name = checkpoint_quantizer(case.model.config)
    if name in (None, "bitsandbytes", "fp8", "mxfp4", "compressed-tensors") or case.settings.export.format == "adapter":
        return None
    return f"its weights lie quantized by {name}, and are not made whole here"


def _other_base(case: Case) -> str | None:
    """Where weights would be quantized in the place of the adapter's own, and these are not them."""
    if own_base(case) != "rebuilt":
        return None
    assert case.model.adapter is not None
    own, asked = case.model.adapter.own_base, case.settings.method.quantization
    if own is None:
        return f"there is no {OWN_BASE} beside its adapter to make its base of"
    return None if own.quantization == asked else f"its base was quantized by {words(own.quantization)}"


def _push(case: Case) -> str | None:
    push = case.settings.export.push
    return None if push is None or HUB_ID.fullmatch(push) else "it is not written as owner/name"


def _token(case: Case) -> str | None:
    asked = case.settings.export
    missing = asked.push and not asked.dry_run and not case.facts.machine.hub_token
    return "there is no hub token here" if missing else None


def _register(case: Case) -> str | None:
    asked = case.settings.export
    if asked.register is None:
        return None
    if case.settings.tracking.mlflow is None:
        return "runs are not logged to MLflow (tracking.tool, tracking.uri)"
    if asked.format != "hf" or asked.quantization is not None or scores(case):
        return "a model that writes, of export.format=hf and not quantized, is registered"
    if not case.traits.by_text:
        return f"MLflow's model is read by transformers' class for text alone, which reads no {case.arch.kind} model"
    if _by_its_own_code(case):
        return "its own code reads it, and MLflow's model is read by transformers' class, which may compute otherwise"
    return None


def _by_its_own_code(case: Case) -> bool:
    """Whether code that comes with the model stands for a class that transformers has for its kind."""
    named = case.model.config.get("auto_map") or ()
    return case.settings.model.trust_remote_code and any(name.startswith("AutoModelFor") for name in named)


def _without_code(case: Case) -> dict[str, str]:
    helps = case.traits.by_text and _by_its_own_code(case)
    return {"hint": "set model.trust_remote_code=false to read it by that class here too; " if helps else ""}


def _calibration(case: Case) -> str | None:
    found = case.facts.export
    return "there is no such file" if found and found.calibration is False else None


RULES = (
    Rule("export-dir", _dir),
    Rule("export-there", _there),
    Rule("export-not-ours", _not_ours),
    Rule("export-unwritable", _unwritable, _writing),
    Rule("export-space", _space),
    Rule("export-no-adapter", _no_adapter),
    Rule("export-family", _family),
    Rule("export-quantization", _quantization),
    Rule("export-package", _package, _getting_package),
    Rule("export-unread", _unread),
    Rule("export-unmergeable", _unmergeable),
    Rule("export-own-base", _other_base),
    Rule("export-push", _push),
    Rule("export-token", _token),
    Rule("export-register", _register, _without_code),
    Rule("export-calibration", _calibration),
)
