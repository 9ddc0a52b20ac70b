"""A template's data as a chat template: the jinja that tokenizers carry, so that any program renders as we do."""

from factory.templates.slots import SPECIAL, around, expression, output, quoted
from factory.templates.types import Template, ToolText

_TOOL = {
    "name": "function['name']",
    "description": "(function['description'] or '')",
    "parameters": "(function['parameters'] or {})",
    "function": "function",
    "tool": "{'type': 'function', 'function': function}",
}
_TOOL |= {
    f"{name}|tojson{how}": f"({value} | tojson{how})" for name, value in _TOOL.items() for how in ("", "(indent=4)")
}
_CALL = {
    "name": "call['name']",
    "name|tojson": "(call['name'] | tojson)",
    # clients of an API have them as text already
    "arguments|tojson": "(call['arguments'] if call['arguments'] is string else (call['arguments'] | tojson))",
}


def chat_template(template: Template, tools: ToolText) -> str:
    """One statement a line; the line ends are no part of what is rendered."""
    lines = [
        *_beginning(template),
        output(template.prefix),
        *(_system_turn(template, tools) if template.system_place == "turn" else ()),
        "{%- for message in turns -%}",
        "{%- if message['role'] == 'user' -%}",
        *_user(template, tools),
        "{%- elif message['role'] == 'assistant' -%}",
        *_assistant(template, tools),
        "{%- elif message['role'] == 'tool' -%}",
        *_tool(template, tools),
        "{%- else -%}",
        "{{- raise_exception('a message of the role ' ~ message['role'] ~ ' has no place here') -}}",
        "{%- endif -%}",
        "{%- endfor -%}",
        *_end(template),
    ]
    return "\n".join(line for line in lines if line)


def _beginning(template: Template) -> list[str]:
    default = "none" if template.default_system is None else quoted(template.default_system)
    state = (["asked=false"] if _in_first_user(template) else []) + (["question=-1"] if _last_only(template) else [])
    return [
        f"{{%- set ns = namespace({', '.join(state)}) -%}}" if state else "",
        "{%- if messages and messages[0]['role'] == 'system' -%}",
        f"{{%- set system = {_content(template, 'system', 'messages[0]')} -%}}",
        "{%- set turns = messages[1:] -%}",
        "{%- else -%}",
        f"{{%- set system = {default} -%}}",
        "{%- set turns = messages -%}",
        "{%- endif -%}",
        *(_FIND_QUESTION if _last_only(template) else ()),
    ]


_FIND_QUESTION = (
    "{%- for message in turns -%}",
    "{%- if message['role'] == 'user' -%}{%- set ns.question = loop.index0 -%}{%- endif -%}",
    "{%- endfor -%}",
)


def _in_first_user(template: Template) -> str:
    """The jinja condition that something stands in the user's first turn, or nothing where nothing ever does."""
    if template.system_place == "first_user":
        return "system is not none or tools"
    return "tools" if template.tools_place == "first_user" else ""


def _last_only(template: Template) -> bool:
    return bool(template.reasoning) and not template.reasoning_in_history


def _content(template: Template, role: str, message: str = "message") -> str:
    return f"({message}['content'] or ''){' | trim' if role in template.strip else ''}"


def _if(condition: str, lines: list[str]) -> list[str]:
    return [f"{{%- if {condition} -%}}", *lines, "{%- endif -%}"]


def _system_turn(template: Template, tools: ToolText) -> list[str]:
    """The system's turn, which exists where there is a system text or a tool."""
    before, _, after = around(template.system)
    text, described = ["{{- system or '' -}}"], _described(tools)
    alone = _if("system is not none", [output(before), *text, output(after)])
    if template.tools_place == "first_user":
        return alone
    if template.tools_place == "turn":
        return _if("tools", [output(before), *described, output(after)]) + alone
    gap = _if("system", [output("\n\n")])
    told = _if("tools", described + gap if tools.first else gap + described)
    both = told + text if tools.first else text + told
    return _if("system is not none or tools", [output(before), *both, output(after)])


def _described(tools: ToolText) -> list[str]:
    before, _, after = around(tools.describe)
    return [
        output(before),
        "{%- for tool in tools -%}",
        "{%- set function = tool['function'] or tool -%}",
        output(tools.tool, _TOOL),
        *_if("not loop.last", [output(tools.between_tools)]),
        "{%- endfor -%}",
        output(after),
    ]


def _user(template: Template, tools: ToolText) -> list[str]:
    before, name, after = around(template.user)
    text = output(f"{{{{{name}}}}}{after}", SPECIAL | {"content": _content(template, "user")})
    if not _in_first_user(template):
        return [output(before), text]
    return [
        "{%- set first = not ns.asked -%}",
        "{%- set ns.asked = true -%}",
        *(_if("first and tools", _described(tools)) if template.tools_place == "first_user" else ()),
        output(before),
        *(_if("first", _system_turn(template, tools)) if template.system_place == "first_user" else ()),
        text,
    ]


def _assistant(template: Template, tools: ToolText) -> list[str]:
    before, _, after = around(template.assistant)
    calls_before, _, calls_after = around(template.calls or template.assistant)
    opening = template.opening
    lead, calls_lead = before.removeprefix(opening), calls_before.removeprefix(opening)
    all_before, _, all_after = around(tools.calls)
    return [
        f"{{%- set content = {_content(template, 'assistant')} -%}}",
        output(opening),
        *_reasoning(template),
        "{%- if message['tool_calls'] -%}",
        "{%- if content -%}",
        output(f"{lead}{{{{content}}}}{tools.after_content}", SPECIAL | {"content": "content"}),
        *(["{%- else -%}", output(calls_lead)] if calls_lead else []),
        "{%- endif -%}",
        output(all_before),
        "{%- for tool_call in message['tool_calls'] -%}",
        "{%- set call = tool_call['function'] or tool_call -%}",
        output(tools.call, _CALL),
        *_if("not loop.last", [output(tools.between_calls)]),
        "{%- endfor -%}",
        output(all_after + calls_after),
        "{%- else -%}",
        output(f"{lead}{{{{content}}}}{after}", SPECIAL | {"content": "content"}),
        "{%- endif -%}",
    ]


def _reasoning(template: Template) -> list[str]:
    """An answer's reasoning, which programs that keep whole answers give at the beginning of its text."""
    if not template.reasoning:
        return []
    before, after = template.reasoning
    first, last = quoted(before.strip()), quoted(after.strip())
    test = "(reasoning or loop.last)" if template.reasoning_empty else "reasoning"
    test += " and loop.index0 > ns.question" if _last_only(template) else ""
    text = f"{expression(before)} ~ reasoning.strip('\\n') ~ {expression(after)}"
    apart = [
        f"{{%- set reasoning = content.split({last})[0][{len(before.strip())}:] -%}}",
        f"{{%- set content = (content.split({last})[1:] | join({last})).lstrip('\\n') -%}}",
    ]
    return [
        "{%- set reasoning = message['reasoning_content'] or '' -%}",
        *_if(f"not reasoning and content.startswith({first}) and {last} in content", apart),
        *_if(test, [f"{{{{- {text} -}}}}"]),
    ]


def _tool(template: Template, tools: ToolText) -> list[str]:
    content = _result("message['content']")
    if template.tool is not None:
        plain = [output(template.tool, SPECIAL | content)]
        if not tools.promised:
            return plain
        worded = _result(f"({expression(tools.result, content)})")
        return ["{%- if tools -%}", output(template.tool, SPECIAL | worded), "{%- else -%}", *plain, "{%- endif -%}"]
    before, _, after = around(template.user)
    return [  # results that follow each other share one turn
        "{%- if loop.first or turns[loop.index0 - 1]['role'] != 'tool' -%}",
        output(before),
        "{%- else -%}",
        output("\n"),
        "{%- endif -%}",
        output(tools.result, content),
        *_if("loop.last or turns[loop.index0 + 1]['role'] != 'tool'", [output(after)]),
    ]


def _result(text: str) -> dict[str, str]:
    return {"content": text, "content|tojson": f"({text} | tojson)"}


def _end(template: Template) -> list[str]:
    lines, waiting = [], _in_first_user(template)
    if waiting:
        lost = "a system text and tools stand in the user's first turn, and there is none"
        lines += _if(f"({waiting}) and not ns.asked", [f"{{{{- raise_exception({quoted(lost)}) -}}}}"])
    prompt = [output(template.opening)]
    if template.reasoning_empty:
        empty = [output("".join(template.reasoning))]
        prompt += _if("enable_thinking is defined and not enable_thinking", empty)
    return lines + _if("add_generation_prompt", prompt) if any(prompt) else lines
