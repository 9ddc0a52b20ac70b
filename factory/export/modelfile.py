"""An Ollama Modelfile: the chat template of a tokenizer in Ollama's language (Go's text/template).

The jinja template is asked with marked messages, what it puts around them becomes the Modelfile's template, and that is
held against the jinja template again on whole conversations: what would differ is refused, not approximated.
"""

from dataclasses import dataclass
from typing import Any

from factory.config.refusal import UserError, refuse
from factory.export.spec import MODEL_GGUF
from factory.export.tokens import starts_text

_SYSTEM, _USER, _ANSWER, _AGAIN = "Qsystem0", "Quser1", "Qanswer2", "Quser3"
Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Turn:
    """What stands around a turn's texts: [system] user answer. `with_system` is what ends it before the user's text."""

    system: str | None  # before a system message; None: the template has none
    with_system: str  # from the system message to the user's
    user: str  # before a user's message without a system message
    answer: str  # from the user's message to the answer
    end: str  # after the answer
    lead: str  # white space that an answer starts with: the model writes it, so Ollama has it with the answer
    default: str | None  # the system message where the conversation has none

    def rendered(self, messages: list[Message]) -> str:
        """As Ollama renders it: the template once for each answer, and up to the next answer at the end."""
        given = [message["content"] for message in messages if message["role"] == "system"]
        system = given[0] if given else self.default
        text = ""
        for message in messages:
            if message["role"] == "user":
                before = f"{self.system}{system}{self.with_system}" if system and self.system is not None else self.user
                text += f"{before}{message['content']}{self.answer}"
                system = None
            elif message["role"] == "assistant":
                text += f"{self.lead}{message['content']}{self.end}"
        return text


def text_of(tokenizer: Any, stops: list[str]) -> str:
    """The Modelfile. Raises UserError where Ollama's language cannot say the chat template."""
    lines = [f"FROM ./{MODEL_GGUF}"]
    if tokenizer.chat_template:
        turn = turn_of(tokenizer)
        lines.append(f'TEMPLATE """{_template(turn)}"""')
        if turn.default:
            lines.append(f'SYSTEM """{turn.default}"""')
        end = turn.end.strip()  # where it is no token, a model writes on after it
        stops = stops if end.startswith(tuple(stops)) or not end else [*stops, end]
    else:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    for stop in stops:
        mark = '"""' if '"' in stop or "\n" in stop else '"'  # Ollama takes the marks away, and reads no escapes
        lines.append(f"PARAMETER stop {mark}{stop}{mark}")
    return "\n".join(lines) + "\n"


def _template(turn: Turn) -> str:
    """Ollama executes it for each pair of prompt and response; a response that is to be written ends it there."""
    before = turn.user
    if turn.system is not None:
        asked = f"{turn.system}{{{{ .System }}}}{turn.with_system}"
        before = f"{{{{ if .System }}}}{asked}{{{{ else }}}}{turn.user}{{{{ end }}}}"
    return f"{before}{{{{ .Prompt }}}}{turn.answer}{{{{ .Response }}}}{turn.end}"


def turn_of(tokenizer: Any) -> Turn:
    """What the chat template puts around messages. Raises UserError where it is of no such form."""
    try:
        turn = _turn(tokenizer)
    except (ValueError, IndexError):
        raise _irregular("its turns are not of one form") from None
    parts = (turn.system or "", turn.with_system, turn.user, turn.answer, turn.end, turn.default or "")
    if any("{{" in part or '"""' in part for part in parts):
        raise _irregular("it writes signs that are the Modelfile's own")
    for messages in _CONVERSATIONS:
        if turn.system is None and messages[0]["role"] == "system":
            continue
        if turn.rendered(messages) != _render(tokenizer, messages, asks=True):
            raise _irregular(f"a conversation of {len(messages)} messages would be written otherwise")
    return turn


def _irregular(wrong: str) -> UserError:
    fix = "set export.modelfile=false; the GGUF file carries the chat template itself, which llama.cpp reads (--jinja)"
    return refuse(
        "export-unfit",
        "export.modelfile=true",
        f"Ollama cannot say the chat template: {wrong}",
        because="what is written would not answer as the model does",
        fix=fix,
    )


def _said(*pairs: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in pairs]


_CONVERSATIONS = (
    _said(("user", "Hello?")),
    _said(("system", "Be brief."), ("user", "Hello?")),
    _said(("user", "One"), ("assistant", "Two"), ("user", "Three")),
    _said(
        ("system", "Be kind."),
        ("user", "One"),
        ("assistant", "Two"),
        ("user", "Three"),
        ("assistant", "Four"),
        ("user", "Five"),
    ),
)


def _turn(tokenizer: Any) -> Turn:
    """Raises ValueError where a mark is not found."""
    one = _render(tokenizer, _said(("user", _USER)), asks=True)
    two = _render(tokenizer, _said(("user", _USER), ("assistant", _ANSWER), ("user", _AGAIN)), asks=True)
    head, rest = _parted(one, _USER)
    first, rest_of_two = _parted(two, _USER)
    answer, after = _parted(rest_of_two, _ANSWER)
    between, last = _parted(after, _AGAIN)
    lead = answer.removeprefix(rest)
    if first != head or last != rest or not answer.startswith(rest) or lead.strip():
        raise ValueError(one)
    whole = _render(tokenizer, _said(("user", _USER), ("assistant", _ANSWER)), asks=False)
    end = whole[whole.index(_ANSWER) + len(_ANSWER) :]
    if not between.startswith(end):
        raise ValueError(between)
    user = between[len(end) :]
    try:
        asked = _render(tokenizer, _said(("system", _SYSTEM), ("user", _USER)), asks=True)
        system, after = _parted(asked, _SYSTEM)
        with_system = _parted(after, _USER)[0]
    except (UserError, ValueError):
        return Turn(None, "", user, rest, end, lead, None)
    default = None
    if head != user and head.startswith(system) and head.endswith(with_system):
        default = head[len(system) : len(head) - len(with_system)]
    return Turn(system, with_system, user, rest, end, lead, default)


def _parted(text: str, mark: str) -> tuple[str, str]:
    at = text.index(mark)
    return text[:at], text[at + len(mark) :]


def _render(tokenizer: Any, messages: list[Message], *, asks: bool) -> str:
    """Without the token that starts a text, which llama.cpp writes by itself. Raises ValueError where it cannot."""
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    except TemplateError as error:
        raise ValueError(str(error)) from None
    return str(text).removeprefix(tokenizer.bos_token) if starts_text(tokenizer) else str(text)
