"""Templates as programs of strangers: each renders as jinja's own sandbox does, or is one error."""

import subprocess
import sys
import time

import jinja2
import jinja2.ext
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ossia.errors import OssiaError
from ossia.text import budget
from ossia.text.sandbox import Sandbox, compiled, rendered

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " How many r in strawberry? <b>"},
    {"role": "assistant", "content": "Three\n\nor so", "tool_calls": [{"name": "f", "n": [1, 2]}]},
]
DOUBLED = (
    "{%- set ns = namespace(x=X) -%}{%- for i in range(60) -%}{%- set ns.x = Y -%}{%- endfor -%}"
)


def doubled(first: str, step: str, use: str = "") -> str:
    """`first`, made twice as large sixty times, then used."""
    return DOUBLED.replace("X", first).replace("Y", step) + use


def environment() -> Sandbox:
    return Sandbox([jinja2.ext.loopcontrols])


def render(template: str, **more: object) -> str:
    return rendered(
        compiled(environment(), template, "here"), {"messages": MESSAGES, **more}, "here"
    )


ORDINARY = [
    "{% for m in messages if m.role != 'user' %}{{ loop.index0 }}{{ m.content|trim }}{% endfor %}",
    "{% for m in messages[::-1] %}{{ loop.cycle(1, 2) }}{{ m['role'][:3] }}{% else %}-{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is sequence else x }}{% endfor %}",
    "{% macro f(x, y=2) %}{{ x ~ y }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 3, 4, z=5) }}",
    "{% macro f() %}{{ caller('q') }}{% endmacro %}{% call(x) f() %}[{{ x }}]{% endcall %}",
    "{% set x %}a{{ 1 }}b{% endset %}{{ x }}{% filter upper %}{{ x }}c{% endfilter %}",
    "{% set a, b = 1, (2, 3) %}{{ a }}{{ b }}",
    "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}",
    "{{ messages|map(attribute='role')|join(', ') }}",
    "{{ messages|selectattr('role', 'eq', 'user')|list|length }}",
    "{{ '%s and %5.2f' % ('a', 3) }}{{ '%s-%s'|format(1, 2) }}{{ '{:>5}{}{x}'.format(1, 2, x=3) }}",
    "{{ 'a b  c'.split() }}{{ 'a,b'.split(',', 1) }}",
    "{{ ','.join(['x', 'y']) }}{{ 'abab'.replace('a', 'xy') }}",
    "{{ 'x'|center(9) }}{{ 'a\nb'|indent(3) }}",
    "{{ 'a b c'|wordwrap(2) }}{{ [3, 1, 2]|sort|reverse|list }}",
    "{{ 2 ** 10 }}{{ 7 // 2 }}{{ 7 % 3 }}{{ -3 }}",
    "{{ 'ab' * 3 }}{{ [1] * 2 + [3] }}{{ 1 ~ 'a' ~ none }}",
    "{{ messages[2]|string }}{{ {'a': [1, {'b': 2}]} }}{{ (1,) }}{{ {}|default('d', true) }}",
    "{{ 3.14159|round(2) }}{{ '7'|int + 1 }}{{ [1, 2]|sum }}",
    "{{ [[1], [2]]|sum(start=[]) }}{{ 'abc'|first }}",
    "{{ messages[2].tool_calls[0].items()|list }}",
    "{% for k, v in messages[0]|dictsort %}{{ k }}{{ v }}{% endfor %}",
    "{{ [1, 2, 3]|batch(2)|list }}{{ [1, 2, 3]|slice(2)|list }}",
    "{{ 'abc'|list }}{{ [1, 1]|unique|list }}",
    "{{ '<a>'|e }}{{ '<a>b</a>'|striptags }}{{ 'a b'|urlencode }}",
    "{{ 'http://a.b c'|urlize }}{{ [1]|pprint }}",
    "{% block b %}{{ messages|length }}{% endblock %}{{ self.b() }}",
    "{{ 'x' in 'xy' and 1 < 2 <= 2 }}",
    "{% autoescape true %}{{ '<' ~ '>' }}{{ '<'|safe }}{% endautoescape %}",
    "{{ missing }}{{ missing is defined }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}b{% break %}{% endfor %}",
]


@pytest.mark.parametrize("template", ORDINARY)
def test_templates_render_as_in_jinja_s_own_sandbox(template):
    jinjas = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    assert render(template) == jinjas.from_string(template).render(messages=MESSAGES)


ENDLESS = [
    # Arithmetic, which jinja would do when it compiles
    "{{ 10**10000000 }}",
    "{% if 9**(9**9) %}{% endif %}",
    "{% autoescape 10**10000000 %}{% endautoescape %}",
    "{{ 2**60000 * 2**60000 }}",
    doubled("3", "ns.x * ns.x"),
    "{{ 1.5|round(100000000, 'ceil') }}",
    "{{ (5).to_bytes(1000000000, 'big') }}",
    # Widths
    "{{ 'x'|center(1000000000) }}",
    "{{ 'x'|center(width=1000000000) }}",
    "{{ 'x'.ljust(1000000000) }}{{ 'x'.rjust(1000000000) }}",
    "{{ '1'.zfill(1000000000) }}",
    "{{ ('\t' * 1000).expandtabs(1000000000) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%.1000000000f'|format(1.0) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
    "{{ ('a\n' * 1000000)|indent(1000000) }}",
    "{{ [[[[1]]]]|tojson(indent=1000000000) }}",
    "{{ [1]|batch(1000000000, 0)|list }}",
    "{{ [1]|slice(1000000000)|list }}",
    # Repetition
    "{{ 'x' * 1000000000 }}",
    "{{ [0] * 1000000000 }}",
    "{{ 1000000000 * (1, 2) }}",
    "{{ 'x'.encode() * 1000000000 }}",
    "{% set a = 'x' * 10000000 %}{{ [a] * 1000|join }}",
    "{% set a = 'x' * 1000000 %}{{ a.join(range(10000)|map('string')) }}",
    "{% set a = 'x' * 1000000 %}{{ range(10000)|map('string')|join(a) }}",
    "{% set a = 'x' * 1000000 %}{{ a|replace('x', a) }}",
    "{% set a = 'x' * 1000000 %}{{ a.replace('', a) }}",
    "{% set a = 'x' * 1000000 %}{{ a.translate({120: a}) }}",
    "{% set a = 'x' * 100000 %}{{ '%(a)s' * 1000 % {'a': a} }}",
    "{% set a = 'x' * 100000 %}{{ ('{0}' * 1000).format(a) }}",
    "{{ ([[1]] * 100000)|sum(start=[]) }}",
    "{% macro f() %}{{ varargs }}{% endmacro %}{% set a = 'x' * 1000000 %}{{ f(*([a] * 1000)) }}",
    # Doubling
    doubled("'x'", "ns.x + ns.x"),
    doubled("'x'", "ns.x ~ ns.x"),
    doubled("[0]", "ns.x + ns.x"),
    doubled("[0]", "[ns.x, ns.x]", "{{ ns.x }}"),
    doubled("[0]", "[ns.x, ns.x]", "{{ ns.x == ns.x }}"),
    doubled("(0,)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
    doubled("{}", "{'a': ns.x, 'b': ns.x}", "{{ ns.x|tojson }}"),
    doubled("{}", "dict(a=ns.x, b=ns.x)", "{{ ns.x|string }}"),
    doubled("'%'", "ns.x|replace('%', '%%')"),
    doubled("'x'", "[ns.x, ns.x]|join"),
    doubled("'x'", "'%s%s' % (ns.x, ns.x)"),
    doubled("'x'", "'{0}{0}'.format(ns.x)"),
    doubled("'x'", "(ns.x ~ ',').__mul__(2)"),
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}"
    "{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}{% endfor %}",
    "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else 'x' }}{% endmacro %}{{ f(60) }}",
    # Output, and memory that is kept
    "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
    "{% set a = 'x' * 1000000 %}{% set ns = namespace(l=[]) %}{% for i in range(9999) %}"
    "{% set ns.l = ns.l + [a[i:]] %}{% endfor %}",
    "{% set a = 'ab ' * 5000000 %}{% for i in range(9999) %}{% set b = a.split() %}{% endfor %}",
    "{{ lipsum(1000000) }}",
    # Searching
    "{{ ('<!--' * 1000000)|striptags }}",
    "{{ ('x' * 10000000)|wordwrap(1) }}",
    "{{ ('http://a' * 1000000)|urlize }}",
    # Loops without output
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(9999) if j == -1 %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{{ range(100000)|select('eq', -1)|list }}{% endfor %}",
    "{% for i in range(100000) %}{{ range(100000)|map('string')|first }}{% endfor %}",
    "{% for i in range(100000) %}{{ range(100000)|sum }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
]


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_without_end_is_ended(template, monkeypatch):
    monkeypatch.setattr(budget, "SECONDS", 0.1)
    start = time.thread_time()
    with pytest.raises(OssiaError, match=r"^here: ") as refused:
        render(template)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)
    assert time.thread_time() - start < 60  # which others do not lengthen


@pytest.mark.skipif(sys.platform != "linux", reason="reads the most memory used from /proc")
def test_no_template_takes_much_memory():
    code = """
import re
from tests.text.test_sandbox import ENDLESS, OssiaError, budget, render
budget.SECONDS = 0.1
for template in ENDLESS:
    try:
        render(template)
    except OssiaError as error:
        assert "MemoryError" not in str(error), template
print(re.search(r"VmHWM:\\s*([0-9]+) kB", open("/proc/self/status").read())[1])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 500_000


BROKEN = [
    # That jinja finds
    "{% if %}",
    "{% unknown %}",
    "{{ x|unknown }}",
    "{{ x is unknown }}",
    "{{ 'unended }}",
    "{% for loop in x %}{% endfor %}",
    "{% block a %}{% endblock %}{% block a %}{% endblock %}",
    "{% break %}",
    "{% extends 'other' %}",
    "{% include 'other' %}",
    "{% import 'other' as o %}",
    "{{ " + "9" * 5000 + " }}",
    # That Python's compiler finds, or that exhausts it
    "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    "{% if a %}" * 200 + "{% endif %}" * 200,
    "{{ " + "(" * 1000 + ")" * 1000 + " }}",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "{{ a" + ".b" * 20_000 + " }}",
    "{{ " + "not " * 20_000 + "a }}",
    "{{ a" + " + a" * 20_000 + " }}",
    "{% macro f(a, a) %}{% endmacro %}{{ f() }}",
    "{{ 1 }}" * 100_000,
    # That running it shows
    "{{ 1e999 }}",
    "{{ cycler() }}",
    "{{ 1 // 0 }}{{ 1 / 0 }}",
    "{{ [].pop() }}",
    "{{ 'x'.index('y') }}",
    "{{ '{}'.format() }}",
    "{{ '%d' % 'x' }}",
    "{{ '%s %s' % 1 }}",
    "{{ none.x.y }}",
    "{{ messages.nothing.more }}",
    "{{ messages() }}",
    "{{ range(10**6) }}",
    "{{ range() }}",
    "{{ dict(1) }}",
    "{{ namespace(1) }}",
    "{{ 'x' + 1 }}",
    "{{ [1, 'a']|sort }}",
    "{{ 1|length }}",
    "{{ 1|tojson(indent=[]) }}",
    "{{ messages|map('unknown')|list }}",
    "{{ {[]: 1} }}",
    "{{ {}|dictsort(by='x') }}",
    "{{ 'x'.encode('nothing') }}",
    "{{ '\\ud800'.encode() }}",
    "{{ 1.0.hex().nothing() }}",
    "{{ 2.0 ** 10000 }}",
    "{{ (1.0).as_integer_ratio(1) }}",
    "{{ 1e308|int * 1e308|int / 3 }}",
    "{% set x.y = 1 %}",
    "{% set ns = namespace() %}{{ ns.missing.more }}",
    "{% for a, b in [1] %}{% endfor %}",
    "{% for a in 1 %}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% macro f() %}{% endmacro %}{{ f(1, 2) }}",
    "{% for a in [1] recursive %}{{ loop([a]) }}{% endfor %}",
    "{% block b %}{{ self.b() }}{% endblock %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ raise_exception('no') }}",
]


@pytest.mark.parametrize("template", BROKEN)
def test_whatever_is_wrong_with_a_template_is_one_error(template):
    with pytest.raises(OssiaError, match=r"^here: ") as refused:
        render(template)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


def test_an_error_without_words_is_named_by_its_kind():
    def fails():
        raise AssertionError

    with pytest.raises(OssiaError, match="AssertionError"):
        render("{{ fails() }}", fails=fails)


def test_long_chats_are_within_the_budget():
    """A template that copies all of the text so far for each message, and counts the messages."""
    template = (
        "{% set ns = namespace(text='', kept=[]) %}{% for m in messages %}"
        "{% set ns.text = ns.text + m.role ~ ': ' ~ m.content ~ '\n' %}"
        "{% set ns.kept = ns.kept + [m] %}"
        "{% if loop.index > messages|length or messages[loop.index:]|length == 1 %}{% endif %}"
        "{% endfor %}{{ ns.text }}"
    )
    for count, length in ((1000, 2000), (1, 5_000_000), (300, 10)):
        messages = [{"role": "user", "content": "word " * (length // 5)}] * count
        assert len(render(template, messages=messages)) == count * (length + 7)


def test_one_render_does_not_spend_the_budget_of_the_next():
    template = compiled(environment(), "{{ 'x' * 900000 }}", "here")
    for _ in range(50):
        assert len(rendered(template, {}, "here")) == 900_000
