"""What `auto` means, of each key that can be left to the compiler: for rules and plan alike."""

from collections.abc import Iterable, Iterator
from math import inf
from typing import Any, Literal

from factory.architecture import text_numbers
from factory.attention import FLASH, JOINING, PER_DOCUMENT, VARLEN
from factory.config import registry
from factory.config.settings import Settings, Stage
from factory.config.values import to_tree
from factory.kernels import without_liger
from factory.plan.facts import Gpu
from factory.plan.plan import Recomputed, Verb
from factory.plan.rule import Case
from factory.quantizers.checkpoint import in_half

SHARED = set(Stage.model_fields)  # the keys that every stage has
WRITES: tuple[Verb, ...] = ("chat", "serve")
MAX_LENGTH = 1024  # what data.max_length=auto means where the context allows it
FLASH_PACKAGES = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}
# the compute capability from which on a kernel runs, and from which on none does: what flash_attention_3 has for Hopper
# uses instructions that later cards lack (github.com/Dao-AILab/flash-attention/pull/2593)
CARDS = {"flash_attention_2": (8.0, inf), "flash_attention_3": (8.0, 10.0), VARLEN: (8.0, inf)}
BFLOAT16 = 8.0  # the compute capability from which on a card has bfloat16 (CUDA programming guide, Ampere)


def precision(case: Case) -> tuple[str, str]:
    """The precision, and why it was chosen; no reason where it was set."""
    name = case.settings.precision.name
    return _precision(case) if name == "auto" else (name, "")


def _precision(case: Case) -> tuple[str, str]:
    """By what computes (the paper, section 4.1; on a CPU by measurement: it has float32 on all of them)."""
    machine = case.facts.machine
    if case.device == "cpu":
        idle = "; an Ascend NPU would take fp16, but runs are on a CPU or a CUDA device" if _npu(case) else ""
        if machine.cpu_bf16:
            why = "this CPU multiplies bfloat16 natively (measured: 1.3 to 1.4 times as fast as float32)"
            return "bf16", why + idle
        return "fp32", "this CPU has no bfloat16 instructions" + idle
    if case.facts.model is not None and in_half(case.facts.model.config, case.device):
        return "fp16", "transformers casts AWQ checkpoints on a GPU to float16, whatever is said"
    if (found := capability(case)) is not None:
        has = found >= BFLOAT16
        return ("bf16" if has else "fp16"), f"compute capability {found} has {'' if has else 'no '}bfloat16"
    if "rocm" in machine.packages:
        return (
            "fp16",
            "torch is built for ROCm: an AMD GPU, of which not all have bfloat16 (precision=bf16 where it has)",
        )
    return "bf16", f"compute capability {BFLOAT16} is assumed: no GPU is here, hardware.compute_capability is null"


def float32_matmul(case: Case) -> Literal["highest", "high", "medium"]:
    """Return the precision of float32 products. On a CPU `high` and `medium` change results too, where it has kernels.

    An export merges in float32, and writes what it computes.
    """
    asked = case.settings.precision.float32_matmul
    if asked != "auto":
        return asked
    return "high" if case.device == "cuda" and case.settings.verb != "export" else "highest"


def capability(case: Case) -> float | None:
    """The least compute capability of the cards that the run takes; None: it takes none, or nobody knows it.

    AMD's cards are numbered otherwise.
    """
    if case.device != "cuda":
        return None
    if (asked := case.settings.hardware.compute_capability) is not None:
        return asked
    known = () if "rocm" in case.facts.machine.packages else cards(case)
    return min((card.compute_capability for card in known), default=None)


def cards(case: Case) -> tuple[Gpu, ...]:
    """Those of a node that the run takes."""
    return case.facts.machine.gpus[: processes(case)]


def processes(case: Case) -> int:
    """Of a node."""
    return max(1, case.settings.hardware.num_processes // case.settings.hardware.num_nodes)


def warnings(case: Case) -> tuple[str, ...]:
    """Of what works, and is seldom meant."""
    return (*_ignored(case), *_unread(case), *_emulated(case))


def _ignored(case: Case) -> Iterator[str]:
    """Yield the settings that were made and change nothing, where another choice was probably meant."""
    stage, method, model = case.settings.stage, case.settings.method, case.settings.model
    trains, rate = case.settings.verb == "train", method.learning_rate
    if trains and case.asked("method.learning_rate") and stage.learning_rate != rate:
        yield f"method.learning_rate={rate}: stage.learning_rate={stage.learning_rate:g} comes before it"
    if method.quantization.method != "bitsandbytes" and method.quantization.bits is None:
        yield f"method.quantization.method={method.quantization.method}: set method.quantization.bits to quantize"
    if model.revision is not None and case.model.source != "hub":
        yield f"model.revision={model.revision}: the model is a {case.model.source}, which has none"


def _unread(case: Case) -> Iterator[str]:
    """GPUs of this machine that the run could have taken."""
    if case.settings.hardware.device != "cpu" and not case.settings.hardware.card:
        for told in case.facts.machine.unread:
            yield f"a GPU is left out, as its memory or its compute capability cannot be read: nvidia-smi says {told}"


def _emulated(case: Case) -> Iterator[str]:
    name, found = precision(case)[0], capability(case)
    if name in ("bf16", "pure_bf16") and found is not None and found < BFLOAT16:
        yield f"precision={name}: compute capability {found} has no bfloat16 and emulates it, slowly; it has float16"


def _npu(case: Case) -> bool:
    """Whether torch could train on an Ascend NPU here, were it asked to: it does so through this package alone."""
    return case.settings.hardware.device == "auto" and "torch-npu" in case.facts.machine.packages


def measured_alone(settings: Settings, sets: Iterable[str]) -> bool:
    """Whether nothing would train, and need not: the one of the sets is measured whole."""
    return settings.verb == "evaluate" and list(sets) == [settings.data.validation]


def own_keys(case: Case) -> dict[str, Any]:
    """The stage's own keys, with values in the place of those that were left open."""
    resolved = registry.hook(case.stage_spec, "resolved", dict)
    return resolved({name: value for name, value in to_tree(case.settings.stage).items() if name not in SHARED})


def needs_reference(case: Case) -> bool:
    needs = registry.hook(case.stage_spec, "needs_reference")
    return needs is not None and needs(own_keys(case))


def packing(case: Case) -> bool:
    asked = case.settings.data.packing
    return _of_plain_text(case) if asked == "auto" else asked


def _of_plain_text(case: Case) -> bool:
    return case.stage_spec.KIND == "text"


def isolation(case: Case) -> bool:
    """Whether packed documents do not see each other."""
    asked = case.settings.data.isolate_documents
    return packing(case) and (not _of_plain_text(case) if asked == "auto" else asked)


def isolates_below(case: Case) -> int | None:
    """The tokens of a row from which on documents in it are not parted; None: they are in any."""
    if case.traits.isolates_below is None:
        return None
    key, default = case.traits.isolates_below
    return int(text_numbers(case.model.config).get(key, default))


def isolates(case: Case, sequences: int) -> bool:
    """Whether position_ids part documents in a row of so many of the longest sequences."""
    below, context = isolates_below(case), context_length(case)
    long = below is not None and (context is None or sequences * max_length(case, context) >= below)
    return case.traits.isolates and not long


def attention(case: Case) -> tuple[str, str]:
    """Return the kernel of attention, and why it was chosen; no reason where it was set."""
    asked = case.settings.compute.attention
    if asked != "auto":
        return asked, ""
    if kernels_named(case) == "unsloth":  # the memory of its own choice: flash attention, xformers or torch's kernel
        return VARLEN, "Unsloth chooses its own, by sequence"
    reads_masks = case.settings.verb in WRITES
    if case.device == "cuda" and not reads_masks:
        for name in reversed(FLASH):
            if unfit_for_flash(case, name) is None:
                return name, f"{FLASH_PACKAGES[name]} is installed"
    if not case.traits.sdpa:
        return "eager", f"all that the class of {case.arch.kind} takes"
    if reads_masks or not _gains_by_joining(case):
        return "sdpa", "torch's own fused kernel"
    if case.device == "cpu":
        return PER_DOCUMENT, "torch's own fused kernel for each sequence of a row: no mask, nothing padded"
    if (wrong := unfit_for_varlen(case)) is None:
        return VARLEN, "torch's variable-length kernel: no mask, nothing padded"
    if case.settings.compute.compile:
        return "sdpa", "torch's own fused kernel"
    return PER_DOCUMENT, f"torch's own fused kernel for each sequence of a row, as for its variable-length one {wrong}"


def unfit_for_flash(case: Case, name: str) -> str | None:
    """Return why flash attention of that name cannot be chosen; None: it can."""
    package, (first, beyond) = FLASH_PACKAGES[name], CARDS[name]
    found = BFLOAT16 if capability(case) is None else capability(case)
    if package not in case.facts.machine.packages:
        return f"{package} is not installed"
    if not case.traits.flash or (isolation(case) and not joins(case)):
        return f"the class of {case.arch.kind} does not take it"
    if name == "flash_attention_3":
        first = 9.0  # its package is built for Hopper; Ampere's kernels are those of flash_attention_2
    if found is None or not first <= found < beyond:
        return f"it has no kernel for compute capability {found}"
    return _beyond_flash(case) or _too_wide(case)


def unfit_for_varlen(case: Case) -> str | None:
    """Return why torch's variable-length kernel cannot run (`factory.attention.segments`); None: it can."""
    found = capability(case)
    if found is not None and found < CARDS[VARLEN][0]:
        return f"compute capability {found} is too low"
    if "rocm" in case.facts.machine.packages:
        return "a build of torch for ROCm is not proven"
    return heads_unfit_for_varlen(case) or _too_wide(case)


def heads_unfit_for_varlen(case: Case) -> str | None:
    """Return why the model's heads do not suit torch's variable-length kernel; None: they do."""
    if case.arch.head_dim % 8:
        return f"heads of {case.arch.head_dim} numbers are no multiple of 8"
    shares = [value for key, value in text_numbers(case.model.config).items() if "att" in key and "drop" in key]
    if any(shares) or (case.traits.drops and not shares):
        return "dropout in attention is not possible"
    return _beyond_flash(case)


def _beyond_flash(case: Case) -> str | None:
    return f"heads of {case.arch.head_dim} numbers are more than 256" if case.arch.head_dim > 256 else None


def _too_wide(case: Case) -> str | None:
    return "precision=fp32 is too wide: it computes in 16 bits" if precision(case)[0] == "fp32" else None


def joins(case: Case) -> bool:
    """Return whether sequences that stand in one row stay isolated by their lengths, in the model's class."""
    own = case.traits
    return own.ours and own.flash and own.lengths and own.isolates and not case.arch.parts


def _sequences(case: Case) -> int:
    """Return how many sequences a micro-batch has."""
    return case.settings.stage.batch_size * registry.hook(case.stage_spec, "SEQUENCES", 1)


def _gains_by_joining(case: Case) -> bool:
    """Return whether rows hold isolated documents, or would else be padded."""
    if not joins(case) or (case.device == "cpu" and case.settings.compute.compile):
        return False
    if packing(case):
        return isolation(case)
    return not _parts_rows(case) and (case.device == "cuda" or _sequences(case) > 1)


def _parts_rows(case: Case) -> bool:
    """Return whether the stage computes something by a row's own length, as NEFTune's noise."""
    return registry.hook(case.stage_spec, "parts_rows", lambda own: False)(own_keys(case))


def padding_free(case: Case) -> bool:
    """Return whether the rows of a micro-batch stand one after another, so that nothing is padded."""
    return attention(case)[0] in JOINING and _gains_by_joining(case) and not _parts_rows(case)


def kernels_named(case: Case) -> str:
    """Return compute.kernels as it was set; Unsloth trains only, other verbs read its runs by transformers."""
    asked = case.settings.compute.kernels
    return "none" if asked == "unsloth" and case.settings.verb != "train" else asked


def kernels(case: Case) -> tuple[str, str]:
    """Return the kernels and why they were chosen; no reason where they were set."""
    if (asked := kernels_named(case)) != "auto":
        return asked, ""
    if case.device == "cpu":
        return "none", "Liger's are for a GPU"
    if case.settings.verb in WRITES:
        return "none", "answers are written token by token"
    if case.settings.compute.compile:
        return "none", "torch.compile fuses by itself"
    if (wrong := without_liger(case.arch.kind, text_numbers(case.model.config))) is not None:
        return "none", f"Liger: {wrong}"
    if "liger-kernel" not in case.facts.machine.packages:
        return "none", "the package liger-kernel is not installed"
    return "liger", "fused RMSNorm, gated MLP and rotary positions"


def recomputations(case: Case) -> tuple[Recomputed, ...]:
    """What may be recomputed, that which keeps most first: where `auto` is asked for, the first that fits is taken."""
    asked, layers = case.settings.compute.activation_checkpointing, case.settings.compute.recomputed_layers
    if asked != "auto":
        return (asked,)
    if case.settings.verb != "train" or not case.traits.recomputes:
        return (False,)
    if layers != "auto":
        return (True,)
    return (False, True) if kernels_named(case) == "unsloth" else (False, "selective", True)


def recomputed_layers(case: Case) -> int | None:
    """None: all of them."""
    asked = case.settings.compute.recomputed_layers
    return None if asked in ("auto", layers(case)) else asked


def layers(case: Case) -> int:
    """Of the decoder, with those that the method adds."""
    return case.expanded.layers


def context_length(case: Case) -> int | None:
    """Of a base whose positions an adapter was trained with stretched, their length: an option says the base's own."""
    adapter, said = case.model.adapter, case.settings.model.context_length
    reached = None if case.asked("model.context_length") else adapter and adapter.context_length
    return reached or said or case.arch.context_length


def max_length(case: Case, context: int) -> int:
    """Tokens of a sequence; where a stage samples answers, without these, which the context must hold too."""
    asked, new = case.settings.data.max_length, registry.hook(case.stage_spec, "new_tokens")
    room = context - new(case.settings.stage.model_dump()) if new else context
    return max(1, min(MAX_LENGTH, room)) if asked == "auto" else asked


def threads(case: Case) -> int:
    """Of a process: a node's processes share its cores."""
    hardware = case.settings.hardware
    return hardware.threads or max(1, case.facts.machine.threads * hardware.num_nodes // hardware.num_processes)


def group_size(case: Case, length: int) -> int:
    """Tokens in a group of S² attention: an even quarter of the length (LongLoRA, arXiv 2309.12307, section 3.2)."""
    asked = case.settings.compute.group_size
    return max(2, length // 8 * 2) if asked == "auto" else asked
