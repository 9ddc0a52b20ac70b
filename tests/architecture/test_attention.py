"""What the planner says of attention kernels is what the classes of transformers say."""

from dataclasses import asdict
from typing import Any

import pytest
from families import built, of

from factory.architecture import FAMILIES, REMOTE_CODE, traits_of
from factory.steps.walk import takes_flash, traits


@pytest.mark.parametrize("kind", sorted(FAMILIES.keys() - REMOTE_CODE))
def test_the_kernels_that_a_class_takes(kind: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
    )

    config = CONFIG_MAPPING[kind]
    mappings: Any = (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
    )
    model = next(models[config] for models in mappings if config in models)
    assert model._supports_sdpa == traits_of(kind).sdpa
    assert takes_flash(model) == traits_of(kind).flash
    assert model.supports_gradient_checkpointing


@pytest.mark.parametrize("kind", sorted(kind for kind in FAMILIES.keys() - REMOTE_CODE if traits_of(kind).ours))
def test_whether_attention_drops_out_where_nothing_says_so(kind: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    own = CONFIG_MAPPING[kind]().get_text_config().to_dict()
    shares = [value for key, value in own.items() if "att" in key and "drop" in key]
    assert any(shares) == traits_of(kind).drops


@pytest.mark.parametrize("kind", sorted(REMOTE_CODE))
def test_no_class_of_transformers_builds_what_comes_with_its_code(kind: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    assert kind not in CONFIG_MAPPING


def test_nothing_is_claimed_of_a_kind_that_nobody_looked_at() -> None:
    assert not any(asdict(traits_of("no_such_kind")).values())


@pytest.mark.parametrize("kind", sorted(FAMILIES.keys() - REMOTE_CODE - {"phimoe"}))  # it scales by longrope alone
def test_what_a_walk_reads_of_a_class_is_what_is_proven(kind: str) -> None:
    """So it is to be trusted of kinds that have no row in the table."""
    read, proven = traits(built(of(kind))), traits_of(kind)
    assert (read.sdpa, read.flash, read.scalable) == (proven.sdpa, proven.flash, proven.scalable)
    assert read.recomputes and proven.recomputes
    assert not read.ours and not read.isolates
    assert (read.media, read.by_text) == (proven.media, proven.by_text)
