"""The conversations that the golden renderings hold, and the environment that `apply_chat_template` renders in."""

from functools import cache
from typing import Any

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather of a town.",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
        },
    },
    {"type": "function", "function": {"name": "now", "description": "Tells the time.", "parameters": {}}},
]
SYSTEM = {"role": "system", "content": "Be kind."}
ASK = {"role": "user", "content": "Is it warm in Bern?"}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "two turns": {
        "messages": [
            SYSTEM,
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi there"},
            {"role": "user", "content": "Who are you?\n\nSay it."},
            {"role": "assistant", "content": "  I'm an \\assistant.\n"},
        ]
    },
    "no system": {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]},
    "prompt": {"messages": [SYSTEM, {"role": "user", "content": "Hello"}], "add_generation_prompt": True},
    "tool": {
        "tools": TOOLS,
        "messages": [
            SYSTEM,
            ASK,
            {"role": "assistant", "content": "", "tool_calls": [call("weather", town="Bern")]},
            {"role": "tool", "name": "weather", "content": '{"celsius": 21.5}'},
            {"role": "assistant", "content": "Yes, 21.5 degrees."},
        ],
    },
    "tools, no system": {
        "tools": TOOLS,
        "messages": [
            ASK,
            {"role": "assistant", "content": "I'll see.", "tool_calls": [call("weather", town="Zürich"), call("now")]},
            {"role": "tool", "name": "weather", "content": '{"celsius": 21.5}'},
            {"role": "tool", "name": "now", "content": '"12:00"'},
        ],
        "add_generation_prompt": True,
    },
    "reasoning": {
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "reasoning_content": "A greeting.", "content": "Hi there"},
            {"role": "user", "content": "Who are you?"},
            {"role": "assistant", "reasoning_content": "A question.", "content": "A model."},
        ]
    },
}


@cache
def compiled(chat_template: str) -> Any:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(chat_template)


def rendered(chat_template: str, bos: str | None = "<bos>", **conversation: Any) -> str:
    """As a tokenizer renders it; one without a special token does not name it."""
    special = {"eos_token": "<eos>"} | ({} if bos is None else {"bos_token": bos})
    return compiled(chat_template).render(**special | conversation)
