"""The order of a conversation's messages."""

from collections.abc import Sequence
from typing import Any

from factory.data.record import EMPTY, BadRow, Message, Role


def with_system(system: str, messages: list[Message]) -> list[Message]:
    """The messages after the system text of a column, which may say the same as their own."""
    if not system:
        return messages
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] != system:
            raise BadRow("two system messages")
        return messages
    return [{"role": "system", "content": system}, *messages]


def by_call(ids: Sequence[Any], calls: Sequence[Any]) -> list[int] | None:
    """Where the results of tools belong, by the ids that they name and those of the calls right before them.

    As they come where one has no id; None where they are not one of each call (the last calls may have none yet).
    """
    if not all((*ids, *calls)):
        return list(range(len(ids)))
    named, made = [str(id) for id in ids], [str(id) for id in calls]
    if sorted(named) != sorted(made[: len(named)]):
        return None
    return sorted(range(len(named)), key=lambda place: made.index(named[place]))


def check(messages: Sequence[Message]) -> None:
    """Raises BadRow where they are no conversation that ends with an answer."""
    before: Role | None = None
    for number, message in enumerate(messages):
        role = message["role"]
        if role == "assistant":
            if before != "user" and before != "tool":
                raise BadRow("two answers in a row" if before else _no_question(messages))
            if _empty(message["content"]) and "tool_calls" not in message:
                raise BadRow(f"an answer {EMPTY}")
        elif role == "user":
            if _empty(message["content"]):
                raise BadRow(f"a message of the user {EMPTY}")
        elif role == "tool":
            if before != "assistant" and before != "tool":
                raise BadRow("a tool's result comes without a call")
        else:
            if number:
                raise BadRow(
                    "two system messages" if messages[0]["role"] == "system" else "a system message comes late"
                )
            continue
        before = role
    if before != "assistant":
        raise BadRow("the last message is not the assistant's" if before else "no message is the user's")


def _no_question(messages: Sequence[Message]) -> str:
    asked = any(message["role"] == "user" for message in messages)
    return "the assistant speaks first" if asked else "no message is the user's"


def _empty(content: str) -> bool:
    return not content or content.isspace()
