"""Bugs of activation, embedding, rope and the cache's writes."""

from __future__ import annotations

from backends import BEYOND, MISALIGNED, RACE, WRONG
from bug import ACTIVATION, EMBEDDING, KV_CACHE, ROPE, Bug

ROPE_CU = "csrc/cuda/rope.cu"
ACTIVATION_CU = "csrc/cuda/activation.cu"
EMBEDDING_CU = "csrc/cuda/embedding.cu"
KV_CACHE_CU = "csrc/cuda/kv_cache.cu"

BUGS = [
    Bug(
        "activation: 16-byte loads whatever the address",
        ACTIVATION_CU,
        "if (left >= Vec<T>::kSize && aligned16(o, g, u))",
        "if (left >= Vec<T>::kSize)",
        ACTIVATION,
        (MISALIGNED,),
    ),
    Bug(
        "activation: up one element too far",
        ACTIVATION_CU,
        "const T* u = g + intermediate_size;",
        "const T* u = g + intermediate_size + 1;",
        ACTIVATION,
        (BEYOND,),
    ),
    Bug(
        "activation: steps of threads where threads have vectors",
        ACTIVATION_CU,
        "const int64_t step = int64_t{gridDim.y} * kThreads * kSize;",
        "const int64_t step = int64_t{gridDim.y} * kThreads;",
        ACTIVATION,
        (RACE,),
    ),
    Bug(
        "activation: 16-byte stores whatever the address",
        ACTIVATION_CU,
        "if (left >= Vec<T>::kSize && aligned16(o, from))",
        "if (left >= Vec<T>::kSize && aligned16(from))",
        ACTIVATION,
        (MISALIGNED,),
    ),
    Bug(
        "activation: a kernel's gelu without its far end",
        "csrc/cuda/activation_functions.cuh",
        "const float t = fminf(fabsf(x), kGeluFar);",
        "const float t = fabsf(x);",
        ACTIVATION,
        (WRONG,),
        ACTIVATION_CU,
    ),
    Bug(
        "embedding: ids not held against the table",
        EMBEDDING_CU,
        "const bool known = id >= 0 && id < vocab_size;",
        "const bool known = id >= 0;",
        EMBEDDING,
        (BEYOND,),
    ),
    Bug(
        "embedding: second vector of a piece as long as the first",
        EMBEDDING_CU,
        "load_vec<kWide>(row + i, left - i);",
        "load_vec<kWide>(row + i, left);",
        EMBEDDING,
        (BEYOND,),
    ),
    Bug(
        "embedding: 16-byte stores whatever the address",
        EMBEDDING_CU,
        "aligned16(o) && row_aligned)",
        "row_aligned)",
        EMBEDDING,
        (MISALIGNED,),
    ),
    Bug(
        "rope: key heads counted from the first query head",
        ROPE_CU,
        "key.data + (head - query.num_heads) * key.head_stride;",
        "key.data + head * key.head_stride;",
        ROPE,
        (BEYOND, RACE),
    ),
    Bug(
        "rope: 16-byte loads whatever the address",
        ROPE_CU,
        "if (left >= kSize && aligned16(x, angles))",
        "if (left >= kSize)",
        ROPE,
        (MISALIGNED,),
    ),
    Bug(
        "rope: whole vectors to the head's end",
        ROPE_CU,
        "if (left >= kSize && aligned16(x, angles))",
        "if (aligned16(x, angles))",
        ROPE,
        (BEYOND, RACE),
    ),
    Bug(
        "rope: the first token's angles for all",
        ROPE_CU,
        "const float* angles = table + t * head_dim + i;",
        "const float* angles = table + i;",
        ROPE,
        (WRONG,),
    ),
    Bug(
        "rope: the second half wherever the first is aligned",
        ROPE_CU,
        "aligned16(x, x + span, angles, angles + span)",
        "aligned16(x, angles, angles + span)",
        ROPE,
        (MISALIGNED,),
    ),
    Bug(
        "rope: halves to the head's end",
        ROPE_CU,
        "const int64_t span = kPairing == Pairing::kHalves ? head_dim / 2 : head_dim;\n"
        "  const int64_t pieces",
        "const int64_t span = head_dim;\n  const int64_t pieces",
        ROPE,
        (BEYOND, RACE),
    ),
    Bug(
        "rope: the positions of another axis",
        ROPE_CU,
        "positions[pair.axis * num_tokens + t]",
        "positions[pair.axis + t]",
        ROPE,
        (WRONG,),
    ),
    Bug(
        "kv_cache_write: slots not held against the cache",
        KV_CACHE_CU,
        "if (slot < 0 || slot >= num_slots) continue;",
        "if (slot < 0) continue;",
        KV_CACHE,
        (BEYOND,),
    ),
    Bug(
        "kv_cache_write: every block writes all of a token",
        KV_CACHE_CU,
        "  const int64_t step = int64_t{gridDim.y} * kThreads;\n"
        "  for (int64_t t = blockIdx.x; t < num_tokens",
        "  const int64_t step = kThreads;\n  for (int64_t t = blockIdx.x; t < num_tokens",
        KV_CACHE,
        (RACE,),
    ),
    Bug(
        "kv_cache_copy_blocks: blocks not held against the cache",
        KV_CACHE_CU,
        "if (from < 0 || from >= num_blocks || to < 0 || to >= num_blocks) continue;",
        "if (from < 0 || to < 0) continue;",
        KV_CACHE,
        (BEYOND,),
    ),
    Bug(
        "kv_cache_copy_blocks: both copies in the key cache",
        KV_CACHE_CU,
        "Unit* cache = blockIdx.z == 0 ? k_cache : v_cache;",
        "Unit* cache = blockIdx.y == 0 ? k_cache : v_cache;",
        KV_CACHE,
        (RACE,),
    ),
]
