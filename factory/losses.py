"""Losses that never hold the logits of all tokens at once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from factory.data.dataset import IGNORED
from factory.plan import LOSS_CHUNK

_MULTIPLE = 32  # a chunk's rows are padded to this: few shapes, so few kernels that a CPU compiles and keeps


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropies of a head's logits, its gradients computed chunk by chunk in the forward pass.

    hidden: (tokens, width); weight: (vocabulary, width); target: (tokens); bias: (vocabulary). With
    z = scale (hidden @ weight.T + bias) the logits are u = z, or u = cap tanh(z / cap) where there is a cap (Gemma 2,
    arXiv 2408.00118, section 2). They are taken in `dtype`, what follows the product in float32 at least.
    d loss / d u = softmax(u) - onehot(target), and d u / d z = 1 - (u / cap)². `counts`: (tokens), what each token's
    loss is multiplied by; None: 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        dtype: torch.dtype,
        bias: Tensor | None = None,
        scale: float = 1.0,
        cap: float | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        narrow = weight.to(dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        needs_bias = bias is not None and ctx.needs_input_grad[4]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight: Tensor | None = None
        size = LOSS_CHUNK * (2 if needs_weight else 1)  # each chunk passes over the weight's gradient: fewer are faster
        total = hidden.new_zeros((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        grad_bias = torch.zeros_like(bias, dtype=total.dtype) if bias is not None and needs_bias else None
        for start in range(0, len(target), size):
            rows, count = slice(start, start + size), min(size, len(target) - start)
            part = functional.pad(hidden[rows].to(dtype), (0, 0, 0, -count % _MULTIPLE))
            wanted = functional.pad(target[rows], (0, -count % _MULTIPLE), value=IGNORED)
            logits = (part @ narrow.T).to(total.dtype)
            if bias is not None:
                logits += bias
            if scale != 1:
                logits *= scale
            if cap is not None:
                logits = logits.div_(cap).tanh_().mul_(cap)
            total += _summed(logits, wanted, None if counts is None else counts[rows])
            if not needs_hidden and not needs_weight and not needs_bias:
                continue
            bend = None if cap is None else 1 - (logits / cap).square_()
            slope = torch.softmax(logits, dim=-1, out=logits)
            slope[torch.arange(count, device=slope.device), wanted[:count]] -= 1
            slope[count:] = 0
            if bend is not None:
                slope *= bend
            if scale != 1:
                slope *= scale
            if counts is not None:
                slope[:count] *= counts[rows, None]
            if grad_bias is not None:
                grad_bias += slope.sum(0)
            slope = slope.to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (slope @ narrow)[:count]
            if needs_weight:
                product = slope.T @ part
                grad_weight = product.to(weight.dtype) if grad_weight is None else grad_weight.add_(product)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        by_hidden, by_weight, by_bias = (
            None if slopes is None else slopes.mul_(grad.to(slopes.dtype)) for slopes in ctx.saved_tensors
        )
        return by_hidden, by_weight, None, None, by_bias, None, None, None


def _summed(logits: Tensor, target: Tensor, counts: Tensor | None) -> Tensor:
    """The sum of the tokens' losses, each multiplied by its count; rows of padding have no target."""
    if counts is None:
        return functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
    losses = functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")
    return (losses[: len(counts)] * counts).sum()


@dataclass(frozen=True, slots=True)
class Transform:
    """What a model does to `hidden @ weight.T + bias`: the keys of its config.json that say so."""

    times: str | None = None
    over: str | None = None
    cap: str | None = None

    def numbers(self, config: Any) -> tuple[float, float | None]:
        """(scale, cap) of the logits."""
        scale = getattr(config, self.times) if self.times else 1.0
        return scale / (getattr(config, self.over) if self.over else 1.0), getattr(
            config, self.cap
        ) if self.cap else None


_CAPPED = Transform(cap="final_logit_softcapping")
_MULTIPLIED = Transform(times="logit_scale")
_DIVIDED = Transform(over="logits_scaling")  # minicpm3 divides what goes into its head, which is the same
_PLAIN = Transform()

_PLAIN_KINDS = """
    llama mistral ministral ministral3 mixtral qwen2 qwen3 qwen2_moe qwen3_moe qwen3_next gemma olmo olmo2 olmo3 olmoe
    smollm3 seed_oss exaone exaone4 ernie4_5 ernie4_5_moe internlm3 hunyuan_v1_dense hunyuan_v1_moe nemotron arcee
    helium glm glm4 glm4_moe phi phi3 phimoe starcoder2 stablelm gpt2 gpt_neo gpt_neox gptj gpt_bigcode opt bloom falcon
    mpt deepseek_v2 deepseek_v3 gpt_oss llama4_text lfm2
    gemma3 idefics2 idefics3 internvl llava llava_next llava_onevision mistral3 paligemma qwen2_vl qwen2_5_vl qwen3_vl
    smolvlm mllama
"""

# by model_type, each proven against the model's own loss (tests/test_losses.py); of any other, its own logits are taken
TRANSFORMS: dict[str, Transform] = {
    **dict.fromkeys(("gemma2", "gemma3_text"), _CAPPED),
    **dict.fromkeys(("cohere", "cohere2"), _MULTIPLIED),
    **dict.fromkeys(("granite", "granitemoe", "granitemoeshared", "granitemoehybrid", "minicpm3"), _DIVIDED),
    **dict.fromkeys(_PLAIN_KINDS.split(), _PLAIN),
}


@dataclass(frozen=True, slots=True)
class Head:
    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None


# transformers 5.24 cannot call these: the class that sees reads a field of the output that is not there
_TEXT_APART = ("llama4",)


def text_model(model: Any) -> Any:
    """What reads a text and answers, below PEFT's wrapper: the model, or its language model where only that works."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return inner.language_model if inner.config.model_type in _TEXT_APART else inner


def head_of(model: Any) -> Head | None:
    """The head as the model applies it; None where only the model itself knows how: another kind, or a wrapped head."""
    inner = text_model(model)
    transform, module = TRANSFORMS.get(inner.config.model_type), inner.get_output_embeddings()
    plain: tuple[type, ...] = (torch.nn.Linear,)
    if hasattr(model, "peft_config"):
        from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

        plain += (ModulesToSaveWrapper, TrainableTokensWrapper)  # their `weight` is the one in use
    if transform is None or type(module) not in plain:
        return None
    return Head(module.weight, getattr(module, "bias", None), *transform.numbers(inner.config))


def causal_lm(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Sum over the trained tokens of -log p(token | tokens before it), times its `weights` where the batch has them.

    Labels of -100 are not trained. Only the trained positions get logits: the decoder runs on all tokens, the head on
    those alone. Where the head is of a kind that is not known here, the model makes its own logits, of all positions.
    """
    wanted, target = _targets(batch)
    head = head_of(model)
    counts = batch["weights"][:, 1:][wanted] if "weights" in batch else None
    if head is None:
        return _summed(_own_logits(model, batch, wanted), target, counts)
    return _by_head(head, _hidden(model, batch, wanted), target, counts)


def heads_agree(model: Any, batch: dict[str, Tensor]) -> float:
    """The largest difference, in nats, between a token's loss by the model's own logits and by `causal_lm`'s.

    Rounding is all that may differ. 0 where `causal_lm` takes the model's own. It makes the logits of the whole batch,
    so give it a small one; at most 64 trained tokens are compared.
    """
    head = head_of(model)
    if head is None:
        return 0.0
    wanted, target = _targets(batch)
    compared = range(0, len(target), max(1, len(target) // 64))
    training = model.training
    model.eval()
    with torch.no_grad():
        theirs = functional.cross_entropy(_own_logits(model, batch, wanted), target, reduction="none")
        hidden = _hidden(model, batch, wanted)
        ours = [_by_head(head, hidden[at : at + 1], target[at : at + 1]) for at in compared]
    model.train(training)
    return max((abs(float(theirs[at] - one)) for at, one in zip(compared, ours, strict=True)), default=0.0)


def _targets(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Which positions' next token is trained (rows, length - 1), and those tokens."""
    labels = batch["labels"][:, 1:]
    return labels != IGNORED, labels[labels != IGNORED]


# its attention is bidirectional unless it is told which tokens answer: all that it is not told of are taken to
_TYPED = ("paligemma",)
# they read a text's own positions, which tell documents apart, only beside those in time, height and width
_FOUR_POSITIONS = ("qwen2_vl", "qwen2_5_vl")


def _inputs(model: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
    """What the model's forward takes: the batch without labels, and what its kind needs to see a text as one."""
    inputs: dict[str, Any] = {name: value for name, value in batch.items() if name not in ("labels", "weights")}
    kind, positions = text_model(model).config.model_type, inputs.get("position_ids")
    assert kind != "llama4_text" or "pixel_values" not in inputs, "its language model would take no notice of an image"
    if kind in _TYPED and "token_type_ids" not in inputs:
        inputs["token_type_ids"] = torch.ones_like(inputs["input_ids"])
    if kind in _FOUR_POSITIONS and positions is not None and positions.dim() == 2:
        inputs["position_ids"] = positions.expand(4, *positions.shape)
    return {**inputs, "use_cache": False}


def _hidden(model: Any, batch: dict[str, Tensor], wanted: Tensor) -> Tensor:
    """What goes into the head at the wanted positions: (tokens, width)."""
    inner = text_model(model)
    # Llama 4's text class names a prefix that it does not have, and is its own base model then
    body = inner.base_model if inner.base_model is not inner else inner.model
    return body(**_inputs(model, batch)).last_hidden_state[:, :-1][wanted]


def _own_logits(model: Any, batch: dict[str, Tensor], wanted: Tensor) -> Tensor:
    """The model's own logits at the wanted positions, in float32 at least: (tokens, vocabulary)."""
    logits = text_model(model)(**_inputs(model, batch)).logits[:, :-1][wanted]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _by_head(head: Head, hidden: Tensor, target: Tensor, counts: Tensor | None = None) -> Tensor:
    weight, bias = head.weight, head.bias
    if not torch.is_grad_enabled():  # autograd.Function sees what requires a gradient, not whether one is wanted
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if dtype == torch.float16:  # the slopes are taken before the loss is scaled, and would vanish
        dtype = torch.float32
    with torch.autocast(device, enabled=False):
        return LinearCrossEntropy.apply(hidden, weight, target, dtype, bias, head.scale, head.cap, counts)  # type: ignore[no-any-return]
