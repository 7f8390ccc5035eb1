"""Bugs of attention."""

from __future__ import annotations

from bug import ATTENTION, VARLEN_ATTENTION, Bug

BUGS = [
    Bug(
        "attention: one key too many",
        "csrc/cpu/attention_tiles.h",
        "keys_.count(s) - q_.count(s) + i + 1 :",
        "keys_.count(s) - q_.count(s) + i + 2 :",
        ATTENTION,
    ),
    Bug(
        "attention: key pairs swapped",
        "csrc/cpu/attention.isa.cpp",
        "_mm512_castps_si512(rows[i].v));\n  }\n#else",
        "_mm512_rol_epi32(_mm512_castps_si512(rows[i].v), 16));\n  }\n#else",
        ATTENTION,
    ),
    Bug(
        "attention: the last pair of a key left out",
        "csrc/cpu/attention.isa.cpp",
        "const auto present = static_cast<__mmask16>((1u << words) - 1);",
        "const auto present = static_cast<__mmask16>((1u << words >> (words < kWords)) - 1);",
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
        "csrc/cpu/attention_tiles.h",
        "      if (finite || !q_.causal)\n",
        "      if (finite || !q_.causal || key > 0)\n",
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
        "csrc/cpu/attention_tiles.h",
        "(tile.kv_head * s_.group + g) * t.step(1)",
        "(tile.kv_head + g * keys_.num_kv_heads()) * t.step(1)",
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
        "csrc/cpu/attention_tiles.h",
        "keys_.count(s) - q_.count(s) + i + 1 : keys_.count(s);",
        "keys_.count(s) - q_.count(s) + i + 1 : keys_.count(s) - q_.count(s) + i + 1;",
        ATTENTION,
    ),
    Bug(
        "attention: page table ignored",
        "csrc/cpu/attention.cpp",
        "const int64_t block = block_id(s, key / block_size_);",
        "const int64_t block = key / block_size_;",
        ATTENTION,
    ),
    Bug(
        "attention: split length depends on the length",
        "csrc/cpu/attention_tiles.h",
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
    Bug(
        "varlen_attention: keys of the first segment for all",
        "csrc/cpu/attention.cpp",
        "const int64_t token = queries_.first_row(s) + key;",
        "const int64_t token = key;",
        VARLEN_ATTENTION,
    ),
    Bug(
        "varlen_attention: values lie as keys do",
        "csrc/cpu/attention.cpp",
        "return rows(a_.value, s, kv_head, key);",
        "return {rows(a_.value, s, kv_head, key).first, a_.key.step(0)};",
        VARLEN_ATTENTION,
    ),
    Bug(
        "varlen_attention: causal",
        "csrc/cpu/attention.cpp",
        ".causal = false};",
        ".causal = true};",
        VARLEN_ATTENTION,
    ),
    Bug(
        "varlen_attention: output may lie over the keys",
        "csrc/ops/attention.cpp",
        "for (const auto& [name, t] : inputs) check.disjoint",
        "for (const auto& [name, t] : inputs) if (name[0] != 'k') check.disjoint",
        VARLEN_ATTENTION,
    ),
    Bug(
        "varlen_attention: lengths of no rows not looked at",
        "csrc/ops/attention.cpp",
        "return out.numel() == 0 && stream.device.type == DeviceType::kCuda;",
        "return out.numel() == 0 && stream.device.index >= 0;",
        VARLEN_ATTENTION,
    ),
    Bug(
        "varlen_attention: segments that go back",
        "csrc/cpu/attention_tiles.h",
        'if (count(s) < 0) fail(argument, "non-decreasing values", count(s), s);',
        "",
        VARLEN_ATTENTION,
    ),
]
