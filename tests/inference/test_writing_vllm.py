"""engine=vllm, where vLLM is installed: the embedded engine's answers and probabilities, adapters beside the base."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
from serving import TINY, room_of, serving

from factory.inference.prompts import Conversation
from factory.inference.room import Room
from factory.inference.types import Done, Sampling, Stream, Token

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow
ASKED = Conversation(messages=({"role": "user", "content": "Hi"},))


@pytest.fixture
def run(execute: Callable[..., Any], tmp_path: Path) -> str:
    """A run over a model with heads as wide as vLLM's kernels have them."""
    wide = tiny.save(tmp_path / "wide", hidden_size=128, num_attention_heads=2, num_key_value_heads=1)
    lesson = ("stage.max_steps=3", "stage.learning_rate=1e-1", "data.max_samples=20", "precision=fp32")
    execute(f"model.path={wide}", "method=lora", *lesson)
    return "run=run"


@contextmanager
def opened(run: str, engine: str) -> Iterator[tuple[Room, Any]]:
    room, settings = room_of("serve", run, f"engine={engine}", *TINY)
    try:
        yield room, settings
    finally:
        room.engine.stop(0)


def test_the_same_answers_and_probabilities(run: str) -> None:
    """Of the base and of the adapter, which answer otherwise."""
    found = {}
    for engine in ("transformers", "vllm"):
        with opened(run, engine) as (room, _):
            ids = room.prompts.chat(ASKED)
            requests = [room.request(ids, Sampling(max_tokens=8, top_logprobs=2), name) for name in room.names]
            found[engine] = room.engine.batch(requests)
    assert len({tuple(token.id for token in tokens) for tokens, _ in found["vllm"]}) == len(found["vllm"]) == 2
    for (ours, done), (theirs, ended) in zip(found["transformers"], found["vllm"], strict=True):
        assert [token.id for token in ours] == [token.id for token in theirs] and done == ended == Done("length")
        for one, other in zip(ours, theirs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
            assert [each for each, _ in one.top] == [each for each, _ in other.top]


def test_it_draws_by_a_seed_stops_and_is_cancelled(run: str) -> None:
    with opened(run, "vllm") as (room, _):
        ids, name = room.prompts.chat(ASKED), next(iter(room.names))
        drawn = [
            [token.id for token in room.engine.batch([room.request(ids, sampling, name)])[0][0]]
            for seed in (1, 1, 2)
            for sampling in (Sampling(max_tokens=12, temperature=1.5, seed=seed),)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        stream = Stream(room.engine.submit, room.request(ids, Sampling(max_tokens=200), name))
        events = iter(stream)
        assert isinstance(next(events), Token)
        stream.close()
        rest = list(events)
        assert rest[-1] == Done("cancelled") and len(rest) < 50
        deadline = time.monotonic() + 5
        while room.engine.count().running and time.monotonic() < deadline:
            time.sleep(0.01)
        assert room.engine.count().running == 0


def test_the_official_client_gets_the_same_text(run: str) -> None:
    said = {}
    for engine in ("transformers", "vllm"):
        with opened(run, engine) as (room, settings), serving(room, settings) as server:
            asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0}
            client = server.client()
            whole = [client.chat.completions.create(model=name, **asked) for name in room.names]
            chunks = client.chat.completions.create(model=next(iter(room.names)), stream=True, **asked)
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            said[engine] = [answer.choices[0].message.content for answer in whole]
            assert streamed == said[engine][0]
            assert whole[0].usage.completion_tokens == 8
    assert said["vllm"] == said["transformers"]
