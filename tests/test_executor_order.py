"""The executor orders steps by what they take, and holds no value longer than it is needed."""

import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from factory.execute.executor import STEPS, Step, order, walk


def test_a_step_follows_its_givers() -> None:
    for steps in (STEPS, tuple(reversed(STEPS))):
        known: set[str] = set()
        for step in order(steps):
            assert known.issuperset(step.takes + step.after), step.name
            known.update(step.gives)
        assert len(order(steps)) == len(STEPS)


def test_the_cheap_steps_come_before_the_weights() -> None:
    names = [step.name for step in order(STEPS)]
    assert names == [step.name for step in STEPS]
    assert names.index("pack") < names.index("attach")


def test_a_missing_giver_is_ours() -> None:
    without = tuple(step for step in STEPS if step.name != "pack")
    with pytest.raises(AssertionError, match="attach"):
        order(without)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> tuple[Step, ...]:
    """a gives x and big, b takes big, c takes x and y."""
    module: Any = ModuleType("factory.steps.fake")
    module.alive, module.seen = [], {}

    class Big:
        def __init__(self) -> None:
            module.alive.append(self)

        def __del__(self) -> None:
            module.seen["dropped"] = True

    def b(run: Any, big: Any) -> dict[str, Any]:
        module.alive.clear()  # the executor's own reference is the last
        return {"y": 2}

    def c(run: Any, x: int, y: int) -> dict[str, Any]:
        module.seen["dropped before c"] = module.seen.get("dropped", False)
        return {"z": x + y}

    module.a, module.b, module.c = (lambda run: {"x": 1, "big": Big()}), b, c
    monkeypatch.setitem(sys.modules, "factory.steps.fake", module)
    return (
        Step("c", "fake:c", ("x", "y"), ("z",)),
        Step("b", "fake:b", ("big",), ("y",)),
        Step("a", "fake:a", (), ("x", "big")),
    )


RUN: Any = SimpleNamespace(step=lambda name: nullcontext())


def test_walks_to_the_result_and_drops_what_is_read(steps: tuple[Step, ...]) -> None:
    fake: Any = sys.modules["factory.steps.fake"]
    assert walk(RUN, steps) == 3
    assert fake.seen["dropped before c"]


def test_a_step_gives_what_it_says(steps: tuple[Step, ...]) -> None:
    fake: Any = sys.modules["factory.steps.fake"]
    fake.b = lambda run, big: {"other": 2}
    with pytest.raises(AssertionError, match="b gave"):
        walk(RUN, steps)
