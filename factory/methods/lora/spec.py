"""A pair of low-rank matrices beside each linear layer (LoRA, Hu et al. 2022, equation 3), and what was made of it."""

from collections.abc import Iterator
from math import sqrt
from typing import Any, Literal

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.config.settings import Quantization
from factory.methods.full import spec as full
from factory.methods.lora.targets import PREFIX, Adapter, as_saved, left_out, targets
from factory.plan import vocabulary
from factory.plan.rule import Broken, Case, rule
from factory.quantizers.checkpoint import checkpoint_quantizer
from factory.quantizers.spec import stays_quantized

optimizer_bytes = full.optimizer_bytes
_FROM_WEIGHTS = ("olora", "pissa", "loftq")
# whose experts tell PEFT that their matrices lie as (experts, in, out); llama4's lie so too, and do not tell
_SAY_TRANSPOSED = {"gpt_oss"}


class Settings(Adapter):
    rank: int = Field(description="rank of the matrices A and B", ge=1)
    alpha: float = Field(description="scale: the adapter adds alpha / rank times BA", gt=0)
    dropout: float = Field(description="dropout on the adapter's input", ge=0, le=0.99)
    target_experts: bool = Field(
        description="adapt the matrices of a mixture's experts too, a pair A and B for each expert"
    )
    rslora: bool = Field(description="scale by alpha / √rank instead (rsLoRA, arXiv 2312.03732)")
    dora: bool = Field(description="train each row's length apart from its direction (DoRA, arXiv 2402.09353)")
    b_learning_rate_ratio: float = Field(
        description="B learns at so many times the rate of A (LoRA+, arXiv 2402.12354)", gt=0
    )
    initialization: Literal["kaiming", "gaussian", "olora", "pissa", "loftq"] = Field(
        description="how A and B start; olora (arXiv 2406.01775), pissa (2404.02948) and loftq (2310.08659) start "
        "from the weights"
    )
    iterations: int | None = Field(
        description="pissa: power iterations of a fast approximate SVD, null: the exact one; loftq: turns of "
        "rounding and SVD",
        ge=1,
    )


def scaling(method: Settings) -> float:
    """The adapter adds so many times BA."""
    return method.alpha / (sqrt(method.rank) if method.rslora else method.rank)


def starts_from_weights(method: Settings) -> bool:
    """Whether A and B take their start out of the weights, which keep the rest."""
    return method.initialization in _FROM_WEIGHTS


def attaches_to_shares(method: Settings) -> bool:
    """Return whether a rank that holds its share of the weights only can attach the method."""
    return not (starts_from_weights(method) or method.dora or method.target_experts)


def written(method: Settings) -> Settings:
    """What the adapter is once it is saved: a start out of the weights is given back, as a second pair."""
    if not starts_from_weights(method):
        return method
    alpha = method.alpha * (sqrt(2) if method.rslora else 2)
    return method.model_copy(
        update={"rank": 2 * method.rank, "alpha": alpha, "initialization": "kaiming", "iterations": None}
    )


def trains_over(method: Settings, library: str, bits: int | None) -> bool:
    """DoRA measures the lengths of dequantized rows, which PEFT does for the 4 bits of bitsandbytes alone."""
    return not method.dora or (library, bits) == ("bitsandbytes", 4)


def peft(method: Settings, arch: Architecture) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": method.rank,
        "lora_alpha": method.alpha,
        "use_rslora": method.rslora,
        "use_dora": method.dora,
        **vocabulary.adapted(arch, arch.new_rows),
    }


def saved(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """DoRA's lengths are a module while they train and a tensor in the file."""
    lengths = "lora_magnitude_vector"
    return {
        name.removesuffix(".weight") if lengths in name else name: shape
        for name, shape in as_saved(trainable(method, arch)).items()
    }


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """A is (rank, in), B is (out, rank) and DoRA's lengths are (out,), named as PEFT names them."""
    shapes: dict[str, Shape] = {}
    for name, (outputs, inputs) in targets(method, arch).items():
        shapes |= _pair(name, method.rank, outputs, inputs)
        if method.dora:
            shapes[f"{PREFIX}{name}.lora_magnitude_vector.default.weight"] = (outputs,)
    shapes |= vocabulary.trainable(arch, arch.new_rows)
    return shapes | (_experts(method, arch) if method.target_experts else {})


def _pair(module: str, rank: int, outputs: int, inputs: int) -> dict[str, Shape]:
    at = f"{PREFIX}{module}."
    return {f"{at}lora_A.default.weight": (rank, inputs), f"{at}lora_B.default.weight": (outputs, rank)}


def _experts(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """A pair for each expert, stacked. PEFT wraps a module once for each of its parameters, the first innermost."""
    shapes: dict[str, Shape] = {}
    last_first = list(reversed(arch.experts().items()))
    for index, (name, (count, *matrix)) in enumerate(last_first):
        module = name.rpartition(".")[0]
        outer = sum(other.rpartition(".")[0] == module for other, _ in last_first[:index])
        outputs, inputs = reversed(matrix) if arch.kind in _SAY_TRANSPOSED else matrix
        shapes |= _pair(module + ".base_layer" * outer, count * method.rank, outputs, inputs)
    return shapes


def notes(method: Settings, arch: Architecture) -> tuple[str, ...]:
    """What a plan says about layers that are not adapted."""
    without, why = left_out(method, arch)
    if method.target_modules != "all-linear" or not without:
        return ()
    return (f"method.target_modules=all-linear: but {len(without)} layers {why}",)


@rule(
    "adapted-experts",
    keys=("method.target_experts", "method.dropout", "method.dora", "method.initialization", "model.path"),
    reason="the adapter is added to the experts' stacked matrices themselves, not beside their input",
    fix="set method.target_experts=false, or method.dropout=0 method.dora=false method.initialization=kaiming",
)
def adapted_experts(case: Case) -> str | Broken | None:
    method = case.settings.method
    if not method.target_experts:
        return None
    if not case.arch.experts():
        return "the model has no experts in stacked matrices"
    if any(len(shape) == 2 for shape in case.arch.experts().values()):
        return f"the experts of a {case.arch.kind} model lie under each other, in one matrix as a layer's"
    if method.dropout > 0:
        return Broken(key="method.dropout", message="experts cannot have dropout on the adapter's input")
    if method.dora:
        return Broken(key="method.dora", message="experts have no lengths of rows apart")
    if starts_from_weights(method):
        return Broken(key="method.initialization", message="experts start from kaiming or gaussian")
    return None


@rule(
    "adapter-start",
    keys=(
        "method.initialization",
        "method.rank",
        "method.dora",
        "method.iterations",
        "method.target_modules",
        "method.quantization.method",
        "method.quantization.bits",
        "model.path",
        "model.adapter",
    ),
    reason="such a start is taken out of the weights, and base and adapter together must stay near them",
    fix="set method.initialization=kaiming",
)
def adapter_start(case: Case) -> Iterator[Broken]:
    method, base, adapter = case.settings.method, case.settings.method.quantization, case.model.adapter
    if not starts_from_weights(method):
        return
    if method.dora:
        message = "DoRA's lengths would be those of what is left of the weights"
        yield Broken(message=message, fix="set method.dora=false, or method.initialization=kaiming")
    if method.iterations is None and method.initialization == "loftq":
        fix = "set method.iterations to a number (the paper has 5)"
        yield Broken(key="method.iterations", message="loftq needs a number", fix=fix)
    if (wrong := _wrong_base(method, base, case.model.config)) is not None:
        fix = "for loftq set method.quantization.bits=4, for a base that is quantized here loftq or pissa, else kaiming"
        yield Broken(message=wrong, fix=fix)
    narrowest = min((min(shape) for shape in targets(method, case.arch).values()), default=method.rank)
    if method.rank > narrowest:
        yield Broken(
            key="method.rank",
            message=f"the narrowest matrix has only {narrowest} singular values",
            reason="A and B are made of so many directions of each weight",
            fix="set a lower method.rank",
        )
    if adapter is not None:
        made = f"r={adapter.config.get('r')} and lora_alpha={adapter.config.get('lora_alpha')}"
        yield Broken(
            message=f"model.adapter, of {made}, is one too",
            reason="a start from the weights changes the base that the saved adapter stands beside",
            fix=(
                "set method=lora and the method.rank and method.alpha that it has (saved, it has twice the rank it "
                "started with)"
            ),
        )


def _wrong_base(method: Settings, base: Quantization, config: dict[str, Any]) -> str | None:
    if base.bits is None and stays_quantized(base, config):
        return f"A and B would start from whole weights, the checkpoint's are {checkpoint_quantizer(config)}"
    if method.initialization == "loftq" and (base.bits is None or base.method != "bitsandbytes"):
        return f"it makes up for the rounding of bitsandbytes, here is {base.method} with bits={base.bits or 'null'}"
    if method.initialization == "olora" and base.bits is not None:
        return "what it leaves of the weights rounds no better than they do (measured: errors 1 to 4 times as large)"
    return None
