"""What a refusal suggests: a name that is nearly one, and none that is only as far off as any word."""

import re

import pytest

from factory.config import groups
from factory.config.refusal import catalogue, did_you_mean
from factory.config.settings import GROUPS, NAMED, all_keys
from factory.data.formats import STANDARD

METHODS = groups.options("method")
FILES = {"plan.yaml", "sweep.json"}  # that are named as keys are


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


def test_a_key_that_a_fix_names_is_one_that_there_is() -> None:
    """`.*` stands for all of a group, NAME for a data set's, a method's or a run's name."""
    known = {key.path.replace("<name>", "NAME") for key in all_keys()}
    groups_of_keys = {path for key in known for path in _above(key)}
    named = re.compile(rf"(?<![\w./-])(?:{'|'.join((*GROUPS, *NAMED))})\.[a-zA-Z_][\w.<>]*(?<!\.)(?:\.\*)?")
    found = {
        (key, rule) for rule, words in catalogue().items() for key in named.findall(f"{words.because} {words.fix}")
    }
    assert len(found) > 100
    wrong = {(key, rule) for key, rule in found if key.removesuffix(".*") not in known | groups_of_keys}
    assert not {each for each in wrong if each[0] not in FILES}


def _above(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def test_rays_own_keys_are_added_to_hydras() -> None:
    """Hydra refuses a key that its config has not, unless it begins with +."""
    found = [words.fix for words in catalogue().values() if "hydra.launcher.ray.remote.num_gpus" in words.fix]
    assert found and all("+hydra.launcher.ray.remote.num_gpus=1" in fix for fix in found)
