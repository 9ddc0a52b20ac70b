"""Tiny random models in ordinary folders: a few layers, and a byte-level tokenizer trained on the demo text."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from factory import templates

DEMO = Path(__file__).parents[1] / "factory" / "demo"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
GLM4_MOE = {
    "model_type": "glm4_moe",
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "head_dim": 8,
}


@cache
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=SPECIAL, initial_alphabet=alphabet)
    texts = [json.loads(line)["text"] for line in (DEMO / "text.jsonl").read_text().splitlines()]
    backend.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = templates.read("chatml")
    return made


@cache
def sentencepiece() -> Any:
    """A few tokens as Llama 2's tokenizer writes them: with the space before a word, but at the start of a text."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(
        models.BPE({text: number for number, text in enumerate(("</s>", "a", "▁The", "▁sea", "▁is"))}, [])
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def config(**changes: Any) -> Any:
    from transformers import AutoConfig

    numbers = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 256,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    kind = changes.pop("model_type", "llama")
    return AutoConfig.for_model(kind, **(numbers | changes))


def save(folder: Path, *, template: bool = True, **changes: Any) -> Path:
    """A random model of these numbers with the tokenizer, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**changes))
    model.save_pretrained(folder)
    made = tokenizer()
    made.save_pretrained(folder)
    if not template:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder
