"""Chat templates, which come with a model: compiled, learnt from by probes, rendered."""

import random
from collections.abc import Callable
from pathlib import Path

from factory import templates
from factory.data.chat_template import ChatTemplate, Learnt, PartsTemplate
from factory.data.record import MEDIA, BadRow
from fuzz.mutation import EXTREMES, changed

_FOLDER = Path(__file__).parents[1] / "data" / "chat_templates"
_HOSTILE = [
    "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "{% for a in range(9999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaa' * 9999 }}{% endfor %}",
    "{{ 'a' * 10**11 }}",
    "{{ [0] * 10**11 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ '%999999999999d' % 1 }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ 'a' | center(99999999999) }}",
    "{{ 'a' | indent(99999999999) }}",
    "{{ '{:99999999999}'.format(1) }}",
    "{{ 'a'.ljust(99999999999) }}",
    "{{ 'a'.replace('a', 'a' * 99999).replace('a', 'a' * 99999).replace('a', 'a' * 99999) }}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set n = namespace(s=[1]) %}{% for a in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s | tojson }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n < 60 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
    "{% for a in [[[[1]]]] recursive %}{{ loop([[[a]]]) }}{% endfor %}",
    "{{ ().__class__.__bases__[0].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch fuzz_canary') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.__class__ }}{{ messages.append(1) }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now('%s' * 9999) }}",
    "{{ strftime_now('\ud800') }}",
    "{{ '%c' % 55296 }}",
    "{{ lipsum(n=99999, max=99999) }}",
    "{{ ''.join(['a' * 99999] * 99999) }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ ('{0.__class__.__init__.__globals__}').format(messages) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends messages %}",
    "{% set messages = messages * 99999999 %}",
    "{{ messages | batch(99999999999, 1) | list }}",
    "{{ messages | slice(99999999999) | list }}",
    "{{ (1, 2) | sum(start=[]) }}",
    "{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!' | wordwrap(1) }}",
    "{{ 'a' | urlize }}{{ 'a' * 9999 | striptags }}",
    "{{ dict(a=1).setdefault }}{{ dict.__init__ }}",
    "{% for a in messages %}{{ loop.__class__ }}{% endfor %}",
]
_PIECES = [each.encode("utf-8", "replace") for each in _HOSTILE] + [
    b"{% for m in range(9999) %}",
    b"{% endfor %}",
    b"{{ ",
    b" }}",
    b"{%- if messages %}",
    b"{% endif %}",
    b"{% generation %}",
    b"{% endgeneration %}",
    b"|tojson",
    b"~ messages ~",
    b" * 999999999",
]
_MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def opened(folder: Path) -> Callable[[random.Random], str]:
    seeds = [templates.read(name) for name in templates.names()]
    seeds += [file.read_text(encoding="utf-8") for file in sorted(_FOLDER.glob("*.jinja"))]

    def case(chance: random.Random) -> str:
        if chance.random() < 0.2:
            source = chance.choice(_HOSTILE)
        else:
            source = changed(chance.choice(seeds).encode(), chance, _PIECES).decode("utf-8", "replace")
        content = str(chance.choice((*EXTREMES, "Hi")))
        messages = [{**message, "content": content} for message in _MESSAGES] if chance.random() < 0.3 else _MESSAGES
        parts, special = chance.random() < 0.2, {"bos_token": "<s>", "eos_token": "</s>"}
        try:
            template = PartsTemplate(source, special, MEDIA.values()) if parts else ChatTemplate(source, special)
            template(messages, answering=chance.random() < 0.5)
            Learnt(template, frozenset(["<s>", "</s>"]), "</s>")
        except BadRow:
            return "refused"
        return "rendered"

    return case
