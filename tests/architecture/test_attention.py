"""What the planner says of attention kernels is what the classes of transformers say."""

from typing import Any

import pytest

from factory.architecture import FAMILIES, REMOTE_CODE, traits_of


@pytest.mark.parametrize("kind", sorted(FAMILIES.keys() - REMOTE_CODE))
def test_the_kernels_that_a_class_takes(kind: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    config = CONFIG_MAPPING[kind]
    models: Any = (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        else MODEL_FOR_CAUSAL_LM_MAPPING
    )
    model = models[config]
    assert model._supports_sdpa == traits_of(kind).sdpa
    assert model._supports_flash_attn == traits_of(kind).flash
    assert model.supports_gradient_checkpointing


@pytest.mark.parametrize("kind", sorted(REMOTE_CODE))
def test_no_class_of_transformers_builds_what_comes_with_its_code(kind: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    assert kind not in CONFIG_MAPPING


def test_no_groups_are_planned_for_a_kind_that_nobody_looked_at() -> None:
    assert not traits_of("no_such_kind").ours
