"""Rules of an export, and what the plan says of it."""

from collections.abc import Iterator
from pathlib import Path

from factory.architecture import elements, sliding_window
from factory.config.hub import ID as HUB_ID
from factory.config.line import setting
from factory.config.values import plain
from factory.config.words import size
from factory.export import spec
from factory.own_base import FILE as OWN_BASE
from factory.plan import plan
from factory.plan.bases import own_base, words
from factory.plan.rule import Broken, Case, rule
from factory.quantizers.checkpoint import checkpoint_quantizer
from factory.stages.rm.spec import SCORE


def scores(case: Case) -> bool:
    """Whether the model is a reward model: a head of scores lies beside its weights or its adapter."""
    there = case.model.adapter.heads if case.model.adapter else {}
    return SCORE in there or SCORE in case.model.heads


def planned(case: Case) -> plan.Export:
    asked = case.settings.export
    dtype = spec.dtype_of(asked.dtype, asked.format, case.model.config)
    return plan.Export(dtype=dtype, scores=scores(case), bytes=_bytes(case))


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


@rule(
    "export-dir",
    keys=("export.dir", "export.overwrite"),
    reason="an export is written where it is meant to be found, and replaces only another export",
    fix="name a folder that is not there yet, as in export.dir=exports/mine",
)
def export_dir(case: Case) -> str | Broken | None:
    found, overwrite = case.facts.export, case.settings.export.overwrite
    if not case.settings.export.dir:
        return "it is not set"
    if found is None:
        return None
    if found.there == "export" and not overwrite:
        fix = "set export.overwrite=true, or another export.dir"
        return Broken(message="there is an export in it", reason="nothing is overwritten unasked", fix=fix)
    if found.there == "file":
        return "it is a file, and an export is a folder"
    return "there is something in it that no export has written" if found.there == "other" else None


@rule(
    "export-unwritable",
    keys=("export.dir", "export.format", "export.dtype", "export.quantization"),
    reason="the export is written beside it first, then renamed",
    fix="name a folder in one that you may write to",
    machine=True,
)
def export_unwritable(case: Case) -> str | Broken | None:
    found, asked = case.facts.export, case.settings.export
    if found is None or found.there == "file":
        return None
    if found.mounted:
        fix = f"name a folder within it: {setting('export.dir', Path(asked.dir or '') / 'mine')}"
        return Broken(message="a disk is mounted there, and nothing can be renamed to it", fix=fix)
    if found.free_bytes is None:
        return "the folder that it lies in cannot be written"
    if not case.known or any(_unfit(case)):
        return None
    needed = _bytes(case)
    if asked.quantization in spec.CALIBRATED:  # what is quantized is read from a whole copy
        needed += spec.bytes_of(case.arch, "hf", "bfloat16", None, 0)
    if needed <= found.free_bytes:
        return None
    return Broken(
        message=f"about {size(needed)} are written, {size(found.free_bytes)} are free there",
        reason="a full disk would end it half written",
        fix="free some, name a folder on another disk, or write fewer bits (export.dtype, export.quantization)",
    )


@rule(
    "export-format",
    keys=("export.format", "export.quantization", "export.calibration", "model.path", "model.adapter"),
    reason="each format has types of its own",
    fix="of hf nf4, fp4, int8, gptq or awq; of gguf q8_0, q5_1, q5_0, q4_1 or q4_0; or export.quantization=null",
)
def export_format(case: Case) -> Iterator[Broken]:
    return _unfit(case)


def _unfit(case: Case) -> Iterator[Broken]:
    asked, found = case.settings.export, case.facts.export
    if asked.format == "adapter" and case.model.adapter is None:
        yield Broken(
            message="there is no adapter: the weights themselves were trained",
            reason="export.format=adapter writes an adapter and nothing else",
            fix="set export.format=hf or gguf",
        )
    made = asked.quantization and spec.QUANTIZED[asked.quantization]
    if made and asked.format != made.format:
        yield Broken(key="export.quantization", message=f"it is one of export.format={made.format}")
    elif made and scores(case):
        yield Broken(key="export.quantization", message="the head of scores is lost in it")
    if found and found.calibration is False:
        yield Broken(
            key="export.calibration",
            message="there is no such file",
            reason="the scales of gptq and awq are set by what the model computes of real text",
            fix="name a text file, or leave it out for the built-in text",
        )


@rule(
    "export-base",
    keys=(
        "model.path",
        "method.quantization.bits",
        "method.quantization.method",
        "method.quantization.type",
        "method.quantization.double_quantization",
        "export.format",
        "model.adapter",
    ),
    reason="an adapter merged into quantized weights is rounded away, and other formats hold these otherwise",
    fix="set export.format=adapter, or model.path to the same model in whole weights",
)
def export_base(case: Case) -> str | Broken | None:
    """Refuse adapters over weights that no library makes whole again, or over others than their own."""
    name = checkpoint_quantizer(case.model.config)
    whole = name in (None, "bitsandbytes", "fp8", "mxfp4", "compressed-tensors")
    if not whole and case.settings.export.format != "adapter":
        return f"its weights lie quantized by {name}, and are not made whole here"
    if own_base(case) != "rebuilt":
        return None
    assert case.model.adapter is not None
    own, quantization = case.model.adapter.own_base, case.settings.method.quantization
    if own is not None and own.quantization == quantization:
        return None
    return Broken(
        key="method.quantization.bits",
        message=f"there is no {OWN_BASE} beside its adapter to make its base of"
        if own is None
        else f"its base was quantized by {words(own.quantization)}",
        reason=(
            "its start was taken out of the weights before they were quantized, so other quantized weights are not "
            "its base"
        ),
        fix=(
            "leave method.quantization out; or set method.quantization.bits=null, which merges into the published "
            "weights and reports how far that is; or train it again"
        ),
    )


@rule(
    "export-family",
    keys=("export.format", "model.path", "model.adapter"),
    reason="a GGUF file of it would be read as another model, and answer wrongly",
    fix="set export.format=hf; llama.cpp's own convert_hf_to_gguf.py reads that, and knows more families",
)
def export_family(case: Case) -> str | None:
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


@rule(
    "export-push",
    keys=("export.push",),
    reason="the hub names a repository by its owner and its name",
    fix="write it so, as in export.push=me/mine",
)
def export_push(case: Case) -> str | None:
    push = case.settings.export.push
    return None if push is None or HUB_ID.fullmatch(push) else "it is not written as owner/name"


@rule(
    "export-register",
    keys=(
        "export.register",
        "export.format",
        "tracking.uri",
        "export.quantization",
        "model.path",
        "model.adapter",
        "model.trust_remote_code",
    ),
    reason="MLflow keeps a model with its signature, which is of texts, and reads it with transformers only",
    fix="set export.format=hf and tracking.uri, or leave export.register out",
)
def export_register(case: Case) -> str | Broken | None:
    asked = case.settings.export
    if asked.register is None:
        return None
    if case.settings.tracking.mlflow is None:
        return "runs are not logged to MLflow (tracking.tool, tracking.uri)"
    if asked.format != "hf" or asked.quantization is not None or scores(case):
        return "a model that writes, of export.format=hf and not quantized, is registered"
    if not case.traits.by_text:
        return f"transformers' class for text, by which MLflow's model is read, reads no {case.arch.kind} model"
    if _by_its_own_code(case):
        wrong = "its own code reads it, and transformers' class, which reads MLflow's model, may compute otherwise"
        return Broken(message=wrong, fix="set model.trust_remote_code=false, or leave export.register out")
    return None


def _by_its_own_code(case: Case) -> bool:
    """Whether code that comes with the model stands for a class that transformers has for its kind."""
    named = case.model.config.get("auto_map") or ()
    return case.settings.model.trust_remote_code and any(name.startswith("AutoModelFor") for name in named)
