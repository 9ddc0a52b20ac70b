"""What the planner says of attention kernels is what the classes of transformers say."""

import pytest

from factory.architecture import FAMILIES, REMOTE_CODE
from factory.compile.rules import EAGER_ONLY, NO_FLASH


@pytest.mark.parametrize("kind", sorted(FAMILIES.keys() - REMOTE_CODE))
def test_the_kernels_that_a_class_takes(kind: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    config = CONFIG_MAPPING[kind]
    models = (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        else MODEL_FOR_CAUSAL_LM_MAPPING
    )
    model = models[config]
    assert model._supports_sdpa == (kind not in EAGER_ONLY)
    assert model._supports_flash_attn == (kind not in NO_FLASH)
    assert model.supports_gradient_checkpointing
