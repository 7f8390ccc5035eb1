import json
import os
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_kernels.chat_template import load_chat_template
from ernie_kernels.errors import InputError, LimitError
from ernie_kernels.special_tokens import Segment, TextGuard, TokenMatcher
from ernie_kernels.tokenizer import MAX_TEXT_BYTES, StreamDecoder, load_tokenizer
from tokenizer_files import (
    ADDED,
    CONTROL,
    MODEL_PIECES,
    VOCAB_SIZE,
    sentencepiece_model,
    tokenizer_json,
    write_json,
    write_tokenizer,
)

GOLDEN = Path(__file__).parent / "golden" / "tokenizer_vectors.json"

# U+2581 is how SentencePiece writes a space: the one character that does not survive a round trip.
text = st.text(
    alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60
)
# Text that comes near special tokens more often than chance would have it.
hostile_text = st.lists(
    st.sampled_from(
        ["<", ">", "|", "s>", "</s", "</s>", *CONTROL, *ADDED, "<mask:1>", "a ", "<0x0A>"]
    )
    | text,
    max_size=6,
).map("".join)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("sp")), VOCAB_SIZE)


@pytest.fixture(scope="session")
def prefix_tokenizer(tmp_path_factory):
    folder = write_tokenizer(tmp_path_factory.mktemp("prefix"), dummy_prefix=True)
    return load_tokenizer(folder, VOCAB_SIZE)


@pytest.fixture(scope="session", params=[False, True], ids=["byte_fallback", "byte_level"])
def json_tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    write_json(folder / "tokenizer.json", tokenizer_json(byte_level=request.param))
    write_json(folder / "added_tokens.json", {"<|IMAGE_START|>": 700})
    return load_tokenizer(folder, 800)


def reference(**options: bool) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(**options))


# ------------------------------------------------------------------------------ encode and decode


def test_attributes(tokenizer):
    assert tokenizer.vocab_size == MODEL_PIECES + len(ADDED)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.roles["cls_token"] == "<|begin_of_sentence|>"
    assert tokenizer.special_tokens["<|IMAGE_START|>"] == MODEL_PIECES
    assert "<mask:1>" in tokenizer.special_tokens  # user-defined in the model, declared special
    assert tokenizer.token_to_id("</s>") == 2
    assert tokenizer.id_to_token(2) == "</s>"
    assert tokenizer.token_to_id("no such token") is None
    assert tokenizer.id_to_token(VOCAB_SIZE - 1) is None


def test_folder_without_tokenizer_gives_none(tmp_path):
    assert load_tokenizer(tmp_path, VOCAB_SIZE) is None


def test_tokenizer_model_wins_over_tokenizer_json(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("not read")
    assert load_tokenizer(tmp_path, VOCAB_SIZE).encode("Hello") == reference().encode("Hello")


@pytest.mark.parametrize(
    "sample", ["Hello there", " Hello", "  x   y", "12 34", "\t\n\n", "é 😀 ด", ""]
)
def test_encode_equals_sentencepiece(tokenizer, sample):
    ids = tokenizer.encode(sample)
    assert ids == reference().encode(sample)
    assert tokenizer.decode(ids) == sample


def test_digits_are_single_tokens_and_no_prefix_is_added(tokenizer):
    digits = [tokenizer.token_to_id(digit) for digit in "2024"]
    assert tokenizer.encode("2024") == digits


def test_dummy_prefix_is_the_models_and_only_at_the_beginning(prefix_tokenizer):
    processor = reference(dummy_prefix=True)
    assert prefix_tokenizer.encode("Hello") == processor.encode("Hello")
    assert prefix_tokenizer.encode("Hello") != reference().encode("Hello")
    middle = prefix_tokenizer.encode_prompt([Segment("<s>", True), Segment("Hello", False)])
    no_prefix = load_prefix_processor()
    assert middle == [1, *no_prefix.encode("Hello")]


def load_prefix_processor() -> sentencepiece.SentencePieceProcessor:
    data = sentencepiece_model(dummy_prefix=True) + b"\x1a\x02\x18\x00"
    return sentencepiece.SentencePieceProcessor(model_proto=data)


def test_add_prefix_space_false_switches_the_dummy_prefix_off(tmp_path):
    folder = write_tokenizer(tmp_path, dummy_prefix=True)
    write_json(folder / "tokenizer_config.json", {"add_prefix_space": False})
    assert load_tokenizer(folder, VOCAB_SIZE).encode("Hello") == load_prefix_processor().encode(
        "Hello"
    )


@pytest.mark.parametrize("options", [{}, {"dummy_prefix": True}, {"extra_whitespaces": False}])
@pytest.mark.parametrize("sample", [" Hello there", "Hello", "a  b"])
def test_decode_equals_sentencepiece(tmp_path, options, sample):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, **options), VOCAB_SIZE)
    processor = reference(**options)
    assert tokenizer.decode(processor.encode(sample)) == processor.decode(processor.encode(sample))


def test_stream_that_continues_keeps_the_leading_space(prefix_tokenizer):
    ids = prefix_tokenizer.encode("Hello")
    stream = StreamDecoder(prefix_tokenizer, continues=True)
    assert stream.push(ids) + stream.finish() == " Hello"
    assert prefix_tokenizer.decode(ids) == "Hello"


def test_add_special_tokens(tokenizer, tmp_path):
    assert tokenizer.encode("Hello", add_special_tokens=True) == [1, *tokenizer.encode("Hello")]
    folder = write_tokenizer(tmp_path)
    write_json(folder / "tokenizer_config.json", {"add_bos_token": False, "add_eos_token": True})
    other = load_tokenizer(folder, VOCAB_SIZE)
    assert other.encode("Hello", add_special_tokens=True) == [*tokenizer.encode("Hello"), 2]


def test_decode_skips_special_tokens_but_not_the_markup_of_an_answer(tokenizer):
    think, close = tokenizer.token_to_id("<think>"), tokenizer.token_to_id("</think>")
    ids = [1, think, *tokenizer.encode("Hello"), close, *tokenizer.encode("x"), 2, MODEL_PIECES]
    assert tokenizer.decode(ids) == "<think>Hello</think>x"
    assert (
        tokenizer.decode(ids, skip_special_tokens=False)
        == "<s><think>Hello</think>x</s><|IMAGE_START|>"
    )


def test_ids_beyond_the_tokenizer_decode_to_nothing(tokenizer):
    assert tokenizer.decode([VOCAB_SIZE - 1]) == ""


def test_broken_utf8_becomes_replacement_characters(tokenizer):
    first_byte = tokenizer.token_to_id("<0xE2>")
    letter = tokenizer.encode("x")
    assert tokenizer.decode([first_byte, *letter]) == "\ufffdx"
    assert tokenizer.decode([*letter, first_byte]) == "x\ufffd"


def test_encode_prompt_in_one_go_equals_the_whole_text(tokenizer):
    """The user's words merge with the template's text around them."""
    whole = tokenizer.encode_with_special("<|begin_of_sentence|>User: Hello there\nAssistant: ")
    ids = reference().encode("User: Hello there\nAssistant: ")
    assert whole == [tokenizer.token_to_id("<|begin_of_sentence|>"), *ids]
    piecewise = [*tokenizer.encode("User: "), *tokenizer.encode("Hello there")]
    assert piecewise != ids[: len(piecewise)]


def test_strip_flags_of_special_tokens(tmp_path):
    folder = write_tokenizer(tmp_path)
    flags = {"content": "<mask:1>", "lstrip": True, "rstrip": True}
    write_json(folder / "tokenizer_config.json", {"mask_token": flags})
    tokenizer = load_tokenizer(folder, VOCAB_SIZE)
    mask = tokenizer.token_to_id("<mask:1>")
    x, y = tokenizer.encode("x"), tokenizer.encode("y")
    assert tokenizer.encode_with_special("x  <mask:1> y") == [*x, mask, *y]


@settings(deadline=None)
@given(text)
def test_round_trip(tokenizer, sample):
    assert tokenizer.decode(tokenizer.encode(sample)) == sample


def test_the_space_symbol_is_a_space(tokenizer):
    assert tokenizer.encode("a▁b") == tokenizer.encode("a b") == reference().encode("a▁b")
    assert tokenizer.decode(tokenizer.encode("a▁b")) == "a b"


@settings(deadline=None)
@given(text)
def test_json_round_trip(json_tokenizer, sample):
    assert json_tokenizer.decode(json_tokenizer.encode(sample)) == sample


@settings(deadline=None)
@given(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40), st.booleans(), st.randoms())
def test_stream_equals_whole_decode(tokenizer, prefix_tokenizer, ids, skip, random_numbers):
    for each in (tokenizer, prefix_tokenizer):
        stream = StreamDecoder(each, skip_special_tokens=skip)
        parts, rest = [], list(ids)
        while rest:
            count = random_numbers.randint(1, 3)
            parts.append(stream.push(rest[:count]) if count > 1 else stream.push(rest[0]))
            rest = rest[count:]
        parts.append(stream.finish())
        assert "".join(parts) == each.decode(ids, skip_special_tokens=skip)


@settings(deadline=None)
@given(text)
def test_stream_never_emits_half_a_character(tokenizer, sample):
    stream = StreamDecoder(tokenizer)
    emitted = ""
    for token_id in tokenizer.encode(sample):
        emitted += stream.push(token_id)
        assert sample.startswith(emitted)
    assert emitted + stream.finish() == sample


# ---------------------------------------------------------------------- row 38: typed special tokens


@settings(deadline=None)
@given(hostile_text)
def test_row_38_user_text_never_yields_control_ids(tokenizer, sample):
    control = set(tokenizer.special_tokens.values())
    ids = tokenizer.encode(sample)
    assert not control & set(ids)
    assert tokenizer.decode(ids) == sample


@settings(deadline=None)
@given(hostile_text)
def test_row_38_user_text_never_yields_control_ids_with_tokenizer_json(json_tokenizer, sample):
    ids = json_tokenizer.encode(sample)
    control = set(json_tokenizer.special_tokens.values()) - {json_tokenizer.token_to_id("<unk>")}
    assert not control & set(ids)
    assert json_tokenizer.decode(ids) == sample


def test_typed_placeholder_is_text(tokenizer):
    assert tokenizer.decode(tokenizer.encode("<|IMAGE_PLACEHOLDER|>")) == "<|IMAGE_PLACEHOLDER|>"
    assert tokenizer.encode_with_special("<|IMAGE_PLACEHOLDER|>") == [
        ADDED["<|IMAGE_PLACEHOLDER|>"]
    ]


@settings(deadline=None)
@given(st.sets(st.text("ab<|>", min_size=2, max_size=6), min_size=1, max_size=8), st.text("ab<|>"))
def test_matcher_is_leftmost_longest(tokens, sample):
    def expected():
        position = 0
        while position < len(sample):
            found = max(
                (t for t in tokens if sample.startswith(t, position)), key=len, default=None
            )
            if found:
                yield position, found
            position += len(found or "x")

    got, position = [], 0
    for part, special in TokenMatcher(tokens).split(sample):
        if special:
            got.append((position, part))
        position += len(part)
    assert got == list(expected())
    assert position == len(sample)


@settings(deadline=None)
@given(
    st.sets(st.text("ab<|>", min_size=2, max_size=5), min_size=1, max_size=6),
    st.lists(st.text("ab<|>", max_size=5), max_size=5),
)
def test_guarded_strings_form_no_token_however_they_are_joined(tokens, strings):
    matcher = TokenMatcher(tokens)
    guard = TextGuard(matcher, strings)
    joined = "".join(guard.protect(strings))
    plain = "".join(strings)
    assert not any(part.special for part in matcher.split(joined))
    assert guard.split(joined) == ((Segment(plain, False),) if plain else ())


def test_matcher_is_linear_in_hostile_text():
    matcher = TokenMatcher([f"<|LOC_{index}|>" for index in range(1001)])
    # A thousand alternatives tried at each "<|LOC_" would need minutes.
    assert len(matcher.split("<|LOC_" * 100_000)) == 1


# --------------------------------------------------------------------- rows 34..37: text and ids


def test_row_37_lone_surrogate(tokenizer):
    with pytest.raises(InputError, match=r"text: lone surrogate U\+D83D at position 3"):
        tokenizer.encode("abc\ud83d")


def test_text_of_the_wrong_type(tokenizer):
    with pytest.raises(TypeError, match="text: expected a str, got bytes"):
        tokenizer.encode(b"abc")


@pytest.mark.parametrize("sample", ["x" * (MAX_TEXT_BYTES + 1), "é" * (MAX_TEXT_BYTES // 2 + 1)])
def test_text_too_long(tokenizer, sample):
    with pytest.raises(LimitError, match="text: expected at most 16777216 bytes"):
        tokenizer.encode(sample)


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE, 2**63])
def test_row_36_id_out_of_range(tokenizer, token_id):
    with pytest.raises(InputError, match=rf"expected 0..{VOCAB_SIZE - 1}, got {token_id}"):
        tokenizer.decode([1, token_id])


def test_segment_that_is_no_special_token(tokenizer):
    with pytest.raises(InputError, match="'<nope>' is no special token"):
        tokenizer.encode_prompt([Segment("<nope>", True)])


# --------------------------------------------------------------------------- the real tokenizer


@pytest.mark.skipif(
    "ERNIE_TEST_TOKENIZER" not in os.environ,
    reason="set ERNIE_TEST_TOKENIZER to a folder with ERNIE-4.5's tokenizer.model",
)
def test_published_vectors():
    folder = Path(os.environ["ERNIE_TEST_TOKENIZER"])
    tokenizer = load_tokenizer(folder, 103424)
    vectors = json.loads(GOLDEN.read_text())
    for sample, ids in vectors["text_tokenizer_no_special_added"]:
        assert tokenizer.encode_with_special(sample) == ids
    template = load_chat_template(folder, tokenizer)
    for messages, ids in vectors["text_chat_template_no_generation_prompt"]:
        prompt = template.render(messages, add_generation_prompt=False)
        assert tokenizer.encode_prompt(prompt.segments) == ids
    for token, token_id in vectors["single_ids"].items():
        if "only:" not in token:
            assert tokenizer.token_to_id(token) == token_id
