"""Options of conf/ are valid settings; keys, groups and options are explained."""

import re
from functools import cache
from typing import Any, get_args

import pytest

from factory import help
from factory.config import compose, groups, registry, settings
from factory.config.refusal import UserError
from factory.config.settings import GROUPS, NAMED, all_keys

MODELS = ["smollm2_135m", "llama3_8b", "llava1.5_7b"]  # the others are read, not composed: tests/models
OPTIONS = [
    (group, option) for group in groups.GROUPS for option in (MODELS if group == "model" else groups.options(group))
]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_an_option_is_valid(group: str, option: str) -> None:
    composed = compose.compose(compose.parse([f"{group}={option}"]))
    assert composed.options[group] == option
    settings.validate(composed.tree)
    if group in NAMED:  # several options may be one method in different settings
        assert composed.tree[group]["name"] in registry.names(NAMED[group])
    elif "name" in composed.tree[group]:  # else a rule could not know which was chosen
        assert composed.tree[group]["name"] == option


@pytest.mark.parametrize("group", NAMED)
def test_every_spec_has_its_option(group: str) -> None:
    assert set(groups.options(group)) >= set(registry.names(NAMED[group]))


def test_every_precision_is_an_option() -> None:
    kinds = {found.path: found.kind for found in all_keys()}
    assert set(get_args(kinds["precision.name"])) == set(groups.options("precision"))


def test_every_key_is_documented_and_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "compose", cache(compose.compose))  # else once for each key
    keys = list(all_keys())
    assert len({found.path for found in keys}) == len(keys)
    for found in keys:
        assert len(found.description) > 10, found.path
        text = help.explained(found.path)
        assert text.startswith(f"{found.path}\n  ") and found.description in text, text
        default = re.search(r"default: +(.*)", text)
        assert default and default[1], text
        assert "set by the option" not in text, text


@pytest.mark.parametrize("group", [*GROUPS, *NAMED])
def test_a_group_is_explained_by_its_keys(group: str) -> None:
    text = help.explained(group)
    inside = [found.path for found in all_keys() if found.path.startswith(f"{group}.")]
    assert inside
    assert all(re.search(rf"^{re.escape(path)} ", text, re.MULTILINE) for path in inside)
    if group in groups.GROUPS and group != "model":  # `factory models` lists those
        assert all(option in text for option in groups.options(group))


def test_an_option_is_explained_by_its_name_and_as_it_is_chosen() -> None:
    """By what its file says and sets; a name may be one of several groups."""
    assert help.explained("qlora") == help.explained("method=qlora")
    text = help.explained("qlora")
    assert text.startswith("method=qlora\n  LoRA on a base in 4-bit NormalFloat")
    assert "\n    method=lora\n" in text and "\n    method.quantization.bits=4\n" in text
    assert "data.sources.demo.path=" in help.explained("demo")
    assert {"compute=default", "evaluate=default"} <= set(help.explained("default").splitlines())
    assert "stage.max_steps=5" in help.explained("smoke")
    assert "\n    runs.sft=" in help.explained("rlhf")
    assert help.explained("chatml").startswith("model.template=chatml\n")
    for group, option in OPTIONS:
        assert help.explained(f"{group}={option}").startswith(f"{group}={option}\n")
    with pytest.raises(UserError, match=r"did you mean lora\?"):
        help.explained("loar")


@pytest.mark.parametrize("name", ["run", "recipe", "hydra.run.dir", "hydra.sweep.dir"])
def test_what_is_typed_like_a_key_is_explained(name: str) -> None:
    """What docs and refusals name, and no group has."""
    assert re.match(rf"{name}(=.*)?\n  \w", help.explained(name))
    assert "smoke" in help.explained("recipe")
    assert help.explained("hydra") == f"{help.explained('hydra.run.dir')}\n{help.explained('hydra.sweep.dir')}"


def test_a_key_of_several_methods_is_explained_as_each_of_them_means_it() -> None:
    """And with the default that it has where nothing is chosen."""
    text = help.explained("method.rank")
    assert "  with method=adalora: rank that the adapters keep, on average\n" in text
    assert "  with method=lora, qlora: rank of the matrices A and B\n" in text and "  default:  8\n" in text
    assert "  with stage=kto: strength of the pull to the reference model\n" in help.explained("stage.beta")
    (line,) = (line for line in help.explained("method").splitlines() if line.startswith("method.rank "))
    assert "rank of the matrices A and B (with method=lora, qlora; " in line
    assert "(with stage=" in help.default("stage.beta")
    for wrong, near in (("stage=dop", "stage=dpo"), ("method=qlroa", "method=qlora"), ("method.rnk", "method.rank")):
        with pytest.raises(UserError, match=rf"did you mean {re.escape(near)}\?"):
            help.explained(wrong)


def test_help_lists_every_option_recipe_and_verb(command: Any) -> None:
    said = command("--help")
    assert said.code == 0
    words = set(re.findall(r"[\w.]+", said.out))
    listed = {option for group, option in OPTIONS if group != "model"} | set(groups.options("recipe"))
    assert listed | {"train", "plan", "resume", "explain", "models"} <= words


def test_a_verbs_help_begins_with_its_own(command: Any) -> None:
    said, rest = command("export", "--help").out.split("\n\n", 1)
    assert said.startswith("factory export: write run=FOLDER's model") and said.endswith("(`factory explain export`)")
    assert rest == command("--help").out
    assert command("help", "export").out == f"{said}\n\n{rest}"
    assert "generation.*" in command("chat", "run=x", "-h").out.partition("\n\n")[0]


def test_a_key_of_one_option_names_its_owner() -> None:
    text = help.explained("method.num_layers")
    assert re.search(r"of: +method=freeze", text)
    assert re.search(r"default: +3 ", text)
    assert "[freeze-modules]" in text
    assert "method=dora, method=loftq, method=lora, " in help.explained("method.rslora")  # which begin with lora
    assert help.explained("data.sources.demo.path").startswith("data.sources.<name>.path\n")
