"""Row 33: chat templates that are too large, run too long, or reach for what they may not."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_kernels.chat_template import ChatTemplate, load_chat_template
from ernie_kernels.errors import ConfigError, LimitError
from ernie_kernels.render_budget import RenderLimits
from ernie_kernels.tokenizer import load_tokenizer
from tokenizer_files import VOCAB_SIZE, write_tokenizer

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("sp")), VOCAB_SIZE)


@pytest.fixture(scope="session")
def text_template(tokenizer, tmp_path_factory):
    return load_chat_template(tmp_path_factory.mktemp("empty"), tokenizer)


def template(source, tokenizer, **options):
    return ChatTemplate(source, file="chat_template.jinja", tokenizer=tokenizer, **options)


AT_LOAD = {
    "too long": "x" * (257 << 10),
    "nested statements": "{% if 1 %}" * 100 + "{% endif %}" * 100,
    "nested parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested lists": "{{ " + "[" * 70 + "]" * 70 + " }}",
    "long chain": "{{ " + "+".join(["1"] * 5000) + " }}",
    "many nodes": "{{ a }}" * 25_000,
    "nested loops": "{% for i in a %}" * 30 + "{% endfor %}" * 30,
    "syntax": "{% if %}",
    "unknown filter": "{{ 1 | urlize }}",
    "unknown test": "{{ 1 is odder }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
    "block": "{% block a %}{% endblock %}",
}


@pytest.mark.parametrize("source", AT_LOAD.values(), ids=AT_LOAD)
def test_row_33_refused_at_load(tokenizer, source):
    with pytest.raises(ConfigError, match=r"chat_template.jinja: ") as caught:
        template(source, tokenizer)
    assert len(str(caught.value)) <= 512


GROW = "{% set ns = namespace(x=START) %}{% for i in range(99) %}STEP{% endfor %}{{ ns.x }}"


def grow(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


OVER_LIMIT = {
    "loops": "{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}",
    "range": "{% for i in range(10 ** 12) %}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "call tree": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "output": "{% for i in range(99999) %}" + "x" * 999 + "{% endfor %}",
    "captured output": "{% set y %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
    "repeat": "{{ 'x' * 10 ** 12 }}",
    "repeat a list": "{{ ([1] * 10 ** 9) | length }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "squares": grow("9", "{% set ns.x = ns.x * ns.x %}"),
    "add": grow("'xx'", "{% set ns.x = ns.x + ns.x %}"),
    "concatenate": grow("'xx'", "{% set ns.x = ns.x ~ ns.x %}"),
    "format": grow("'xx'", "{% set ns.x = '%s%s' % (ns.x, ns.x) %}"),
    "capture": grow("'xx'", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
    "lists": grow("[1]", "{% set ns.x = [ns.x, ns.x] %}"),
    "objects": grow("[1]", "{% set ns.x = {'a': ns.x, 'b': ns.x} %}"),
    "add lists": grow("[1]", "{% set ns.x = ns.x + ns.x %}"),
    "dict": grow("[1]", "{% set ns.x = dict(a=ns.x, b=ns.x) %}"),
    "compare": "{% set a = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set a.x = [a.x, a.x] %}"
               "{% set a.y = [a.y, a.y] %}{% endfor %}{{ a.x == a.y }}",
    "replace": "{% set big = 'x' * 999999 %}{{ big.replace('', big) }}",
    "replace filter": "{% set big = 'x' * 999999 %}{{ big | replace('x', big) }}",
    "join": "{% set big = 'x' * 999999 %}{{ big.join(big) }}",
    "join filter": "{% set big = 'x' * 999999 %}{{ range(99999) | join(big) }}",
    "sort": "{% set big = 'x' * 999999 %}{{ (range(99999) | map('replace', '', big)) | sort }}",
    "split": "{{ ('x,' * 7999999).split(',') | length }}",
}  # fmt: skip


@pytest.mark.parametrize("source", OVER_LIMIT.values(), ids=OVER_LIMIT)
def test_row_33_over_a_limit(tokenizer, source):
    started = time.monotonic()
    with pytest.raises(LimitError, match=r"chat template: "):
        template(source, tokenizer).render(HELLO)
    assert time.monotonic() - started < 5


def test_row_33_out_of_time(tokenizer):
    limits = RenderLimits(steps=10**9, seconds=0.05)
    source = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(LimitError, match=r"ran longer than 0\.05 seconds"):
        template(source, tokenizer, limits=limits).render(HELLO)


FORBIDDEN = {
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "mutation": "{{ messages.append(1) }}",
    "wide format": "{{ '%999999999d' % 1 }}",
    "wide format argument": "{{ '%*d' % (999999999, 1) }}",
    "wide format filter": "{{ '%.999999999f' | format(1.5) }}",
    "str.format": "{{ '{:999999999}'.format(1) }}",
    "center": "{{ 'a'.center(999999999) }}",
    "indent": "{{ 'a\nb' | indent(999999999) }}",
    "round": "{{ 1.5 | round(999999999) }}",
    "sum of lists": "{{ [[1]] | sum(start=[]) }}",
    "strftime": "{{ strftime_now('%999999999d') }}",
    "print a function": "{{ range }}",
    "print the template": "{{ self }}",
    "undefined": "{{ nothing.at_all }}",
    "missing function": "{{ lipsum(10) }}",
    "wrong type": "{{ 1 + 'a' }}",
    "namespace": "{% set ns = namespace(_x=1) %}{% set ns._x = 1 %}",
}


@pytest.mark.parametrize("source", FORBIDDEN.values(), ids=FORBIDDEN)
def test_row_33_forbidden_or_failing_at_render(tokenizer, source):
    with pytest.raises(ConfigError, match=r"chat_template.jinja: line 2: ") as caught:
        template("\n" + source.replace("\n", "\\n"), tokenizer).render(HELLO)
    assert "0x" not in str(caught.value)


def test_object_internals_are_undefined(tokenizer):
    assert (
        template("{{ messages.__class__ }}{{ '' | attr('__class__') }}", tokenizer)
        .render(HELLO)
        .text
        == ""
    )


def test_a_template_is_usable_after_an_error_and_from_threads(tokenizer):
    source = "{% if messages[0].content == 'loop' %}{% for i in range(99999) %}{% for j in range(9) %}{% endfor %}{% endfor %}{% endif %}{{ messages[0].content }}"
    shared = template(source, tokenizer)
    results: list[str] = []

    def work(index):
        content = "loop" if index % 2 else f"text {index}"
        try:
            results.append(shared.render([{"role": "user", "content": content}]).text)
        except LimitError:
            results.append("limit")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["limit", "limit", "text 0", "text 2"]
    assert shared.render(HELLO).text == "Hello!"


def test_a_long_conversation_is_within_the_limits(text_template):
    conversation = [*HELLO, {"role": "assistant", "content": "x" * 1000}] * 2000
    assert len(text_template.render(conversation).text) > 2_000_000


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            ["{{", "}}", "{%", "%}", " for x in messages ", " endfor ", " if ", " endif ", " x ",
             "messages", ".content", "[", "]", "(", ")", "'a'", " * ", " ~ ", "9", "|", "join", "#}", "{#"]
        ),
        max_size=20,
    ).map("".join)
)  # fmt: skip
def test_random_templates_give_our_errors_only(tokenizer, source):
    try:
        template(source, tokenizer).render(HELLO)
    except (ConfigError, LimitError):
        return
