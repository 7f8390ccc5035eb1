"""The reader of safetensors files: what it accepts, and what each kind of broken file gets."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ernie_kernels
from ernie_kernels import _core
from ernie_kernels.errors import FormatError, UnsupportedError
from safetensors_bytes import BFLOAT16, encode, entry, file_of, with_length

FLOAT32 = {"a": entry("F32", [2, 2], 0, 16)}
DATA = bytes(range(16))


def open_bytes(tmp_path: Path, content: bytes, **limits: int):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return _core.SafetensorsFile(os.fsencode(path), **limits)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# ------------------------------------------------------------------------------ what is accepted


def test_reads_tensors_and_metadata(tmp_path, rng):
    tensors = {
        "weight": rng.standard_normal((3, 5), np.float32),
        "bias": rng.standard_normal(4).astype(BFLOAT16),
        "count": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float16),
    }
    file = open_bytes(tmp_path, encode(tensors, {"format": "pt", "note": 'é\n"\\😀'}))
    assert file.names == sorted(tensors)
    assert file.metadata == {"format": "pt", "note": 'é\n"\\😀'}
    assert file.info("weight") == ("F32", (3, 5), 60)
    assert file.info("count") == ("I64", (), 8)
    for name, array in tensors.items():
        read = file.read(name).numpy()
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)
        into = np.full(array.nbytes, 0xA5, np.uint8)
        file.read_into(name, into)
        assert into.tobytes() == array.tobytes()


def test_read_into_takes_a_part_of_a_tensor(tmp_path):
    file = open_bytes(tmp_path, file_of(FLOAT32, DATA))
    part = np.zeros(5, np.uint8)
    file.read_into("a", part, 3)
    assert part.tobytes() == DATA[3:8]
    with pytest.raises(FormatError, match=r"tensor 'a': cannot read 5 bytes at 12 of 16"):
        file.read_into("a", part, 12)
    with pytest.raises(KeyError, match=r"has no tensor 'b'"):
        file.info("b")


@pytest.mark.parametrize(
    "header",
    [
        b'{ "a" : { "shape" :[2 ,2], "data_offsets":\t[0,16],"dtype":"F32"} }   \r\n ',
        b'{"\\u0061":{"dtype":"\\u0046\\u00332","shape":[2,2],"data_offsets":[0,16]}}',
        b'{"__metadata__":{},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}',
    ],
    ids=["white space", "escapes", "empty metadata"],
)
def test_spellings_of_one_header(tmp_path, header):
    file = open_bytes(tmp_path, with_length(header, DATA))
    assert (file.names, file.info("a")) == (["a"], ("F32", (2, 2), 16))


def test_no_tensors_and_no_data_is_a_file(tmp_path):
    assert open_bytes(tmp_path, with_length(b"{}")).names == []


def test_eight_bit_floats_are_read_as_bytes_and_smaller_ones_refused(tmp_path):
    header = {"f8": entry("F8_E4M3", [2], 0, 2), "f4": entry("F4", [4], 2, 4)}
    file = open_bytes(tmp_path, file_of(header, b"\1\2\3\4"))
    assert file.read("f8").numpy().tolist() == [1, 2]
    with pytest.raises(UnsupportedError, match="F4"):
        file.read("f4")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize("count", [0, 1, 31, 16384, 16385, 40_000])  # the native block is 16,384
def test_counts_non_finite_values(rng, dtype, count):
    values = rng.standard_normal(count).astype(np.float32)
    for some in (0, 1, 5, count):
        values[rng.permutation(count)[:some]] = np.resize(
            [np.nan, np.inf, -np.inf], min(some, count)
        )
        where = np.flatnonzero(~np.isfinite(values))
        expected = (len(where), where[0] if len(where) else -1)
        assert _core.count_nonfinite(values.astype(dtype)) == expected
    with pytest.raises(
        ValueError, match="values: expected float32 or float16 or bfloat16, got int"
    ):
        _core.count_nonfinite(np.zeros(3, np.int32))


# -------------------------------------------------------------------------------- what is refused

NESTED = b'{"a":' + b"[" * 100_000
ROWS = [
    ("row 1 empty", b"", r"has 0 bytes.*needs at least 8 bytes"),
    ("row 1 short", b"1234567", r"has 7 bytes.*needs at least 8 bytes"),
    ("row 2", struct.pack("<Q", 1000) + b"{}", r"claims a header of 1000 bytes, only 2 are"),
    ("row 3 huge", struct.pack("<Q", 2**62) + b"{}", rf"{2**62} bytes, the limit is {32 << 20}"),
    ("row 3 all ones", b"\xff" * 9, rf"claims a header of {2**64 - 1} bytes, the limit"),
    ("row 4 length 0", bytes(8), r"byte 0: bad JSON: expected '\{', got an empty header"),
    ("row 4 space first", with_length(b" {}"), r"byte 0: bad JSON: expected '\{', got ' '"),
    ("row 4 list", with_length(b"[]"), r"byte 0: bad JSON"),
    ("row 4 UTF-8", with_length(b'{"a\xff":1}'), r"byte 3: not valid UTF-8"),
    ("row 4 overlong", with_length(b'{"\xc0\xaf":1}'), r"byte 2: not valid UTF-8"),
    ("row 4 surrogate bytes", with_length(b'{"\xed\xa0\x80":1}'), r"byte 2: not valid UTF-8"),
    ("row 4 cut UTF-8", with_length(b'{"\xf0\x9f\x98'), r"byte 2: not valid UTF-8"),
    ("row 4 half pair", with_length(b'{"\\ud800":1}'), r"byte \d+: bad JSON: half of a surrogate"),
    ("row 4 low first", with_length(b'{"\\udc00":1}'), r"half of a surrogate pair"),
    ("row 4 escape", with_length(b'{"\\x":1}'), r"byte 2: bad JSON: unknown escape"),
    ("row 4 hex", with_length(b'{"\\u00g0":1}'), r"four hexadecimal digits"),
    ("row 4 raw control", with_length(b'{"a\n":1}'), r"control character in a string"),
    ("row 4 open", with_length(b"{"), r"byte 1: .*expected a key in quotes, got the end"),
    ("row 4 open string", with_length(b'{"a'), r"string without end"),
    ("row 4 open escape", with_length(b'{"a\\'), r"string without end"),
    ("row 4 trailing comma", with_length(b'{"__metadata__":{},}'), r"expected a key in quotes"),
    ("row 4 text behind", with_length(b"{}{}"), r"text after the closing brace"),
    ("row 4 NUL behind", with_length(b"{}\0"), r"text after the closing brace"),
    ("row 4 value", with_length(b'{"a":1}'), r"byte 5: bad JSON: expected '\{', got '1'"),
    ("row 4 deep", with_length(NESTED), r"byte 5: bad JSON: expected '\{', got '\['"),
    (
        "row 4 deep shape",
        with_length(b'{"a":{"shape":' + b"[" * 50_000),
        r"byte 15: bad JSON: expected a number, got '\['",
    ),
    ("row 4 leading zero", file_of(FLOAT32, DATA).replace(b"[2,2]", b"[042]"), r"leading zero"),
    (
        "row 5 name",
        with_length(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
            b"12",
        ),
        r"duplicate tensor 'a'",
    ),
    (
        "row 5 field",
        with_length(b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
        r"tensor 'a': duplicate field 'dtype'",
    ),
    (
        "row 5 metadata",
        with_length(b'{"__metadata__":{},"__metadata__":{}}'),
        r"duplicate field '__metadata__'",
    ),
    (
        "row 5 metadata key",
        with_length(b'{"__metadata__":{"k":"1","l":"","k":"2"}}'),
        r"__metadata__: duplicate field 'k'",
    ),
    ("row 6 unknown", file_of({"a": FLOAT32["a"] | {"x": 1}}, DATA), r"'a': unknown field 'x'"),
    ("row 6 no dtype", file_of({"a": {"shape": [1]}}), r"'a': missing field 'dtype'"),
    ("row 6 no shape", file_of({"a": {"dtype": "U8"}}), r"'a': missing field 'shape'"),
    (
        "row 6 no offsets",
        file_of({"a": {"dtype": "U8", "shape": [1]}}),
        r"'a': missing field 'data_offsets'",
    ),
    ("row 6 metadata", file_of({"__metadata__": {"k": 1}}), r"a string as metadata value, got '1'"),
    ("row 6 metadata null", file_of({"__metadata__": None}), r"expected '\{', got 'n'"),
    ("row 7", file_of({"a": entry("F31", [1], 0, 4)}, b"1234"), r"'a': unknown dtype 'F31'.*BF16"),
    ("row 7 case", file_of({"a": entry("f32", [1], 0, 4)}, b"1234"), r"unknown dtype 'f32'"),
    ("row 7 number", file_of({"a": entry(32, [1], 0, 4)}, b"1234"), r"a string as dtype, got '3'"),
    ("row 8 negative", file_of({"a": entry("U8", [-1], 0, 1)}, b"1"), r"shape\[0\].*got '-1'"),
    ("row 8 minus zero", file_of(FLOAT32, DATA).replace(b"[2,2]", b"[-0,]"), r"shape\[0\].*'-0'"),
    ("row 8 fraction", file_of({"a": entry("U8", [1.5], 0, 1)}, b"1"), r"shape\[0\].*got '1.5'"),
    ("row 8 whole float", file_of({"a": entry("U8", [1, 1.0], 0, 1)}, b"1"), r"shape\[1\].*'1.0'"),
    ("row 8 exponent", file_of(FLOAT32, DATA).replace(b"[2,2]", b"[4e0]"), r"shape\[0\].*'4e0'"),
    ("row 8 2^63", file_of({"a": entry("U8", [0, 2**63], 0, 0)}), r"'a': shape\[1\].*'92233720368"),
    ("row 8 2^64", file_of({"a": entry("U8", [1], 2**64, 1)}), r"data_offsets\[0\].*'18446744073"),
    ("row 8 2^64+1", file_of({"a": entry("U8", [1], 0, 2**64 + 1)}, b"1"), r"data_offsets\[1\]"),
    ("row 8 rank", file_of({"a": entry("U8", [1] * 9, 0, 1)}, b"1"), r"'a': .*more than 8 dimen"),
    (
        "row 9 product",
        file_of({"a": entry("U8", [2**32, 2**32], 0, 0)}),
        r"'a': shape \[4294967296, 4294967296\] of U8 overflows 64 bits",
    ),
    ("row 9 bytes", file_of({"a": entry("F64", [2**61], 0, 0)}), r"of F64 overflows 64 bits"),
    ("row 9 half byte", file_of({"a": entry("F4", [3], 0, 2)}, b"12"), r"F4 is 12 bits, not whole"),
    ("row 9 six bits", file_of({"a": entry("F6_E2M3", [2], 0, 2)}, b"12"), r"is 12 bits"),
    (
        "row 10 overlap",
        file_of({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, b"123"),
        r"tensor 'b' \[1, 3\) overlaps tensor 'a' \[0, 2\)",
    ),
    (
        "row 10 same range",
        file_of({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 0, 2)}, b"12"),
        r"\[0, 2\) overlaps tensor '.' \[0, 2\)",
    ),
    (
        "row 10 gap",
        file_of({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"123"),
        r"tensor 'b' \[2, 3\) leaves a gap after tensor 'a' \[0, 1\)",
    ),
    (
        "row 10 gap at the start",
        file_of({"a": entry("U8", [1], 1, 2)}, b"12"),
        r"'a' \[1, 2\) leaves a gap after the start of the data",
    ),
    (
        "row 10 begin > end",
        file_of({"a": entry("U8", [1], 2, 1)}, b"123"),
        r"'a': data_offsets \[2, 1\): begin is behind end",
    ),
    (
        "row 10 beyond",
        file_of({"a": entry("U8", [4], 0, 4)}, b"123"),
        r"'a': data_offsets \[0, 4\): beyond data \(the file has 3 bytes of data\)",
    ),
    ("row 10 one number", file_of(FLOAT32, DATA).replace(b"[0,16]", b"[   0]"), r"got 1"),
    (
        "row 10 three",
        file_of({"a": entry("U8", [1], 0, 1) | {"data_offsets": [0, 1, 1]}}),
        r"got more",
    ),
    (
        "row 11",
        file_of({"a": entry("F32", [2, 2], 0, 12)}, DATA[:12]),
        r"'a': data_offsets \[0, 12\) hold 12 bytes, expected 16 for shape \[2, 2\] of F32",
    ),
    ("row 12", file_of(FLOAT32, DATA + b"xyz"), r"3 bytes after the last tensor"),
    ("row 12 no tensors", with_length(b"{}", b"x"), r"1 bytes after the last tensor"),
    (
        "row 13 empty beyond",
        file_of({"a": entry("U8", [0], 1, 1)}),
        r"\[1, 1\): beyond data",
    ),
    (
        "row 13 empty inside another",
        file_of({"a": entry("U8", [4], 0, 4), "b": entry("U8", [0], 2, 2)}, b"1234"),
        r"tensor 'b' \[2, 2\) overlaps tensor 'a'",
    ),
    ("row 14 name", file_of({"n" * 513: entry("U8", [0], 0, 0)}), r"has 513 bytes, the limit is 5"),
    ("row 14 NUL", file_of({"a\0b": entry("U8", [0], 0, 0)}), r"'a\\x00b' has a control character"),
    ("row 14 DEL", file_of({"\x7f": entry("U8", [0], 0, 0)}), r"'\\x7f' has a control character"),
    ("row 14 C1", file_of({"\x85": entry("U8", [0], 0, 0)}), r"'\\xc2\\x85' has a control"),
    ("row 14 dots", file_of({"../a": entry("U8", [0], 0, 0)}), r"name '\.\./a' has '\.\.'"),
]


@pytest.mark.parametrize(("content", "pattern"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_refuses(tmp_path, content, pattern):
    descriptors = open_descriptors()
    with pytest.raises(FormatError, match=pattern) as caught:
        open_bytes(tmp_path, content)
    message = str(caught.value)
    assert message.startswith("model.safetensors: ")
    assert str(tmp_path) not in message
    assert len(message) <= 512
    assert open_descriptors() == descriptors


def test_limits_can_be_lowered(tmp_path):
    content = encode({"aaaa": np.zeros(2, np.uint8), "bbbb": np.zeros(2, np.uint8)})
    open_bytes(tmp_path, content, max_tensors=2, max_name_bytes=4)
    with pytest.raises(FormatError, match="more tensors than the limit of 1"):
        open_bytes(tmp_path, content, max_tensors=1)
    with pytest.raises(FormatError, match="'aaaa' has 4 bytes, the limit is 3"):
        open_bytes(tmp_path, content, max_name_bytes=3)
    with pytest.raises(FormatError, match="the limit is 10"):
        open_bytes(tmp_path, content, max_header_bytes=10)


def test_the_formats_own_cap_on_the_header_stays(tmp_path):
    content = struct.pack("<Q", 100_000_001) + b"{}"
    with pytest.raises(FormatError, match="the limit is 100000000"):
        open_bytes(tmp_path, content, max_header_bytes=2**40)


def test_messages_escape_and_cut_names(tmp_path):
    name = "\u202e" * 150 + "'"
    file = {name: entry("F32", [1] * 8, 0, 1)}
    path = tmp_path / ("\n" + "é" * 100 + ".safetensors")
    path.write_bytes(file_of(file, b"1"))
    with pytest.raises(FormatError) as caught:
        _core.SafetensorsFile(os.fsencode(path))
    message = str(caught.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) <= 512


# ---------------------------------------------------------------------- files that are not plain


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda p: None, "cannot open: ENOENT"),
        (lambda p: p.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda p: p.symlink_to(p), "cannot open: ELOOP"),
    ],
    ids=["missing", "folder", "pipe", "link to itself"],
)
def test_refuses_what_is_no_regular_file(tmp_path, make, pattern):
    path = tmp_path / "model.safetensors"
    make(path)
    descriptors = open_descriptors()
    with pytest.raises(FormatError, match=rf"model.safetensors: {pattern}"):
        _core.SafetensorsFile(os.fsencode(path))
    assert open_descriptors() == descriptors


def test_a_path_with_a_nul_character_is_refused():
    with pytest.raises(FormatError, match="NUL"):
        _core.SafetensorsFile(b"/tmp/a\0b")


def test_closing_releases_the_descriptor(tmp_path):
    descriptors = open_descriptors()
    file = open_bytes(tmp_path, file_of(FLOAT32, DATA))
    assert open_descriptors() == descriptors + 1
    del file
    assert open_descriptors() == descriptors


@pytest.mark.parametrize("change", ["shrinks", "grows", "is rewritten"])
def test_row_15_file_changes_while_open(tmp_path, change):
    file = open_bytes(tmp_path, file_of(FLOAT32, DATA))
    path = tmp_path / "model.safetensors"
    if change == "shrinks":
        os.truncate(path, path.stat().st_size - 4)
    elif change == "grows":
        with path.open("ab") as out:
            out.write(b"x")
    else:
        stamp = path.stat().st_mtime_ns + 1_000_000
        os.utime(path, ns=(stamp, stamp))
    out = np.zeros(16, np.uint8)
    for _ in range(2):
        with pytest.raises(FormatError, match=r"model.safetensors: changed while reading"):
            file.read_into("a", out)


# Makes pread64 fail with EIO for this process: the kernel's own filter, nothing replaced in ours.
READ_FAULT = """
import ctypes, os, platform, struct, sys
import numpy as np
from ernie_kernels import _core
from ernie_kernels.errors import FormatError

def fail_reads():
    call = {"x86_64": 17, "aarch64": 67}[platform.machine()]
    rules = [(0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x50000 | 5), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *rule) for rule in rules))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(rules), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0):
        sys.exit(77)
    return code, program

path = os.fsencode(sys.argv[2])
file = _core.SafetensorsFile(path)
descriptors = len(os.listdir("/proc/self/fd"))
keep = fail_reads()
try:
    if sys.argv[1] == "open":
        _core.SafetensorsFile(path)
    else:
        file.read_into("a", np.zeros(16, np.uint8))
except FormatError as error:
    assert len(os.listdir("/proc/self/fd")) == descriptors
    print(error)
"""


@pytest.mark.parametrize("when", ["open", "read"])
def test_row_16_read_error(tmp_path, when):
    content = file_of(FLOAT32, DATA)
    open_bytes(tmp_path, content)
    package = Path(ernie_kernels.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", READ_FAULT, when, str(tmp_path / "model.safetensors")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(package)},
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("the kernel grants no system call filter here")
    offset = 0 if when == "open" else len(content) - len(DATA)
    expected = f"model.safetensors: reading at offset {offset} failed: EIO"
    assert done.stdout.strip() == expected, done.stderr


def test_read_into_refuses_memory_it_cannot_fill(tmp_path):
    file = open_bytes(tmp_path, file_of(FLOAT32, DATA))
    frozen = np.zeros(16, np.uint8)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out"):
        file.read_into("a", frozen)
    with pytest.raises(ValueError, match="out"):
        file.read_into("a", np.zeros(32, np.uint8)[::2])
    with pytest.raises(TypeError, match="out"):
        file.read_into("a", b"0123456789abcdef")
