"""A model that is ready to write: what chat and serve ask. One room of one plan, whichever engine is in it.

The weights come from the same steps as in training (load, patch, quantize, attach); vLLM reads them itself, from the
folder that `load` found.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from factory import own_base
from factory.config import settings
from factory.config.refusal import refuse
from factory.data.record import BadRow
from factory.execute.context import Run
from factory.execute.executor import Step, walk
from factory.execute.heard import hearing
from factory.inference.prompts import Conversation, Prompts
from factory.inference.text import Writer
from factory.inference.types import Done, Engine, Request, Sampling, Token
from factory.plan.plan import Plan
from factory.run.folder import RunFolder, base_config, read_json

_serve_adapter = partial(
    refuse,
    "serve-adapter",
    because="every adapter is put on the one base that is served",
    fix=(
        "name the folders of adapters that were trained on this base, as serve.adapters={mine: outputs/DATE/TIME/model}"
    ),
)

_EMBEDDED = (
    Step("load", "load:load", (), ("config", "tokenizer", "processor")),
    Step("patch", "patch:patch", ("config",), ("patched",)),
    Step("quantize", "quantize:quantize", (), ("quantization",)),
    Step("attach", "attach:attach", ("patched", "quantization"), ("model", "arch")),
    Step("write", "write:embedded", ("tokenizer", "processor", "model"), ("room",)),
)
_VLLM = (
    Step("load", "load:load", (), ("config", "tokenizer", "processor")),
    Step("write", "write:vllm", ("tokenizer",), ("room",)),
)
_STEPS = {"transformers": _EMBEDDED, "vllm": _VLLM}
OWN = "default"  # the adapter of the plan


def behind(adapters: Iterable[str]) -> dict[str, str]:
    """By what an engine knows the further adapters of these names.

    Never by a user's words: one may be OWN, or what PEFT can name no module (`v1.5`, `keys`) or finds in `lora_` (`a`).
    """
    return {name: f"beside_{number}" for number, name in enumerate(adapters)}


@dataclass(slots=True, kw_only=True)
class Opening(Run):
    """The walk of a plan that ends in a room. It writes no files: what it tells goes to `tell`."""

    engine: settings.Engine
    adapters: dict[str, str]  # further ones: folders by name
    tell: Callable[[str], None]

    def emit(self, event: str, **values: Any) -> None:
        if event == "note":
            self.tell(values["text"])


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token added to an answer's text; without a token: what was held back until the end."""

    text: str
    token: Token | None


@dataclass(slots=True, eq=False)
class Room:
    """`names`: the adapter behind each name that a client may ask with, None: the base."""

    plan: Plan
    engine: Engine
    prompts: Prompts
    names: dict[str, str | None]
    capacity: int  # answers that may be asked for at a time

    @property
    def context(self) -> int:
        return self.engine.context

    @property
    def own(self) -> str | None:
        """The adapter of the plan, which its heads were trained with; None: its base alone."""
        return OWN if self.plan.steps.load.adapter else None

    def request(
        self, ids: Sequence[int], sampling: Sampling, name: str, images: Sequence[str] = (), allowed: Any = None
    ) -> Request:
        """Of a prompt that leaves room for an answer."""
        assert len(ids) < self.context
        room = min(sampling.max_tokens, self.context - len(ids))
        return Request(
            ids=tuple(ids),
            sampling=replace(sampling, max_tokens=room),
            stops=self.prompts.stops,
            adapter=self.names[name],
            inputs=self.prompts.inputs(ids, images),
            allowed=allowed,
        )

    def answer(
        self, conversation: Conversation, sampling: Sampling, name: str, stops: Sequence[str] = ()
    ) -> Iterator[Piece | Done]:
        """As it is written; leaving the loop early cancels it. Raises BadRow."""
        ids = self.prompts.chat(conversation)
        if len(ids) >= self.context:
            raise BadRow(f"{len(ids):,} tokens leave no room in a context of {self.context:,}")
        stream = self.engine.generate(self.request(ids, sampling, name, conversation.images))
        writer = Writer(self.prompts.tokenizer, (*stops, *self.prompts.stop_texts))
        try:
            for event in stream:
                if isinstance(event, Done):
                    rest = writer.finish()
                    if rest:
                        yield Piece(rest, None)
                    yield event
                    return
                yield Piece(writer.feed(event.id), event)
                if writer.ended:
                    yield Done("stop")
                    return
        finally:
            stream.close()


def opened(
    plan: Plan, engine: settings.Engine, adapters: dict[str, str], name: str, tell: Callable[[str], None]
) -> Room:
    """Walks the plan. Raises UserError."""
    _share_a_base(adapters, plan)

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    run = Opening(
        plan=plan,
        folder=RunFolder("."),
        resume_from=None,
        engine=engine,
        adapters=adapters,
        tell=tell,
    )
    with hearing(run.heard):
        room: Room = walk(run, _STEPS[engine.name])
    own = {name: room.own}
    base, load = plan.options.get("model", "base"), plan.steps.load
    # below an adapter with a base to itself are weights that lack its start: nobody's model
    if load.adapter and load.own_base != "rebuilt" and base not in {name, *adapters}:
        own[base] = None
    _tell_of_templates(room, adapters, tell)
    room.names = own | behind(adapters)
    return room


def _share_a_base(adapters: dict[str, str], plan: Plan) -> None:
    """Raises UserError for a folder that has no adapter in it, or one that no other base is the right one for."""
    for name, folder in adapters.items():
        setting = f"serve.adapters.{name}={folder}"
        if not (Path(folder) / "adapter_config.json").is_file():
            raise _serve_adapter(setting, "there is no adapter_config.json in it")
        if (Path(folder) / own_base.FILE).is_file():
            raise refuse(
                "serve-own-base",
                setting,
                "it was trained over a base of its own, quantized without its start",
                because="weights that lack the start of one adapter are the right ones for that adapter alone",
                fix="serve it by itself (`factory serve run=FOLDER`), or write it whole (`factory export`)",
            )
        if _positions(folder) != _positions(plan.steps.load.adapter):
            raise _serve_adapter(setting, "positions of its base were stretched otherwise than those here")


def _positions(adapter: str | None) -> tuple[Any, ...] | None:
    """Those that the base of an adapter was stretched to; None: it was not."""
    if adapter is None or (said := read_json(base_config(adapter))) is None:
        return None
    text = said.get("text_config", said)
    return text.get("rope_parameters"), text.get("max_position_embeddings")


def _tell_of_templates(room: Room, adapters: dict[str, str], tell: Callable[[str], None]) -> None:
    for name, folder in adapters.items():
        own = Path(folder) / "chat_template.jinja"
        if own.is_file() and own.read_text(encoding="utf-8") != room.prompts.tokenizer.chat_template:
            tell(
                f"serve.adapters.{name}: it has another chat template, and messages are rendered by that of the model."
            )


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
