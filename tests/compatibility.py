"""What goes with what: every pair of options, and every triple with a method, compiled on pretended facts.

`python tests/compatibility.py` writes docs/compatibility.md anew.
"""

import copy
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pretended

from factory.config import compose, groups, registry, settings
from factory.config.keys import walk
from factory.config.settings import Compute, Precision, Quantization, Strategy
from factory.plan.compiler import compile
from factory.plan.facts import Facts
from factory.plan.inspect import look
from factory.plan.plan import Plan
from factory.plan.rules import all_rules

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
# a model of a usual architecture, small so that thousands of plans take seconds
MODEL = ("model=smollm2_135m", "model.architecture.num_hidden_layers=4", "stage.batch_size=2", "tracking=none")


def _choices(cls: type, name: str) -> tuple[Any, ...]:
    """The values of a key that is a choice, without null."""
    kind = next(key for key in walk(cls) if key.path == name).kind
    if get_origin(kind) is not Literal:
        kind = next(each for each in get_args(kind) if get_origin(each) is Literal)
    return get_args(kind)


def _quantizations() -> tuple[str, ...]:
    libraries, bits = _choices(Quantization, "method"), _choices(Quantization, "bits")
    return ("none", *(f"{library} {count}" for library in libraries for count in bits))


# a factor's name: its values, the first being what the others are looked at with
FACTORS: dict[str, tuple[str, ...]] = {
    "method": tuple(name for name in groups.options("method") if name != "none"),  # which trains nothing
    "stage": ("sft", *(name for name in registry.names("stages") if name != "sft")),
    "precision": _choices(Precision, "name"),
    "attention": _choices(Compute, "attention"),
    "kernels": _choices(Compute, "kernels"),
    "quantization": _quantizations(),
    "packing": ("auto", "true", "false"),
    "checkpointing": ("false", "true", "selective"),
    "strategy": get_args(Strategy),
    "device": ("cuda", "cpu"),
}
_MACHINES = {"cuda": "two gpus", "cpu": "cpu"}
_SAID: dict[str, Any] = {"true": True, "false": False}  # of what is no string
Combination = tuple[tuple[str, str], ...]  # (factor, value), the others at their first
Together = dict[tuple[str, ...], list[str]]  # by the rules that refuse them


def usual(factor: str, method: str) -> str:
    """What a factor has where nothing is said of it: the first, or of quantization what the method brings."""
    if factor != "quantization":
        return FACTORS[factor][0]
    own = _composed(f"method={method}").tree["method"]["quantization"]
    return f"{own['method']} {own['bits']}" if own["bits"] else "none"


@cache
def _composed(*overrides: str) -> compose.Composed:
    return compose.compose(compose.parse([*MODEL, *overrides]))


def _of_stage(stage: str) -> compose.Composed:
    return _composed(f"stage={stage}", *pretended.NEEDS.get(stage, ()))


@cache
def _facts(stage: str, device: str) -> Facts:
    with pretended.facts(_MACHINES[device]):
        return look(_read(_of_stage(stage).tree), training=False)


def _read(tree: dict[str, Any]) -> settings.Settings:
    return settings.validate(tree, run_dir="somewhere")


@cache
def verdict(given: Combination) -> tuple[str, ...]:
    """The ids of the rules that refuse the combination; none where there is a plan."""
    method = dict(given).get("method", "lora")
    chosen = {factor: usual(factor, method) for factor in FACTORS} | {"method": method} | dict(given)
    tree = copy.deepcopy(_composed(f"method={method}").tree)
    rate = tree["stage"]["learning_rate"]
    tree["stage"] = {**copy.deepcopy(_of_stage(chosen["stage"]).tree["stage"]), "learning_rate": rate}
    tree["precision"]["name"] = chosen["precision"]
    tree["compute"] |= {"attention": chosen["attention"], "kernels": chosen["kernels"]}
    tree["compute"]["activation_checkpointing"] = _SAID.get(chosen["checkpointing"], chosen["checkpointing"])
    tree["data"]["packing"] = _SAID.get(chosen["packing"], chosen["packing"])
    processes = 1 if chosen["strategy"] == "none" else 2
    tree["hardware"] |= {"strategy": chosen["strategy"], "num_processes": processes}
    if chosen["quantization"] != usual("quantization", method):
        library, _, bits = chosen["quantization"].partition(" ")
        own = tree["method"]["quantization"]
        own |= {"method": library, "bits": int(bits)} if bits else {"method": "bitsandbytes", "bits": None}
    made = compile(_read(tree), _facts(chosen["stage"], chosen["device"]), training=True)
    return () if isinstance(made, Plan) else tuple(sorted({refusal.rule for refusal in made}))


def _values(factor: str) -> list[tuple[str, str]]:
    return [(factor, value) for value in FACTORS[factor]]


def pairs() -> Iterator[Combination]:
    for one, other in combinations(FACTORS, 2):
        yield from product(_values(one), _values(other))


def triples() -> Iterator[Combination]:
    """All that contain a method."""
    for one, other in combinations([factor for factor in FACTORS if factor != "method"], 2):
        yield from product(_values("method"), _values(one), _values(other))


def sampled() -> list[Combination]:
    """Some of the triples, the same ones each time, with every option in many of them: all of them take minutes."""
    return list(triples())[::_STRIDE]


_STRIDE = 167


def new_rules(triple: Combination) -> tuple[str, ...]:
    """The rules that refuse a triple, and none of its pairs."""
    known = {rule for pair in combinations(triple, 2) for rule in verdict(pair)}
    return tuple(rule for rule in verdict(triple) if rule not in known)


def only_together(given: Iterable[Combination]) -> Together:
    """The triples that are refused for what none of their pairs is, by the rules that refuse them."""
    found: Together = {}
    for triple in given:
        if new := new_rules(triple):
            found.setdefault(new, []).append(named(triple))
    return found


def named(triple: Combination) -> str:
    """As the page has it."""
    return " with ".join(value if factor == "method" else f"{factor} {value}" for factor, value in triple)


def page(found: Together) -> str:
    """docs/compatibility.md, with the triples that are refused only together."""
    lines = [_HEAD, *(line for factor in list(FACTORS)[1:-1] for line in _table(factor)), *_others()]
    return "\n".join([*lines, *three(found), "", *_reasons(found)]) + "\n"


_TOGETHER = "## Three together"


def three(found: Together) -> list[str]:
    """The page's part about triples."""
    none = f"Of the {len(list(triples())):,} triples with a method none is refused for what no pair in it is."
    lines = [f"- {', '.join(rules)}: {'; '.join(group)}" for rules, group in found.items()]
    return [_TOGETHER, "", *(lines or [none])]


def read_together(text: str) -> Together:
    """What a page says of the triples."""
    part = text.partition(f"{_TOGETHER}\n")[2].partition("\n## ")[0]
    lines = [line.removeprefix("- ").split(": ", 1) for line in part.splitlines() if line.startswith("- ")]
    return {tuple(rules.split(", ")): group.split("; ") for rules, group in lines}


_HEAD = """# What goes with what

Every pair of options, and every triple with a method, compiled for a decoder of a usual architecture with all optional
packages, on a machine with two GPUs and on one without; a strategy has two processes.
`make golden` writes this page; a test holds it.

`yes`: it compiles on both. `GPU`: on a GPU only; `CPU`: on a CPU only. Anything else is the rule that refuses it; what
the rules say stands at the end. What a model's own architecture, the data or a number rules out is not here:
`factory plan` tells.
"""


def _table(factor: str) -> list[str]:
    """What is the same with every method is told in a line."""
    cells = {
        value: [_cell((("method", method), (factor, value))) for method in FACTORS["method"]]
        for value in FACTORS[factor]
    }
    same = [f"`{value}` {cell[0]}" for value, cell in cells.items() if len(set(cell)) == 1]
    lines = [f"## method and {factor}", ""]
    lines += [f"With every method: {', '.join(same)}.", ""] if same else []
    if differ := {value: cell for value, cell in cells.items() if len(set(cell)) > 1}:
        lines += [f"| | {' | '.join(differ)} |", "|---" * (len(differ) + 1) + "|"]
        lines += [
            f"| `{FACTORS['method'][row]}` | {' | '.join(each)} |"
            for row, each in enumerate(zip(*differ.values(), strict=True))
        ]
        lines.append("")
    return lines


def _cell(pair: Combination) -> str:
    rules = verdict(pair)
    if not verdict((*pair, ("device", "cpu"))):
        return "CPU" if rules else "yes"
    return ", ".join(rules) or "GPU"


def _others() -> list[str]:
    """The refused pairs without a method."""
    refused = [(pair, verdict(pair)) for pair in pairs() if pair[0][0] != "method"]
    # a value that is refused with everything is told once, by the tables above
    own = {value: set(verdict((value,))) for pair, _ in refused for value in pair}
    lines = []
    for pair, rules in refused:
        if new := [rule for rule in rules if rule not in own[pair[0]] | own[pair[1]]]:
            lines.append(f"- {' and '.join(f'{factor} `{value}`' for factor, value in pair)}: {', '.join(new)}")
    return ["## Pairs without a method", "", *lines, ""]


def _reasons(found: Together) -> list[str]:
    rules = {rule for pair in pairs() for rule in verdict(pair)} | {rule for each in found for rule in each}
    reasons = {rule.id: rule.reason for rule in all_rules()}
    return [
        "## The rules",
        "",
        *(f"- **{rule}**: because {reasons[rule]}" for rule in sorted(rules) if rule in reasons),
    ]


def write() -> None:
    PAGE.write_text(page(only_together(triples())), encoding="utf-8")


if __name__ == "__main__":
    write()
