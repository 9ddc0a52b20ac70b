"""More clients than there is room for, an end in the middle of streams, adapters by name, a reward model's scores."""

import json
import queue
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import tiny
import uvicorn
from safetensors.torch import load_file
from serving import TINY, planned, room_of, serving

from factory.config.refusal import UserError
from factory.inference import vllm_engine
from factory.inference.embedded import Model
from factory.inference.room import opened
from factory.serve.run import Server

HI: list[Any] = [{"role": "user", "content": "Hi"}]


def test_more_than_may_wait_are_told_when_to_come_again(tiny_model: Path) -> None:
    words = (f"model.path={tiny_model}", "serve.name=tiny", "engine.batch=1", "engine.queue=0", *TINY)
    room, settings = room_of("serve", *words)
    with serving(room, settings) as found:
        client = found.client()
        stream = client.chat.completions.create(model="tiny", messages=HI, max_tokens=240, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(model="tiny", messages=HI)
        assert int(raised.value.response.headers["retry-after"]) > 0
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="tiny", messages=HI, stream=True)
        stream.close()
    room.engine.stop(0)


def test_more_embeddings_than_may_wait_are_told_so_too(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them wait than asyncio has threads, where they once stood before the queue and nobody counted them."""
    words = (f"model.path={tiny_model}", "serve.name=tiny", "engine.batch=1", "engine.queue=32", *TINY)
    room, settings = room_of("serve", *words)
    begun, go, original = threading.Event(), threading.Event(), Model.states

    def held(*given: Any) -> Any:
        begun.set()
        go.wait(60)
        return original(*given)

    monkeypatch.setattr(Model, "states", held)
    with serving(room, settings) as found, found.http() as http, ThreadPoolExecutor(36) as pool:

        def ask() -> int:
            return http.post("/v1/embeddings", json={"model": "tiny", "input": "The sea"}).status_code

        try:
            asked = [pool.submit(ask)]
            assert begun.wait(20)
            asked += [pool.submit(ask) for _ in range(35)]  # of which 33 may wait
            done = as_completed(asked, timeout=30)
            assert [next(done).result() for _ in range(2)] == [429, 429]
        finally:
            go.set()
        assert sorted(each.result() for each in asked) == [200] * 34 + [429] * 2
    room.engine.stop(0)


@pytest.mark.parametrize("grace", [0.0, 30.0])
def test_a_stream_ends_well_when_the_server_is_stopped(grace: float, tiny_model: Path) -> None:
    """In the grace it is written to its end; after it, it is cut with a last event that says so."""
    room, settings = room_of("serve", f"model.path={tiny_model}", "serve.name=tiny", *TINY)
    with serving(room, settings, grace=grace) as found:
        stream = iter(
            found.client().chat.completions.create(
                model="tiny", messages=HI, max_tokens=200, stream=True, stream_options={"include_usage": True}
            )
        )
        next(stream)
        found.server.handle_exit(2, None)
        *_, last, usage = list(stream)
        found.thread.join(20)
        assert not found.thread.is_alive()
    assert last.choices[0].finish_reason == "length"
    assert usage.usage.completion_tokens == 200 if grace else usage.usage.completion_tokens < 200


def test_health_says_that_the_engine_answers_no_more(tiny_model: Path) -> None:
    room, settings = room_of("serve", f"model.path={tiny_model}", "serve.name=tiny", *TINY)
    with serving(room, settings) as found, found.http() as http:
        assert http.get("/health").status_code == 200
        room.engine.stop(0)
        assert http.get("/health").status_code == 503
        with pytest.raises(openai.InternalServerError) as raised:
            found.client().chat.completions.create(model="tiny", messages=HI)
        assert raised.value.status_code == 503 and raised.value.code == "stopping"


def test_adapters_of_one_base_by_name(execute: Callable[..., Any]) -> None:
    from factory.inference import asked

    short = ("stage.max_steps=3", "stage.learning_rate=5e-2", "data.max_samples=20", "precision=fp32")
    for name, seed in (("one", 1), ("two", 2)):
        execute("method=lora", f"seed={seed}", *short, folder=name)
    words = ("run=one", "serve.adapters={other: two/model}", *TINY)
    room, settings = room_of("serve", *words)
    assert list(room.names) == ["one", "llama", "other"]
    with serving(room, settings) as found:
        client = found.client()
        texts = {
            name: client.chat.completions.create(model=name, messages=HI).choices[0].message.content
            for name in room.names
        }
        assert {model.id: model.model_extra.get("parent") for model in client.models.list()} == {
            "one": "llama",
            "llama": None,
            "other": "llama",
        }
    room.engine.stop(0)
    assert len(set(texts.values())) == 3
    # each as it is alone
    for name, run in (("other", "two/model"),):
        alone, settings = room_of("serve", f"run={run}", *TINY)
        with serving(alone, settings) as found:
            answer = found.client().chat.completions.create(model=asked.name_of(run), messages=HI)
            assert answer.choices[0].message.content == texts[name]
        alone.engine.stop(0)
    with pytest.raises(UserError, match=r"\[serve-adapter\].*no adapter_config.json"):
        room_of("serve", "run=one", "serve.adapters={x: nowhere}", *TINY)


def test_a_reward_models_scores(judge: Path, tiny_model: Path) -> None:
    """Those that the model gave in training: of the better answer's letters it was taught to give more."""
    room, settings = room_of("serve", f"run={judge}", "serve.name=judge", *TINY[:3])
    talk = [*HI, {"role": "assistant", "content": "aaaa"}]
    with serving(room, settings) as found, found.http() as http:
        one = http.post("/v1/score", json={"model": "judge", "messages": talk}).json()
        both = http.post("/v1/score", json={"model": "judge", "messages": [talk, [*HI, {**talk[1], "content": "z"}]]})
        assert len(one["data"]) == 1 and len(both.json()["data"]) == 2
        assert one["data"][0]["score"] == pytest.approx(both.json()["data"][0]["score"], abs=1e-5)
        assert one["data"][0]["score"] != both.json()["data"][1]["score"]
        bad = http.post("/v1/score", json={"model": "judge", "messages": [*HI, *HI]})
        assert bad.status_code == 400
    room.engine.stop(0)


def test_only_the_runs_own_model_scores(judge: Path) -> None:
    """Its head was trained with its own adapter: over the base or another one it gives numbers that mean nothing."""
    room, settings = room_of(
        "serve", f"run={judge}", "serve.name=judge", f"serve.adapters={{x: {judge}/model}}", *TINY[:3]
    )
    body = {"messages": [*HI, {"role": "assistant", "content": "aaaa"}]}
    own, *others = room.names
    assert own == "judge" and len(others) == 2
    with serving(room, settings) as found, found.http() as http:
        assert http.post("/v1/score", json={"model": own, **body}).status_code == 200
        for name in others:
            answer = http.post("/v1/score", json={"model": name, **body})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported", "model"), name
    room.engine.stop(0)


def test_a_model_that_scores_nothing_says_so(tiny_model: Path) -> None:
    room, settings = room_of("serve", f"model.path={tiny_model}", "serve.name=tiny", *TINY)
    with serving(room, settings) as found, found.http() as http:
        body = {"model": "tiny", "messages": [*HI, {"role": "assistant", "content": "a"}]}
        answer = http.post("/v1/score", json=body)
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "unsupported"
    room.engine.stop(0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_cuts_at_once(number: int, tiny_model: Path) -> None:
    room, settings = room_of("serve", f"model.path={tiny_model}", "serve.name=tiny", *TINY)
    with serving(room, settings, grace=60.0) as found:
        stream = iter(
            found.client().chat.completions.create(
                model="tiny", messages=HI, max_tokens=200, stream=True, stream_options={"include_usage": True}
            )
        )
        next(stream)
        for _ in range(2):
            found.server.handle_exit(number, None)
        *_, last, usage = list(stream)
        found.thread.join(20)
        assert not found.thread.is_alive()
    assert last.choices[0].finish_reason == "length" and usage.usage.completion_tokens < 200


@pytest.mark.parametrize("sent", [(signal.SIGHUP, signal.SIGTERM), (signal.SIGTERM, signal.SIGHUP)])
def test_a_hangup_beside_another_signal_is_no_second_one(sent: tuple[int, int]) -> None:
    """As systemd sends them where a unit says SendSIGHUP=yes, and who ends a session."""
    graces = queue.SimpleQueue[float]()
    room: Any = SimpleNamespace(engine=SimpleNamespace(stop=graces.put))
    made = Server(uvicorn.Config("of:none"), room, 30.0)
    for number in sent:
        made.handle_exit(number, None)
    assert [graces.get(timeout=5) for _ in sent] == [30.0, 30.0]


def adapter_of(base: Path, folder: Path, seed: int = 0) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("name", ["default", "a", "keys", "v1.5"])
def test_an_adapter_stands_beside_the_runs_own_whatever_its_name(name: str, here: Path) -> None:
    """PEFT calls the own one `default` too, finds `a` in `lora_`, and has no module named `keys` or with a dot."""
    base = tiny.save(here / "base")
    own, other = (adapter_of(base, here / each, seed) for seed, each in enumerate(("own", "other")))
    words = (f"model.path={base}", f"model.adapter={own}", f"serve.adapters={{{name}: {other}}}", "serve.name=mine")
    room, _ = room_of("serve", *words, *TINY)
    room.engine.stop(0)
    assert list(room.names) == ["mine", "base", name] and room.names["mine"] == room.own
    engine: Any = room.engine
    held, key = dict(engine.model.model.named_parameters()), "base_model.model.model.layers.1.self_attn.q_proj"
    for asked, folder in (("mine", own), (name, other)):
        for letter in "AB":
            saved = load_file(folder / "adapter_model.safetensors")[f"{key}.lora_{letter}.weight"]
            assert held[f"{key}.lora_{letter}.{room.names[asked]}.weight"].equal(saved), (asked, letter)


def test_with_vllm_too_an_adapter_named_default_stands_beside_the_runs_own(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, seen = tiny.save(here / "base"), list[dict[str, str]]()

    class Vllm:
        def __init__(self, path: str, plan: Any, engine: Any, adapters: dict[str, str], context: int):
            seen.append(adapters)

    monkeypatch.setattr(vllm_engine, "Vllm", Vllm)
    own, other = (str(adapter_of(base, here / each)) for each in ("own", "other"))
    words = (f"model.path={base}", f"model.adapter={own}", f"serve.adapters={{default: {other}}}", "serve.name=mine")
    room, _ = room_of("serve", *words, "engine=vllm", *TINY)
    assert [seen[0][str(room.names[name])] for name in ("mine", "default")] == [own, other]


def test_an_adapter_that_vllm_cannot_read_is_told_by_its_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.save(here / "base")
    own, other = (adapter_of(base, here / name) for name in ("own", "other"))
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    for name, classes in (
        ("vllm", ["EngineArgs", "LLMEngine"]),
        ("vllm.lora", []),
        ("vllm.lora.request", ["LoRARequest"]),
    ):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**dict.fromkeys(classes)))
    words = (f"model.path={base}", f"model.adapter={own}", f"serve.adapters={{x: {other}}}", "engine=vllm")
    with pytest.raises(UserError, match=rf"\[serve-adapter\].*{other} is LORA with DoRA"):
        room_of("serve", *words, *TINY)


@pytest.mark.parametrize(("trained", "served"), [(3, 2), (2, 3)])
def test_an_adapter_whose_tensors_have_no_place_is_refused(trained: int, served: int, here: Path) -> None:
    """Of a model as wide with more layers, or with fewer: PEFT reads it, and leaves out what does not fit."""
    folders = {layers: tiny.save(here / f"of_{layers}", num_hidden_layers=layers) for layers in (2, 3)}
    adapter = adapter_of(folders[trained], here / "adapter")
    with pytest.raises(UserError, match=r"\[adapter-fits\].*layers\.2\."):
        room_of("serve", f"model.path={folders[served]}", f"model.adapter={adapter}", *TINY)
    with pytest.raises(UserError, match=r"\[serve-adapter\].*layers\.2\."):
        room_of("serve", f"model.path={folders[served]}", f"serve.adapters={{x: {adapter}}}", *TINY)
    room, _ = room_of("serve", f"model.path={folders[trained]}", f"model.adapter={adapter}", *TINY)
    room.engine.stop(0)


def test_an_adapter_on_other_positions_is_refused_and_another_template_is_told(here: Path) -> None:
    base = tiny.save(here / "base")
    stretched, spoken = (adapter_of(base, here / name) for name in ("stretched", "spoken"))
    config = json.loads((base / "config.json").read_text())
    (stretched / "base").mkdir()
    turned = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    (stretched / "base" / "config.json").write_text(json.dumps({**config, "rope_parameters": turned}))
    with pytest.raises(UserError, match=r"\[serve-adapter\].*stretched"):
        room_of("serve", f"model.path={base}", f"serve.adapters={{x: {stretched}}}", *TINY)
    with pytest.raises(UserError, match=r"\[serve-adapter\].*stretched"):
        room_of("serve", f"model.path={base}", f"model.adapter={stretched}", f"serve.adapters={{x: {spoken}}}", *TINY)
    (spoken / "chat_template.jinja").write_text("{{ messages }}")
    plan, settings, _ = planned("serve", f"model.path={base}", *TINY)
    told: list[str] = []
    room = opened(plan, settings.engine, {"x": str(spoken)}, "tiny", told.append)
    room.engine.stop(0)
    assert [text for text in told if text.startswith("serve.adapters.x") and "another chat template" in text]
