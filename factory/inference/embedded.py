"""engine=transformers: the model that the steps made, with keys and values of our own for many answers at a time.

transformers' continuous batching writes 3 tokens a second on a CPU (docs/measurements.md), and `generate` lets nobody
join. So the loop is ours; the forward pass, its masks and positions are the model's.
"""

import inspect
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import DynamicCache

from factory.architecture.positions import alike, scalings
from factory.inference.draw import Drawer, draw
from factory.inference.scheduler import Lane, Scheduled, Scheduler, T
from factory.inference.slots import Slots
from factory.inference.types import Done, Request, Seen, Ticket, Token, Unable, failed
from factory.logits import decoder, text_model

_log = logging.getLogger(__name__)
_KEPT_PREFIX = 16  # tokens that two prompts must share before what was read of the first is used again
# layers whose state is keys and values alone: those of others cannot be cut or shifted
_WITH_KEYS = {"full_attention", "sliding_attention", "chunked_attention"}
# models that attend to images from aside
_ALONE = {"mllama"}
_SEEN_BY_ALL = "cross_attention_mask"  # what of a prompt's inputs every token of its answer needs too


def side_by_side(config: Any) -> bool:
    """Whether answers of this model can be written in one batch; else one after the other."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or ["full_attention"]
    return set(kinds) <= _WITH_KEYS and config.model_type not in _ALONE


@dataclass(slots=True)
class Row:
    """An answer that is written. The model has not read the newest of its `tokens` yet."""

    ticket: Ticket
    drawer: Drawer
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Reading:
    """A prompt that is being read: `done` of its tokens."""

    ticket: Ticket
    slots: Slots
    done: int = 0


@dataclass(frozen=True, slots=True)
class Numbers:
    """How much at a time: `prefill` tokens of prompts between two tokens of those who write."""

    prefill: int
    context: int


class Model:
    """The forward pass of a model, PEFT's wrapper or not."""

    def __init__(self, model: Any, device: str, autocast: Callable[[], AbstractContextManager[Any]]):
        self.model, self.inner, self.device, self._autocast = model, text_model(model), device, autocast
        takes = inspect.signature(self.inner.forward).parameters
        self._cache = "cache" if "cache" in takes else "past_key_values"  # its name in older releases
        self._positions = "position_ids" in takes
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._turned = [each for each in self.inner.modules() if hasattr(each, "rope_deltas")]
        self.side_by_side = side_by_side(self.inner.config) and not self._turned
        text = self.inner.config.get_text_config().to_dict()
        self._alike = alike(text)
        self.turns = self._alike if "longrope" in scalings(text) else None
        self._dynamic = [each for each in self.inner.modules() if getattr(each, "rope_type", None) == "dynamic"]
        self._adapter: str | None = model.active_adapter if hasattr(model, "peft_config") else None
        model.eval()

    @property
    def deltas(self) -> list[Any]:
        """By how much positions after the images of the last prompt that was read, whoever's it was, are not places."""
        return [each.rope_deltas for each in self._turned]

    @deltas.setter
    def deltas(self, values: Sequence[Any]) -> None:
        for module, value in zip_longest(self._turned, values):
            module.rope_deltas = value

    def beside_others(self, tokens: int) -> bool:
        """Whether an answer of so many tokens, with its prompt, is the same in a batch with others."""
        return self.side_by_side and (self._alike is None or tokens <= self._alike)

    def use(self, adapter: str | None) -> None:
        """None: the base alone. Dynamic positions, turned by the longest row yet, are those of the config again."""
        for module in self._dynamic:
            module.max_seq_len_cached = module.original_max_seq_len
            module.inv_freq = module.original_inv_freq.to(module.inv_freq.device)
        if not hasattr(self.model, "peft_config") or adapter == self._adapter:
            return
        if adapter is None:
            self.model.base_model.disable_adapter_layers()
        else:
            if self._adapter is None:
                self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(adapter)
            self.model.requires_grad_(False)
        self._adapter = adapter

    def logits(self, ids: Tensor, cache: Any, mask: Tensor | None, positions: Tensor | None, more: Any) -> Tensor:
        """Of the last token of each row: (rows, vocabulary). `cache` then holds all of them."""
        given: dict[str, Any] = {"input_ids": ids.to(self.device), self._cache: cache, "use_cache": True, **self._last}
        if mask is not None:
            given["attention_mask"] = mask.to(self.device)
        if positions is not None and self._positions:
            given["position_ids"] = positions.to(self.device)
        given |= {name: value.to(self.device) for name, value in more.items()}
        with torch.no_grad(), self._autocast():
            return self.inner(**given).logits[:, -1]

    def states(self, ids: Tensor) -> Tensor:
        """The last states of one row: (tokens, width)."""
        with torch.no_grad(), self._autocast():
            return decoder(self.inner)(input_ids=ids.to(self.device), use_cache=False).last_hidden_state[0]


class Together:
    """A lane of one adapter, whose answers share one batch."""

    def __init__(self, model: Model, adapter: str | None, numbers: Numbers):
        self._model, self._adapter, self._numbers = model, adapter, numbers
        self._slots = Slots()
        self._rows: list[Row] = []
        self._reading: deque[Reading] = deque()
        self._read: tuple[tuple[int, ...], Slots] = ((), Slots())  # the last prompt, and what was read of it

    @property
    def busy(self) -> int:
        return len(self._rows) + len(self._reading)

    def admit(self, ticket: Ticket) -> None:
        slots = Slots()
        slots.begin()
        self._reading.append(Reading(ticket, slots))

    def step(self) -> int:
        self._model.use(self._adapter)
        written = self._read_prompts()
        if not self._rows:
            return written
        ids = torch.tensor([row.tokens[-1:] for row in self._rows])
        positions = torch.tensor([[length] for length in self._slots.lengths])
        logits = self._model.logits(ids, self._slots.cache, self._slots.mask(), positions, {})
        self._slots.advance()
        tokens = draw([row.drawer for row in self._rows], logits)
        self._leave([at for at, row in enumerate(self._rows) if told(row, tokens[at], self._numbers.context)])
        return written + len(tokens)

    def end(self, done: Done, which: Callable[[Ticket], bool]) -> None:
        for reading in [each for each in self._reading if which(each.ticket)]:
            self._reading.remove(reading)
            reading.ticket.tell(done)
        leaving = [at for at, row in enumerate(self._rows) if which(row.ticket)]
        for at in leaving:
            self._rows[at].ticket.tell(done)
        self._leave(leaving)

    def _leave(self, which: list[int]) -> None:
        """From the last on, whose place the last row of all takes."""
        if len(which) == len(self._rows):  # whatever state they are in
            self._rows, self._slots = [], Slots()
            return
        for at in reversed(which):
            self._slots.remove(at)
            self._rows[at] = self._rows[-1]
            self._rows.pop()

    def _read_prompts(self) -> int:
        """As many tokens of prompts as may be read between two tokens; returns the first tokens that there were."""
        room, first = self._numbers.prefill, 0
        while self._reading and room > 0:
            reading = self._reading[0]
            try:
                if reading.done == 0:
                    self._again(reading)
                before = reading.done
                logits = self._read_on(reading, room)
            except Exception as error:  # of this one alone: nobody else has a part in its cache
                _log.exception("a prompt was not read")
                self._reading.popleft()
                self._read = ((), Slots())
                reading.ticket.tell(failed(error))
                continue
            room -= reading.done - before
            if reading.done == len(reading.ticket.request.ids):
                self._begin(reading, logits)
                self._reading.popleft()  # not before: where that fails, `end` tells it
                first += 1
        return first

    def _read_on(self, reading: Reading, room: int) -> Tensor:
        """Reads up to so many tokens of a prompt, one with images whole; the logits of the last."""
        request, start = reading.ticket.request, reading.done
        size = len(request.ids) - start if request.inputs else min(len(request.ids) - start, room)
        ids, positions = torch.tensor([request.ids[start : start + size]]), torch.arange(start, start + size)[None]
        logits = self._model.logits(ids, reading.slots.cache, None, positions, request.inputs if not start else {})
        reading.slots.advance(size)
        reading.done += size
        return logits

    def _again(self, reading: Reading) -> None:
        """What the last prompt begins with too is not read twice: other answers to it, a conversation that goes on."""
        known, slots = self._read
        request = reading.ticket.request
        if request.inputs:
            return
        shared = next(
            (at for at, (one, other) in enumerate(zip(known, request.ids, strict=False)) if one != other),
            min(len(known), len(request.ids)),
        )
        shared = min(shared, len(request.ids) - 1)  # the last token's logits are wanted
        if shared >= _KEPT_PREFIX:
            made = Slots()
            made.add(slots, shared)
            reading.slots, reading.done = made, shared

    def _begin(self, reading: Reading, logits: Tensor) -> None:
        request = reading.ticket.request
        row = Row(reading.ticket, Drawer(request.sampling, request.allowed))
        self._read = ((), Slots()) if request.inputs else (request.ids, reading.slots)
        (token,) = draw([row.drawer], logits)
        if not told(row, token, self._numbers.context):
            self._slots.add(reading.slots, len(request.ids))
            self._rows.append(row)


def told(row: Row, token: Token | Done, context: int) -> bool:
    """Tells of a row's next token; whether that ends the answer."""
    request = row.ticket.request
    if isinstance(token, Done):
        row.ticket.tell(token)
        return True
    if token.id in request.stops:
        row.ticket.tell(Done("stop"))
        return True
    row.ticket.tell(token)
    row.tokens.append(token.id)
    if len(row.tokens) >= request.sampling.max_tokens or len(request.ids) + len(row.tokens) >= context:
        row.ticket.tell(Done("length"))
        return True
    return False


def _seen_by_all(inputs: dict[str, Any]) -> dict[str, Any]:
    """For one token more, as for the last one: it sees the same images, and of these what is no padding."""
    return {_SEEN_BY_ALL: inputs[_SEEN_BY_ALL][:, -1:]} if _SEEN_BY_ALL in inputs else {}


class Alone:
    """A lane of a model whose answers cannot share a batch: one is written, the others wait."""

    def __init__(self, model: Model, adapter: str | None, numbers: Numbers):
        self._model, self._adapter, self._numbers = model, adapter, numbers
        self._waiting: deque[Ticket] = deque()
        self._row: Row | None = None
        self._cache: Any = None
        self._deltas: list[Any] = []

    @property
    def busy(self) -> int:
        return len(self._waiting) + (self._row is not None)

    def admit(self, ticket: Ticket) -> None:
        self._waiting.append(ticket)

    def step(self) -> int:
        self._model.use(self._adapter)
        if self._row is None and self._waiting:
            ticket = self._waiting.popleft()
            self._row = Row(ticket, Drawer(ticket.request.sampling, ticket.request.allowed))
        if self._row is None:
            return 0
        try:
            over = told(self._row, self._next(self._row), self._numbers.context)
        except Exception as error:  # of this one alone
            _log.exception("an answer was not written")
            self._row.ticket.tell(failed(error))
            over = True
        if over:
            self._row = self._cache = None
        return 1

    def _next(self, row: Row) -> Token | Done:
        request = row.ticket.request
        size = len(request.ids) + len(row.tokens)
        # beyond it longrope turns all tokens otherwise, and those that were read too (transformers' modeling_phi3.py)
        if self._cache is None or size - 1 == self._model.turns:
            ids, inputs = (*request.ids, *row.tokens), request.inputs
            self._cache, self._deltas = DynamicCache(config=self._model.inner.config), []
        else:
            ids, inputs = row.tokens[-1:], _seen_by_all(request.inputs)
        self._model.deltas = self._deltas  # others were read since: on another lane, or to be scored
        logits = self._model.logits(torch.tensor([ids]), self._cache, None, None, inputs)
        self._deltas = self._model.deltas
        (token,) = draw([row.drawer], logits)
        return token

    def end(self, done: Done, which: Callable[[Ticket], bool]) -> None:
        for ticket in [each for each in self._waiting if which(each)]:
            self._waiting.remove(ticket)
            ticket.tell(done)
        if self._row is not None and which(self._row.ticket):
            self._row.ticket.tell(done)
            self._row = self._cache = None


@dataclass(slots=True)
class Embedded(Scheduled):
    """The engine. `scores` gives a reward model's score of inputs beside a row of tokens, where it is one."""

    model: Model
    numbers: Numbers
    most: int
    queue: int
    scores: Callable[[Any, dict[str, Any], Tensor], float] | None = None
    _lanes: dict[tuple[str | None, type[Lane]], Lane] = field(default_factory=dict)
    grammars = sees = True

    def __post_init__(self) -> None:
        self._scheduler = Scheduler(self._lane, lambda: list(self._lanes.values()), self.most, self.queue)

    @property
    def context(self) -> int:
        return self.numbers.context

    def _lane(self, request: Request) -> Lane:
        most = min(len(request.ids) + request.sampling.max_tokens, self.context)
        kind = Together if self.model.beside_others(most) else Alone
        key = request.adapter, kind
        if key not in self._lanes:
            self._lanes[key] = kind(self.model, request.adapter, self.numbers)
        return self._lanes[key]

    def embed(self, rows: Sequence[Sequence[int]], adapter: str | None) -> Future[list[list[float]]]:
        def embedded(ids: Tensor) -> list[float]:
            return normalize(self.model.states(ids).float().mean(0), dim=0).tolist()

        return self._scheduler.call([partial(self._of_row, embedded, row, adapter) for row in rows])

    def score(self, rows: Sequence[Seen], adapter: str | None) -> Future[list[float]]:
        if self.scores is None:
            raise Unable
        scored = partial(self.scores, self.model)
        return self._scheduler.call([partial(self._of_row, partial(scored, more), row, adapter) for row, more in rows])

    def _of_row(self, work: Callable[[Tensor], T], row: Sequence[int], adapter: str | None) -> T:
        self.model.use(adapter)
        return work(torch.tensor([list(row)]))
