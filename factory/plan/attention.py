"""Rules of attention, of packed documents in it, and of what is recomputed in the backward pass."""

from factory.attention import FLASH, LENGTHS_ON_DEVICE, OURS, S2, SEGMENTED, VARLEN
from factory.config import registry
from factory.plan import choices, writing
from factory.plan.rule import Broken, Case, rule


@rule(
    "attention",
    keys=(
        "compute.attention",
        "hardware.device",
        "hardware.compute_capability",
        "precision.name",
        "engine.name",
        "data.packing",
        "data.isolate_documents",
        "stage.name",
    ),
    reason="another kernel would have to take its place, or the first step would fail",
    fix="set compute.attention=auto",
)
def attention(case: Case) -> str | Broken | None:
    name, found = case.settings.compute.attention, choices.capability(case)
    engine = case.settings.engine.name if case.settings.verb in choices.WRITES else None
    if engine == "transformers" and name not in writing.MASKED:
        reason = "answers of different length are written side by side under a mask, and this kernel takes none"
        fix = "compute.attention=auto, sdpa or eager; or engine=vllm, which has kernels of its own"
        return Broken(message=f"engine={engine} does not write with it", reason=reason, fix=fix)
    if name in LENGTHS_ON_DEVICE and case.device == "cpu":
        return f"{name} needs a GPU"
    if name in choices.CARDS and found is not None:
        first, beyond = choices.CARDS[name]
        if not first <= found < beyond:
            return f"it has no kernel for compute capability {found}"
    if case.known and (wrong := _unfit_for_class(case, name)) is not None:
        return wrong
    if name in LENGTHS_ON_DEVICE and choices.precision(case)[0] == "fp32":
        fix = "set precision=bf16, or compute.attention=sdpa"
        return Broken(message="it computes in 16 bits only", reason="its kernels take bfloat16 and float16", fix=fix)
    return None


def _unfit_for_class(case: Case, name: str) -> str | None:
    kind, own = case.arch.kind, case.traits
    able = {"sdpa": own.sdpa, S2: own.ours} | dict.fromkeys(FLASH, own.flash)
    able |= dict.fromkeys(SEGMENTED, choices.joins(case))
    if not able.get(name, True):
        return f"it is not proven for {kind}" if name in OURS else f"the class of {kind} has no such kernel"
    if name in FLASH and choices.isolation(case) and not choices.joins(case):
        return f"that the class of {kind} isolates packed documents by it is not proven"
    return choices.heads_unfit_for_varlen(case) if name == VARLEN else None


@rule(
    "s2-attention",
    keys=("compute.group_size", "compute.attention", "data.max_length", "stage.name", "model.path"),
    reason="half of the heads attend in groups that are shifted by half a group, so there must be several even ones",
    fix="set an even compute.group_size below data.max_length, a quarter of it as LongLoRA does",
)
def s2_attention(case: Case) -> str | Broken | None:
    compute, stage, context = case.settings.compute, case.settings.stage.name, choices.context_length(case)
    if compute.attention != "s2":
        return None
    if case.settings.verb == "train" and (wrong := _compared(case, stage)) is not None:
        return Broken(
            key="compute.attention",
            message=wrong,
            reason="answers and references are of full attention, and S² only of training: no loss compares the two",
            fix=(
                "set compute.attention=auto, or train without a reference, by stage=orpo, or of dpo by "
                "stage.loss=simpo or cpo"
            ),
        )
    if compute.group_size == "auto" or context is None:
        return None
    if compute.group_size % 2:
        return "it is odd"
    length = choices.max_length(case, context)
    return f"sequences of {length:,} tokens fit into one group" if compute.group_size >= length else None


def _compared(case: Case, stage: str) -> str | None:
    if registry.samples_answers(case.stage_spec):
        return f"stage={stage} samples answers, and trains them by the attention that sampled them"
    return f"the loss of stage={stage} compares with a reference" if choices.needs_reference(case) else None


@rule(
    "isolation-unsupported",
    keys=("data.isolate_documents", "data.packing", "data.max_length", "model.path", "stage.name"),
    reason="where attention does not read positions, packed documents see each other",
    fix="set data.packing=false, or data.isolate_documents=false",
)
def isolation_unsupported(case: Case) -> str | None:
    if not choices.isolation(case) or choices.isolates(case, 1):
        return None
    kind = case.arch.kind
    if case.traits.isolates:
        return f"a {kind} model parts documents in rows of less than {choices.isolates_below(case):,} tokens only"
    if case.arch.traits is not None:
        return f"that a {kind} model parts packed documents is not proven"
    return f"a {kind} model cannot part packed documents"


@rule(
    "recomputation",
    keys=("compute.activation_checkpointing", "compute.recomputed_layers", "model.path", "method.name"),
    reason="activations are computed again by the model's own code, layer by layer",
    fix="leave both out; a smaller stage.batch_size and data.max_length save memory too",
)
def recomputation(case: Case) -> str | Broken | None:
    compute, layers = case.settings.compute, choices.layers(case)
    on = compute.recomputed_layers != "auto" or compute.activation_checkpointing in (True, "selective")
    if on and not case.traits.recomputes:
        return f"the class of {case.arch.kind} does not"
    if compute.recomputed_layers == "auto":
        return None
    wrong = None if compute.recomputed_layers <= layers else f"the model has {layers} layers"
    if compute.activation_checkpointing is False:
        wrong = "compute.activation_checkpointing=false recomputes none"
    return wrong and Broken(key="compute.recomputed_layers", message=wrong, fix="set compute.recomputed_layers=auto")
