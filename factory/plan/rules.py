"""What goes with what: every rule that is no single method's or stage's own."""

from collections.abc import Callable, Mapping
from typing import Any

from factory import templates
from factory.architecture import FAMILIES, text_numbers, traits_of
from factory.architecture.fit import times
from factory.architecture.positions import scalings
from factory.attention import FLASH, LENGTHS_ON_DEVICE, OURS, S2, SEGMENTED, VARLEN
from factory.config import own, registry
from factory.config.extras import install
from factory.config.redact import secret_in
from factory.config.refusal import did_you_mean
from factory.config.settings import GROUPS, NAMED
from factory.config.values import to_tree
from factory.methods import parts
from factory.methods.lora.targets import as_saved
from factory.optimizers import spec as optimizers
from factory.plan import choices, data, evaluating, files, kernels, ranks, watching, writing
from factory.plan.facts import Machine
from factory.plan.rule import Case, Rule, value_of
from factory.quantizers import spec as quantizers
from factory.tracking import spec as tracking

# what a choice needs installed: (key, value) → distribution
NEEDS = {
    **{("stage.optimizer", name): package for name, package in optimizers.PACKAGES.items()},
    **{("compute.attention", name): package for name, package in choices.FLASH_PACKAGES.items()},
    ("compute.kernels", "liger"): "liger-kernel",
    ("compute.kernels", "unsloth"): "unsloth",
}
_EXTRAS = {"flash-attn": "flash-attn", "liger-kernel": "liger", "unsloth": "unsloth"}
_ELSEWHERE = {
    "flash-attn-3": "build it from the folder hopper of github.com/Dao-AILab/flash-attention (it is not on PyPI)"
}


def _fp16_on_cpu(case: Case) -> str | None:
    return "float16 needs a GPU" if case.settings.precision.name == "fp16" and case.device == "cpu" else None


def _compiled_bf16_on_cpu(case: Case) -> str | None:
    if not case.settings.compute.compile or case.device != "cpu":
        return None
    name, _ = choices.precision(case)
    return None if name == "fp32" else f"precision={name} on a CPU"


def _context_unknown(case: Case) -> str | None:
    return "the model's config.json does not say it" if choices.context_length(case) is None else None


def _too_long(case: Case) -> str | None:
    length, context = case.settings.data.max_length, choices.context_length(case)
    if context is None or length == "auto" or length <= context or case.settings.model.rope_scaling != "none":
        return None
    return f"the model was made for {context:,} tokens"


def _way_beyond(case: Case) -> dict[str, str]:
    if _scaled(case) or _unscalable(case):
        return {"way": "where the model's card says more, set model.context_length"}
    return {"way": "set model.rope_scaling=linear (or dynamic, yarn)"}


def _nothing_to_scale(case: Case) -> str | None:
    length, context = case.settings.data.max_length, choices.context_length(case)
    if context is None or case.settings.model.rope_scaling == "none" or (length != "auto" and length > context):
        return None
    if _scaled(case):  # that is said, and a longer length would be of no use
        return None
    return f"sequences of {choices.max_length(case, context):,} tokens fit the context of {context:,}"


def _attention_on_cpu(case: Case) -> str | None:
    name = case.settings.compute.attention
    return f"{name} needs a GPU" if name in LENGTHS_ON_DEVICE and case.device == "cpu" else None


def _attention_of_card(case: Case) -> str | None:
    asked, found = case.settings.compute.attention, choices.capability(case)
    if asked not in choices.CARDS or found is None:
        return None
    first, beyond = choices.CARDS[asked]
    return None if first <= found < beyond else f"it has no kernel for compute capability {found}"


def _not_recomputed(case: Case) -> str | None:
    compute = case.settings.compute
    asked = compute.recomputed_layers != "auto" or compute.activation_checkpointing in (True, "selective")
    return f"the class of {case.arch.kind} does not" if asked and not case.traits.recomputes else None


def _recomputed_layers(case: Case) -> str | None:
    compute = case.settings.compute
    if compute.recomputed_layers == "auto":
        return None
    if compute.activation_checkpointing is False:
        return "compute.activation_checkpointing=false recomputes none"
    there = choices.layers(case)
    return f"the model has {there} layers" if compute.recomputed_layers > there else None


def _device_missing(case: Case) -> str | None:
    hardware, gpus = case.settings.hardware, case.facts.machine.gpus
    if hardware.card and not any(hardware.card.lower() in gpu.name.lower() for gpu in gpus):
        return f"there is no {hardware.card} here"
    if hardware.device != "cuda" or gpus:
        return None
    hidden = case.facts.machine.hidden
    return "there is no GPU here" + ("" if hidden is None else f" that CUDA_VISIBLE_DEVICES={hidden} names")


def _package_missing(case: Case) -> tuple[str, str] | None:
    found = _lacking(case)
    return found and (found[0], missing(found[1]))


def _lacking(case: Case) -> tuple[str, str] | None:
    chosen = {key: value_of(case.settings, key) for key, _ in NEEDS if not case.idle(key)}
    chosen["compute.kernels"] = choices.kernels_named(case)
    return lacking(chosen, case.facts.machine)


def lacking(chosen: Mapping[str, str], machine: Machine) -> tuple[str, str] | None:
    """The first key of these choices whose package is not here, and that package."""
    needed = ((key, package) for (key, wanted), package in NEEDS.items() if chosen.get(key) == wanted)
    return next(((key, package) for key, package in needed if package not in machine.packages), None)


def missing(package: str) -> str:
    return f"it needs the package {package}, which is not installed"


def _getting_it(case: Case) -> dict[str, str]:
    found = _lacking(case)
    assert found is not None
    return getting(found[1])


def getting(package: str) -> dict[str, str]:
    """What fills the words of the rule `package-missing`."""
    command = install(_EXTRAS[package]) if package in _EXTRAS else f"pip install {package}"
    return {"install": _ELSEWHERE.get(package, f"install it: {command}")}


def _adapter_fits(case: Case) -> str | None:
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


def _reference_is_past(case: Case) -> str | None:
    stage = case.settings.stage
    if case.settings.verb == "train" or not case.settings.evaluate.perplexity:
        return None
    if registry.samples_answers(case.stage_spec):
        return f"what stage={stage.name} measures is scored beside the model that it trains"
    if not choices.needs_reference(case):
        return None
    return f"the loss of stage={stage.name} is measured from the model as it was before training"


_CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
# of PEFT's config, what no method here sets: other scales of single layers, and tokens before which nothing is adapted
_NOT_OURS = ("alpha_pattern", "alora_invocation_tokens")


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


def _remote_code(case: Case) -> str | None:
    needed = case.traits.remote_code and not case.settings.model.trust_remote_code
    return f"the architecture {case.arch.kind} is code that comes with the model" if needed else None


def _gated(case: Case) -> str | None:
    model, token = case.settings.model, case.facts.machine.hub_token
    asked = case.model.source == "hub" and model.gated and not token
    return "it is gated, and there is no hub token here" if asked else None


def _group_size_unread(case: Case) -> str | None:
    compute = case.settings.compute
    if compute.group_size == "auto" or compute.attention == "s2":
        return None
    return f"compute.attention={compute.attention} has no groups"


def _attention_of_model(case: Case) -> str | None:
    kind, asked, own = case.arch.kind, case.settings.compute.attention, case.traits
    able = {"sdpa": own.sdpa, S2: own.ours} | dict.fromkeys(FLASH, own.flash)
    able |= dict.fromkeys(SEGMENTED, choices.joins(case))
    if not able.get(asked, True):
        return f"it is not proven for {kind}" if asked in OURS else f"the class of {kind} has no such kernel"
    if asked in FLASH and choices.isolation(case) and not choices.joins(case):
        return f"that the class of {kind} isolates packed documents by it is not proven"
    return choices.heads_unfit_for_varlen(case) if asked == VARLEN else None


def _s2_group(case: Case) -> str | None:
    compute, context = case.settings.compute, choices.context_length(case)
    if compute.attention != "s2" or compute.group_size == "auto" or context is None:
        return None
    if compute.group_size % 2:
        return "it is odd"
    length = choices.max_length(case, context)
    return f"sequences of {length:,} tokens fit into one group" if compute.group_size >= length else None


def _s2_compared(case: Case) -> str | None:
    stage = case.settings.stage
    if case.settings.compute.attention != "s2" or case.settings.verb != "train":
        return None
    if registry.samples_answers(case.stage_spec):
        return f"stage={stage.name} samples answers, and trains them by the attention that sampled them"
    return f"the loss of stage={stage.name} compares with a reference" if choices.needs_reference(case) else None


def _unknown_template(case: Case) -> str | None:
    name = case.settings.model.template
    if name == "auto" or name in templates.names() or templates.is_file(name):
        return None
    return f"the templates are {', '.join(templates.names())}"


def _template_meant(case: Case) -> dict[str, str]:
    return {"hint": did_you_mean(case.settings.model.template, templates.names())}


def _no_template(case: Case) -> str | None:
    needs = templates.needed(case.settings.verb, case.stage_spec.KIND)
    missing = case.settings.model.template == "auto" and case.model.chat_template is False
    return templates.MISSING if needs and missing else None


def _rate_unread(case: Case) -> str | None:
    """Of what is trained: what is measured was made with it."""
    stage, own = case.settings.stage, case.settings.method.learning_rate
    unread = case.settings.verb == "train" and case.asked("method.learning_rate") and stage.learning_rate != own
    return f"stage={stage.name} trains with stage.learning_rate={stage.learning_rate:g}" if unread else None


def _stage_not_there(case: Case) -> str | None:
    return None if registry.runnable("stages", case.settings.stage.name) else "it can be planned, not yet trained"


def _of_tracking(rule: str) -> Callable[[Case], tuple[str, str] | None]:
    def wrong(case: Case) -> tuple[str, str] | None:
        found = tracking.problems(case.settings.tracking, case.facts.machine.packages)
        tracks = case.settings.verb not in choices.WRITES  # of what does not, only what was asked for can be wrong
        return next(((key, what) for other, key, what in found if other == rule and (tracks or case.asked(key))), None)

    return wrong


def _interval_unread(case: Case) -> str | None:
    unread = case.asked("tracking.system_metrics_seconds") and not case.settings.tracking.system_metrics
    return "nothing is looked at" if unread else None


def _secret(case: Case) -> tuple[str, str] | None:
    """The first key whose value holds a password or a token."""
    where = secret_in({name: to_tree(getattr(case.settings, name)) for name in (*GROUPS, *NAMED)})
    return (where, _SECRET) if where else None


_SECRET = "there is a password or a token in it, which would be written to plan.yaml and shown"  # noqa: S105  words


def _flash_precision(case: Case) -> str | None:
    flash = case.settings.compute.attention in LENGTHS_ON_DEVICE
    return "it computes in 16 bits only" if flash and choices.precision(case)[0] == "fp32" else None


def _scaled(case: Case) -> list[str]:
    return scalings(text_numbers(case.model.config))


def _scaled_already(case: Case) -> str | None:
    if case.settings.model.rope_scaling == "none" or not (kinds := _scaled(case)):
        return None
    return f"the model's own positions are scaled ({', '.join(kinds)})"


def _unscalable(case: Case) -> str | None:
    """The kind of a model that has no positions which could be scaled."""
    config = text_numbers(case.model.config)
    kind = config.get("model_type") or case.arch.kind
    own = traits_of(kind) if kind in FAMILIES else case.traits
    return kind if not own.scalable or config.get("alibi") else None


def _rope_missing(case: Case) -> str | None:
    if case.settings.model.rope_scaling == "none" or (kind := _unscalable(case)) is None:
        return None
    return f"a {kind} model has no rotary positions that can be scaled"


def _new_tokens_never_learn(case: Case) -> str | tuple[str, str] | None:
    arch = case.arch
    if not arch.new_rows or case.settings.verb != "train":  # they were trained already
        return None
    trained = case.trained
    head = f"{arch.head}.weight"
    if f"{arch.embedding}.weight" in trained and (arch.tied or head in trained or head in arch.fixed):
        return None
    if not any("trainable_tokens_delta" in name for name in trained):
        return "method.name", "it trains no row of the embedding"
    if f"{arch.head}.bias" in arch.outside:
        return "model.path", f"the head of a {arch.kind} model has a bias, which PEFT's trained tokens leave out"
    return None


def _trains_nothing(case: Case) -> str | None:
    """The methods that come with Factory have `nothing-trains`, about the keys that say so."""
    if case.settings.verb != "train" or not own.is_code(case.settings.method.name):
        return None
    return None if case.trained or case.heads else "its `trainable` names no tensor of this model"


def _vocabulary_unknown(case: Case) -> str | None:
    unknown = case.settings.model.new_tokens and case.model.tokens is None
    return "how many tokens the tokenizer has is not known before the model is there" if unknown else None


def _padding_unread(case: Case) -> str | None:
    grows = case.vocabulary.after != case.vocabulary.before
    return "the vocabulary does not grow" if case.settings.model.pad_vocabulary_to and not grows else None


def _not_isolated(case: Case) -> str | None:
    if not choices.isolation(case) or choices.isolates(case, 1):
        return None
    kind = case.arch.kind
    if case.traits.isolates:
        return f"a {kind} model parts documents in rows of less than {choices.isolates_below(case):,} tokens alone"
    if case.arch.traits is not None:
        return f"that a {kind} model parts packed documents is not proven"
    return f"a {kind} model cannot part packed documents"


_TRACKING = (
    "tracking-address",
    "tracking-store",
    "tracking-folder",
    "tracking-wandb-server",
    "tracking-wandb-project",
    "tracking-unread",
    "tracking-package",
    "tracking-login",
)
RULES: tuple[Rule, ...] = (
    Rule("rope-missing", _rope_missing),
    Rule("new-tokens-never-learn", _new_tokens_never_learn),
    Rule("method-trains-nothing", _trains_nothing),
    Rule("vocabulary-unknown", _vocabulary_unknown),
    Rule("padding-unread", _padding_unread),
    Rule("isolation-unsupported", _not_isolated),
    Rule("fp16-on-cpu", _fp16_on_cpu),
    Rule("compile-bf16-on-cpu", _compiled_bf16_on_cpu),
    Rule("context-unknown", _context_unknown),
    Rule("beyond-context", _too_long, _way_beyond),
    Rule("nothing-to-scale", _nothing_to_scale),
    Rule("attention-needs-gpu", _attention_on_cpu),
    Rule("attention-of-card", _attention_of_card),
    *kernels.RULES,
    Rule("recomputation", _not_recomputed),
    Rule("recomputed-layers", _recomputed_layers),
    Rule("device-missing", _device_missing),
    Rule("package-missing", _package_missing, _getting_it),
    *data.RULES,
    *files.RULES,
    *watching.RULES,
    *evaluating.RULES,
    *writing.RULES,
    Rule("adapter-fits", _adapter_fits),
    Rule("evaluate-reference", _reference_is_past),
    Rule("remote-code", _remote_code),
    Rule("gated-model", _gated),
    Rule("group-size-unread", _group_size_unread),
    Rule("attention-of-model", _attention_of_model),
    Rule("s2-group", _s2_group),
    Rule("s2-reference", _s2_compared),
    Rule("unknown-template", _unknown_template, _template_meant),
    Rule("no-chat-template", _no_template),
    Rule("stage-not-there", _stage_not_there),
    Rule("learning-rate-unread", _rate_unread),
    Rule("secret-in-settings", _secret),
    *(Rule(name, _of_tracking(name)) for name in _TRACKING),
    Rule("tracking-interval", _interval_unread),
    Rule("flash-precision", _flash_precision),
    Rule("scaled-already", _scaled_already),
    Rule("parts-need-images", parts.needs_media),
    *optimizers.RULES,
    *quantizers.RULES,
    *ranks.RULES,
)


def rules_for(method: str | None, stage: str | None) -> tuple[Rule, ...]:
    chosen: tuple[tuple[registry.Kind, str | None], ...] = (("methods", method), ("stages", stage))
    return (*RULES, *(rule for kind, name in chosen if name for rule in registry.spec(kind, name).RULES))
