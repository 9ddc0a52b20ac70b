"""Settings: what is read, what is refused, and that all problems are shown at once."""

import json
from typing import Any

import pytest

from factory.config import compose, settings
from factory.config.refusal import Refusal, UserError
from factory.config.values import to_tree


def _tree(*overrides: str) -> dict[str, Any]:
    return compose.compose(compose.parse(list(overrides))).tree


def _problems(tree: dict[str, Any]) -> dict[str, Refusal]:
    with pytest.raises(UserError) as refused:
        settings.validate(tree)
    return {problem.setting.partition("=")[0]: problem for problem in refused.value.refusals}


@pytest.mark.parametrize(
    ("path", "value", "read"),
    [
        ("stage.max_steps", 3.0, 3),
        ("stage.max_steps", None, None),
        ("stage.learning_rate", "1e-4", 1e-4),
        ("stage.learning_rate", 3, 3.0),
        ("data.packing", "auto", "auto"),
        ("data.packing", False, False),
        ("data.max_length", 8, 8),
        ("model.new_tokens", ["a"], ("a",)),
        ("hardware.memory", "24GB", 24 * 10**9),
        ("hardware.memory", "1.5 gib", 3 * 2**29),
        ("method.target_modules", ["q_proj"], ("q_proj",)),
        ("method.quantization.bits", 4, 4),
    ],
)
def test_is_read_as(path: str, value: Any, read: Any) -> None:
    found = settings.with_keys(settings.validate(_tree()), {path: value})
    for name in path.split("."):
        found = getattr(found, name)
    assert found == read
    assert type(found) is type(read)


WRONG = {
    "stage.max_steps": True,  # a flag is no number
    "stage.batch_size": 0,
    "stage.learning_rate": float("nan"),
    "stage.warmup_ratio": 1.5,
    "data.max_length": 7,  # below the limit of one branch of its type
    "data.truncation": "dropp",
    "data.mask_history": "perhaps",
    "model.path": 7,  # a number is no text
    "model.new_tokens": "a",  # a text is no list
    "hardware.memory": 24,  # without a unit
    "hardware.threads": 1.5,
    "method.quantization.bits": 5,
    "method.dropout": "much",
    "seed": -1,
    "checks": "most",
}


def test_every_problem_is_shown_at_once_and_once() -> None:
    tree = _tree()
    for path, value in WRONG.items():
        *above, last = path.split(".")
        node = tree
        for part in above:
            node = node[part]
        node[last] = value
    tree["stage"]["max_step"] = 4
    found = _problems(tree)
    assert found.keys() == {*WRONG, "stage.max_step"}
    assert "did you mean stage.max_steps" in found["stage.max_step"].fix
    assert "did you mean drop" in found["data.truncation"].fix
    assert "a whole number, at least 8 or auto" in found["data.max_length"].fix


@pytest.mark.parametrize(
    ("changes", "near"),
    [
        ({"method": {"quantization": {"bitz": 4}}}, "method.quantization.bits"),
        ({"data": {"sources": {"demo": {"colums": {}}}}}, "data.sources.demo.columns"),
        ({"metod": {"rank": 4}}, "method"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(changes: dict[str, Any], near: str) -> None:
    tree = _tree()
    _merge(tree, changes)
    (problem,) = _problems(tree).values()
    assert problem.rule == "unknown-key"
    assert f"did you mean {near}" in problem.fix


def _merge(tree: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            _merge(tree[name], value)
        else:
            tree[name] = value


def test_a_key_of_another_method_names_who_has_it() -> None:
    tree = _tree("method=full")
    tree["method"]["rank"] = 8
    (problem,) = _problems(tree).values()
    assert problem.rule == "key-of-another-method"
    assert "lora" in problem.because


def test_a_missing_key_is_named() -> None:
    tree = _tree()
    del tree["stage"]["batch_size"], tree["stage"]["optimizer"]
    (problem,) = _problems(tree).values()
    assert "stage.batch_size" in problem.setting and "optimizer" in problem.wrong


def test_settings_survive_json() -> None:
    """A plan keeps them as JSON: the classes of method and stage follow from their names."""
    made = settings.validate(_tree("method=qlora", "stage=dpo", "hardware=a100_40gb"))
    composed = {name: value for name, value in to_tree(made).items() if value is not None}
    read = settings.Settings.model_validate_json(json.dumps(composed))
    assert read == made
    assert type(read.method) is type(made.method)
