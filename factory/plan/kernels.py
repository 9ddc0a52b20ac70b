"""What `compute.kernels` goes with."""

from collections.abc import Iterator

from factory.architecture import text_numbers
from factory.config import registry
from factory.kernels import UNSLOTH, without_liger
from factory.plan import choices
from factory.plan.rule import Broken, Case, rule
from factory.quantizers.checkpoint import checkpoint_quantizer

_METHODS = ("lora", "qlora")  # those of the package methods/lora: rslora, dora, lora_plus and pissa are its settings


@rule(
    "kernels",
    keys=(
        "compute.kernels",
        "compute.attention",
        "compute.compile",
        "compute.activation_checkpointing",
        "method.name",
        "method.quantization.bits",
        "method.quantization.method",
        "precision.name",
        "hardware.strategy",
        "hardware.num_processes",
        "stage.name",
        "evaluate.generation",
        "evaluate.benchmarks",
        "evaluate.harness",
        "evaluate.samples",
        "hardware.device",
    ),
    reason="the library would compute something else, or fail after the weights were read",
    fix="leave that key at its default, or set compute.kernels=auto",
)
def kernels_fit(case: Case) -> str | Broken | None:
    name = choices.kernels_named(case)
    if case.settings.compute.kernels in ("liger", "unsloth") and case.device == "cpu":
        return f"{case.settings.compute.kernels} needs a GPU"
    if name == "liger" and case.known:
        return without_liger(case.arch.kind, text_numbers(case.model.config))
    if name != "unsloth" or not case.known:
        return None
    key, wrong = next(_unsloth_limits(case), (None, None))
    return wrong and Broken(key=key, message=wrong)


def _unsloth_limits(case: Case) -> Iterator[tuple[str | None, str]]:
    """Yield what Unsloth does not do, with the key that asks for it where that is not compute.kernels.

    Source: unsloth 2026.10.9. Several GPUs: `_gpu_init.py`, "Multi-GPU is not yet supported". float32: its LoRA kernels
    are left out over float32 weights (`models/llama.py`, patch_peft_model), where adapters are always made float32.
    Attention: chosen by `utils/attention_dispatch.py`. Selective recomputation: its rotary kernel writes over the
    queries, which are the kept results of matrix products.
    """
    settings, method, compute = case.settings, case.settings.method, case.settings.compute
    if case.arch.kind not in UNSLOTH:
        yield None, f"it is used for {', '.join(UNSLOTH)}, and the model is {case.arch.kind}"
    if method.name not in _METHODS:
        yield "method.name", "Unsloth attaches only LoRA"
        return
    base = method.quantization
    if base.bits is not None and (base.method, base.bits) != ("bitsandbytes", 4):
        yield "method.quantization.bits", f"its kernels read 4 bits of bitsandbytes, not {base.bits} of {base.method}"
    if (name := checkpoint_quantizer(case.model.config)) is not None:
        yield "model.path", f"the checkpoint is quantized already, by {name}"
    if base.bits is not None and registry.starts_from_weights(case.method_spec, method):
        yield "method.initialization", "the start is taken out of whole weights, and it reads quantized ones"
    if (precision := choices.precision(case)[0]) not in ("bf16", "fp16"):
        yield "precision.name", f"its adapters train in float32 over weights of 16 bits, not in {precision}"
    if settings.hardware.num_processes > 1 or settings.hardware.strategy != "none":
        yield "hardware.strategy", "its published version trains on one GPU"
    if compute.attention != "auto":
        yield "compute.attention", "it computes attention by a kernel of its own choice"
    if compute.compile:
        yield "compute.compile", "its layers are not for torch.compile"
    if compute.activation_checkpointing == "selective":
        yield "compute.activation_checkpointing", "its kernels write over what selective recomputation keeps"
    if settings.model.rope_scaling != "none":
        yield "model.rope_scaling", "it builds rotary positions by the checkpoint's own config"
    longest, asked = case.arch.context_length, settings.model.context_length
    if longest is not None and asked is not None and asked > longest:
        yield "model.context_length", f"it cuts rows after the {longest:,} tokens of the model's config.json"
    if case.vocabulary.new:
        yield "model.new_tokens", "new rows of the embedding are trained by PEFT, which it does without"
    if registry.hook(case.stage_spec, "new_tokens") is not None:
        yield "stage.name", "the stage samples answers while it trains"
    evaluate = settings.evaluate
    if evaluate.generation or evaluate.benchmarks or evaluate.harness:
        key = next(name for name in ("generation", "benchmarks", "harness") if getattr(evaluate, name))
        yield f"evaluate.{key}", "its model answers nothing during a run; `factory evaluate run=FOLDER` does afterwards"
    if evaluate.samples and case.asked("evaluate.samples"):
        yield "evaluate.samples", "its model answers nothing during a run; `factory chat run=FOLDER` does afterwards"
