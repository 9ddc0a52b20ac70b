"""The embedded engine: answers that share a batch are those of `generate` one by one, whoever joins or leaves."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from factory.inference.draw import Drawer
from factory.inference.embedded import Embedded, Model, Numbers
from factory.inference.slots import Slots
from factory.inference.types import Done, Overloaded, Request, Sampling, Stopping, Token

_MIXED = ["sliding_attention", "full_attention"]
_THETA = {"rope_theta": 10000.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"model_type": "mistral", "sliding_window": 24},
    "gemma3_text": {"model_type": "gemma3_text", "sliding_window": 16, "head_dim": 8, "layer_types": _MIXED},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256},
    "bloom": {"model_type": "bloom", "n_head": 4, "n_layer": 2},
    "lfm2": {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},  # answers one after the other
    "longrope": {
        "model_type": "phi3",
        "original_max_position_embeddings": 24,
        "rope_parameters": {**_THETA, "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
    },
    "dynamic": {"max_position_embeddings": 24, "rope_parameters": {**_THETA, "rope_type": "dynamic", "factor": 4.0}},
}
STOP = 2
SIZES = (5, 40, 17, 3, 29, 60)


def tiny_model(family: str = "llama") -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny.config(**FAMILIES[family])).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # so that no two logits are nearly the same
    return model


def prompts(sizes: Sequence[int] = SIZES) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(3, 512, (size,), generator=generator).tolist()) for size in sizes]


def asked(ids: tuple[int, ...], most: int = 14, **sampling: Any) -> Request:
    return Request(ids=ids, sampling=Sampling(max_tokens=most, **sampling), stops=frozenset({STOP}))


@pytest.fixture
def engine() -> Iterator[Callable[..., Embedded]]:
    made: list[Embedded] = []

    def start(model: Any = None, *, prefill: int = 16, most: int = 4, queue: int = 100) -> Embedded:
        of = Model(tiny_model() if model is None else model, "cpu", contextlib.nullcontext)
        made.append(Embedded(of, Numbers(prefill, 256), most, queue))
        return made[-1]

    yield start
    for each in made:
        each.stop(0)


def alone(model: Any, ids: tuple[int, ...], most: int = 14) -> list[int]:
    given = model.generate(torch.tensor([ids]), max_new_tokens=most, do_sample=False, eos_token_id=STOP, pad_token_id=0)
    found = given[0, len(ids) :].tolist()
    return found[: found.index(STOP)] if STOP in found else found


def ids_of(found: tuple[list[Token], Done]) -> list[int]:
    return [token.id for token in found[0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_side_by_side_are_those_of_each_alone(family: str, engine: Callable[..., Embedded]) -> None:
    """Six of different length in four places: they join while others write, and prompts are read in stretches."""
    model = tiny_model(family)
    wanted = [alone(model, ids) for ids in prompts()]
    made = engine(model)
    assert made.model.side_by_side == (family != "lfm2")
    assert [ids_of(found) for found in made.batch([asked(ids) for ids in prompts()])] == wanted
    assert len({tuple(each) for each in wanted}) > 1


def test_answers_of_different_length_leave_and_free_their_places(engine: Callable[..., Embedded]) -> None:
    model, lengths = tiny_model(), (1, 20, 2, 40, 5, 12)
    requests = [asked(ids, most) for ids, most in zip(prompts(), lengths, strict=True)]
    made = engine(model, most=3)
    found = made.batch(requests)
    assert [len(tokens) for tokens, _ in found] == list(lengths)
    for request, each in zip(requests, found, strict=True):
        assert ids_of(each) == alone(model, request.ids, request.sampling.max_tokens)
    now = made.count()
    assert (now.running, now.waiting, now.tokens) == (0, 0, sum(lengths))


def test_a_prompt_that_begins_as_the_last_one_is_read_on_from_there(
    engine: Callable[..., Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (first,) = tiny_model(), prompts((60,))
    made, read = engine(model, prefill=256), list[int]()
    original = Model.logits

    def counting(self: Model, ids: Any, *given: Any) -> Any:
        read.append(ids.shape[1])
        return original(self, ids, *given)

    monkeypatch.setattr(Model, "logits", counting)
    for ids in (first, (*first, 7, 8, 9), first):
        assert ids_of(made.batch([asked(ids, 8)])[0]) == alone(model, ids, 8)
    assert [size for size in read if size > 1] == [60, 3]  # and of the same prompt once more the last token alone


def test_a_stop_token_ends_an_answer_and_is_not_part_of_it(engine: Callable[..., Embedded]) -> None:
    model, (ids,) = tiny_model(), prompts((5,))
    written = alone(model, ids)
    stop = written[4]
    request = Request(ids=ids, sampling=Sampling(max_tokens=14), stops=frozenset({stop}))
    ((tokens, done),) = engine(model).batch([request])
    assert [token.id for token in tokens] == written[: written.index(stop)]
    assert done == Done("stop")


def test_the_context_ends_an_answer(engine: Callable[..., Embedded]) -> None:
    ((tokens, done),) = engine().batch([asked(prompts((250,))[0], 100)])
    assert len(tokens) == 6 and done == Done("length")


def test_a_seed_gives_the_same_answer_whoever_writes_beside_it(engine: Callable[..., Embedded]) -> None:
    made, ids = engine(), prompts()
    own: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "top_k": 50}
    alone_, other = (made.batch([asked(ids[0], seed=seed, **own)])[0] for seed in (3, 4))
    beside = made.batch([asked(each, seed=3, **own) for each in ids])[0]
    assert ids_of(alone_) == ids_of(beside) != ids_of(other)
    assert ids_of(made.batch([asked(ids[0], **own)])[0]) != ids_of(made.batch([asked(ids[0], **own)])[0])


def test_the_coldest_answer_is_the_greedy_one_and_the_likeliest_alone_are_drawn(
    engine: Callable[..., Embedded],
) -> None:
    made, (ids,) = engine(), prompts((9,))
    greedy = ids_of(made.batch([asked(ids)])[0])
    cold: list[dict[str, Any]] = [{"temperature": 1e-300}]
    for own in [*cold, {"temperature": 2.0, "top_k": 1}, *({"temperature": 2.0, "top_p": p} for p in (1e-9, 1e-300))]:
        assert ids_of(made.batch([asked(ids, seed=1, **own)])[0]) == greedy


def test_draws_follow_the_probabilities() -> None:
    """Of four tokens with known chances, with top_k and top_p as their definitions say."""
    chances = torch.tensor([0.1, 0.4, 0.2, 0.3])
    for sampling, wanted in (
        ({}, {0: 0.1, 1: 0.4, 2: 0.2, 3: 0.3}),
        ({"top_k": 2}, {1: 4 / 7, 3: 3 / 7}),
        ({"top_p": 0.75}, {1: 4 / 9, 3: 3 / 9, 2: 2 / 9}),
        ({"top_p": 0.65}, {1: 4 / 7, 3: 3 / 7}),
    ):
        drawer = Drawer(Sampling(max_tokens=1, temperature=1.0, seed=1, **sampling), None)  # type: ignore[arg-type]
        drawn = [drawer.draw(chances.log()).id for _ in range(800)]
        assert {token: drawn.count(token) / 800 for token in set(drawn)} == pytest.approx(wanted, abs=0.06)


class _Failing:
    """A grammar that fails at this token."""

    def __init__(self, last: int, error: Exception) -> None:
        self.seen, self.last, self.error = 0, last, error

    def mask(self, logits: Any) -> None:
        self.seen += 1
        if self.seen == self.last:
            raise self.error

    def accept(self, token: int) -> None:
        pass


@pytest.mark.parametrize(
    "error", [ValueError("no such state"), TypeError("no such state")], ids=lambda each: repr(each)
)
@pytest.mark.parametrize("last", [1, 2])
def test_an_answer_whose_grammar_fails_ends_alone(
    last: int, error: Exception, engine: Callable[..., Embedded], caplog: pytest.LogCaptureFixture
) -> None:
    """The client is told that the log has the reason."""
    model = tiny_model()
    broken = replace(asked(prompts()[1]), allowed=_Failing(last, error))
    other, (tokens, done) = engine(model, prefill=256).batch([asked(prompts()[0]), broken])
    assert len(tokens) == last - 1 and done == Done("error", f"{type(error).__name__}: no such state")
    assert ids_of(other) == alone(model, prompts()[0])
    assert "no such state" in caplog.text


def test_probabilities_are_the_models_own(engine: Callable[..., Embedded]) -> None:
    model, (ids,) = tiny_model(), prompts((9,))
    ((tokens, _),) = engine(model).batch([asked(ids, 3, top_logprobs=4, temperature=0.7, seed=1)])
    whole = torch.tensor([[*ids, *(token.id for token in tokens)]])
    with torch.no_grad():
        logs = model(whole).logits[0].log_softmax(-1)
    for at, token in enumerate(tokens, start=len(ids) - 1):
        assert token.logprob == pytest.approx(float(logs[at, token.id]), abs=1e-4)
        values, best = logs[at].topk(4)
        assert [each for each, _ in token.top] == best.tolist()
        assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_one_that_is_cancelled_frees_its_place_within_a_token(engine: Callable[..., Embedded]) -> None:
    made = engine(most=1)
    first = made.generate(asked(prompts()[0], 200))
    second = made.generate(asked(prompts()[1], 3))  # waits for the place
    events = iter(first)
    next(events)
    first.close()
    rest = list(events)
    assert rest[-1] == Done("cancelled") and len(rest) < 200
    assert [type(event) for event in second] == [Token, Token, Token, Done]


def test_one_that_is_cancelled_while_it_waits_is_told_so(engine: Callable[..., Embedded]) -> None:
    made = engine(most=1)
    first, second = (made.generate(asked(ids, 200)) for ids in prompts()[:2])
    second.close()
    assert list(second) == [Done("cancelled")]
    first.close()


def test_more_than_may_wait_are_refused(engine: Callable[..., Embedded]) -> None:
    made = engine(most=1, queue=1)
    running = made.generate(asked(prompts()[0], 240))
    next(iter(running))
    waiting = made.generate(asked(prompts()[1], 1))
    with pytest.raises(Overloaded):
        made.generate(asked(prompts()[2], 1))
    running.close()
    assert len(list(waiting)) == 2


def test_an_end_lets_answers_end_or_cuts_them(engine: Callable[..., Embedded]) -> None:
    made = engine(most=2)
    short = made.generate(asked(prompts()[0], 5))
    made.stop(30)
    assert [type(event) for event in short] == [Token] * 5 + [Done]
    with pytest.raises(Stopping):
        made.generate(asked(prompts()[0], 5))
    other = engine(most=1)
    long, waiting = other.generate(asked(prompts()[0], 240)), other.generate(asked(prompts()[1], 240))
    next(iter(long))
    other.stop(0)
    assert list(long)[-1] == list(waiting)[-1] == Done("length")


def test_a_model_that_fails_ends_its_answers_and_not_the_engine(engine: Callable[..., Embedded]) -> None:
    model, failing = tiny_model(), threading.Event()
    forward = model.forward

    def broken(*given: Any, **named: Any) -> Any:
        if failing.is_set():
            raise RuntimeError("it broke")
        return forward(*given, **named)

    made = engine(model)
    made.model.inner.forward = broken
    failing.set()
    ((tokens, done),) = made.batch([asked(prompts()[0], 5)])
    assert (tokens, done) == ([], Done("error", "RuntimeError: it broke"))
    failing.clear()
    assert ids_of(made.batch([asked(prompts()[0], 5)])[0]) == alone(model, prompts()[0], 5)


LACK = (
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
)


@pytest.mark.parametrize("lack", LACK, ids=lambda lack: type(lack).__name__)
@pytest.mark.parametrize("family", ["llama", "lfm2"])
def test_a_prompt_too_long_for_the_memory_ends_alone(
    family: str, lack: Exception, engine: Callable[..., Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, original = tiny_model(family), Model.logits

    def small(self: Model, ids: Any, *given: Any) -> Any:
        if ids.shape[1] > 50:
            raise lack
        return original(self, ids, *given)

    monkeypatch.setattr(Model, "logits", small)
    first, second, long = (prompts()[at] for at in (0, 1, 5))
    found = engine(model, prefill=256).batch([asked(first), asked(long), asked(second)])
    assert found[1][0] == [] and found[1][1].reason == "error" and found[1][1].exhausted
    assert [ids_of(found[at]) for at in (0, 2)] == [alone(model, first), alone(model, second)]


def test_an_answer_that_finds_no_room_beside_the_others_is_told(
    engine: Callable[..., Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise LACK[1]

    made = engine()
    with monkeypatch.context() as patched:
        patched.setattr(Slots, "add", full)
        _, done = list(made.generate(asked(prompts()[0])))
    assert isinstance(done, Done) and done.exhausted
    assert ids_of(made.batch([asked(prompts()[0])])[0]) == alone(tiny_model(), prompts()[0])


def test_adapters_of_one_base_answer_side_by_side(engine: Callable[..., Embedded]) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_model()
    wanted: dict[str | None, list[int]] = {None: alone(base, prompts()[0])}
    config = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, r=4, lora_alpha=32)
    model: Any = get_peft_model(base, config, adapter_name="one")
    model.add_adapter("two", config)
    for name in ("one", "two"):
        model.set_adapter(name)
        wanted[name] = alone(model, prompts()[0])
    assert len({tuple(each) for each in wanted.values()}) == 3
    made = engine(model)
    requests = [
        Request(ids=prompts()[0], sampling=Sampling(max_tokens=14), stops=frozenset({STOP}), adapter=name)
        for name in (None, "one", "two", None, "one")
    ]
    found = made.batch(requests)
    assert [ids_of(each) for each in found] == [wanted[request.adapter] for request in requests]
