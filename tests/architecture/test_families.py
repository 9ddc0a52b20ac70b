"""Every family's closed form against a walk of the model that transformers builds on the meta device."""

import json
from dataclasses import replace
from typing import Any

import pytest
from families import BIASED, CASES, SMALL, TIED, UNTIED, built, name, of

from factory.architecture import FAMILIES, Architecture, architecture
from factory.architecture.dense import ALIASES
from factory.config.refusal import UserError
from factory.steps.walk import walk


def same(one: Architecture, other: Architecture) -> None:
    for key in Architecture.__dataclass_fields__:
        assert getattr(one, key) == getattr(other, key), key


@pytest.mark.parametrize("config", CASES, ids=name)
def test_equals_the_built_models_walk(config: dict[str, Any]) -> None:
    """But for the tensors of a tower that are read to no end (tests/vision/test_images.py): no walk sees that."""
    model = built(config)
    walked = walk(model)
    for found in (architecture(config), architecture(model.config.to_dict())):
        unread = set(found.fixed) - set(walked.fixed)
        assert all(name.startswith(tuple(found.parts.values())) for name in unread)
        same(replace(found, fixed=tuple(name for name in found.fixed if name not in unread)), walked)


def sized(hidden: int, width: int, layers: int, heads: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    numbers = {"hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers}
    return {**numbers, "num_attention_heads": heads, "vocab_size": vocabulary, **more}


CHATGLM = {"hidden_size": 4096, "ffn_hidden_size": 13696, "num_attention_heads": 32, "seq_length": 8192}
CHATGLM |= {"multi_query_attention": True, "multi_query_group_num": 2, "add_qkv_bias": True}
# of weights whose code comes with them: the config's numbers, the parameters that the hub counts, one of their names
PUBLISHED: list[tuple[str, dict[str, Any], int, str]] = [
    (
        "chatglm",
        CHATGLM | {"num_layers": 28, "padded_vocab_size": 65024},
        6_243_584_000,
        "transformer.encoder.layers.27.self_attention.query_key_value.bias",
    ),
    (
        "chatglm",
        CHATGLM | {"num_layers": 40, "padded_vocab_size": 151552},
        9_399_951_360,
        "transformer.output_layer.weight",
    ),
    ("baichuan", sized(4096, 11008, 32, 32, 64000), 7_000_559_616, "model.layers.31.self_attn.W_pack.weight"),
    ("baichuan", sized(4096, 11008, 32, 32, 125696), 7_505_973_248, "lm_head.weight"),
    ("baichuan", sized(5120, 13696, 40, 40, 64000), 13_264_901_120, "model.layers.39.mlp.gate_proj.weight"),
    (
        "internlm2",
        sized(4096, 14336, 32, 32, 92544, num_key_value_heads=8, bias=False),
        7_737_708_544,
        "model.layers.31.feed_forward.w2.weight",
    ),
    (
        "internlm2",
        sized(6144, 16384, 48, 48, 92544, num_key_value_heads=8, bias=False),
        19_861_149_696,
        "model.tok_embeddings.weight",
    ),
]
# theirs too, with the names and shapes of a Llama
AS_LLAMA: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("internlm", {}, BIASED),
    ("internlm", {"bias": False}, {}),
    ("minicpm", {}, TIED),
    ("minicpm", UNTIED | BIASED, UNTIED | BIASED),
]


@pytest.mark.parametrize(("kind", "config", "total", "tensor"), PUBLISHED)
def test_counts_as_the_hub(kind: str, config: dict[str, Any], total: int, tensor: str) -> None:
    found = architecture({"model_type": kind, **config})
    assert found.parameters() == total
    assert tensor in dict(found.tensors())


@pytest.mark.parametrize(("kind", "said", "as_llama"), AS_LLAMA)
def test_is_a_llama_by_another_name(kind: str, said: dict[str, Any], as_llama: dict[str, Any]) -> None:
    other = architecture({"model_type": "llama", **SMALL, **as_llama})
    same(architecture({"model_type": kind, **SMALL, **said}), replace(other, kind=kind))


def test_every_family_is_compared() -> None:
    compared = {config["model_type"] for config in CASES} | {kind for kind, *_ in (*PUBLISHED, *AS_LLAMA)}
    assert compared == set(FAMILIES)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("llama", {}),
        ("llava", {"vision_tower": "model.vision_tower.", "multi_modal_projector": "model.multi_modal_projector."}),
        (
            "llava_next",
            {
                "vision_tower": "model.vision_tower.",
                "multi_modal_projector": "model.multi_modal_projector.",
                "image_newline": "model.image_newline.",
            },
        ),
        (
            "mllama",
            {
                "vision_model": "model.vision_model.",
                "multi_modal_projector": "model.multi_modal_projector.",
                "layers.1": "model.language_model.layers.1.",
            },
        ),
        ("qwen2_vl", {"visual": "model.visual."}),
        (
            "qwen2_audio",
            {"audio_tower": "model.audio_tower.", "multi_modal_projector": "model.multi_modal_projector."},
        ),
        ("idefics3", {"vision_model": "model.vision_model.", "connector": "model.connector."}),
        ("llama4", {"vision_model": "vision_model.", "multi_modal_projector": "multi_modal_projector."}),
    ],
)
def test_the_parts_beside_the_language_model(kind: str, parts: dict[str, str]) -> None:
    assert architecture(of(kind)).parts == parts


def test_a_projector_of_one_matrix_is_among_the_parts_linears() -> None:
    assert architecture(of("mllama")).part_linears["model.multi_modal_projector"] == (32, 24)


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3", "hunyuan_v1_moe", "llama4_text", "dbrx"])
def test_routers_are_no_linears_and_experts_are_stacked(kind: str) -> None:
    found = architecture(of(kind))
    assert found.experts() and not [name for name in found.linears() if "gate." in f"{name}." or "router" in name]
    assert 0 < found.active_expert_share < 1


@pytest.mark.parametrize("kind", ["ernie4_5_moe", "mllama", "qwen2_audio"])
def test_another_process_reads_the_same(kind: str) -> None:
    found = architecture(of(kind))
    assert found.fixed or found.parts
    same(Architecture.from_json(json.loads(json.dumps(found.as_json()))), found)


def test_layers_may_differ() -> None:
    first, *others = architecture(of("deepseek_v3") | {"first_k_dense_replace": 1}).blocks
    assert not first.experts and all(block.experts for block in others)


@pytest.mark.parametrize(
    ("kind", "without"),
    [
        ("mixtral", "num_local_experts"),
        ("qwen3_moe", "moe_intermediate_size"),
        ("gpt2", "n_embd"),
        ("gpt2", "n_positions"),
        ("gpt_neox", "intermediate_size"),
        ("llava", "text_config"),
        ("llava", "vision_config"),
        ("qwen2_audio", "audio_config"),
    ],
)
def test_a_missing_number_is_refused_by_its_name(kind: str, without: str) -> None:
    config = {key: value for key, value in of(kind).items() if key != without}
    with pytest.raises(UserError, match=ALIASES.get(without, without)) as error:
        architecture(config)
    assert [refusal.rule for refusal in error.value.refusals] == ["incomplete-config"]


@pytest.mark.parametrize(
    ("kind", "part"), [("llava", "text_config"), ("llava", "vision_config"), ("qwen2_audio", "audio_config")]
)
def test_an_unknown_part_is_refused_by_its_name(kind: str, part: str) -> None:
    config = of(kind)
    with pytest.raises(UserError, match=rf"\[unknown-architecture\] {part}.model_type=no_such_kind"):
        architecture(config | {part: config[part] | {"model_type": "no_such_kind"}})


@pytest.mark.parametrize("said", [{"encoder_layers": 10**9}, {"d_model": 0}, {"encoder_ffn_dim": "wide"}])
def test_a_towers_numbers_are_looked_at_by_its_own_words(said: dict[str, Any]) -> None:
    config = of("qwen2_audio")
    with pytest.raises(UserError, match="incomplete-config"):
        architecture(config | {"audio_config": config["audio_config"] | said})


def test_a_list_that_is_too_short_is_refused() -> None:
    with pytest.raises(UserError, match="incomplete-config"):
        architecture(of("lfm2") | {"layer_types": ["conv"]})
