"""What rules read of the files that lie in a model's or an adapter's folder."""

from typing import Any

import pytest

from factory.plan import files


@pytest.mark.parametrize(
    ("said", "rows"),
    [
        (None, set()),
        ([512, 513], {512, 513}),
        ({"model.embed_tokens": [512], "lm_head": [513]}, {512, 513}),
        (512, set()),
        ("512", set()),
        ({"lm_head": 512}, set()),
        ([[512], 513], {513}),
    ],
)
def test_rows_that_an_adapter_has_trained(said: Any, rows: set[int]) -> None:
    """PEFT writes the first three; whatever else stands there ends in no mistake of ours."""
    assert files._trained_rows({"trainable_token_indices": said}) == rows
