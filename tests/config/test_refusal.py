"""What a refusal suggests: a name that is nearly one, and none that is only as far off as any word."""

import pytest

from factory.config import groups
from factory.config.refusal import did_you_mean
from factory.data.formats import STANDARD

METHODS = groups.options("method")


@pytest.mark.parametrize(
    ("name", "names", "near"),
    [
        ("loar", METHODS, "lora"),
        ("dop", ("dpo", "sft", "orpo"), "dpo"),
        ("instuction", sorted(STANDARD), "instruction"),
        ("mixtral", ("mistral_7b", "mixtral_8x7b_instruct", "mixtral_8x7b"), "mixtral_8x7b"),  # begun, and no further
        ("rank", ("stage.name", "method.rank"), "method.rank"),
        ("foo", METHODS, None),
        ("question", sorted(STANDARD), None),  # half of `solution`'s letters
        ("m", ("mean",), None),
    ],
)
def test_what_is_suggested_is_nearly_what_was_typed(name: str, names: tuple[str, ...], near: str | None) -> None:
    assert did_you_mean(name, names) == (f"did you mean {near}? " if near else "")
