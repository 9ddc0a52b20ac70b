"""A chat template comes with a model: it is rendered in a sandbox, and in little time and memory, or refused."""

import time

import pytest
from fuzz.guard import guarded, little_memory
from fuzz.templates import _HOSTILE

from factory.data.chat_template import ChatTemplate
from factory.data.record import BadRow

MESSAGES = [{"role": "user", "content": "Hi"}]
REFUSED = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}" + "a long text" * 99 + "{% endfor %}",
    "{% macro f(n) %}{% if n < 60 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for a in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}",
    "{{ 'a' * 10**11 }}",
    "{{ 9 ** 9999999 }}",
    "{{ 'a' | center(99999999999) }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (9999999999, 1) }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 9999999999) }}",
    "{{ 'a'.ljust(9999999999) }}",
    "{{ 'aaaa'.replace('a', 'a' * 9999999) }}",
    "{{ 'aaaa' | replace('a', 'a' * 9999999) }}",
    "{{ ('a' * 99999).join(range(9999) | list) }}",
    "{{ range(99999) | list | join('a' * 1000000) }}",
    "{{ ([{'a': 'a' * 1000000}] * 99999) | join('', attribute='a') }}",
    "{{ ('\\n' * 1000000) | indent(10000, true, true) }}",
    "{{ ('\\n' * 100000) | indent('a' * 100000) }}",
    "{{ ('a ' * 100000) | wordwrap(1, wrapstring='a' * 1000000) }}",
    "{{ ([1] * 100000) | tojson(indent=9999) }}",
    "{{ ('\\t' * 10000000).expandtabs(9999) }}",
    "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "{{ (['a' * 1000000] * 9999) | tojson }}",
    "{{ ['a' * 1000000] * 9999 }}",
    "{{ [{'a': 'a' * 1000000}.values()] * 9999 }}",
    "{{ ([1] * 99999) | tojson(separators=('a' * 1000000, 'b')) }}",
    "{% set x = [1] * 99999 %}"
    + ("{% set x = " + "[" * 20 + "x" + "]" * 20 + " %}") * 12
    + "{{ x | tojson(indent=100) }}",
    "{{ (['a' * 1000000] * 9999) | map('upper') | list }}",
    "{{ ('{0}' * 100000).format('a' * 100000) }}",
    "{{ ('{0.s}' * 100000).format(namespace(s='a' * 100000)) }}",
    "{{ ('{0:9999}' * 1000000).format(1) }}",
    "{{ ('%(a)9999d' * 1000000) % {'a': 1} }}",
    "{{ ('%(a)s' * 100000) | format(a='a' * 100000) }}",
    "{{ 'a'.encode() * 10**11 }}",
    "{{ (1).to_bytes(10**11, 'big') }}",
    "{{ cycler.__init__.__globals__.os.system('touch fuzz_canary') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__()[0]() }}",
    "{% import 'os' as os %}",
    "{{ lipsum(n=1) }}",
    "{{ '%c' % 55296 }}",
    "{% if " + "(" * 999 + "1" + ")" * 999 + " %}{% endif %}",
    "{% for a in [1] %}" * 40 + "{% endfor %}" * 40,
]


@pytest.mark.parametrize("source", REFUSED)
def test_what_costs_too_much_or_calls_is_refused(source: str, here: object) -> None:
    started = time.process_time()
    with guarded(), little_memory(), pytest.raises(BadRow) as refused:
        ChatTemplate(source, {})(MESSAGES)
    assert "MemoryError" not in str(refused.value)  # refused before it is made
    assert time.process_time() - started < 5


def test_a_template_that_runs_out_of_memory_is_refused() -> None:
    def full() -> None:
        raise MemoryError

    with pytest.raises(BadRow, match="fails with MemoryError"):
        ChatTemplate("{{ full() }}", {"full": full})(MESSAGES)


def test_a_namespace_is_not_written_out_with_what_it_holds() -> None:
    assert ChatTemplate("{{ [namespace(a='a')] * 2 }}", {})(MESSAGES) == "[<namespace>, <namespace>]"


@pytest.mark.parametrize("source", _HOSTILE)
def test_no_template_hangs_or_runs_code(source: str, here: object) -> None:
    with guarded(), little_memory():
        try:
            ChatTemplate(source, {})(MESSAGES)
        except BadRow:
            return


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("{{ 'a' ~ 1 ~ none ~ messages[0].content }}", "a1NoneHi"),
        ("{{ '%d of %s' % (123456, 'x') }}{{ '{} {}'.format(123456, 1) }}", "123456 of x123456 1"),
        ("{{ 3 * 4 }}{{ 'ab' * 2 }}{{ [1] * 2 }}{{ 2 ** 10 }}{{ 7 % 4 }}", "12abab[1, 1]10243"),
        ("{{ 'a' | center(5) }}|{{ 'a,b'.split(',') | join('-') }}|{{ 'aa' | replace('a', 'bc') }}", "  a  |a-b|bcbc"),
        (
            "{{ 'a\\nb' | indent }}|{{ ('a', 1) | join }}|{{ messages | join(', ', attribute='content') }}",
            "a\n    b|a1|Hi",
        ),
        ("{{ [1] | tojson(indent=1) }}{{ 'a\\tb'.expandtabs(2) }}{{ 'a b' | wordwrap(1) }}", "[\n 1\n]a ba\nb"),
        ("{{ '{...} {[%s]}' % 'x' }}", "{...} {[x]}"),  # no field of this kind of format
        ("{% for n in range(99999) %}{% endfor %}done", "done"),
        ("{% macro f(n) %}<{{ n ~ '!' }}>{% endmacro %}{{ f(1) }}", "<1!>"),
        ("{% set x %}a{% for m in messages %}b{% endfor %}{% endset %}{{ x + x }}", "abab"),
        ("{% generation %}{{ messages | tojson }}{% endgeneration %}", '[{"role": "user", "content": "Hi"}]'),
    ],
)
def test_what_templates_do_is_as_it_was(source: str, wanted: str) -> None:
    assert ChatTemplate(source, {})(MESSAGES) == wanted


def test_a_long_conversation_is_rendered() -> None:
    source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}"
    text = ChatTemplate(source, {})([{"role": "user", "content": "word " * 20_000}] * 100)
    assert len(text) > 10_000_000


def test_each_rendering_has_its_own_budget() -> None:
    template = ChatTemplate("{% for n in range(99999) %}{% endfor %}done", {})
    assert [template(MESSAGES) for _ in range(4)] == ["done"] * 4
