"""The command lines of chat and serve: what they take over from a run, what they refuse, and what stays secret."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled
from serving import TINY, planned
from test_saved import SHORT

import factory
from factory.config import compose
from factory.config.refusal import UserError
from factory.config.settings import Chat, Engine, Generation, Serve
from factory.inference import asked
from factory.plan.facts import Gpu
from factory.plan.inspect import machine as look
from factory.plan.plan import read_plan, to_yaml
from factory.plan.saved import Saved
from factory.plan.untrained import answering, untrained
from factory.serve import run
from factory.verbs.use import to_write

Said = Any
HERE = ("hardware=cpu", "tracking=none")


def refused(verb: Any, *words: str) -> list[str]:
    try:
        planned(verb, *words)
    except UserError as error:
        return [found.rule for found in error.refusals]
    return []


@pytest.mark.parametrize(
    ("verb", "words", "rules"),
    [
        ("chat", "stage=rm", ["nothing-written"]),
        ("serve", "stage=rm", ["head-fits"]),
        ("serve", "engine=vllm engine.memory_fraction=0.5", []),
        ("chat", "engine=vllm method.quantization.bits=4", ["engine-vllm-weights"]),
        ("serve", "serve.port=70000 generation.top_p=0 engine.batch=0", ["bad-value"] * 3),
        ("chat", "data=alpaca method.rank=3 evaluate.samples=3", ["writes-unread"] * 3),
        ("chat", "stage=dpo", ["writes-untrained"]),
        ("serve", "chat.system=x", ["writes-unread"]),
        ("chat", "generation.temprature=1", ["unknown-key"]),
        ("chat", "method=lora", ["writes-unread"]),
    ],
)
def test_what_is_refused(verb: str, words: str, rules: list[str], tiny_model: Path) -> None:
    assert refused(verb, f"model.path={tiny_model}", *HERE, *_words(words)) == rules


def test_a_key_of_another_verb_is_no_slip_of_the_fingers() -> None:
    for name, near in (("data.max_length=3", False), ("hardware.treads=2", True), ("evaluate.samples=3", False)):
        with pytest.raises(UserError, match="writes-unread") as error:
            asked.taken_apart("chat", [name])
        assert ("did you mean" in str(error.value)) is near, name


def _words(text: str) -> list[str]:
    """Parted by spaces, but for those within braces."""
    found = list[str]()
    for word in text.split():
        if found and found[-1].count("{") > found[-1].count("}"):
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found


def test_attention_that_takes_no_mask_is_refused_and_another_engine_has_its_own(
    machine: Callable[..., None], tiny_model: Path
) -> None:
    card = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30, compute_capability=9.0)
    machine(gpus=(card,), packages=look.look_at_machine().packages | {"flash-attn": "2.8"})
    flash = (f"model.path={tiny_model}", "tracking=none", "compute.attention=flash_attention_2", "precision=bf16")
    assert refused("chat", *flash) == ["attention"]
    assert refused("chat", *flash, "engine=vllm") == []


@pytest.mark.parametrize("verb", ["train", "plan", "evaluate", "preview"])
@pytest.mark.parametrize("key", ["engine=vllm", "generation.seed=1", "chat.system=x", "serve.api_key=hush"])
def test_other_verbs_do_not_read_their_keys(verb: str, key: str, command: Callable[..., Said]) -> None:
    said = command(verb, key)
    assert said.code == 2 and said.rules == ["key-of-another-verb"] and "hush" not in said.err


def test_the_model_of_a_run_is_read_whatever_became_of_its_rows(
    execute: Callable[..., Any], here: Path, tiny_model: Path
) -> None:
    rows = here / "rows.jsonl"
    rows.write_text('{"instruction": "Say one.", "output": "It is one."}\n' * 40)
    execute("method=lora", "data=file", f"data.path={rows}", "data.tools=qwen", *SHORT)
    rows.unlink()
    plan, _, _ = planned("chat", "run=run")
    assert Path(plan.steps.load.adapter) == here / "run" / "model" and plan.steps.load.dtype == "float32"
    assert plan.settings.data.tools == "qwen" and plan.verb == "chat"
    with pytest.raises(UserError, match=r"\[run-model\]"):
        planned("chat", "run=nowhere", "tracking=none")
    base = planned_of(asked.Side("base", "run", base=True))
    assert base.steps.load.adapter is None and base.steps.load.path == str(tiny_model)


def test_a_run_that_was_told_nothing_started_from_something(
    execute: Callable[..., Any], here: Path, tiny_model: Path
) -> None:
    execute("method=lora", *SHORT)
    place = here / "run" / "plan.yaml"
    place.write_text(to_yaml(read_plan(place).with_settings(overrides=())), encoding="utf-8")
    assert untrained(compose.parse(["run=run"]), answering, base=True).tree["model"]["path"] == str(tiny_model)


def test_how_many_processes_trained_a_run_is_not_taken_over(tiny_model: Path) -> None:
    several = ("hardware.num_processes=2", "hardware.strategy=ddp", "hardware.threads=2")
    plan = compiled(f"model.path={tiny_model}", "hardware=cpu", *several, training=False)
    hardware = answering(Saved(path=str(tiny_model), plan=plan))[0]["hardware"]
    assert (hardware["num_processes"], hardware["strategy"], hardware["threads"]) == (1, "none", 2)


def planned_of(side: asked.Side) -> Any:
    line = compose.parse([])
    return to_write("chat", line, asked.Line((), None), side)[0]


def test_a_key_is_in_no_plan_and_in_no_message(tiny_model: Path, command: Callable[..., Said]) -> None:
    words = (f"model.path={tiny_model}", *HERE, "serve.api_key='hush hush'")
    plan, settings, secret = planned("serve", *words)
    assert secret == "hush hush" and "hush" not in to_yaml(plan) and "hush" not in repr(settings)
    for more in ("serve.api_keys=hush", "serve.port=hash"):
        said = command("serve", *words, more)
        assert said.code == 2 and "hush hush" not in said.err
    said = command("serve", *words)  # a header cannot carry a space
    assert said.rules == ["serve-key"] and "hush" not in said.err
    assert command("chat", "serve.api_key=hush").err.count("hush") == 0


def test_a_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(run.KEY, "of the environment")
    assert run.key(None) == "of the environment" and run.key("own") == "own"
    monkeypatch.delenv(run.KEY)
    assert run.key(None) is None


@pytest.mark.parametrize(
    ("host", "secret", "rules"),
    [
        ("127.0.0.1", None, []),
        ("127.0.0.2", None, []),
        ("::1", None, []),
        ("localhost", None, []),
        ("0.0.0.0", None, ["serve-open"]),
        ("::", None, ["serve-open"]),
        ("192.168.1.7", None, ["serve-open"]),
        ("example.org", None, ["serve-open"]),
        ("0.0.0.0", "key", []),
    ],
)
def test_an_address_that_others_reach_needs_a_key(host: str, secret: str | None, rules: list[str]) -> None:
    serve = Serve(host=host, port=0, api_key=None, name=None, adapters={}, max_body=1024, image_hosts=(), grace=1.0)
    try:
        run.unusable(serve, secret)
        found = []
    except UserError as error:
        found = [refusal.rule for refusal in error.refusals]
    assert found == rules


def test_a_port_that_is_taken_is_refused_before_a_weight_is_read(
    tiny_model: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    from factory.inference import room

    monkeypatch.setattr(room, "opened", lambda *_: pytest.fail("the weights were read"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = command("serve", f"model.path={tiny_model}", *TINY, f"serve.port={port}")
    assert said.code == 2 and said.rules == ["serve-address"]


@pytest.mark.parametrize(
    ("run_", "compare", "found"),
    [
        (None, (), [("model", None, False)]),
        ("out/a", (), [("a", "out/a", False)]),
        ("out/a/model", (), [("a", "out/a/model", False)]),
        ("out/a", ("base", "run"), [("base", "out/a", True), ("a", "out/a", False)]),
        (None, ("base", "out/b"), [("base", "out/b", True), ("b", "out/b", False)]),
        (None, ("out/a", "out/b"), [("a", "out/a", False), ("b", "out/b", False)]),
        (None, ("D/T1/0", "D/T2/0"), [("T1/0", "D/T1/0", False), ("T2/0", "D/T2/0", False)]),
        ("D/T1/0/model", ("D/T2/0", "run"), [("T2/0", "D/T2/0", False), ("T1/0", "D/T1/0/model", False)]),
        (None, ("base", "out/base"), [("base", "out/base", True), ("out/base", "out/base", False)]),
    ],
)
def test_the_models_of_a_conversation(run_: str | None, compare: tuple[str, ...], found: list[Any]) -> None:
    assert [(side.title, side.run, side.base) for side in asked.sides(run_, compare)] == found


@pytest.mark.parametrize(
    ("run_", "compare"),
    [
        (None, ("base", "run")),
        ("a", ("run",)),
        ("a", ("run", "run")),
        ("a", ("x", "y", "z")),
        ("out/a", ("run", "out/a/model")),
    ],
)
def test_models_that_cannot_be_compared(run_: str | None, compare: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"\[chat-compare\]"):
        asked.sides(run_, compare)


def test_a_model_without_a_chat_template_is_served_and_not_talked_with(tmp_path: Path) -> None:
    import tiny

    bare = tiny.save(tmp_path / "bare", template=False)
    assert refused("chat", f"model.path={bare}", *HERE) == ["no-chat-template"]
    assert refused("serve", f"model.path={bare}", *HERE) == []


@pytest.mark.parametrize("cls", [Engine, Generation, Chat, Serve])
def test_every_key_is_read_by_what_writes(cls: type) -> None:
    package = Path(factory.__file__).parent
    files = [*(package / "steps").glob("write.py"), *(package / "verbs").glob("*.py")]
    files += [file for name in ("inference", "serve", "chat") for file in (package / name).glob("*.py")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    reads = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    assert set(cls.model_fields) <= reads
