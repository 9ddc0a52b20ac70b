"""The addresses, each a few lines before the room."""

import asyncio
import base64
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.routing import Route

from factory import __version__
from factory.config.line import name_of
from factory.config.settings import Generation, Serve
from factory.execute.memory import is_exhausted
from factory.inference import calls
from factory.inference.room import Room
from factory.inference.text import written
from factory.inference.types import Overloaded, Seen, Stopping, Unable
from factory.serve import answers, errors, wire
from factory.serve.answers import Delta, Watch
from factory.serve.asked import Desk, rendered
from factory.serve.guard import Guard
from factory.serve.images import Fetcher
from factory.serve.metrics import Metrics

_MOST_TOKENS = 16  # of a completion where nobody says, as OpenAI's API has it; the key's own default is of a chat


def app(room: Room, generation: Generation, serve: Serve, key: str | None) -> Guard:
    """The application of a room. `key`: what clients must send."""
    made = FastAPI(
        title="Factory",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=errors.Json,
    )
    metrics = Metrics(room.engine)
    one = ThreadPoolExecutor(1, "tokenizer")
    desk = Desk(room, generation, partial(Fetcher, serve.image_hosts, serve.max_body), one)
    _handlers(made)
    _about(made, desk, metrics)
    made.post("/v1/chat/completions")(partial_of(_chat, desk, metrics, wire.ChatRequest))
    made.post("/v1/completions")(partial_of(_complete, desk, metrics, wire.CompletionRequest))
    made.post("/v1/embeddings")(partial_of(_embed, desk, metrics, wire.EmbeddingRequest))
    made.post("/v1/score")(partial_of(_score, desk, metrics, wire.ScoreRequest))
    metrics.know(_addresses(made))
    return Guard(made, key, serve.max_body, metrics.count)


def partial_of(work: Callable[..., Any], desk: Desk, metrics: Metrics, kind: type) -> Callable[..., Any]:
    """An address's function as FastAPI reads it: by its annotations."""

    async def address(body: Any, request: Request) -> Response:
        return await work(desk, metrics, body, request)

    address.__annotations__ = {"body": kind, "request": Request, "return": Response}
    address.__name__ = work.__name__.strip("_")
    return address


def _handlers(made: FastAPI) -> None:
    @made.exception_handler(errors.ApiError)
    async def told(_: Request, error: errors.ApiError) -> Response:
        return error.response()

    @made.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return (_no_object(request, error) or _invalid(error)).response()

    @made.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        addresses, path = _addresses(made), request.url.path
        match error.status_code:
            case 404:
                told = errors.no_address(path, list(addresses))
            case 405:
                told = errors.no_method(request.method, path, Headers(error.headers)["allow"])
            case _:  # FastAPI's, of bytes that it cannot decode
                told = errors.ApiError(error.status_code, "The body is no JSON in UTF-8.")
        return told.response()

    @made.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return (errors.no_memory() if is_exhausted(error) else errors.broken()).response()


def _addresses(made: FastAPI) -> dict[str, list[str]]:
    """What is served, and by which methods."""
    found = [route for route in made.routes if isinstance(route, Route)]
    return {route.path_format: sorted((route.methods or set()) - {"HEAD"}) for route in found}


def _no_object(request: Request, error: RequestValidationError) -> errors.ApiError | None:
    """Where the body as a whole is none of a request."""
    found = error.errors()[0]
    if found["type"] == "json_invalid":
        return errors.bad(f"The body is no JSON: {found['ctx']['error']}, at character {found['loc'][-1]}.")
    if found["loc"] != ("body",) or found["type"] not in ("missing", "model_attributes_type"):
        return None
    kind = request.headers.get("content-type", "")
    if found["type"] != "missing" and "json" not in kind:
        return errors.no_json(kind)
    return errors.bad("The body is no JSON object: send one, as /openapi.json describes it.")


def _invalid(error: RequestValidationError) -> errors.ApiError:
    """The deepest of the problems: of a field that may be several things, what comes nearest to what was sent."""
    found = max(error.errors(), key=lambda each: len(each["loc"]))
    names = [str(part) for part in found["loc"] if part != "body"]
    # of a union pydantic names the kind that it tried
    param = ".".join(name for name in names if name.isidentifier() or name.isdigit())[:200] or None
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        message = "There is no such field, or this server does not read it"
    elif found["type"] == "none_required" or found.get("ctx", {}).get("max_length") == 0:  # as wire.Unsupported says it
        message = "this server does not have it: leave it out"
    return errors.bad(f"{message}." if param is None else f"{param}: {message}.", param)


def _about(made: FastAPI, desk: Desk, metrics: Metrics) -> None:
    room, started = desk.room, int(time.time())

    def entry(name: str) -> dict[str, Any]:
        parent = next((base for base, adapter in room.names.items() if adapter is None), None)
        own = {"parent": parent} if room.names[name] is not None and parent else {}
        sees = ["text", "image"] if room.prompts.sees else ["text"]
        takes = {"input_modalities": sees, "tool_calls": room.prompts.tool_format is not None}
        more = {"max_model_len": room.context, **takes, **own}
        return {"id": name, "object": "model", "created": started, "owned_by": "factory", **more}

    def entries() -> list[dict[str, Any]]:
        return [entry(name) for name in room.names]

    @made.get("/")
    async def here() -> Response:
        what = "Factory, an OpenAI-style API: /v1/models names what can be asked, /openapi.json says how"
        return errors.Json({"object": "server", "version": __version__, "is": what, "addresses": _addresses(made)})

    @made.get("/v1/models")
    async def models() -> Response:
        return errors.Json({"object": "list", "data": await _apart(desk, entries)})

    @made.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name not in room.names:
            raise errors.unknown_model(name, list(room.names))
        return errors.Json(await _apart(desk, entry, name))

    @made.get("/health")
    async def health() -> Response:
        if not room.engine.alive:
            raise errors.stopping()
        return errors.Json({"status": "ok"})

    @made.get("/metrics")
    async def measured() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


async def _chat(desk: Desk, metrics: Metrics, asked: wire.ChatRequest, request: Request) -> Response:
    watch, room = Watch(metrics), desk.room
    desk.adapter(asked.model)
    tools = [] if asked.tool_choice == "none" else asked.tools or []
    conversation = await answers.while_there(request, desk.conversation(asked.messages, desk.fetcher(), tools))
    ids = await _apart(desk, rendered, room.prompts.chat, conversation)
    begun = _begun_call(desk, asked)
    if begun:
        ids = [*ids, *room.prompts.tokenizer(begun, add_special_tokens=False)["input_ids"]]
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    sampling = desk.sampling(asked, asked.max_completion_tokens or asked.max_tokens, top)
    requests = await _apart(
        desk, desk.requests, asked, [ids], sampling, "messages", conversation.images, asked.response_format
    )
    shown = answers.shown(room, requests, desk.stops(asked), watch, special=bool(tools))
    found = answers.deltas(shown)
    if tools:
        found = answers.with_calls(found, partial(_with_calls, desk, asked, begun, conversation.tools))
    first = answers.head("chat.completion", asked.model)

    def logs(part: Delta) -> dict[str, Any] | None:
        return {"content": answers.told(room, part.tokens)} if asked.logprobs else None

    def chunk(number: int, part: Delta, *, opens: bool) -> dict[str, Any]:
        delta: dict[str, Any] = {"role": "assistant", "content": ""} if opens else {}
        delta |= {"content": part.text} if part.text else {}
        delta |= {"tool_calls": answers.called(part.calls, streamed=True)} if part.calls else {}
        return {"index": number, "delta": delta, "logprobs": logs(part), "finish_reason": part.reason}

    def choice(number: int, part: Delta) -> dict[str, Any]:
        message = {"role": "assistant", "content": part.text or (None if part.calls else ""), "refusal": None}
        message |= {"tool_calls": answers.called(part.calls, streamed=False)} if part.calls else {}
        return {"index": number, "message": message, "logprobs": logs(part), "finish_reason": part.reason}

    if asked.stream:
        head = {**first, "object": "chat.completion.chunk"}
        return await _streamed(asked, request, head, found, chunk, watch, len(ids))
    return await _whole(request, first, found, len(requests), choice, watch, len(ids))


def _with_calls(desk: Desk, asked: wire.ChatRequest, begun: str, tools: Sequence[dict[str, Any]], part: Delta) -> Delta:
    """An answer with its calls told apart. Its text has those of special tokens, which a client does not see."""
    plain = written(desk.room.prompts.tokenizer, (token.id for token in part.tokens), desk.stops(asked))
    read = calls.read(begun + part.text, begun + plain, desk.room.prompts.tool_format, tools)
    if not read.calls:  # a call that was begun here and came to none is told whole
        return Delta(begun + plain, part.tokens, (), part.reason)
    found = read.calls[:1] if asked.parallel_tool_calls is False else read.calls
    return Delta(read.text.strip(), part.tokens, found, "tool_calls")


def _begun_call(desk: Desk, asked: wire.ChatRequest) -> str:
    """What the answer begins with where a tool must be called."""
    choice, form = asked.tool_choice, desk.room.prompts.tool_format
    if choice in (None, "none", "auto") or not asked.tools:
        return ""
    names = [tool.function.name for tool in asked.tools]
    name = choice.function.name if isinstance(choice, wire.ToolChoice) else names[0] if len(names) == 1 else None
    if isinstance(choice, wire.ToolChoice) and name not in names:
        raise errors.bad(f"There is no tool {str(name)[:64]!r} among `tools`.", "tool_choice")
    if form is None:
        raise errors.bad("A call cannot be required: how this model writes its calls is not known.", "tool_choice")
    begun = calls.beginning(form, name)
    if not begun:
        wrong = (
            "A call of one of several tools cannot be required of this model, whose calls begin with the tool's name"
        )
        told = '{"type": "function", "function": {"name": …}}'
        raise errors.bad(f"{wrong}: name one, by tool_choice={told}.", "tool_choice")
    return begun


async def _complete(desk: Desk, metrics: Metrics, asked: wire.CompletionRequest, request: Request) -> Response:
    watch, room = Watch(metrics), desk.room
    desk.adapter(asked.model)
    prompts = await _apart(desk, _prompts, desk, asked.prompt)
    sampling = desk.sampling(asked, asked.max_tokens or _most(room), asked.logprobs)
    requests = await _apart(desk, desk.requests, asked, prompts, sampling, "prompt")
    found = answers.deltas(answers.shown(room, requests, desk.stops(asked), watch, goes_on=True))
    first, each = answers.head("text_completion", asked.model), asked.n or 1
    before = await _apart(desk, _echoed, desk, asked.prompt) if asked.echo else [""] * len(prompts)
    places = [0] * len(requests)

    def choice(number: int, part: Delta, *, opens: bool = True) -> dict[str, Any]:
        logs = None
        if asked.logprobs is not None:
            logs = answers.told_plainly(room, part.tokens, places[number])
        places[number] += len(part.text)
        text = (before[number // each] if opens else "") + part.text
        return {"index": number, "text": text, "logprobs": logs, "finish_reason": part.reason}

    size = sum(map(len, prompts))
    if asked.stream:
        return await _streamed(asked, request, first, found, choice, watch, size)
    return await _whole(request, first, found, len(requests), choice, watch, size)


def _most(room: Room) -> int | None:
    """Tokens of a completion where the client does not say; None: as generation.max_tokens says, which somebody set."""
    said = {name_of(text) for text in room.plan.overrides}
    return None if said & {"generation", "generation.max_tokens"} else _MOST_TOKENS


def _several(asked: Any) -> list[Any]:
    """One prompt or several, as text or as tokens."""
    return asked if isinstance(asked, list) and not isinstance(asked[0], int) else [asked]


def _prompts(desk: Desk, asked: Any) -> list[list[int]]:
    return [desk.room.prompts.text(each) if isinstance(each, str) else list(each) for each in _several(asked)]


def _echoed(desk: Desk, asked: Any) -> list[str]:
    """A text as it was sent; of tokens all that they stand for."""
    decode = partial(desk.room.prompts.tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return [each if isinstance(each, str) else decode(each) for each in _several(asked)]


async def _embed(desk: Desk, metrics: Metrics, asked: wire.EmbeddingRequest, request: Request) -> Response:
    adapter = desk.adapter(asked.model)
    rows = await _apart(desk, _prompts, desk, asked.input)
    for row in rows:
        desk.fits(row, "input", 0)
    found = await _of_engine(request, desk.room.engine.embed, rows, adapter)
    data = [{"object": "embedding", "index": at, "embedding": _coded(asked, each)} for at, each in enumerate(found)]
    return _listed(asked.model, data, rows)


def _coded(asked: wire.EmbeddingRequest, values: list[float]) -> Any:
    if asked.encoding_format == "float":
        return values
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


async def _score(desk: Desk, metrics: Metrics, asked: wire.ScoreRequest, request: Request) -> Response:
    adapter = desk.scorer(asked.model)
    several = asked.messages if isinstance(asked.messages[0], list) else [asked.messages]
    rows, seen, fetcher = list[list[int]](), list[Seen](), desk.fetcher()
    for messages in several:
        conversation = await answers.while_there(request, desk.conversation(messages, fetcher))  # type: ignore[arg-type]
        if conversation.messages[-1]["role"] != "assistant":
            raise errors.bad("A conversation that is scored ends with an answer of the assistant.", "messages")
        rows.append(await _apart(desk, rendered, desk.room.prompts.answered, conversation))
        desk.fits(rows[-1], "messages", 0)
        seen.append((rows[-1], await _apart(desk, desk.room.prompts.inputs, rows[-1], conversation.images)))
    found = await _of_engine(request, desk.room.engine.score, seen, adapter)
    data = [{"object": "score", "index": at, "score": each} for at, each in enumerate(found)]
    return _listed(asked.model, data, rows)


def _listed(model: str, data: list[dict[str, Any]], rows: Sequence[Sequence[int]]) -> Response:
    size = sum(map(len, rows))
    told = {"prompt_tokens": size, "total_tokens": size}
    return errors.Json({"object": "list", "data": data, "model": model, "usage": told})


async def _of_engine(
    request: Request, work: Callable[..., Future[list[Any]]], rows: Sequence[Any], adapter: str | None
) -> list[Any]:
    """What the engine makes of each row, while the client waits for it. No thread does: they would be too few."""
    try:
        return await answers.while_there(request, asyncio.wrap_future(work(rows, adapter)))
    except Unable:
        raise errors.bad("The model that is served cannot do that.", "model", "unsupported") from None
    except Overloaded:
        raise errors.overloaded() from None
    except Stopping:
        raise errors.stopping() from None


async def _apart(desk: Desk, work: Callable[..., Any], *given: Any) -> Any:
    """In the tokenizer's thread: a long prompt keeps nobody else's tokens from being sent."""
    return await asyncio.get_running_loop().run_in_executor(desk.one, partial(work, *given))


async def _whole(
    request: Request,
    first: dict[str, Any],
    found: AsyncIterator[tuple[int, Delta]],
    count: int,
    choice: Callable[[int, Delta], dict[str, Any]],
    watch: Watch,
    size: int,
) -> Response:
    made = await answers.while_there(request, answers.gathered(found, count))
    choices = [choice(number, part) for number, part in enumerate(made)]
    return errors.Json({**first, "choices": choices, "usage": answers.usage(size, watch.tokens)})


async def _streamed(
    asked: wire.Drawn,
    request: Request,
    first: dict[str, Any],
    found: AsyncIterator[tuple[int, Delta]],
    choice: Callable[..., dict[str, Any]],
    watch: Watch,
    size: int,
) -> Response:
    counted = asked.stream_options is not None and asked.stream_options.include_usage
    more = {"usage": None} if counted else {}

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        seen = set[int]()
        async for number, part in found:
            yield {**first, "choices": [choice(number, part, opens=number not in seen)], **more}
            seen.add(number)
        if counted:
            yield {**first, "choices": [], "usage": answers.usage(size, watch.tokens)}

    body = answers.stream(await answers.while_there(request, answers.begun(chunks())))
    return StreamingResponse(body, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
