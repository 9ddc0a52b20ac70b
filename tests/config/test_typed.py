"""Values that people write in several ways: one reading each, the same from a command line and from a file."""

import math
import re
from pathlib import Path
from typing import Any, Literal

import pytest

from factory.config import compose, settings
from factory.config.typed import Bytes, Limits, Reader, convert, describe

Choice = Literal["constant", "linear", "cosine"]


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        (int, 3, 3),
        (int, 3.0, 3),
        (int, "012", 10),  # as YAML 1.1 has it
        (int, "0x10", 16),
        (int, "1e3", 1000),
        (float, "1e3", 1000.0),
        (float, "1e-4", 1e-4),
        (float, 3, 3.0),
        (bool, "yes", True),
        (bool, "off", False),
        (bool, True, True),
        (int | None, None, None),
        (int | Literal["auto"], "auto", "auto"),
        (bool | Literal["auto"], "no", False),
        (str, "yes", "yes"),
        (Choice, "linear", "linear"),
        (tuple[int, ...], [1, "2"], (1, 2)),
        (tuple[str, ...] | Literal["all"], ["a"], ("a",)),
        (dict[str, str], {"a": "b"}, {"a": "b"}),
        (Bytes | None, "24GB", 24 * 10**9),
        (Bytes | None, "24GiB", 24 * 2**30),
        (Bytes | None, " 1.5 gb", 1_500_000_000),
        (Bytes | None, "512MiB", 2**29),
        (Bytes | None, None, None),
    ],
)
def test_is_read_as(kind: Any, value: Any, read: Any) -> None:
    found = convert(kind, value)
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("kind", "value", "wrong"),
    [
        (Bytes | None, 24, "not a number with a unit, as 24GB or 24GiB"),
        (Bytes | None, "24", "not a number with a unit, as 24GB or 24GiB"),
        (Bytes | None, "24G", "not a number with a unit, as 24GB or 24GiB"),
        (Bytes | None, "-1GB", "not a number with a unit, as 24GB or 24GiB"),
        (int, 3.5, "not a whole number"),
        (int, True, "not a whole number"),
        (int, "yes", "not a whole number"),
        (int, "", "not a whole number"),
        (int, None, "not a whole number"),
        (int, [1], "not a whole number"),
        (int, "1 + 1", "not a whole number"),
        (int, math.inf, "not a finite number"),
        (float, math.nan, "not a finite number"),
        (float, "nan", "not a finite number"),
        (float, ".inf", "not a finite number"),
        (float, "2026-01-01", "not a number"),
        (float, "{", "not a number"),
        (float, False, "not a number"),
        (bool, 1, "not true or false"),
        (bool, "maybe", "not true or false"),
        (str, 5, "quote it"),
        (str, None, "not a text"),
        (int | None, "x", "not a whole number"),
        (Choice, "cosin", "did you mean cosine?"),
        (Choice, None, "not one of constant, linear, cosine"),
        (Literal[1], True, "not one of 1"),
        (tuple[str, ...], "q_proj", "not a list, as [q_proj] is"),
        (tuple[int, ...], [1, "x"], "not a whole number"),
        (dict[str, str], ["a"], "not a mapping"),
        (dict[str, str], {"a": 1}, "not a text"),
    ],
)
def test_is_refused(kind: Any, value: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wrong)):
        convert(kind, value)


@pytest.mark.parametrize(
    ("limits", "allowed", "refused"),
    [
        ({"low": 1}, [1, 2], [0, -1]),
        ({"above": 0}, [1e-9], [0, -1.0]),
        ({"low": 0, "high": 0.5}, [0, 0.5], [-0.001, 0.501]),
    ],
)
def test_ranges_hold_their_ends(limits: dict[str, float], allowed: list[float], refused: list[float]) -> None:
    for number in (*allowed, *refused):
        reader = Reader()
        reader.value(float, number, "key", Limits("a number", **limits))
        assert bool(reader.problems) == (number in refused), number
    assert describe(float, Limits("", **limits)).startswith("a number, ")


@pytest.mark.parametrize(
    ("tree", "path", "near"),
    [
        ({"method": {"quantization": {"bitz": 4}}}, "method.quantization.bitz", "method.quantization.bits"),
        ({"data": {"sources": {"demo": {"colums": {}}}}}, "data.sources.demo.colums", "data.sources.demo.columns"),
        ({"stage": {"max_step": 4}}, "stage.max_step", "stage.max_steps"),
        ({"metod": {"rank": 4}}, "metod", "method"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(tree: dict[str, Any], path: str, near: str) -> None:
    whole = compose.compose(compose.parse([])).tree
    _merge(whole, tree)
    _, problems, bad = settings.read(whole, options={}, overrides=(), run_dir="x")
    assert [problem.rule for problem in problems] == ["unknown-key"]
    assert problems[0].setting.startswith(f"{path}=")
    assert f"did you mean {near}" in problems[0].fix
    assert path in bad or path == "metod"


def _merge(tree: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            _merge(tree[name], value)
        else:
            tree[name] = value


KEYS = ("stage.max_steps", "stage.weight_decay", "data.mask_history", "tracking.experiment", "stage.max_grad_norm")
TEXTS = ("yes", "1e3", "1e-3", "012", "0o17", "0x10", "1_000", "12:30", "nan", ".inf", "3.0", ".5", "true", "null", "8")


@pytest.mark.parametrize("text", TEXTS)
def test_a_file_and_the_command_line_mean_the_same(text: str, here: Path) -> None:
    nested: dict[str, dict[str, str]] = {}
    for key in KEYS:
        group, _, name = key.partition(".")
        nested.setdefault(group, {})[name] = text
    for group, values in nested.items():
        head = {"stage": "defaults: [sft]", "tracking": "defaults: [mlflow]", "data": "# @package data"}[group]
        lines = [head, *(f"{name}: {value}" for name, value in values.items())]
        (here / "own" / group).mkdir(parents=True)
        (here / "own" / group / "own.yaml").write_text("\n".join(lines))
    chosen = [f"{group}={'[demo,own]' if group == 'data' else 'own'}" for group in nested]
    from_file = _read("--config-dir", "own", *chosen)
    from_line = _read(*(f"{key}={text}" for key in KEYS))
    for key in KEYS:
        # what one of them reads as a number is refused for a text, which must be quoted then
        either = key == "tracking.experiment" and "refused" in (from_file[key], from_line[key])
        assert from_file[key] == from_line[key] or either, key
    assert (set(from_line.values()) == {"refused"}) == (text == "nan")


def _read(*arguments: str) -> dict[str, Any]:
    composed = compose.compose(compose.parse(list(arguments)))
    found, _, bad = settings.read(composed.tree, options={}, overrides=(), run_dir="x")
    return {
        key: "refused" if key in bad else getattr(getattr(found, key.partition(".")[0]), key.partition(".")[2])
        for key in KEYS
    }


def test_a_number_beyond_all_is_no_number() -> None:
    for kind in (int, float):
        with pytest.raises(ValueError, match="finite"):
            convert(kind, 10**400)
