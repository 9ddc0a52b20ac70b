"""The composed tree as one typed value."""

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any, get_type_hints

from factory.config import own, registry, schema
from factory.config.meant import unknown_key
from factory.config.refusal import Refusal, UserError, did_you_mean, refusal, refuse
from factory.config.typed import Key, Limits, Reader, known_keys, plain, walk_keys
from factory.data import catalogue
from factory.plan.plan import Verb

# the groups whose keys depend on the name inside them
NAMED: dict[str, registry.Kind] = {"method": "methods", "stage": "stages"}
# the keys that stand in no group
ALONE: dict[str, tuple[Any, Limits]] = {
    "seed": (int, Limits("the seed of every random choice", low=0, high=2**32 - 1)),
    "checks": (
        schema.Checks,
        Limits(
            "which proofs a training run makes: fast (without a second copy of the model, and without a pass over "
            "frozen weights), full (reading the saved model again and summing up the frozen weights), none (nothing "
            "that takes a pass over a model)"
        ),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    model: schema.Model
    data: schema.Data
    method: Any
    stage: Any
    precision: schema.Precision
    compute: schema.Compute
    hardware: schema.Hardware
    evaluate: schema.Evaluate
    tracking: schema.Tracking
    plan: schema.PlanOutput
    preview: schema.Preview
    compare: schema.Compare
    export: schema.Export
    sweep: schema.Sweep
    engine: schema.Engine
    generation: schema.Generation
    chat: schema.Chat
    serve: schema.Serve
    board: schema.Board
    seed: int
    checks: schema.Checks
    options: dict[str, str]
    overrides: tuple[str, ...]
    run_dir: str
    config_dirs: tuple[str, ...] = ()  # absolute
    verb: Verb = "train"


# the groups whose keys are always the same
GROUPS: dict[str, type] = {
    name: kind for name, kind in get_type_hints(Settings).items() if isinstance(kind, type) and is_dataclass(kind)
}


def read(
    tree: dict[str, Any],
    *,
    options: dict[str, str],
    overrides: tuple[str, ...],
    run_dir: str,
    config_dirs: tuple[str, ...] = (),
    bad_groups: frozenset[str] = frozenset(),
    verb: Verb = "train",
) -> tuple[Settings, list[Refusal], set[str]]:
    """The settings, the problems of the tree, and the keys that are bad (None in the settings)."""
    reader = Reader()
    reader.bad_keys |= bad_groups
    values: dict[str, Any] = {}
    for name in tree:
        if name not in (*GROUPS, *NAMED, *ALONE):
            reader.problems.append(unknown_key(str(name), tree[name], [found.path for found in all_keys()]))
    data, unknown = _of_known_sets(catalogue.with_entries(tree.get("data", {})))
    reader.problems += unknown
    tree = {**tree, "data": data}
    for name, cls in GROUPS.items():
        values[name] = reader.record(cls, tree.get(name, {}), name)
    for name, kind in NAMED.items():
        values[name] = None if name in bad_groups else _named(reader, name, kind, tree.get(name, {}))
    for name, (kind, limits) in ALONE.items():
        values[name] = reader.value(kind, tree.get(name), name, limits)
    settings = Settings(
        **values, options=options, overrides=overrides, run_dir=run_dir, config_dirs=config_dirs, verb=verb
    )
    return settings, reader.problems, reader.bad_keys


def _of_known_sets(data: Any) -> tuple[Any, list[Refusal]]:
    """The `data` of a tree without sets that nothing selects, of which some keys are said and no origin or path."""
    sets = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(sets, dict):
        return data, []
    bare = {
        name: keys
        for name, keys in sets.items()
        if isinstance(keys, dict) and keys and not {"origin", "path"} & keys.keys()
    }
    names = data.get("names")
    known = [
        *map(str, (name for name in sets if name not in bare)),
        *map(str, names if isinstance(names, list) else ()),
    ]
    problems = [
        refusal(
            "unknown-set",
            f"data.sources.{name}.{key}={plain(value)}",
            f"no set {name} is selected",
            known=", ".join(known) or "none",
            hint=did_you_mean(str(name), known),
        )
        for name, keys in bare.items()
        for key, value in keys.items()
    ]
    return {**data, "sources": {name: keys for name, keys in sets.items() if name not in bare}}, problems


def _named(reader: Reader, group: str, kind: registry.Kind, tree: Any) -> Any:
    name = tree.get("name") if isinstance(tree, dict) else None
    try:
        cls = registry.spec(kind, _known(group, kind, name)).Settings
    except UserError as error:
        reader.bad_keys.add(group)
        reader.problems += error.refusals
        return None
    keys = {found.split(".", 1)[1].split(".")[0] for found in known_keys(cls, group)}
    for key in [key for key in tree if key not in keys]:
        if owners := having(f"{group}.{key}"):
            reader.problems.append(
                refusal(
                    f"key-of-another-{group}",
                    f"{group}.{key}={tree[key]}",
                    f"{group}={name} has no such key",
                    owners=f"{group}={' or '.join(owners)}",
                )
            )
            tree = {other: value for other, value in tree.items() if other != key}
    return reader.record(cls, tree, group)


def _known(group: str, kind: registry.Kind, name: Any) -> str:
    """The name, of one that there is. Raises UserError."""
    names = registry.names(kind)
    if name in names or own.is_code(name):
        return name
    said, hint = ", ".join(names), did_you_mean(str(name), names)
    setting, wrong = f"{group}.name={name}", f"there is no such {group}"
    raise refuse("unknown-name", setting, wrong, kind=kind, known=said, hint=hint, group=group)


def having(path: str) -> list[str]:
    """The methods or stages that have this key."""
    group = path.partition(".")[0]
    kind = NAMED[group]
    return [name for name in registry.names(kind) if path in known_keys(registry.spec(kind, name).Settings, group)]


def all_keys() -> Iterator[Key]:
    """Every key a user may set; a method's or stage's own keys once for all that have them."""
    for name, cls in GROUPS.items():
        yield from walk_keys(cls, name)
    seen: set[str] = set()
    for group, kind in NAMED.items():
        for name in registry.names(kind):
            for found in walk_keys(registry.spec(kind, name).Settings, group):
                if found.path not in seen:
                    seen.add(found.path)
                    yield found
    yield from (Key(name, *declared) for name, declared in ALONE.items())
