"""Bugs of activation, embedding, rope and the cache's writes."""

from __future__ import annotations

from bug import ACTIVATION, EMBEDDING, KV_CACHE, ROPE, Bug

BUGS = [
    Bug(
        "embedding: odd columns of packed 4 bits beside the even ones",
        "csrc/cpu/embedding.cpp",
        "i % 2 * 16 + i / 2 * 4",
        "i * 4",
        EMBEDDING,
    ),
    Bug(
        "embedding: 4 bits without a sign",
        "csrc/cpu/embedding.cpp",
        "static_cast<int32_t>(bits << 28) >> 28",
        "bits << 28 >> 28",
        EMBEDDING,
    ),
    Bug(
        "embedding: int8 rows by the first row's scale",
        "csrc/cpu/embedding.cpp",
        "a.scale->ptr<float>()[id]",
        "a.scale->ptr<float>()[id / 16]",
        ["tests/ops/test_random_cases.py"],
    ),
    Bug(
        "kv_cache: heads taken as contiguous",
        "csrc/cpu/kv_cache.cpp",
        "row + h * from.step(1) * itemsize",
        "row + h * row_bytes",
        KV_CACHE,
    ),
    Bug(
        "kv_cache: tokens taken as contiguous",
        "csrc/cpu/kv_cache.cpp",
        "t * from.step(0) * itemsize",
        "t * num_heads * row_bytes",
        KV_CACHE,
    ),
    Bug(
        "kv_cache: slot just past the end accepted",
        "csrc/cpu/kv_cache.cpp",
        "slot >= num_slots)",
        "slot > num_slots)",
        KV_CACHE,
    ),
    Bug(
        "embedding: packed rows of another panel",
        "csrc/cpu/embedding.cpp",
        "id / kPanelRows * panel",
        "id / (kPanelRows + 1) * panel",
        EMBEDDING,
    ),
    Bug(
        "embedding: id just past the end accepted",
        "csrc/cpu/embedding.cpp",
        "id >= vocab_size)",
        "id > vocab_size)",
        EMBEDDING,
    ),
    Bug(
        "activation: silu by one exponential, unguarded",
        "csrc/cpu/silu.isa.h",
        "mul(mul(min(zero, v), h), h)",
        "mul(min(zero, v), h)",
        ACTIVATION,
    ),
    Bug(
        "activation: every piece starts at column 0",
        "csrc/cpu/activation.cpp",
        "first = i % pieces * kElementsPerChunk",
        "first = i % 1 * kElementsPerChunk",
        ACTIVATION,
    ),
    Bug(
        "rope: turned the other way",
        "csrc/cpu/rope.cpp",
        "static_cast<float>(std::sin(angle))",
        "static_cast<float>(-std::sin(angle))",
        ROPE,
    ),
    Bug(
        "rope: sine of the wrong lane",
        "csrc/cpu/rope.isa.cpp",
        "sine = seconds(angle)",
        "sine = firsts(angle)",
        ROPE,
    ),
    Bug(
        "rope: overlap of query and key not refused",
        "csrc/ops/rope.cpp",
        'check.disjoint("key", a.key, "query", a.query);',
        "(void)0;",
        ROPE,
    ),
    Bug(
        "rope: overlapping columns taken for neighbours",
        "csrc/core/check.cpp",
        "return last <= next && next_last",
        "return first <= next && next_last",
        ROPE,
    ),
]
