"""Bugs of attention."""

from __future__ import annotations

from bug import ATTENTION, Bug

BUGS = [
    Bug(
        "attention: one key too many",
        "csrc/cpu/attention.cpp",
        "seq_len(s) - query_len(s) + i + 1 :",
        "seq_len(s) - query_len(s) + i + 2 :",
        ATTENTION,
    ),
    Bug(
        "attention: key pairs swapped",
        "csrc/cpu/attention.isa.cpp",
        "out[d / 2 * 2 * kPanelKeys + 2 * i + d % 2]",
        "out[d / 2 * 2 * kPanelKeys + 2 * i + 1 - d % 2]",
        ATTENTION,
    ),
    Bug(
        "attention: value pairs swapped",
        "csrc/cpu/attention.isa.cpp",
        "    pair[1] = d < head_dim && second ? second[d] : bf16{};\n",
        "    pair[1] = d < head_dim && second ? first[d] : bf16{};\n",
        ATTENTION,
    ),
    Bug(
        "attention: hidden infinities multiplied by zero",
        "csrc/cpu/attention.cpp",
        "      if (finite)\n",
        "      if (finite || key > 0)\n",
        ATTENTION,
    ),
    Bug(
        "attention: minus zero from hidden values",
        "csrc/cpu/attention.isa.cpp",
        "add(load_n(acc + i, m), set(0.f));",
        "load_n(acc + i, m);",
        ATTENTION,
    ),
    Bug(
        "attention: probabilities rounded before the sum",
        "csrc/cpu/attention.isa.cpp",
        "      total = add(total, p[i]);\n",
        "      total = add(total, round_to(p[i], static_cast<const bf16*>(nullptr)));\n",
        ATTENTION,
    ),
    Bug(
        "attention: wrong kv head of a group",
        "csrc/cpu/attention.cpp",
        "(tile.kv_head * s_.group + g) * t.step(1)",
        "(tile.kv_head + g * a_.k_cache.size(1)) * t.step(1)",
        ATTENTION,
    ),
    Bug(
        "attention: sum not rescaled to the new maximum",
        "csrc/cpu/attention.isa.cpp",
        "      t.sum[r] *= t.shrink[r];\n",
        "",
        ATTENTION,
    ),
    Bug(
        "attention: outputs not rescaled",
        "csrc/cpu/attention.isa.cpp",
        "      scale_row(t.acc + r * t.width, t.width, t.shrink[r]);\n",
        "",
        ATTENTION,
    ),
    Bug(
        "attention: splits merged without their maximum",
        "csrc/cpu/attention.isa.cpp",
        "take = exp1(maximum - now);",
        "take = 1.f;",
        ATTENTION,
    ),
    Bug(
        "attention: causal even where it should not be",
        "csrc/cpu/attention.cpp",
        "seq_len(s) - query_len(s) + i + 1 : seq_len(s);",
        "seq_len(s) - query_len(s) + i + 1 : seq_len(s) - query_len(s) + i + 1;",
        ATTENTION,
    ),
    Bug(
        "attention: page table ignored",
        "csrc/cpu/attention.cpp",
        "const int64_t block = block_id(tile.seq, key / s_.block_size);",
        "const int64_t block = key / s_.block_size;",
        ATTENTION,
    ),
    Bug(
        "attention: split length depends on the length",
        "csrc/cpu/attention.cpp",
        "const int64_t end = std::min(begin + kAttentionSplit, tile_limit(tile));",
        "const int64_t end = tile.tokens > 1 && split == 0 ? tile_limit(tile)"
        " : std::min(begin + kAttentionSplit, tile_limit(tile));\n"
        "    if (tile.tokens > 1 && split > 0) return;",
        ATTENTION,
    ),
    Bug(
        "attention: block ids not checked",
        "csrc/cpu/attention.cpp",
        "block_id(s, b) >= a_.k_cache.size(0)",
        "block_id(s, b) > a_.k_cache.size(0) + 1000",
        ATTENTION,
    ),
    Bug(
        "attention: odd head_dim tail dropped",
        "csrc/cpu/attention.isa.cpp",
        "for (; d < head_dim; ++d)\n      for (int64_t i = 0; i < W; ++i)\n",
        "for (; d + 1 < head_dim; ++d)\n      for (int64_t i = 0; i < W; ++i)\n",
        ATTENTION,
    ),
]
