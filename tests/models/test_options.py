"""Each model option against what transformers builds on the meta device, and against the size that is published."""

import io
import json
import socket
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import compiled
from rich.console import Console

from factory.architecture import REMOTE_CODE, architecture
from factory.config import compose, groups, tables
from factory.config import models as packaged
from factory.config.keys import walk
from factory.config.refusal import UserError
from factory.config.settings import Model
from factory.plan.inspect import model as look_model
from factory.verbs import models

OPTIONS = groups.options("model")
PUBLISHED = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())
OF_OTHERS = {
    "chatglm": "glm"
}  # kinds of transformers whose layers a kind without a class has, fused or not: else llama
RENAMED = {
    "padded_vocab_size": "vocab_size",
    "ffn_hidden_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "multi_query_group_num": "num_key_value_heads",
    "kv_channels": "head_dim",
    "add_qkv_bias": "attention_bias",
    "bias": "attention_bias",
}


@cache
def built(numbers: str) -> dict[str, tuple[int, ...]]:
    """The tensors of the model of these numbers (JSON), on the meta device. Twins share a build."""
    import torch
    from transformers import AutoConfig

    from factory.steps.walk import model_class

    config = AutoConfig.for_model(**json.loads(numbers))
    with torch.device("meta"):
        model: Any = model_class(config).from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("option", OPTIONS)
def test_the_tensors_are_those_that_transformers_builds(option: str) -> None:
    numbers = packaged.numbers(option)["architecture"]
    ours = dict(architecture(numbers).tensors())
    if numbers["model_type"] not in REMOTE_CODE:
        assert ours == built(json.dumps(numbers, sort_keys=True))
        return
    # its class comes with the model; one of transformers' has the same layers, under other names and not fused
    told = {RENAMED.get(key, key): value for key, value in numbers.items() if not key.startswith(("rope_", "model_"))}
    told |= {"model_type": OF_OTHERS.get(numbers["model_type"], "llama"), "pad_token_id": None}
    assert sum(map(prod, ours.values())) == sum(map(prod, built(json.dumps(told, sort_keys=True)).values()))


@pytest.mark.parametrize("option", OPTIONS)
def test_the_parameters_are_those_that_are_published(option: str) -> None:
    entry = PUBLISHED[option]
    assert set(entry) <= {"parameters", "source", "beside", "rounded"}
    published = entry["parameters"] - sum(entry.get("beside", {}).values())
    ours = architecture(packaged.numbers(option)["architecture"]).parameters()
    assert ours == (pytest.approx(published, rel=0.01) if entry.get("rounded") else published)


def test_few_published_figures_are_rounded() -> None:
    assert len([option for option, entry in PUBLISHED.items() if entry.get("rounded")]) <= 10


def test_there_are_as_many_as_promised() -> None:
    rows = models.rows()
    assert [row.option for row in sorted(rows, key=lambda row: row.option)] == OPTIONS == sorted(PUBLISHED)
    assert len(rows) >= 120
    assert len({row.family for row in rows}) >= 40
    assert len([row for row in rows if row.vision]) >= 15
    assert all(row.license and row.family and row.parameters and row.context_length for row in rows)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_has_exactly_the_schemas_keys(option: str) -> None:
    assert {f"model.{key}" for key in packaged.numbers(option)} == {key.path for key in walk(Model, "model")}


def test_an_option_is_read_as_hydra_composes_it() -> None:
    for option in ("llama3_8b", "qwen2.5_3b", "llava1.5_7b", "smollm2_135m"):
        composed = compose.compose(compose.CommandLine(overrides=(f"model={option}",))).tree["model"]
        ours = packaged.numbers(option)
        assert ours["path"] == "${model.hub}"
        assert {**ours, "path": ours["hub"]} == composed


def _own(folder: Path, text: str, name: str = "mine") -> tuple[str, ...]:
    (folder / "model").mkdir()
    (folder / "model" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return (str(folder),)


@pytest.mark.parametrize(
    "defaults",
    [
        "[llama3_8b]",
        "[/model/llama3_8b@_here_]",
        "[llama3_8b@_here_, _self_]",
        "[{/model@_here_: llama3_8b}]",
        "[/data/alpaca@data.sources, llama3_8b]",
    ],
)
def test_an_option_of_ones_own_is_listed_however_it_names_its_base(defaults: str, tmp_path: Path) -> None:
    (row,) = models.rows(("mine",), _own(tmp_path, f"defaults: {defaults}\nlicense: mine\n"))
    (base,) = (row for row in models.rows(("llama3_8b",)) if row.option == "llama3_8b")
    assert (row.path, row.parameters, row.license) == (base.path, base.parameters, "mine")


@pytest.mark.parametrize("name", ["mine", "llama3_8b"])
def test_a_file_of_ones_own_is_an_option_even_under_a_packaged_name(name: str, tmp_path: Path) -> None:
    """It holds what it and its bases set, and nothing of the packaged row."""
    dirs = _own(tmp_path, "defaults: [_qwen3]\nhub: me/mine\n", name)
    line = compose.CommandLine(overrides=(f"model={name}",), config_dirs=dirs)
    tree = compose.compose(line).tree["model"]
    assert (tree["path"], tree["family"], tree["license"]) == ("me/mine", "qwen3", "apache-2.0")
    assert (tree["template"], "hidden_size" in tree["architecture"]) == ("auto", False)
    assert packaged.numbers(name, dirs) == tree


@pytest.mark.parametrize(
    "text", ["path: mine/model\n", "", "path: 3\nfamily: [mine]\narchitecture: [1]\ncontext_length: long\ngated: 1\n"]
)
def test_an_option_of_ones_own_is_listed_whatever_it_leaves_out(text: str, tmp_path: Path) -> None:
    (row,) = models.rows(("mine",), _own(tmp_path, text))
    assert (row.option, row.parameters, row.context_length, row.template) == ("mine", None, None, "auto")
    Console(file=io.StringIO()).print(models.table([row], width=80))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a: [", "compose"),
        ("- a", "compose"),
        ("\xff: \x00", "compose"),
        ("defaults: 3", "compose"),
        ("defaults: [{a: b, c: d}]", "compose"),
        ("defaults: [gone]", "compose"),
        ("defaults: [mine]", "defaults-circle"),
    ],
)
def test_a_file_that_is_no_option_is_named(text: str, rule: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        models.rows((), _own(tmp_path, text))
    (refusal,) = raised.value.refusals
    assert refusal.rule == rule and refusal.setting == str(tmp_path / "model" / "mine.yaml")


@pytest.mark.parametrize("option", ["smollm2_135m", "llama3_8b", "mixtral_8x7b", "llava1.5_7b", "bloom_7.1b"])
@pytest.mark.parametrize("packaged", [True, False])
def test_planning_an_option_needs_no_network(
    option: str, packaged: bool, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    if not packaged:
        monkeypatch.setattr(look_model, "package_file", lambda _: None)
    plan = compiled(f"model={option}", training=False)
    assert plan.options["model"] == option
    assert plan.estimate.parameters.total == architecture(plan.steps.load.config).parameters()
    assert not list(here.iterdir())


@pytest.mark.parametrize("width", [25, 40, 50, 60, 80, 110])
def test_an_options_name_is_whole_at_any_width(width: int) -> None:
    """It is what one has to type."""
    out, rows = io.StringIO(), models.rows(("qwen2.5", "7b"))
    Console(file=out, width=width).print(models.table(rows, width=width))
    assert all(row.option in out.getvalue() for row in rows)
    told = " ".join(out.getvalue().split()).partition("Not shown for want of room:")[2]
    for name in ("parameters", "context", "template", "licence"):
        assert (name in out.getvalue().splitlines()[1]) != (name in told), name


def test_each_is_found_by_its_path() -> None:
    assert all(tables.option_of("model", row.path) == row.option for row in models.rows())
    assert tables.option_of("model", "no/such") is None and tables.option_of("model", ["a/b"]) is None
