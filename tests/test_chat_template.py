"""Conversations to text: the built-in renderings, a checkpoint's own template, what users type."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_kernels.bounded_template import BoundedTemplate
from ernie_kernels.chat_template import BUILT_IN_TEXT_TEMPLATE, ChatTemplate, load_chat_template
from ernie_kernels.errors import ConfigError, InputError, LimitError
from ernie_kernels.runner.reasoning import opens_reasoning
from ernie_kernels.special_tokens import Segment
from ernie_kernels.tokenizer import load_tokenizer
from tokenizer_files import ADDED, CONTROL, VOCAB_SIZE, write_json, write_tokenizer

BEGIN, END = "<|begin_of_sentence|>", "<|end_of_sentence|>"
HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("sp")), VOCAB_SIZE)


@pytest.fixture(scope="session")
def text_template(tokenizer, tmp_path_factory):
    return load_chat_template(tmp_path_factory.mktemp("empty"), tokenizer)


@pytest.fixture(scope="session")
def vision_template(tokenizer, tmp_path_factory):
    return load_chat_template(tmp_path_factory.mktemp("empty"), tokenizer, accepts_media=True)


def template(source, tokenizer, **options):
    return ChatTemplate(source, file="chat_template.jinja", tokenizer=tokenizer, **options)


# -------------------------------------------------------------------------- the built-in renderings


def test_text_rendering(text_template, tokenizer):
    conversation = [
        {"role": "system", "content": "Be kind."},
        *HELLO,
        {"role": "assistant", "content": "Nice to meet you."},
        {"role": "user", "content": "Bye"},
    ]
    prompt = text_template.render(conversation)
    assert prompt.text == (
        f"{BEGIN}Be kind.\nUser: Hello!\nAssistant: Nice to meet you.{END}User: Bye\nAssistant: "
    )
    assert [segment.text for segment in prompt.segments if segment.special] == [BEGIN, END]
    assert tokenizer.encode_prompt(prompt.segments) == tokenizer.encode_with_special(prompt.text)


def test_text_rendering_without_generation_prompt(text_template):
    assert text_template.render(HELLO, add_generation_prompt=False).text == f"{BEGIN}User: Hello!\n"


def test_text_parts_are_joined_by_newlines(text_template):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert "User: a\nb\n" in text_template.render([{"role": "user", "content": parts}]).text


@pytest.mark.parametrize(
    ("thinking", "tail"),
    [({}, "<think>\n\n</think>\n\n"), ({"enable_thinking": False}, "<think>\n\n</think>\n\n"),
     ({"enable_thinking": True}, "<think>")],
)  # fmt: skip
def test_vision_rendering_of_thinking(vision_template, thinking, tail):
    prompt = vision_template.render(HELLO, **thinking)
    assert prompt.text == f"{BEGIN}User: Hello!\nAssistant: {tail}"
    assert Segment("<think>", True) in prompt.segments


def test_vision_rendering_of_media(vision_template):
    def picture(text):
        return [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "x"}}]

    conversation = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": picture("What?")},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": [*picture("And this?"), {"type": "image", "image": object()}]},
    ]
    shown = "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
    prompt = vision_template.render(conversation, add_generation_prompt=False)
    assert prompt.text == (
        f"{BEGIN}S\nUser: What?Picture 1:{shown}\nAssistant: A dog.{END}"
        f"User: And this?Picture 2:{shown}Picture 3:{shown}"
    )
    assert prompt.segments.count(Segment("<|IMAGE_PLACEHOLDER|>", True)) == 3


def test_vision_rendering_numbers_videos_apart(vision_template):
    parts = [{"type": kind} for kind in ("video", "image", "video")]
    text = vision_template.render([{"role": "user", "content": parts}]).text
    places = [text.index(f"{name}:<|") for name in ("Video 1", "Picture 1", "Video 2")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "answer",
    [{"content": "yes", "reasoning_content": "hm"}, {"content": "<think>\nhm\n</think>\n\nyes"}],
)
def test_vision_rendering_of_past_reasoning(vision_template, answer):
    conversation = [*HELLO, {"role": "assistant", **answer}]
    prompt = vision_template.render(conversation, add_generation_prompt=False)
    assert prompt.text.endswith(f"\nAssistant: <think>\nhm\n</think>\nyes{END}")


@pytest.mark.parametrize(
    "conversation",
    [[{"role": "tool", "content": "x"}], [*HELLO, {"role": "system", "content": "late"}]],
)
def test_built_in_rendering_refuses_what_it_does_not_know(text_template, conversation):
    with pytest.raises(InputError, match="built-in chat template: refuses these messages"):
        text_template.render(conversation)


def test_built_in_rendering_refuses_tools(text_template):
    with pytest.raises(InputError, match="no chat template that lists tools"):
        text_template.render(HELLO, tools=[{"type": "function"}])


def test_built_in_rendering_needs_its_tokens(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path, VOCAB_SIZE)
    tokenizer.special_tokens.pop(END)
    with pytest.raises(ConfigError, match=r"no special token '<\|end_of_sentence\|>'"):
        load_chat_template(tmp_path, tokenizer).render(HELLO)


# ------------------------------------------------------------------------- where templates come from


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.json", {"chat_template": "T {{ eos_token }}"}),
        ("tokenizer_config.json", {"chat_template": "T {{ eos_token }}"}),
        ("tokenizer_config.json", {"chat_template": [
            {"name": "tool_use", "template": "no"}, {"name": "default", "template": "T {{ eos_token }}"},
        ]}),
    ],
)  # fmt: skip
def test_sources(tmp_path, tokenizer, file, content):
    write_json(tmp_path / file, content)
    loaded = load_chat_template(tmp_path, tokenizer)
    assert loaded.render(HELLO).segments == (Segment("T ", False), Segment("</s>", True))
    (tmp_path / "chat_template.jinja").write_text("the file wins")
    assert load_chat_template(tmp_path, tokenizer).render(HELLO).text == "the file wins"


@pytest.mark.parametrize("value", [7, [], [{"name": "other", "template": "x"}], {"default": "x"}])
def test_row_33_source_of_the_wrong_type(tmp_path, tokenizer, value):
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": value})
    with pytest.raises(ConfigError, match=r"tokenizer_config.json: chat_template: expected"):
        load_chat_template(tmp_path, tokenizer)


def test_what_templates_may_use(tokenizer):
    source = """\
{%- set ns = namespace(n=0) -%}
{%- for m in messages if m.role != 'tool' -%}
    {%- set ns.n = ns.n + loop.index0 -%}
    {{- m.content | trim | upper -}}
    {%- if loop.last %}{% break %}{% endif -%}
{%- endfor -%}
{%- macro quoted(x) -%}<{{ x }}>{%- endmacro -%}
{{- quoted(ns.n) ~ {'a': [1, none, 'ü']} | tojson ~ (messages | length) -}}
{%- generation %}{{ bos_token }}{% endgeneration -%}
{{- strftime_now('%Y')[:2] ~ '%02d' % 7 ~ messages[::-1][0].content.split('!')[0] -}}
"""
    rendered = template(source, tokenizer).render(HELLO).text
    assert rendered == 'HELLO!<0>{"a": [1, null, "ü"]}1<s>2007Hello'


# ---------------------------------------------------------------- row 38: typed special tokens again


pieces = st.sampled_from(
    [
        "<",
        "</",
        "s>",
        "</s>",
        "|>",
        "<|end_of_",
        "sentence|>",
        *CONTROL,
        *ADDED,
        " ",
        "\n",
        "a",
        "é",
    ]
)
strings = st.lists(pieces, max_size=5).map("".join)
conversations = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": strings}),
    min_size=1,
    max_size=4,
)
ANSWER_TOKENS = {"<think>", "</think>"}


@settings(deadline=None)
@given(conversations)
def test_row_38_only_the_template_makes_control_tokens(text_template, tokenizer, conversation):
    prompt = text_template.render(conversation)
    special = [s.text for s in prompt.segments if s.special and s.text not in ANSWER_TOKENS]
    answers = sum(message["role"] == "assistant" for message in conversation)
    assert special == [BEGIN] + [END] * answers
    # Nothing is lost or added, and no mark is left.
    plain = BoundedTemplate(BUILT_IN_TEXT_TEMPLATE, "t").render(
        {"messages": conversation, "cls_token": BEGIN, "sep_token": END, "add_generation_prompt": 1}
    )
    assert prompt.text == plain
    assert (
        tokenizer.decode(tokenizer.encode_prompt(prompt.segments), skip_special_tokens=False)
        == plain
    )


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="<>|")))
def test_ids_equal_those_of_the_complete_text(text_template, tokenizer, sample):
    prompt = text_template.render([{"role": "user", "content": sample}])
    assert tokenizer.encode_prompt(prompt.segments) == tokenizer.encode_with_special(prompt.text)


def test_parts_cannot_be_joined_into_a_token(vision_template):
    parts = [{"type": "text", "text": text} for text in ("<", "|end_of_sentence|", ">")]
    prompt = vision_template.render(
        [{"role": "user", "content": parts}], add_generation_prompt=False
    )
    assert prompt.segments == (Segment(BEGIN, True), Segment(f"User: {END}", False))


def test_markup_of_an_answer_is_recognised_in_assistant_turns_only(text_template):
    conversation = [
        {"role": "user", "content": "</think>"},
        {"role": "assistant", "content": "<think>x</think></s>"},
    ]
    segments = text_template.render(conversation, add_generation_prompt=False).segments
    assert [s.text for s in segments if s.special] == [BEGIN, "<think>", "</think>", END]
    assert Segment("</s>", False) in segments


PAST_TURNS = ["<think>cut off", "<think>", "<think>x</think>y", "y</think>", "plain"]


@pytest.mark.parametrize("past", PAST_TURNS)
def test_what_an_earlier_turn_left_open_is_not_open_in_the_next(text_template, tokenizer, past):
    conversation = [*HELLO, {"role": "assistant", "content": past}, *HELLO]
    assert not opens_reasoning(text_template.render(conversation).segments)
    source = """{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}assistant: {% if enable_thinking %}<think>
{% endif %}"""  # no token ends a turn
    own = template(source, tokenizer)
    for thinking in (True, False):
        segments = own.render(conversation, enable_thinking=thinking).segments
        assert opens_reasoning(segments) == thinking


def test_typed_marks_open_no_reasoning(text_template, vision_template):
    typed = [{"role": "user", "content": "x <think>"}]
    assert not opens_reasoning(text_template.render(typed).segments)
    closed = vision_template.render([{"role": "user", "content": "</think>"}], enable_thinking=True)
    assert opens_reasoning(closed.segments)
    assert not opens_reasoning(vision_template.render(typed, enable_thinking=False).segments)
    assert not opens_reasoning([])


def test_removing_markup_cannot_uncover_a_token(tokenizer):
    source = "{{ messages[0].content | replace('</think>', '') }}"
    answer = [{"role": "assistant", "content": "<</think>/s>"}]
    assert template(source, tokenizer).render(answer).segments == (Segment("</s>", False),)


def test_tools_and_template_arguments_are_guarded(tokenizer):
    source = "{{ tools | tojson }}{{ name }}{{ messages[0].tool_calls | tojson }}"
    message = {"role": "assistant", "content": None, "tool_calls": [{"</s>": ["</s>"]}]}
    prompt = template(source, tokenizer).render(
        [message], tools=[{"description": "</s>"}], name="</s>"
    )
    assert len(prompt.segments) == 1
    assert not prompt.segments[0].special
    assert prompt.text == '[{"description": "</s>"}]</s>[{"</s>": ["</s>"]}]'


@pytest.mark.parametrize("name", ["self", "messages", "tools2", "loop", "environment"])
def test_template_variables_may_have_any_name(tokenizer, name):
    prompt = template("{{ messages[0].content }}", tokenizer).render(HELLO, **{name: "x"})
    assert prompt.text == "Hello!"


def test_a_text_with_every_noncharacter_cannot_forge_the_mark(text_template):
    marks = "".join(map(chr, range(0xFDD0, 0xFDF0)))
    segments = text_template.render([{"role": "user", "content": f"<{marks}/s></s>"}]).segments
    assert segments[1].text == f"User: <{marks}/s></s>\nAssistant: "


# ------------------------------------------------------------------------------ malformed messages


@pytest.mark.parametrize(
    ("message", "match"),
    [
        ("Hello", "message 1: expected an object with role and content, got 'Hello'"),
        ({"content": "x"}, "message 1: role: expected one of system, .* got null"),
        ({"role": "root", "content": "x"}, "message 1: role: .* got 'root'"),
        ({"role": ["user"], "content": "x"}, "message 1: role: .* got a list"),
        ({"role": "user"}, "message 1: content: expected a string or a list of parts, got null"),
        ({"role": "user", "content": 7}, "message 1: content: .* got 7"),
        ({"role": "user", "content": ["x"]}, "message 1: content part 0: type: .* got 'x'"),
        ({"role": "user", "content": [{"type": "audio"}]}, "content part 0: type: .* got 'audio'"),
        ({"role": "user", "content": [{"type": "text"}]}, "content part 0: text: .* got null"),
        ({"role": "user", "content": [{"type": "image"}]}, "content part 0: image: .* text alone"),
        ({"role": "user", "content": [{"type": "video"}]}, "content part 0: video: .* text alone"),
        ({"role": "user", "content": "a\udc80"}, r"message 1: content: lone surrogate U\+DC80 at position 1"),
        ({"role": "user", "content": "x", "name": object()}, "message 1: 'name': expected JSON data"),
        ({"role": "user", "content": "x", "meta": {1: 2}}, "message 1: 'meta': expected keys as strings"),
        ({"role": "user", "content": "x", 5: 2}, "message 1: expected field names as strings"),
    ],
)  # fmt: skip
def test_malformed_message(text_template, message, match):
    with pytest.raises(InputError, match=match):
        text_template.render([*HELLO, message])


def test_other_malformed_input(text_template):
    with pytest.raises(TypeError, match="messages: expected a list, got str"):
        text_template.render("Hello")
    with pytest.raises(InputError, match="got 0"):
        text_template.render([])
    deep: list = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(InputError, match="'meta': expected nesting of at most 64"):
        text_template.render([{"role": "user", "content": "x", "meta": deep}])
    cyclic: list = []
    cyclic.append(cyclic)
    with pytest.raises(InputError, match="template argument 'loop': expected nesting"):
        text_template.render(HELLO, loop=cyclic)
    half = {"role": "user", "content": "x" * (9 << 20)}
    with pytest.raises(LimitError, match="messages: expected at most 16777216 characters"):
        text_template.render([half, half])


def test_the_templates_refusal_is_an_input_error(tokenizer):
    source = "{{ raise_exception('no: ' + messages[0].content) }}"
    with pytest.raises(InputError, match="refuses these messages: 'no: </s>'"):
        template(source, tokenizer).render([{"role": "user", "content": "</s>"}])


@pytest.mark.oracle
@pytest.mark.parametrize("thinking", [True, False])
def test_rendering_equals_transformers(tokenizer, thinking):
    chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    source = """\
{%- if not add_generation_prompt is defined -%}{%- set add_generation_prompt = true -%}{%- endif -%}
{{- cls_token -}}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- 'User: ' + message['content'] | trim + '\n' }}
    {%- elif message['role'] == 'assistant' %}
        {%- set parts = message['content'].split('</think>') %}
        {{- 'Assistant: ' ~ parts[-1].lstrip('\n') ~ sep_token }}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{%- if add_generation_prompt %}{{- 'Assistant: ' }}{% if enable_thinking %}<think>{% endif %}{% endif %}
"""
    conversation = [
        {"role": "user", "content": "  Hello & <b> é \n"},
        {"role": "assistant", "content": "<think>\nx\n</think>\n\nNice"},
        {"role": "user", "content": "Bye"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    (expected,), _ = chat_template_utils.render_jinja_template(
        [conversation], tools=tools, chat_template=source, add_generation_prompt=True,
        enable_thinking=thinking, **tokenizer.roles,
    )  # fmt: skip
    rendered = template(source, tokenizer).render(
        conversation, tools=tools, enable_thinking=thinking
    )
    assert rendered.text == expected
