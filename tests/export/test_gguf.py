"""GGUF: the file says what the model is, and transformers' own reader makes the same model of it."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from exporting import exported, losses, planned
from transformers import AddedToken

from factory.config.refusal import UserError
from factory.export import spec
from factory.export.tokens import _SPLITS, _scores, _split, tokens

IDS = list(range(3, 60))
SLOW = pytest.mark.slow
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama biased": {"attention_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=SLOW if " " in kind else ()) for kind in KINDS])
def test_a_file_is_the_model(kind: str, here: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny.save(here / "model", **KINDS[kind])
    exported(
        f"model.path={folder}", "export.dir=out", "export.format=gguf", "export.dtype=float32", "export.check=false"
    )
    wanted = AutoModelForCausalLM.from_pretrained(folder)
    config = {} if kind == "mistral" else {"config": wanted.config}  # a file of it says llama, which it is but in name
    read = AutoModelForCausalLM.from_pretrained("out", gguf_file="model.gguf", dtype=torch.float32, **config)
    assert (losses(read, IDS) - losses(wanted, IDS)).abs().max() < 1e-5


@pytest.mark.parametrize(("kind", "most"), [("q8_0", 0.02), ("q4_0", 0.3)])
def test_fewer_bits_are_near(kind: str, most: float, here: Path, tiny_model: Path) -> None:
    from gguf import GGUFReader

    told = exported(f"model.path={tiny_model}", "export.dir=out", "export.format=gguf", f"export.quantization={kind}")
    assert 0 < told["mean_nats"] < most
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader("out/model.gguf").tensors}
    assert types["blk.0.attn_q.weight"] == kind.upper() and types["token_embd.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_the_file_says_what_llama_cpp_asks(here: Path, tiny_model: Path) -> None:
    from gguf import GGUFReader

    exported(f"model.path={tiny_model}", "export.dir=out", "export.format=gguf", "export.check=false")
    said = {name: field.contents() for name, field in GGUFReader("out/model.gguf").fields.items()}
    assert said["general.architecture"] == "llama" and said["llama.attention.head_count_kv"] == 2
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert said["tokenizer.ggml.eos_token_id"] == 2 and said["tokenizer.ggml.add_bos_token"] is False
    own = json.loads((tiny_model / "tokenizer.json").read_text())
    assert said["tokenizer.ggml.tokens"][:3] == tiny.SPECIAL and len(said["tokenizer.ggml.tokens"]) == 512
    assert said["tokenizer.ggml.merges"][0] == " ".join(own["model"]["merges"][0])
    assert said["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert said["tokenizer.chat_template"] == (tiny_model / "chat_template.jinja").read_text()


def test_the_end_of_a_turn_is_in_the_file(here: Path) -> None:
    """A token of one's own: llama.cpp knows those of known models by their texts alone."""
    from gguf import GGUFReader

    folder = tiny.save(here / "model", vocab_size=514)
    made = copy.deepcopy(tiny.tokenizer())
    made.add_tokens([AddedToken("<|over|>", special=True)])
    made.chat_template = made.chat_template.replace("<|im_end|>", "<|over|>")
    made.save_pretrained(folder)
    exported(f"model.path={folder}", "export.dir=out", "export.format=gguf", "export.check=false")
    said = {name: field.contents() for name, field in GGUFReader("out/model.gguf").fields.items()}
    assert (said["tokenizer.ggml.eos_token_id"], said["tokenizer.ggml.eot_token_id"]) == (2, 512)
    assert 'PARAMETER stop "<|over|>"' in Path("out/Modelfile").read_text()


def test_several_chat_templates_are_in_the_file_by_name(here: Path) -> None:
    """As Hermes has them: one of its own for tools."""
    from gguf import GGUFReader

    folder = tiny.save(here / "model")
    made = copy.deepcopy(tiny.tokenizer())
    own = made.chat_template
    made.chat_template = {"default": own, "tool_use": f"{own} "}
    made.save_pretrained(folder)
    exported(f"model.path={folder}", "export.dir=out", "export.format=gguf", "export.check=false")
    said = {name: field.contents() for name, field in GGUFReader("out/model.gguf").fields.items()}
    assert (said["tokenizer.chat_template"], said["tokenizer.chat_template.tool_use"]) == (own, f"{own} ")


def test_scaled_positions_are_in_the_file(here: Path) -> None:
    """Llama 3.1's as a tensor, yarn's as keys; transformers' reader is given the config, and has them too."""
    from gguf import GGUFReader

    llama3 = {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
    }
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    for name, said in (("llama3", llama3), ("yarn", yarn)):
        folder = tiny.save(here / name, rope_parameters=said)
        told = exported(f"model.path={folder}", f"export.dir={name}-out", "export.format=gguf")
        assert told["checks"]["written"]["passed"]
        read = GGUFReader(f"{name}-out/model.gguf")
        if name == "llama3":
            (factors,) = [tensor.data for tensor in read.tensors if tensor.name == "rope_freqs.weight"]
            # the fastest turns stay, the slowest are as much slower as the factor says
            assert factors[0] == 1.0 and factors[-1] == pytest.approx(4.0) and len(factors) == 4
        else:
            assert read.fields["llama.rope.scaling.type"].contents() == "yarn"
            assert read.fields["llama.rope.scaling.original_context_length"].contents() == 64


def test_positions_that_the_file_cannot_say_are_refused(here: Path) -> None:
    """What is written is read anew with the model's own config, which would not notice."""
    said = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    folder = tiny.save(here / "model", rope_parameters={**said, "attention_factor": 1.0})
    with pytest.raises(UserError, match=r"\[export-family\].*attention_factor=1"):
        planned(f"model.path={folder}", "export.dir=out", "export.format=gguf")


@pytest.mark.parametrize(("kind", "fits"), [("llama", True), ("mistral", True), ("qwen2", False), ("qwen3", False)])
def test_llama3s_positions_are_of_its_own_kind(kind: str, fits: bool, here: Path) -> None:
    """llama.cpp reads their tensor of the kind llama alone: a file of another has one too many for it."""
    said = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    said |= {"original_max_position_embeddings": 64, "rope_theta": 10000.0}
    folder = tiny.save(here / "model", **{**KINDS[kind], "rope_parameters": said})
    with nullcontext() if fits else pytest.raises(UserError, match=r"\[export-family\].*llama3.*linear, yarn"):
        planned(f"model.path={folder}", "export.dir=out", "export.format=gguf")


def test_the_context_is_as_far_as_stretched_positions_reach(here: Path) -> None:
    """llama.cpp's server gives no answer more; beside linear's factor config.json has the length before."""
    from gguf import GGUFReader

    folder = tiny.save(here / "model", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    exported(f"model.path={folder}", "export.dir=out", "export.format=gguf", "export.check=false")
    said = {name: field.contents() for name, field in GGUFReader("out/model.gguf").fields.items()}
    assert (said["llama.context_length"], said["llama.rope.scaling.factor"]) == (1024, 4.0)


def test_rows_that_no_token_has_are_named() -> None:
    found = tokens(tiny.tokenizer(), 515, [2])
    assert found.texts[512:] == ("[PAD512]", "[PAD513]", "[PAD514]") and found.types[512:] == (5, 5, 5)


def test_sentencepiece_has_scores_in_the_order_of_merges() -> None:
    scores = _scores(("<unk>", "a", "b", "ab", "abb"), [["a", "b"], ["ab", "b"]])
    assert scores[3] == 0.0 and scores[4] == -1.0 and max(scores[:3]) < -1000


def test_a_split_that_llama_cpp_has_no_name_for_is_refused() -> None:
    pattern = next(words[0] for words, name in _SPLITS.items() if name == "qwen2")
    parts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"},
        {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
    ]
    assert _split({"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}}) == "qwen2"
    parts[0]["pattern"] = {"Regex": "other"}
    with pytest.raises(UserError, match=r"\[export-unfit\].*\(other\)"):
        _split({"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}})


def test_a_number_beyond_float16_is_refused(here: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny.save(here / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for words in (("export.format=gguf",), ("export.dtype=float16",)):
        with pytest.raises(UserError, match=r"\[export-unfit\].*float16 has not"):
            exported(f"model.path={folder}", "export.dir=out", *words)
        assert not Path("out").exists() and not list(here.glob(".out*"))


def test_the_kinds_have_a_name_in_gguf() -> None:
    from gguf import MODEL_ARCH_NAMES

    assert {kind.name for kind in spec.GGUF.values()} <= set(MODEL_ARCH_NAMES.values())


@pytest.mark.slow
def test_llama_cpp_answers_the_same(here: Path, tiny_model: Path) -> None:
    """llama.cpp itself, by its prebuilt package: the same ids of the text, and the same probabilities."""
    llama_cpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp: llama.cpp for Python")
    from transformers import AutoModelForCausalLM

    exported(f"model.path={tiny_model}", "export.dir=out", "export.format=gguf")
    text = "A fox and a dog: what do they say?"
    ids = tiny.tokenizer()(text)["input_ids"]
    said = llama_cpp.CommonParams()
    said.model.path, said.n_ctx, said.n_parallel = "out/model.gguf", 128, 1
    given = llama_cpp.Server(said).handle_completions(
        {"prompt": text, "n_predict": 12, "temperature": 0.0, "n_probs": 3}
    )
    assert given["usage"]["prompt_tokens"] == len(ids)
    told = [found["top_logprobs"] for found in given["choices"][0]["logprobs"]["content"]]
    model, ours = AutoModelForCausalLM.from_pretrained(tiny_model).eval(), []
    for _ in range(12):
        with torch.no_grad():
            values, places = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].float(), -1).topk(3)
        ours.append((places.tolist(), values.tolist()))
        ids = [*ids, int(places[0])]
    assert len(told) > 3  # it does not tell of tokens that are a part of a letter
    for theirs in told:
        while ours[0][0][0] != theirs[0]["id"]:
            ours.pop(0)
        places, values = ours.pop(0)
        assert [found["id"] for found in theirs] == places
        assert [found["logprob"] for found in theirs] == pytest.approx(values, abs=2e-3)
