"""A model's answers: the logits of the four letters after each prompt, the shots of a subject read once."""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from math import isnan
from typing import Any, Literal

import torch
from torch import Tensor

from factory.architecture.positions import alike
from factory.benchmarks.prompts import Prompt, Prompter, common
from factory.benchmarks.types import Exam
from factory.evaluation.spec import not_finite
from factory.logits import decoder, head_of, text_model

# the start of several prompts read once; each prompt read whole, several side by side; each alone
Reading = Literal["shared", "whole", "alone"]
Progress = Callable[[int, int | None], None]
Call = Callable[[Callable[[], Any]], Any]
_ROUNDING = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.1}  # nats by which a letter's log-probability may differ
_PAD = 0  # of any id: it stands after all that is read


@dataclass(frozen=True, slots=True)
class Given:
    """log p(letter | prompt) of each letter; None where the question does not fit. `shots`: with how many."""

    log_probs: tuple[float, ...] | None
    shots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """In the order of the exam's questions. `reading`: how they were read; None where no two had anything in common.

    `apart`: how far log-probabilities after a shared start were from those of the same prompts read whole and alone, in
    nats; None where it was not tried.
    """

    given: tuple[Given, ...]
    reading: Reading | None
    apart: float | None


@dataclass(frozen=True, slots=True)
class _Group:
    """Prompts that begin with the same `prefix`, and where each stands in the exam."""

    prefix: list[int]
    prompts: list[tuple[int, Prompt]]


def answers(
    model: Any,
    prompter: Prompter,
    *,
    batch_size: int,
    device: Any,
    call: Call,
    progress: Progress,
    stop: Callable[[], None],
) -> Answers:
    """One pass over the questions. `stop` is called before each batch and ends it all by raising.

    At most `batch_size` prompts are in memory at a time, with the keys and values of what they share. That this, and
    padding, change nothing is tried on two prompts of this model; where they do, they are left out. Raises UserError
    of a model that gives no numbers.
    """
    asked, exam = _Asked(model, prompter.letters, device, call), prompter.exam
    found = [Given(None, 0)] * len(exam.questions)
    done, reading, apart = 0, asked.alone(prompter), None
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for group in _groups(prompter):
                stop()
                if reading is None and len(group.prompts) > 1:
                    reading, apart = asked.way(group)
                cache = asked.read(group.prefix) if reading == "shared" and group.prefix else None
                size = batch_size if reading in ("shared", "whole") else 1
                for start in range(0, len(group.prompts), size):
                    stop()
                    batch = group.prompts[start : start + size]
                    rows = asked.log_probs([prompt.ids for _, prompt in batch], cache)
                    for (at, prompt), row in zip(batch, rows, strict=True):
                        found[at] = Given(_numbers(exam, at, row), prompt.shots)
                    done += len(batch)
                    progress(done, len(exam.questions))
        if done < len(exam.questions):  # the rest does not fit into the context
            progress(len(exam.questions), len(exam.questions))
    finally:
        model.train(training)
    return Answers(given=tuple(found), reading=reading, apart=apart)


def _numbers(exam: Exam, at: int, row: list[float]) -> tuple[float, ...]:
    """As they are. Raises UserError where they are none: the likeliest of them would be A."""
    if any(map(isnan, row)):
        wrong = f"the letters' log-probabilities after question {at + 1:,} are no numbers"
        raise not_finite(f"evaluate.benchmarks={exam.name}", wrong)
    return tuple(row)


def _groups(prompter: Prompter) -> Iterator[_Group]:
    """By subject and by the number of shots that fitted; the longest prompts first, so that padding is short."""
    for _, numbered in groupby(enumerate(prompter.exam.questions), key=lambda each: each[1].subject):
        places, questions = zip(*numbered, strict=True)
        made = zip(places, prompter.prompts(questions), strict=True)
        fitting = [(at, prompt) for at, prompt in made if prompt is not None]
        fitting.sort(key=lambda each: (each[1].shots, len(each[1].ids)), reverse=True)
        for _, prompts in groupby(fitting, key=lambda each: each[1].shots):
            group = list(prompts)
            yield _Group(_shared([prompt.ids for _, prompt in group]), group)


def _shared(rows: Sequence[list[int]]) -> list[int]:
    """What all rows begin with, less than any of them; nothing where there is one row."""
    if len(rows) == 1:
        return []
    return rows[0][: min(common(rows), min(map(len, rows)) - 1)]


class _Asked:
    """A model that is read at the last token of each of several rows."""

    def __init__(self, model: Any, letters: Sequence[int], device: Any, call: Call) -> None:
        self._model, self._device, self._call = text_model(model), device, call
        self._letters, self._head = torch.tensor(letters, device=device), head_of(model)
        # only the last token of each row needs logits
        self._body = self._model if self._head is None else decoder(self._model)
        named = inspect.signature(self._body.forward).parameters
        self._cache = "cache" if "cache" in named else "past_key_values"  # its newer name, and its older one
        kind = torch.device(device).type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
        self._alike = alike(self._model.config.get_text_config().to_dict())
        self._rounding = _ROUNDING.get(str(dtype).removeprefix("torch."), _ROUNDING["bfloat16"])

    def alone(self, prompter: Prompter) -> Reading | None:
        """ "alone" where a prompt is so long that it turns the positions of those beside it; else None."""
        if self._alike is None:
            return None
        lengths = (len(prompt.ids) for group in _groups(prompter) for _, prompt in group.prompts)
        return "alone" if max(lengths, default=0) > self._alike else None

    def read(self, prefix: list[int]) -> Any:
        """The keys and values of a text that several begin with; None of a model that remembers in another way."""
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(config=self._model.config)
        if not _is_keys_and_values(cache):
            return None
        self._logits([prefix], cache)
        return cache if _is_keys_and_values(cache) and cache.get_seq_length() == len(prefix) else None

    def way(self, group: _Group) -> tuple[Reading, float | None]:
        """The quickest way to read prompts that gives what each gives alone, and how far apart the quickest of all was.

        Tried on the longest and the shortest of the group, side by side.
        """
        rows = [group.prompts[0][1].ids, group.prompts[-1][1].ids]
        alone = [self.log_probs([ids], None)[0] for ids in rows]
        apart, cache = None, self.read(group.prefix) if group.prefix else None
        if cache is not None:
            apart = _apart(self.log_probs(rows, cache), alone)
            if apart <= self._rounding:
                return "shared", apart
        return "whole" if _apart(self.log_probs(rows, None), alone) <= self._rounding else "alone", apart

    def log_probs(self, rows: list[list[int]], cache: Any) -> list[list[float]]:
        """log softmax(logits)[letter] after each row, (rows, letters). `cache`: of what all rows begin with; kept."""
        if cache is not None:
            skip = cache.get_seq_length()
            rows, cache = [ids[skip:] for ids in rows], copy.deepcopy(cache)
            cache.batch_repeat_interleave(len(rows))
        if self._alike is not None and cache is None:
            self._logits([rows[0][:1]], None)  # a short text undoes what a long one before it has turned
        logits = self._logits(rows, cache).float()
        return torch.log_softmax(logits, dim=-1)[:, self._letters].tolist()

    def _logits(self, rows: list[list[int]], cache: Any) -> Tensor:
        """After each row's last token: (rows, vocabulary).

        Rows are padded at their ends, which no token before looks at; as all begin at the same place, their positions
        are those that the model counts itself.
        """
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[_PAD] * (longest - len(row))] for row in rows], device=self._device)
        last = torch.tensor([len(row) - 1 for row in rows], device=self._device)
        places = torch.arange(len(rows), device=self._device), last
        options = {"input_ids": ids, "use_cache": cache is not None}
        if cache is not None:
            options[self._cache] = cache
        return self._call(partial(self._called, options, places))

    def _called(self, options: dict[str, Any], places: tuple[Tensor, Tensor]) -> Tensor:
        if self._head is None:
            return self._body(**options).logits[places]
        states = self._body(**options).last_hidden_state[places]
        return replace(self._head, weight=self._head.weight.to(states.dtype)).logits(states)


def _apart(mine: list[list[float]], theirs: list[list[float]]) -> float:
    pairs = zip(mine, theirs, strict=True)
    return max(abs(a - b) for row, other in pairs for a, b in zip(row, other, strict=True))


def _is_keys_and_values(cache: Any) -> bool:
    """Whether a token's part in it is apart from the others': a recurrent state has taken the padding in."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
