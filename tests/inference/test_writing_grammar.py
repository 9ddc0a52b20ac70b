"""What xgrammar is asked for: it need not be installed (what it then gives is in test_serve_api.py)."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from factory.inference.grammar import grammar


class Said:
    """A module's classes that keep what they are called with."""

    def __init__(self) -> None:
        self.limit, self.schemas = -1, list[tuple[Any, bool]]()
        info = SimpleNamespace(from_huggingface=lambda *_, **__: None)
        self.module = SimpleNamespace(
            TokenizerInfo=info,
            GrammarCompiler=self.compiler,
            GrammarMatcher=lambda *_, **__: None,
            allocate_token_bitmask=lambda *_: None,
        )

    def compiler(self, info: Any, cache_limit_bytes: int = -1) -> Any:
        self.limit = cache_limit_bytes
        return SimpleNamespace(
            compile_json_schema=lambda text, any_whitespace=True: self.schemas.append(
                (json.loads(text), any_whitespace)
            ),
            compile_builtin_json_grammar=lambda: self.schemas.append((None, True)),
        )


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    made = Said()
    monkeypatch.setitem(sys.modules, "xgrammar", made.module)
    return made


class Room:
    plan = SimpleNamespace(steps=SimpleNamespace(patch=SimpleNamespace(vocabulary=8)))
    prompts = SimpleNamespace(tokenizer=None, stops=frozenset({2}))


def test_what_it_keeps_of_schemas_has_a_limit(said: Said) -> None:
    room: Any = Room()
    grammar(room, {"type": "array"})
    assert 0 < said.limit < 2**30


def test_without_a_schema_an_answer_is_an_object_and_writes_no_space_for_ever(said: Said) -> None:
    room: Any = Room()
    for schema in (None, {"type": "array"}):
        grammar(room, schema)
    assert said.schemas == [({"type": "object"}, False), ({"type": "array"}, False)]
