"""engine=vllm: vLLM's own scheduler and kernels behind our interface. Adapters stand beside the base, unmerged."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any

from factory.config.refusal import first_line, refuse
from factory.config.settings import Engine
from factory.inference.scheduler import Lane, Scheduled, Scheduler
from factory.inference.types import Done, Request, Seen, Ticket, Token, Unable
from factory.plan.inspect.model import look_at_adapter
from factory.plan.plan import Plan

_serve_adapter = partial(
    refuse,
    "serve-adapter",
    because="every adapter is put on the one base that is served",
    fix=(
        "name the folders of adapters that were trained on this base, as serve.adapters={mine: outputs/DATE/TIME/model}"
    ),
)

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that its kernels have room for
_REASONS = {"stop": "stop", "length": "length", "abort": "cancelled"}


class VllmLane:
    """All answers: vLLM puts them into batches itself. `adapters` are its own requests for them, by name."""

    def __init__(self, engine: Any, adapters: dict[str, Any]):
        self._engine, self._adapters = engine, adapters
        self._tickets: dict[str, Ticket] = {}
        self._numbers = count()

    @property
    def busy(self) -> int:
        return len(self._tickets)

    def admit(self, ticket: Ticket) -> None:
        from vllm import TokensPrompt  # pyright: ignore[reportMissingImports]

        name, request = str(next(self._numbers)), ticket.request
        self._tickets[name] = ticket
        adapter = None if request.adapter is None else self._adapters[request.adapter]
        prompt = TokensPrompt(prompt_token_ids=list(request.ids))
        self._engine.add_request(name, prompt, _sampling(request), lora_request=adapter)

    def step(self) -> int:
        written = 0
        for output in self._engine.step():
            ticket = self._tickets.get(output.request_id)
            if ticket is None:
                continue
            (answer,) = output.outputs
            for at, token in enumerate(answer.token_ids):
                if token not in ticket.request.stops:
                    ticket.tell(_token(token, answer.logprobs[at] if answer.logprobs else None, ticket.request))
                    written += 1
            if output.finished:
                del self._tickets[output.request_id]
                ticket.tell(Done(_REASONS.get(answer.finish_reason, "error"), None))  # type: ignore[arg-type]
        return written

    def end(self, done: Done, which: Callable[[Ticket], bool]) -> None:
        leaving = [name for name, ticket in self._tickets.items() if which(ticket)]
        for name in leaving:
            self._tickets.pop(name).tell(done)
        if leaving:
            self._engine.abort_request(leaving)  # an engine that died raises here too


def _sampling(request: Request) -> Any:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    asked = request.sampling
    return SamplingParams(
        max_tokens=asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k or 0,
        seed=asked.seed,
        logprobs=asked.top_logprobs,
        stop_token_ids=sorted(request.stops),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _token(token: int, logs: Any, request: Request) -> Token:
    """vLLM tells the drawn token beside the likeliest."""
    if logs is None:
        return Token(token)
    best = sorted(logs.items(), key=lambda pair: pair[1].logprob, reverse=True)[: request.sampling.top_logprobs or 0]
    return Token(token, logs[token].logprob, tuple((other, each.logprob) for other, each in best))


class Vllm(Scheduled):
    """The engine of a model's folder or hub id. `adapters`: folders by name."""

    grammars = sees = False

    def __init__(self, path: str, plan: Plan, asked: Engine, adapters: dict[str, str], context: int):
        from vllm import EngineArgs, LLMEngine  # pyright: ignore[reportMissingImports]
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        load, more = plan.steps.load, dict[str, Any]()
        if asked.memory_fraction is not None:
            more["gpu_memory_utilization"] = asked.memory_fraction
        if adapters:
            # One slot stays empty: a request of the base has the number -1, which vLLM's kernels for a CPU take for the
            # last slot, so that in a batch with others the base answered as an adapter.
            more |= {"enable_lora": True, "max_loras": len(adapters) + 1, "max_lora_rank": _rank(adapters)}
        arguments = EngineArgs(
            model=path,
            tokenizer=path,
            revision=load.revision,
            dtype=load.dtype,
            seed=plan.settings.seed,
            max_model_len=context,
            max_num_seqs=asked.batch,
            max_num_batched_tokens=max(asked.prefill, asked.batch),
            enable_chunked_prefill=True,
            trust_remote_code=plan.settings.model.trust_remote_code,
            **more,
        )
        self.context = context
        try:
            engine = LLMEngine.from_engine_args(arguments)
        except (ValueError, RuntimeError, OSError) as error:  # it has no class of its own
            wrong = first_line(error)[:300].rstrip(".: ")
            raise refuse(
                "engine-vllm-start",
                f"engine={asked.name}",
                wrong,
                because="vLLM starts with all that it will need, or not at all",
                fix=(
                    "a smaller engine.batch, another engine.memory_fraction, model.context_length for less room, or "
                    "engine=transformers"
                ),
            ) from error
        lane: Lane = VllmLane(
            engine,
            {name: LoRARequest(name, number, path) for number, (name, path) in enumerate(adapters.items(), start=1)},
        )
        self._scheduler = Scheduler(lambda _: lane, lambda: [lane], asked.batch, asked.queue)

    def embed(self, rows: Sequence[Sequence[int]], adapter: str | None) -> Future[list[list[float]]]:
        raise Unable

    def score(self, rows: Sequence[Seen], adapter: str | None) -> Future[list[float]]:
        raise Unable


def _rank(adapters: dict[str, str]) -> int:
    """Of the largest. Raises UserError for one that is no plain LoRA."""
    largest = 1
    for path in adapters.values():
        config = look_at_adapter(path).config
        if config.get("peft_type") != "LORA" or config.get("use_dora"):
            kind = f"{config.get('peft_type')} with DoRA" if config.get("use_dora") else config.get("peft_type")
            raise _serve_adapter("engine=vllm", f"it reads plain LoRA alone, and {path} is {kind}")
        largest = max(largest, config.get("r", 1), *(config.get("rank_pattern") or {}).values(), 1)
    found = next((rank for rank in _RANKS if rank >= largest), None)
    if found is None:
        raise _serve_adapter("engine=vllm", f"a rank of {largest} is more than its kernels have room for")
    return found
