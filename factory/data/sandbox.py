"""Where chat templates are rendered: they come with a model, so they may call nothing and cost only so much.

Jinja's sandbox keeps a template from Python's internals, and neither from a loop that never ends nor from a text of
gigabytes. Here rounds of loops and macros are counted, and what makes a text larger is held to a size.
"""

import json
import re
import threading
from collections.abc import Callable
from datetime import datetime
from functools import cache, wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, ext, nodes, pass_context, pass_environment
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_WORK = 200_000  # of one rendering, in rounds of a loop
MOST_CHARACTERS = 20_000_000  # of a text
_MACRO = 5  # of work that a call costs
_AT_ONCE = 256  # characters that cost as much as a round
_WIDEST = 10_000  # a number that something which fills up is given
_DEEPEST = 100  # characters that a line of JSON is indented by a level, or that separate two values
_NUMBERS = re.compile(r"[0-9]+")
_WIDTH = re.compile(r"\d{5,}")
_LOOKING = re.compile(r"\{[^{}:!]*[.\[]")  # a field that is a part of a value
_FROM_VALUES = re.compile(r"\*|\{[^{}]*\{")  # a format's width that is itself a value
# filters that write nothing out of what they are given
_KEEPING = ("length", "count", "first", "last", "list", "map", "default")
_KEEPING += ("select", "reject", "selectattr", "rejectattr")
_FILLING = ("center", "ljust", "rjust", "zfill", "expandtabs")
_LENGTHENING = ("indent", "wordwrap", "urlize")  # filters
_FORMATTING = ("format", "format_map")
_BYTES = ("encode", "to_bytes")  # of any size, and no conversation wants them
_HOLDING = (dict, list, tuple, type({}.keys()), type({}.values()), type({}.items()))
_SPEND, _JOIN = "=spend", "=join"  # no template can name them


class _Generation(ext.Extension):
    """`{% generation %}` of transformers, which marks what an assistant wrote: here its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Names(Namespace):
    """Templates come from anywhere: what they store may not be named like Python's own."""

    def __init__(self, /, *values: Any, **named: Any):
        super().__init__()
        for name, value in dict(*values, **named).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            _refuse(f"a variable named {name}")
        super().__setitem__(name, _held(value))

    def __repr__(self) -> str:
        return "<namespace>"  # what is in it may be in there many times


class _Left(threading.local):
    work = MOST_WORK


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment that `apply_chat_template` documents, without importing transformers (0.8 s, 40 MB a process)."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        extensions = [_Generation, ext.loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self._printed)
        self.filters |= {"tojson": _to_json, "join": _put_together}
        self.filters = {name: _holding(name, made, self._printed) for name, made in self.filters.items()}
        # calls that `_parse` writes: a filter's costs a fifth of one that the sandbox looks at
        self.filters |= {_SPEND: pass_context(lambda _, work: self.spend(work)), _JOIN: _joined}
        del self.globals["lipsum"]  # makes words without an end, and no conversation wants it
        self.globals |= {
            "raise_exception": _refuse,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "dict": lambda *values, **named: dict(*values, **named),
            "namespace": _Names,
        }
        self._left = _Left()

    def begin(self) -> None:
        """A rendering in this thread."""
        self._left.work = MOST_WORK

    def spend(self, work: int) -> None:
        self._left.work -= work
        if self._left.work < 0:
            _refuse("it goes on for too long")

    def _printed(self, value: Any) -> Any:
        if isinstance(value, str):
            if len(value) > _AT_ONCE:
                self.spend(len(value) // _AT_ONCE)
            return value
        return _held(value)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            work = (1 if isinstance(node, nodes.For) else _MACRO) + sum(
                len(text.data) for text in node.find_all(nodes.TemplateData)
            ) // _AT_ONCE
            spent = _filtered(nodes.Const(work), _SPEND, node.lineno)
            node.body.insert(0, nodes.ExprStmt(spent).set_lineno(node.lineno))
        return _Joins().visit(tree)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return _held(left + right)  # most of what templates do
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *values: Any, **named: Any) -> Any:  # type: ignore[override]
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(owner, str | int) and obj.__name__ in _BYTES:
            _refuse(f"{obj.__name__} makes bytes")
        if not isinstance(owner, str):
            return super().call(context, obj, *values, **named)
        _check_text(obj.__name__, owner, [*values, *named.values()])
        return _held(super().call(context, obj, *values, **named))


def _filtered(given: nodes.Node, name: str, line: int) -> nodes.Node:
    return nodes.Filter(given, name, [], [], None, None).set_lineno(line)


def _joined(values: list[Any]) -> str:
    """What `a ~ b` is."""
    return _held("".join([each if isinstance(each, str) else str(_held(each)) for each in values]))


class _Joins(NodeTransformer):
    """Every `a ~ b` as a call of `_joined`."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes).set_lineno(node.lineno), _JOIN, node.lineno)


def _check_operation(operator: str, left: Any, right: Any) -> None:
    texts = [each for each in (left, right) if isinstance(each, str | list | tuple)]
    numbers = [each for each in (left, right) if isinstance(each, int)]
    if operator == "%" and isinstance(left, str):
        _check_format(left, right if isinstance(right, tuple) else (right,))
    elif operator == "+" and len(texts) == 2:
        _check_length(len(left) + len(right))
    elif operator == "*" and texts and numbers:
        _check_length(len(texts[0]) * numbers[0])
    elif operator in ("*", "**") and len(numbers) == 2:
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _WIDEST:
            _refuse("a number is too large")


def _check_text(method: str, owner: str, values: list[Any]) -> None:
    """A text's method, before it is called."""
    for value in values:
        _held(value)
    if method == "translate":
        _refuse("translate may make any text of a letter")
    if method in _FILLING:
        _check_numbers(values)
        if method == "expandtabs":
            _check_length(
                len(owner) + owner.count("\t") * max([8, *(each for each in values if isinstance(each, int))])
            )
    elif method in _FORMATTING:
        if _LOOKING.search(owner):
            _refuse("a field looks into a value")
        _check_format(owner, values)
    elif method == "replace" and len(values) > 1:
        _check_length(len(owner) + owner.count(str(values[0])) * len(str(values[1])))
    elif method == "join" and isinstance(values[0] if values else None, list | tuple):
        _check_length(len(owner) * len(values[0]) + sum(len(str(_held(each))) for each in values[0]))


def _check_format(text: str, values: Any) -> None:
    if _WIDTH.search(text):
        _refuse("a field is too wide")
    width = max(map(int, _NUMBERS.findall(text)), default=0)
    if _FROM_VALUES.search(text):
        _check_numbers(values)
        width = _WIDEST
    fields = text.count("{") + text.count("%")
    _check_length(len(text) + fields * max([width, *(len(str(_held(value))) for value in values)]))


def _check_numbers(values: Any) -> None:
    if any(isinstance(value, int) and abs(value) > _WIDEST for value in values):
        _refuse("a number is too large")


def _check_length(length: int) -> None:
    if length > MOST_CHARACTERS:
        _refuse("a text is too long")


def _holding(name: str, filter: Callable[..., Any], paid: Callable[[Any], Any]) -> Callable[..., Any]:
    """The filter, held to what a conversation needs; `paid` spends on what it makes, as `map` may a lot of texts."""
    if name in _KEEPING:
        return filter

    @wraps(filter)
    def held(*values: Any, **named: Any) -> Any:
        for value in (*values, *named.values()):
            _held(value)
        if name == "format":
            _check_format(str(values[0]), (*values[1:], *named.values()))
        elif name == "replace":  # (eval_ctx, text, old, new)
            _check_text(name, str(values[1]), [*values[2:], *named.values()])
        elif name in _LENGTHENING:
            _check_lengthened([*values, *named.values()])
        else:
            _check_numbers((*values[1:], *named.values()))
        return paid(filter(*values, **named))

    return held


def _check_lengthened(values: list[Any]) -> None:
    """A filter that may put its other arguments between any two characters of the first text."""
    _check_numbers(values)
    first, *others = [value for value in values if isinstance(value, str)] or [""]
    filled = sum(value for value in values if isinstance(value, int) and not isinstance(value, bool))
    lines = first.count("\n") + 1
    _check_length(len(first) * (1 + sum(map(len, others))) + lines * abs(filled))


@pass_environment
def _put_together(environment: Any, value: Any, d: Any = "", attribute: Any = None) -> str:
    """As jinja's `join`, which puts a text of any length together."""
    between, parts, length = str(_held(d)), list[str](), 0
    for each in value if attribute is None else map(make_attrgetter(environment, attribute), value):
        parts.append(each if isinstance(each, str) else str(_held(each)))
        length += len(between) + len(parts[-1])
        _check_length(length)
    return between.join(parts)


def _held(value: Any) -> Any:
    """The value, if it is of a size that a conversation may have when it is written out."""
    if isinstance(value, str):
        if len(value) > MOST_CHARACTERS:
            _refuse("a text is too long")
    elif isinstance(value, _HOLDING):
        left, characters, waiting = MOST_WORK, 0, [value]
        while waiting:
            held = waiting.pop()
            left -= len(held)
            if left < 0:
                _refuse("a list is too long")
            for each in (*held, *held.values()) if isinstance(held, dict) else held:
                if isinstance(each, str):  # one text may be in there many times
                    characters += len(each)
                elif isinstance(each, _HOLDING):
                    waiting.append(each)
            _check_length(characters)
    return value


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Without jinja's escapes of <, > and &."""
    if (indent if isinstance(indent, int) else len(indent or "")) > _DEEPEST:
        _refuse("lines are indented too far")
    if any(len(each) > _DEEPEST for each in separators or ()):
        _refuse("a separator is too long")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None:
        return encoder.encode(value)
    parts, length = list[str](), 0
    for part in encoder.iterencode(value):  # each line is indented by all the levels it is in
        parts.append(part)
        length += len(part)
        _check_length(length)
    return "".join(parts)


@cache
def sandbox() -> Sandbox:
    return Sandbox()
