"""`--help` and `explain`: made from the groups, the schema and the rules, so that they cannot go stale."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from factory import templates
from factory.config import compose, groups, registry
from factory.config.keys import Key, describe, walk
from factory.config.refusal import did_you_mean, refuse
from factory.config.settings import GROUPS, NAMED, all_keys, having
from factory.config.values import plain
from factory.plan.diff import flat, shown
from factory.plan.rules import all_rules
from factory.verbs import READ_RUNS

FLAGS = {  # in a person's words
    "-m, --multirun": "a sweep: method=lora,galore,qlora",
    "--config-dir DIR": "your own options, in folders named as the groups; they stand for packaged ones",
    "--from-plan PLAN": "(train) replay a plan file",
    "--diff A B": "(plan) two plans: files, run folders or MLflow run ids",
    "--cfg job, --info": "Hydra's own: the composed config, its search path",
    "--help": "",
}

BESIDE = {  # typed as keys are, and none of the schema's
    "run": f"a run's folder, a saved model's, or an MLflow run's id: what {', '.join(READ_RUNS)} begin with",
    "recipe": "a whole experiment, composed of options; `factory explain NAME` says what one sets",
    "hydra.run.dir": "the run's folder; without it outputs/DATE/TIME",
    "hydra.sweep.dir": "a sweep's folder, under which each job has its own; without it multirun_sweeps/DATE/TIME",
}


def of_verb(verb: str, does: str | None) -> str:
    """What comes before the overview where a verb's own help is asked for."""
    own = [group for group, readers in compose.OWN.items() if verb in readers]
    keys = [f"\nkeys of its own: {group}.* (`factory explain {group}`)" for group in own]
    return "".join([f"factory {verb}: {does}", *keys])


def overview(verbs: Mapping[str, Callable[..., int]], config_dirs: tuple[str, ...]) -> str:
    choices = "\n".join(f"  {group:<10} {groups.listed(groups.options(group, config_dirs))}" for group in groups.GROUPS)
    flags = "\n".join(f"  {flag:<23} {words}".rstrip() for flag, words in FLAGS.items())
    listed = "\n".join(f"  {name:<10} {function.__doc__}" for name, function in verbs.items())
    return f"""Factory: fine-tuning as a plan that is compiled, refused or executed.

usage: factory [VERB] [group=option ...] [key=value ...] [-m]

verbs (train when none is given)
{listed}

groups and their options (group=option; `factory explain GROUP` lists a group's keys)
{choices}
  recipe     {", ".join(groups.options("recipe", config_dirs))}

flags
{flags}

examples
  factory                                                 the demo: LoRA on the embedded model
  factory plan model=llama3_8b method=qlora               what it would take
  factory data=file data.path=rows.jsonl                  your own data
  factory preview data=file data.path=rows.jsonl          which of its tokens are trained, and what is dropped
  factory -m method=lora,galore,qlora                     compare methods
  factory chat run=outputs/DATE/TIME                      talk to what was trained
"""


def explained(name: str) -> str:
    keys = list(all_keys())
    exact = [key for key in keys if key.path == name or _matches(key.path, name)]
    if exact:
        return _key(exact[0])
    inside = [key for key in keys if key.path.startswith(f"{name}.")]
    if inside:
        options = f"{name}=  {groups.listed(groups.options(name))}\n\n" if name in (*GROUPS, *NAMED) else ""
        width = max(len(key.path) for key in inside)
        return options + "\n".join(f"{key.path:<{width}}  {_in_a_list(key)}" for key in inside)
    if beside := [key for key in BESIDE if key == name or key.startswith(f"{name}.")]:
        return "\n".join(map(_beside, beside))
    if found := [_option(group, each) for group, each in _options() if name in (each, f"{group}={each}")]:
        return "\n".join(found)
    if (template := name.removeprefix("model.template=")) in templates.names():
        return f"model.template={template}\n  a chat template: as that of {templates.template(template).source}"
    hint = _alike(name, [key.path for key in keys])
    because, fix = "a key that nothing reads would be ignored", f"{hint}`factory --help` lists what there is"
    raise refuse("unknown-key", name, "there is no such key, group or option", because=because, fix=fix)


def _beside(key: str) -> str:
    options = f"recipe=  {groups.listed(groups.options('recipe'))}\n  " if key == "recipe" else f"{key}\n  "
    return options + BESIDE[key]


def _alike(name: str, keys: list[str]) -> str:
    """`did you mean X? ` of what can be explained: of `stage=dop` an option of stage."""
    group, chosen, _ = name.partition("=")
    if chosen and group in (*groups.GROUPS, "recipe"):
        return did_you_mean(name, [f"{group}={option}" for each, option in _options() if each == group])
    return did_you_mean(name, keys if "." in name else [*(option for _, option in _options()), *keys])


def _options() -> Iterator[tuple[str, str]]:
    """Every option and recipe with its group."""
    for group in (*groups.GROUPS, "recipe"):
        yield from ((group, option) for option in groups.options(group))


def _option(group: str, name: str) -> str:
    """What it is, what it is set over, and what it sets."""
    option = groups.packaged(group, name)
    of_runs = group == "recipe" and "runs" in option.config  # whose keys are typed as they stand: runs.NAME.KEY
    place = option.package.removeprefix("_global_") if option.package else "" if of_runs else group
    below = [each for each in option.config.get("defaults", []) if not str(each).startswith("_")]
    chosen = [f"{group}={each.partition('@')[0]}" if isinstance(each, str) else _overridden(each) for each in below]
    tree = {key: value for key, value in option.config.items() if key != "defaults"}
    values = [f"{key}={shown(value)}" for key, value in flat(tree, place)]
    lines = [f"{group}={name}", f"  {option.about}", *(f"    {line}" for line in (*chosen, *values))]
    if group != "recipe":
        lines.append(f"  `factory explain {group}` lists the keys and the other options")
    return "\n".join(lines)


def _overridden(entry: dict[str, str]) -> str:
    """`method=dora` of `override /method: dora`."""
    return ", ".join(f"{name.rpartition('/')[2]}={option}" for name, option in entry.items())


def _matches(path: str, name: str) -> bool:
    """`data.sources.demo.path` is a case of `data.sources.<name>.path`."""
    parts, given = path.split("."), name.split(".")
    return len(parts) == len(given) and all(a == b or a == "<name>" for a, b in zip(parts, given, strict=True))


def _key(key: Key) -> str:
    readers = [rule for rule in all_rules() if key.path in rule.keys]
    lines = [
        key.path,
        *(f"  {meaning}" for meaning in meanings(key)),
        f"  type:     {describe(key)}",
        f"  default:  {default(key.path)}",
    ]
    if some := owners(key.path):
        lines.append(f"  of:       {', '.join(some)}")
    lines += ["  rules:", *(f"    [{rule.id}] {rule.reason}; {rule.fix}" for rule in readers)] if readers else []
    return "\n".join(lines)


def meanings(key: Key) -> list[str]:
    """What it says, or each of what it says to several methods or stages."""
    group, found = key.path.partition(".")[0], _meant(key.path)
    if len(found) < 2:
        return [_said(key)]
    return [f"with {group}={', '.join(names)}: {said}" for said, names in found.items()]


def _in_a_list(key: Key) -> str:
    """In one line: what it says to the method or stage that is the default, where it says several things."""
    group, found = key.path.partition(".")[0], _meant(key.path)
    if len(found) < 2:
        return _said(key)
    said, names = max(found.items(), key=lambda each: _usual(group) in each[1])  # the first of those that are equal
    return f"{said} (with {group}={', '.join(names)}; `factory explain {key.path}` has the others)"


@cache
def _meant(path: str) -> dict[str, list[str]]:
    """What a key says, with the methods or stages to which it does: a rank is not the same to all of them."""
    group, found = path.partition(".")[0], dict[str, list[str]]()
    for name in having(path) if group in NAMED else ():
        keys = {each.path: each for each in walk(registry.spec(NAMED[group], name).Settings, group)}
        found.setdefault(_said(keys[path]), []).append(name)
    return found


def _usual(group: str) -> str:
    """The method or stage of a line that names none."""
    return _tree(None)[group]["name"]


def _said(key: Key) -> str:
    return key.description


def owners(path: str) -> list[str]:
    """The options of methods or stages that have the key, where not all of them do."""
    group, names = path.partition(".")[0], _having(path)
    return [f"{group}={option}" for option in groups.options(group) if _name(group, option) in names] if names else []


def _having(path: str) -> list[str]:
    group = path.partition(".")[0]
    if group not in NAMED:
        return []
    names = having(path)
    return names if len(names) < len(registry.names(NAMED[group])) else []


@cache
def _name(group: str, option: str) -> str | None:
    """The method's or stage's own, which an option that begins with another (dora with lora) takes from that one."""
    keys = groups.packaged(group, option).config
    return keys.get("name") or next(filter(None, (_name(group, base) for base in keys.get("defaults", []))), None)


@cache
def _tree(option: str | None, verb: str = "train") -> dict[str, Any]:
    return compose.compose(compose.CommandLine(overrides=(option,) if option else (), verb=verb)).tree


def default(path: str) -> str:
    """From conf/, as it is composed by default, or where that has no such key with the first option that has it."""
    group, names = path.partition(".")[0], _having(path)
    first = None if not names or _usual(group) in names else f"{group}={names[0]}"
    value: Any = _tree(first, compose.OWN.get(group, ("train",))[0])
    for part in path.split("."):
        if not isinstance(value, dict):
            return "(set by the option)"
        value = next(iter(value.values())) if part == "<name>" else value.get(part)
    text = ", ".join(plain(item) for item in value) or "(none)" if isinstance(value, list) else plain(value)
    return text + (f"  (with {first})" if first else "")
