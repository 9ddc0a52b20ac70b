"""What goes with what: every rule that is no single method's or stage's own."""

import re
from collections.abc import Iterator

from factory import registry, templates
from factory.compile.rule import Case, Rule, value_of

# what a choice needs installed: (key, value) → distribution
NEEDS = {
    ("method.quantization.bits", "4"): "bitsandbytes",
    ("stage.optimizer", "adamw_8bit"): "bitsandbytes",
    ("method.name", "galore"): "galore-torch",
    ("compute.attention", "flash_attention_2"): "flash-attn",
    ("compute.attention", "flash_attention_3"): "flash-attn-3",
}


def context_length(case: Case) -> int:
    return case.settings.model.context_length or case.arch.context_length


def _is_packed(case: Case) -> bool:
    packing = case.settings.data.packing
    return case.settings.stage.name == "pt" if packing == "auto" else packing


def _quantized(case: Case) -> str | None:
    method = case.settings.method
    if method.quantization.bits is None or registry.spec("methods", method.name).QUANTIZABLE:
        return None
    return f"method={method.name} trains the weights that quantization would freeze"


def _no_data(case: Case) -> str | None:
    return None if case.settings.data.sources else "no data set is selected"


def _data_path_unread(case: Case) -> str | None:
    data = case.settings.data
    used = data.path is None or any(source.path == data.path for source in data.sources.values())
    return None if used else "no selected data set reads it"


def _columns_for_stage(case: Case) -> str | None:
    kind = registry.spec("stages", case.settings.stage.name).KIND
    for name, data in case.facts.data.items():
        if data.kind != kind:
            return (
                f"{name} holds {data.kind} ({', '.join(data.columns)}), stage={case.settings.stage.name} needs {kind}"
            )
    return None


def _fp16_on_cpu(case: Case) -> str | None:
    return "float16 needs a GPU" if case.settings.precision.name == "fp16" and case.device == "cpu" else None


def _too_long(case: Case) -> str | None:
    length, context = case.settings.data.max_length, context_length(case)
    if length == "auto" or length <= context or case.settings.model.rope_scaling != "none":
        return None
    return f"the model was made for {context:,} tokens"


def _nothing_to_scale(case: Case) -> str | None:
    length, context = case.settings.data.max_length, context_length(case)
    if case.settings.model.rope_scaling == "none" or (length != "auto" and length > context):
        return None
    return f"sequences of {length} tokens fit the context of {context:,}"


def _isolation_without_packing(case: Case) -> str | None:
    set_by_user = case.settings.data.isolate_documents != "auto"
    return "nothing is packed" if set_by_user and not _is_packed(case) else None


def _chat_keys_on_text(case: Case) -> tuple[str, str] | None:
    data = case.settings.data
    if registry.spec("stages", case.settings.stage.name).KIND != "text":
        return None
    named = [name for name in ("train_on_prompt", "mask_history") if getattr(data, name)]
    return (f"data.{named[0]}", "it has no meaning for plain text") if named else None


def _prompt_and_last_answer(case: Case) -> str | None:
    data = case.settings.data
    return "data.train_on_prompt trains what this masks" if data.mask_history and data.train_on_prompt else None


def _attention_on_cpu(case: Case) -> str | None:
    name = case.settings.compute.attention
    return f"{name} needs a GPU" if name.startswith("flash") and case.device == "cpu" else None


def _kernels(case: Case) -> str | None:
    name = case.settings.compute.kernels
    if name == "none":
        return None
    return f"{name} needs a GPU" if case.device == "cpu" else f"{name} is not there yet"


def _device_missing(case: Case) -> str | None:
    hardware, gpus = case.settings.hardware, case.facts.machine.gpus
    if hardware.card and not any(hardware.card.lower() in gpu.name.lower() for gpu in gpus):
        return f"there is no {hardware.card} here"
    return "there is no GPU here" if hardware.device == "cuda" and not gpus else None


def _package_missing(case: Case) -> tuple[str, str] | None:
    for (key, wanted), package in NEEDS.items():
        if value_of(case.settings, key) == wanted and package not in case.facts.machine.packages:
            return key, f"it needs the package {package}, which is not installed"
    return None


def _unknown_template(case: Case) -> str | None:
    name = case.settings.model.template
    if name == "auto" or name in templates.names():
        return None
    return f"the templates are {', '.join(templates.names())}"


def _no_template(case: Case) -> str | None:
    needs = registry.spec("stages", case.settings.stage.name).KIND != "text"
    missing = case.settings.model.template == "auto" and case.model.chat_template is False
    return "the tokenizer of this model has no chat template" if needs and missing else None


def _stage_not_there(case: Case) -> str | None:
    return None if registry.runnable("stages", case.settings.stage.name) else "it can be planned, not yet trained"


def _tracking_address(case: Case) -> str | None:
    return untrackable(case.settings.tracking.uri)


def untrackable(uri: str | None) -> str | None:
    """What is wrong with an MLflow address."""
    if re.match(r"\w+(\+\w+)?://[^/@]*:[^/@]*@", uri or ""):
        return "there is a password in it, which would be written to plan.yaml and shown"
    if uri is None or re.match(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://|https?://|databricks", uri):
        return None
    return "MLflow no longer keeps runs in plain folders"


def _flash_packing(case: Case) -> str | None:
    settings, isolate = case.settings, case.settings.data.isolate_documents
    isolated = _is_packed(case) and (settings.stage.name != "pt" if isolate == "auto" else isolate)
    largest = max(settings.stage.batch_size, settings.evaluate.batch_size)
    flash = settings.compute.attention.startswith("flash")
    return "it isolates documents only in batches of one sequence" if flash and isolated and largest > 1 else None


def _flash_precision(case: Case) -> str | None:
    flash = case.settings.compute.attention.startswith("flash")
    return "it computes in 16 bits only" if flash and case.settings.precision.name == "fp32" else None


def _scaled_already(case: Case) -> str | None:
    config = case.model.config
    old = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = old.get("rope_type") or old.get("type") or "default"
    scaled = case.settings.model.rope_scaling != "none" and kind != "default"
    return f"the model's own positions are scaled ({kind})" if scaled else None


RULES: tuple[Rule, ...] = (
    Rule("quantized-weights", _quantized),
    Rule("no-data", _no_data),
    Rule("data-path-unread", _data_path_unread),
    Rule("columns-for-stage", _columns_for_stage),
    Rule("fp16-on-cpu", _fp16_on_cpu),
    Rule("beyond-context", _too_long),
    Rule("nothing-to-scale", _nothing_to_scale),
    Rule("isolation-without-packing", _isolation_without_packing),
    Rule("chat-keys-on-text", _chat_keys_on_text),
    Rule("prompt-and-last-answer", _prompt_and_last_answer),
    Rule("attention-needs-gpu", _attention_on_cpu),
    Rule("kernels", _kernels),
    Rule("device-missing", _device_missing),
    Rule("package-missing", _package_missing),
    Rule("unknown-template", _unknown_template),
    Rule("no-chat-template", _no_template),
    Rule("stage-not-there", _stage_not_there),
    Rule("tracking-address", _tracking_address),
    Rule("flash-packing", _flash_packing),
    Rule("flash-precision", _flash_precision),
    Rule("scaled-already", _scaled_already),
)


def all_rules() -> Iterator[Rule]:
    """The table with every method's and stage's own rules, each id once."""
    seen: set[str] = set()
    own = (rule for kind in ("methods", "stages") for name in registry.names(kind) for rule in _own(kind, name))
    for rule in (*RULES, *own):
        if rule.id not in seen:
            seen.add(rule.id)
            yield rule


def rules_for(method: str | None, stage: str | None) -> tuple[Rule, ...]:
    chosen: tuple[tuple[registry.Kind, str | None], ...] = (("methods", method), ("stages", stage))
    return (*RULES, *(rule for kind, name in chosen if name for rule in _own(kind, name)))


def _own(kind: registry.Kind, name: str) -> tuple[Rule, ...]:
    return registry.spec(kind, name).RULES
