"""How far positions reach by a config.json, and in how many ways they are stretched."""

from typing import Any

import pytest

from factory.architecture import architecture
from factory.architecture.positions import alike, reach, scalings
from factory.config import models

WINDOWED = {"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": {"rope_type": "default"}}


@pytest.mark.parametrize(
    ("said", "ways", "tokens"),
    [
        ({}, [], 256),
        ({"rope_scaling": None}, [], 256),
        ({"rope_parameters": {"rope_type": "default"}}, [], 256),
        ({"rope_scaling": {"type": "mrope"}}, [], 256),
        ({"rope_parameters": {"rope_type": "linear", "factor": 600 / 256}}, ["linear"], 600),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, ["dynamic"], 512),
        ({"rope_parameters": WINDOWED}, ["linear"], 512),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
            ["yarn"],
            256,
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}}, ["yarn"], 1024),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ["yarn"], 1024),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, ["llama3"], 256),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, ["longrope"], 256),
    ],
)
def test_reach(said: dict[str, Any], ways: list[str], tokens: int) -> None:
    config = {"max_position_embeddings": 256, **said}
    assert (scalings(config), reach(config)) == (ways, tokens)
    assert reach(said) is None


def test_gemma_3_counts_its_factor_in() -> None:
    assert architecture(models.numbers("gemma3_4b")["architecture"]).context_length == 131072


@pytest.mark.parametrize("option", ["deepseek_coder_1.3b", "internlm2_7b", "internlm3_8b", "internvl3_1b"])
def test_an_options_context_is_the_published_one(option: str) -> None:
    numbers = models.numbers(option)
    config = numbers["architecture"]
    assert numbers["context_length"] == config.get("text_config", config)["max_position_embeddings"]


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 4096}, None),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, None),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 64}}, 64),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, None),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 4096),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096},
            },
            4096,
        ),
        (
            {
                "max_position_embeddings": 8192,
                "rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}},
            },
            8192,
        ),
    ],
)
def test_up_to_where_a_row_is_alike_beside_longer_ones(config: dict[str, Any], length: int | None) -> None:
    assert alike(config) == length
