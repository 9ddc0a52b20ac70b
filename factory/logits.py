"""The language model's head as a model applies it: what makes logits of hidden states, and where both are in it."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from factory.architecture.traits import TEXT_APART


@dataclass(frozen=True, slots=True)
class Head:
    """What makes logits of hidden states, as the model applies it.

    hidden: (tokens, width); weight: (vocabulary, width); bias: (vocabulary). With z = scale (hidden @ weight.T + bias)
    the logits are u = z, or u = cap tanh(z / cap) where there is a cap (Gemma 2, arXiv 2408.00118, section 2).
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """u: (tokens, vocabulary). What follows the product is taken in float32 at least."""
        return self.shaped((hidden @ self.weight.T).to(wide_type(hidden.dtype)))

    def shaped(self, logits: Tensor) -> Tensor:
        """u of hidden @ weight.T, written in its place."""
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1:
            logits *= self.scale
        if self.cap is not None:
            logits = logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits

    def bend(self, logits: Tensor) -> Tensor | None:
        """d u / d z = 1 - (u / cap)²; None where there is no cap, and it is 1."""
        return None if self.cap is None else 1 - (logits / self.cap).square_()

    def slopes(self, softmax: Tensor, bend: Tensor | None, target: Tensor, factors: Tensor | None) -> Tensor:
        """The gradient of sum(-factors log softmax(u)[target]) in z, written over the softmax; factors of None are 1.

        d -log softmax(u)[target] / d u = softmax(u) - onehot(target). The scale is taken along, so it is the gradient
        in hidden @ weight.T + bias. Rows after the target's are padding, and get 0.
        """
        count, slopes = len(target), softmax
        slopes[torch.arange(count, device=slopes.device), target] -= 1
        slopes[count:] = 0
        if bend is not None:
            slopes *= bend
        if self.scale != 1:
            slopes *= self.scale
        if factors is not None:
            slopes[:count] *= factors[:, None]
        return slopes

    def at(self, temperature: float) -> "Head":
        """With its logits divided by the temperature."""
        cap = None if self.cap is None else self.cap / temperature
        return replace(self, scale=self.scale / temperature, cap=cap)


def wide_type(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True, slots=True)
class Transform:
    """What a model does to `hidden @ weight.T + bias`: the keys of its config.json that say so."""

    times: str | None = None
    over: str | None = None
    cap: str | None = None

    def numbers(self, config: Any) -> tuple[float, float | None]:
        """(scale, cap) of the logits."""
        times, over = (getattr(config, name) if name else 1.0 for name in (self.times, self.over))
        return times / over, getattr(config, self.cap) if self.cap else None


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
    smolvlm mllama qwen2_audio
"""

# by model_type, each proven against the model's own loss (tests/test_losses.py); of any other, its own logits are taken
TRANSFORMS: dict[str, Transform] = {
    **dict.fromkeys(("gemma2", "gemma3_text"), _CAPPED),
    **dict.fromkeys(("cohere", "cohere2"), _MULTIPLIED),
    **dict.fromkeys(("granite", "granitemoe", "granitemoeshared", "granitemoehybrid", "minicpm3"), _DIVIDED),
    **dict.fromkeys(_PLAIN_KINDS.split(), _PLAIN),
}


def text_model(model: Any) -> Any:
    """What reads a text and answers, below PEFT's wrapper: the model, or its language model where only that works."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return inner.language_model if inner.config.model_type in TEXT_APART else inner


def decoder(inner: Any) -> Any:
    """What of a `text_model` makes the states that go into its head."""
    # Llama 4's text class names a prefix that it does not have, and is its own base model then
    return inner.base_model if inner.base_model is not inner else inner.model


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
