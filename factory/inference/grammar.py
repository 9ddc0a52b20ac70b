"""Answers that are held to JSON, by xgrammar (the extra `grammar`): which tokens may come next."""

import json
from functools import lru_cache
from typing import Any

from factory.inference.room import Room

_KEPT = 256 * 2**20  # bytes of grammars; clients may send another schema each time
_OBJECT = {"type": "object"}  # of any properties


class Grammar:
    """Of one answer."""

    def __init__(self, compiled: Any, rows: int, stops: list[int]):
        import xgrammar  # pyright: ignore[reportMissingImports]

        self._own: Any = xgrammar
        self._matcher = xgrammar.GrammarMatcher(compiled, override_stop_tokens=stops)
        self._bits = xgrammar.allocate_token_bitmask(1, rows)

    def mask(self, logits: Any) -> None:
        self._matcher.fill_next_token_bitmask(self._bits)
        self._own.apply_token_bitmask_inplace(logits[None], self._bits.to(logits.device))

    def accept(self, token: int) -> None:
        if not self._matcher.accept_token(token):
            raise ValueError("the grammar does not take the token that it allowed")


def grammar(room: Room, schema: dict[str, Any] | None) -> Grammar:
    """None: any JSON object. Raises ImportError without the package, ValueError for a schema that it does not take."""
    compiler, rows = _compiler(room)
    asked = json.dumps(_OBJECT if schema is None else schema)
    try:
        # small models write space for ever where they may
        compiled = compiler.compile_json_schema(asked, any_whitespace=False)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    return Grammar(compiled, rows, sorted(room.prompts.stops))


@lru_cache(maxsize=4)
def _compiler(room: Room) -> tuple[Any, int]:
    """It keeps the grammars that it made last."""
    import xgrammar  # pyright: ignore[reportMissingImports]

    rows = room.plan.steps.patch.vocabulary
    info = xgrammar.TokenizerInfo.from_huggingface(
        room.prompts.tokenizer, vocab_size=rows, stop_token_ids=sorted(room.prompts.stops)
    )
    return xgrammar.GrammarCompiler(info, cache_limit_bytes=_KEPT), rows
