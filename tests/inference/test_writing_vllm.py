"""engine=vllm, where vLLM is installed: the same answers as the embedded engine's, adapters beside the base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import TINY, room_of

from factory.inference.prompts import Conversation
from factory.inference.types import Done, Sampling

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow


def test_the_same_answers(execute: Callable[..., Any], tiny_model: Path) -> None:
    execute("method=lora", "stage.max_steps=3", "stage.learning_rate=1e-1", "data.max_samples=20", "precision=fp32")
    asked = Conversation(messages=({"role": "user", "content": "Hi"},))
    found = {}
    for engine in ("transformers", "vllm"):
        room, _ = room_of("serve", "run=run", f"engine={engine}", *TINY)
        ids = room.prompts.chat(asked)
        requests = [room.request(ids, Sampling(max_tokens=8), name) for name in room.names]
        found[engine] = [([token.id for token in tokens], done) for tokens, done in room.engine.batch(requests)]
        room.engine.stop(0)
    assert found["vllm"] == found["transformers"]
    assert all(done == Done("length") or done == Done("stop") for _, done in found["vllm"])
