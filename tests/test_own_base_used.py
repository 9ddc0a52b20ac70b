"""An adapter that has a base to itself is used on that base: by chat, serve and evaluate, and by save_reload."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compiled
from safetensors.torch import load_file
from serving import TINY, planned, room_of
from test_saved import HERE, SHORT, evaluated, perplexity

from factory import own_base
from factory.chat import show
from factory.config import compose
from factory.config.refusal import UserError
from factory.inference import asked
from factory.plan import bases
from factory.steps import train
from factory.verbs.use import to_write

Execute = Callable[..., Any]
KINDS = {
    "loftq": ("method=loftq", "method.rank=4", "method.iterations=2"),
    "pissa": ("method=pissa", "method.rank=4", "method.quantization.bits=4"),
}
PUBLISHED = "method.quantization.bits=null"
ONE_STEP = (
    "stage.max_steps=1",
    "stage.batch_size=1",
    "data.max_length=256",
    "data.max_samples=12",
    "evaluate.perplexity=false",
)
EXACT = 1e-4  # nats of a token, in float32


def _answering(*words: str) -> Any:
    """The model that answers in chat."""
    room, _ = room_of("chat", *words, *TINY)
    room.engine.stop(0)
    return room.engine.model.model  # type: ignore[attr-defined]


def _apart(model: Any) -> float:
    """In nats a token, at most, from the model that the run left."""
    own = own_base.read(Path("run/model"))
    tokens = torch.tensor([own.ids])
    with torch.no_grad():
        found = torch.nn.functional.cross_entropy(
            model(input_ids=tokens).logits[0, :-1], tokens[0, 1:], reduction="none"
        )
    return float((found - torch.tensor(own.losses)).abs().max())


@dataclass(frozen=True)
class Trained:
    folder: Path
    checks: dict[str, Any]
    perplexity: float


@pytest.fixture(scope="module")
def kept() -> dict[str, Trained]:
    return {}


@pytest.fixture
def trained(
    execute: Execute, kept: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Trained]:
    """The folder `run` of a kind, which is trained once."""

    def trained(kind: str) -> Trained:
        if kind not in kept:
            done = execute(*KINDS[kind], *SHORT)
            folder = Path(shutil.copytree("run", tmp_path_factory.mktemp("trained") / "run"))
            kept[kind] = Trained(folder, done.run.checks, done.result["evaluate"]["perplexity"])
        elif not Path("run").exists():
            shutil.copytree(kept[kind].folder, "run")
        return kept[kind]

    return trained


@pytest.mark.parametrize("kind", ["loftq", pytest.param("pissa", marks=pytest.mark.slow)])
def test_what_answers_and_is_measured_is_what_was_trained(
    kind: str, trained: Callable[[str], Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = trained(kind)
    assert done.checks["save_reload"]["passed"]
    assert float(done.checks["save_reload"]["detail"].split(" by ")[1].split()[0]) < EXACT
    assert _apart(_answering("run=run")) < EXACT
    assert perplexity("run=run") == pytest.approx(done.perplexity, rel=1e-6)
    monkeypatch.setattr(bases, "own_base", lambda case: "published")  # the fault: its words and bits, another base
    assert _apart(_answering("run=run")) > 10 * EXACT
    assert perplexity("run=run", folder="published") != pytest.approx(done.perplexity, rel=1e-4)


def test_save_reload_is_red_where_another_start_was_taken_out(
    execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train.save_model

    def saving(run: Any, *rest: Any) -> None:
        real(run, *rest)
        folder = run.folder.model
        said, taken = own_base.read(folder), load_file(folder / own_base.FILE)
        names = {name.rpartition(".")[0] for name in taken}
        own_base.save(folder, {name: (2 * taken[f"{name}.B"], taken[f"{name}.A"]) for name in names}, said)

    monkeypatch.setattr(train, "save_model", saving)
    done = execute(*KINDS["pissa"], *ONE_STEP, "precision=fp32")
    assert [name for name, check in done.run.checks.items() if not check["passed"]] == ["save_reload"]


def test_a_copy_of_the_adapter_without_its_run_will_do(trained: Callable[[str], Trained]) -> None:
    done = trained("loftq")
    shutil.copytree("run/model", "alone")
    words = (*SHORT[2:5], *HERE)
    assert perplexity("run=alone", *words) == pytest.approx(done.perplexity, rel=1e-6)
    other = evaluated("run=alone", *words, PUBLISHED, folder="other").plan
    (told,) = other.warnings
    assert other.steps.load.own_base == "published" and "another model" in told
    said = told.partition("the model that was trained has ")[2].split()
    assert evaluated("run=alone", *words, *said).plan.steps.load.own_base == "rebuilt"
    (Path("run/model") / own_base.FILE).unlink()
    (told,) = evaluated("run=run").plan.warnings
    assert "another model; there is no own_base.safetensors beside it" in told


@pytest.mark.slow
def test_numbers_of_another_type_are_computed_over_the_same_base(execute: Execute) -> None:
    """The base is read, and rounded, in the type that its run had; what is asked for is what is computed in."""
    from peft.utils.integrations import dequantize_module_weight

    done = execute(*KINDS["pissa"], *ONE_STEP, "precision=bf16")
    plan, *_ = planned("chat", "run=run", *TINY)
    assert (plan.steps.load.dtype, plan.steps.load.read_as) == ("float32", "bfloat16")
    model = _answering("run=run")
    ours, theirs = (dict(each.named_modules()) for each in (model, done.model))
    adapted = [name for name, module in ours.items() if hasattr(module, "base_layer")]
    for name in adapted:
        one, other = (dequantize_module_weight(each[name].base_layer).float() for each in (ours, theirs))
        assert torch.equal(one, other), name
    assert len(adapted) == 14
    assert {value.dtype for value in model.parameters() if value.is_floating_point()} == {torch.float32}


def test_nobody_else_stands_on_that_base(trained: Callable[[str], Trained], tiny_model: Path) -> None:
    trained("loftq")
    room, settings = room_of("serve", "run=run", *TINY)
    room.engine.stop(0)
    assert room.names == {"run": "default"}  # what is below it is nobody's model
    sides = [show.Asked(side, _plan_of(side)) for side in asked.sides("run", ("base", "run"))]
    one, other = show.speakers_of(sides, settings)
    assert one.room is not other.room
    for speaker in (one, other):
        speaker.room.engine.stop(0)
    base = f"model.path={tiny_model}"
    for words in (("run=run", "serve.adapters={x: other}"), (base, "serve.adapters={x: run/model}")):
        with pytest.raises(UserError, match=r"\[serve-own-base\].*quantized without"):
            room_of("serve", *words, *TINY)
    with pytest.raises(UserError, match=r"\[engine-vllm-weights\](.|\n)*bits=null"):
        planned("serve", "run=run", "engine=vllm")
    plan, *_ = planned("serve", "run=run", "engine=vllm", PUBLISHED)
    assert plan.steps.load.own_base == "published" and "another model" in plan.warnings[0]


def _plan_of(side: asked.Side) -> Any:
    return to_write("chat", compose.parse([]), asked.Line(TINY, None), side)[0]


def test_memory_counts_the_whole_weights_beside_what_is_made_of_them(trained: Callable[[str], Trained]) -> None:
    wide = ("model=llama2_7b", "hardware=h100_80gb", "precision=bf16")

    def estimate(*words: str) -> Any:
        return compiled(*wide, *words, training=False).estimate

    held, own = estimate("method=qlora"), estimate("method=loftq").memory
    assert "reading" not in held.memory.instants and "reading" not in estimate("method=pissa").memory.instants
    assert own.instants["reading"] == 2 * held.parameters.total + own.weights == own.total > held.memory.total
    trained("loftq")
    assert "reading" in evaluated("run=run").plan.estimate.memory.instants
    assert "reading" not in evaluated("run=run", PUBLISHED).plan.estimate.memory.instants
