"""The keys of a plan are named as they are set, where they are."""

from pathlib import Path

import pytest
from conftest import compiled

from factory.config.settings import all_keys
from factory.plan.diff import flat
from factory.plan.keys import as_set
from factory.plan.plan import tree_of


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("pack.max_length", "data.max_length"),
        ("train.threads", "hardware.threads"),
        ("train.own.beta", "stage.beta"),
        ("align.sources.my.set.format", "data.sources.my.set.format"),
        ("options.method", "method"),
        *((key, key) for key in ("seed", "evaluate.samples", "stage.name", "train.autocast", "attach.trainable")),
        *((key, key) for key in ("align.sources.demo.bytes", "estimate.memory.total", "tracking.uri", "overrides")),
    ],
)
def test_a_key_has_the_name_that_sets_it(key: str, found: str) -> None:
    assert as_set(key) == found


@pytest.mark.parametrize("overrides", [("method=qlora",), ("stage=dpo", "method=full")])
def test_what_is_named_otherwise_can_be_set(overrides: tuple[str, ...], here: Path, tiny_model: Path) -> None:
    plan = compiled(f"model.path={tiny_model}", *overrides, training=False)
    known = {key.path.replace("<name>", next(iter(plan.steps.align.sources))) for key in all_keys()}
    named = {as_set(key) for key, _ in flat(tree_of(plan)) if as_set(key) != key} - plan.options.keys()
    assert named and not named - known
