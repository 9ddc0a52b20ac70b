"""A client's request to what the room takes: messages, tokens, how to draw."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from factory.config.refusal import UserError
from factory.config.settings import Generation
from factory.data.formats import order
from factory.data.record import BadRow, Message, ToolCall
from factory.inference.grammar import grammar
from factory.inference.prompts import Conversation
from factory.inference.room import Room
from factory.inference.types import Request, Sampling
from factory.serve import wire
from factory.serve.errors import bad, too_long, unknown_model
from factory.serve.images import Fetcher

# what of a message is read, in those of one role alone
_OF_ROLE = {"tool_calls": "assistant", "reasoning_content": "assistant", "tool_call_id": "tool"}


@dataclass(frozen=True, slots=True)
class Desk:
    """What every address works with. `fetcher` makes that of a request.

    `one`: a thread for the tokenizer, which is not for several at a time.
    """

    room: Room
    generation: Generation
    fetcher: Callable[[], Fetcher]
    one: ThreadPoolExecutor

    def adapter(self, name: str) -> str | None:
        if name not in self.room.names:
            raise unknown_model(name, list(self.room.names))
        return self.room.names[name]

    def scorer(self, name: str) -> str | None:
        """The adapter behind the name of the run's own model: over other weights its score head says nothing."""
        adapter = self.adapter(name)
        if adapter != self.room.own:
            wrong = "Scores are given by the run's own model alone, not by its base or by an adapter beside it."
            raise bad(wrong, "model", "unsupported")
        return adapter

    def sampling(self, asked: wire.Drawn, most: int | None, top: int | None) -> Sampling:
        said = self.generation
        return Sampling(
            max_tokens=most or said.max_tokens,
            temperature=said.temperature if asked.temperature is None else asked.temperature,
            top_p=said.top_p if asked.top_p is None else asked.top_p,
            top_k=said.top_k if asked.top_k is None else asked.top_k,
            seed=said.seed if asked.seed is None else asked.seed % 2**63,
            top_logprobs=top,
        )

    def stops(self, asked: wire.Drawn) -> list[str]:
        own = self.room.prompts.stop_texts if isinstance(asked, wire.ChatRequest) else ()
        return [*(asked.stops if asked.stop is not None else self.generation.stop), *own]

    def requests(
        self,
        asked: wire.Drawn,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        param: str,
        images: Sequence[str] = (),
        format: wire.ResponseFormat | None = None,
    ) -> list[Request]:
        """`n` of each prompt. A seed gives each another answer, and all the same ones again."""
        made = list[Request]()
        if len(prompts) * (asked.n or 1) > self.room.capacity:
            raise bad(f"More than {self.room.capacity} answers cannot be asked for at a time.", "n")
        for ids in prompts:
            self.fits(ids, param)
            for number in range(asked.n or 1):
                own = sampling if sampling.seed is None else replace(sampling, seed=(sampling.seed + number) % 2**63)
                made.append(self.room.request(ids, own, asked.model, images, self._grammar(format)))
        return made

    def fits(self, ids: Sequence[int], param: str, room: int = 1) -> None:
        if not ids:
            raise bad("There is nothing to go on from: the prompt has no token.", param)
        if len(ids) + room > self.room.context:
            raise too_long(len(ids), self.room.context, param, room)
        if max(ids) >= self.room.plan.steps.patch.vocabulary:
            raise bad(f"There is no token {max(ids)}.", param)

    def _grammar(self, format: wire.ResponseFormat | None) -> Any:
        if format is None or format.type == "text":
            return None
        if not self.room.engine.grammars:
            raise bad(
                "This engine does not hold answers to a schema: serve with engine=transformers.", "response_format"
            )
        asked = format.json_schema.schema_ if format.json_schema else None
        try:
            return grammar(self.room, asked)
        except ImportError:
            raise bad(
                "Answers are held to JSON by the extra `grammar` of Factory, which is not installed where it runs "
                "(see docs/serving.md).",
                "response_format",
            ) from None
        except ValueError as error:
            raise bad(f"The schema cannot be used: {str(error)[:200]}", "response_format") from None

    async def conversation(
        self, messages: Sequence[wire.Message], fetcher: Fetcher, tools: Sequence[wire.Tool] = ()
    ) -> Conversation:
        """Raises ApiError."""
        if not self.room.prompts.chats:
            raise bad(
                "This model has no chat template: use /v1/completions, or serve it with model.template.", "messages"
            )
        made, images, places = list[Message](), list[str](), set[tuple[int, int]]()
        for place, (number, message) in enumerate(_by_call(messages)):
            param = f"messages.{number}"
            content = ""
            for part in [] if message.content is None else _parts(message.content):
                if isinstance(part, str):
                    content += part
                    continue
                if not self.room.engine.sees:
                    wrong = "This engine shows images to no model: serve one that sees with engine=transformers."
                    raise bad(wrong, f"{param}.content")
                if not self.room.prompts.sees:
                    raise bad("This model sees no images.", f"{param}.content")
                if message.role != "user":
                    raise bad("Images are in messages of the user alone.", f"{param}.content")
                places.add((place, len(content)))
                content += "<image>"
                images.append(await fetcher.image(part.url, f"{param}.content"))
            made.append(_message(message, content, param))
        given = tuple(tool.function.model_dump(exclude_none=True, exclude={"strict"}) for tool in tools)
        return Conversation(messages=tuple(made), tools=given, images=tuple(images), places=frozenset(places))


def rendered(render: Callable[[Conversation], list[int]], conversation: Conversation) -> list[int]:
    """What one of the prompts' ways gives. Raises ApiError."""
    try:
        return render(conversation)
    except BadRow as error:
        raise bad(f"The messages cannot be rendered: {error}.", "messages") from None
    except UserError as error:
        raise bad(error.refusals[0].wrong, "messages") from None


def _by_call(messages: Sequence[wire.Message]) -> list[tuple[int, wire.Message]]:
    """The messages with their numbers, results of tools in the order of the calls: templates pair them by it.

    Raises ApiError where results that say their calls are of others.
    """
    made, calls = list[tuple[int, wire.Message]](), list[str]()
    for is_result, group in groupby(enumerate(messages), key=lambda each: each[1].role == "tool"):
        found = list(group)
        ids = [message.tool_call_id or "" for _, message in found]
        if not is_result:
            calls = [call.id for call in found[-1][1].tool_calls or ()]
        else:
            places = order.by_call(ids, calls)
            if places is None:
                wrong = (
                    "The results of tools are not one of each of the calls before them (the last may have none yet)."
                )
                raise bad(wrong, f"messages.{found[0][0]}.tool_call_id")
            found = [found[place] for place in places]
        made += found
    return made


def _parts(content: str | list[wire.Part]) -> list[str | wire.ImageUrl]:
    if isinstance(content, str):
        return [content]
    found = list[str | wire.ImageUrl]()
    for part in content:
        given = part.text if part.type == "text" else part.image_url
        assert given is not None
        found.append(given)
    return found


def _message(message: wire.Message, content: str, param: str) -> Message:
    role = "system" if message.role == "developer" else message.role
    made: Message = {"role": role, "content": content}
    if message.content is None and not message.tool_calls:
        raise bad("A message without tool calls needs a content.", f"{param}.content")
    for field, reader in _OF_ROLE.items():
        if getattr(message, field) and role != reader:
            raise bad(f"`{field}` is in messages of role {reader} alone.", f"{param}.{field}")
    if message.tool_calls:
        made["tool_calls"] = [
            ToolCall(name=call.function.name, arguments=_arguments(call.function.arguments, f"{param}.tool_calls.{at}"))
            for at, call in enumerate(message.tool_calls)
        ]
    if role == "tool" and message.name:
        made["name"] = message.name
    if message.reasoning_content:
        made["reasoning"] = message.reasoning_content
    return made


def _arguments(text: str, param: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise bad("The arguments of a call are a JSON object, as text.", f"{param}.function.arguments")
    return found
