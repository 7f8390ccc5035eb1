"""The bugs that run.py plants: plausible slips, each of which some test must notice."""

from __future__ import annotations

from dataclasses import dataclass

NORM = ["tests/ops/test_norm.py"]
GEMM = ["tests/ops/test_gemm.py"]
ATTENTION = ["tests/ops/test_attention.py"]
KV_CACHE = ["tests/ops/test_kv_cache.py"]
EMBEDDING = ["tests/ops/test_embedding.py"]
WINT8 = ["tests/ops/test_wint8.py"]
ACTIVATION = ["tests/ops/test_activation.py"]
ROPE = ["tests/ops/test_rope.py"]
SAMPLING = ["tests/ops/test_sampling.py"]
MOE = ["tests/ops/test_moe.py"]
TENSOR = ["tests/test_tensor.py"]
PARALLEL = ["tests/test_parallel.py"]
FORWARD = ["tests/models/test_forward.py"]
BLOCK_MANAGER = ["tests/runner/test_block_manager.py"]
SCHEDULER = ["tests/runner/test_scheduler.py"]
LEFTOVERS = ["tests/runner/test_leftovers.py"]
THREADS = ["tests/runner/test_threads.py"]
INTERRUPTS = ["tests/runner/test_interrupts.py"]
GENERATE = ["tests/test_generate.py"]
INVARIANCE = ["tests/runner/test_batch_invariance.py"]


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    old: str  # occurs exactly once in the file
    new: str
    tests: list[str]
    # Of a bug in a CUDA kernel: which checks of the SIMT machine may notice it (backends.py), and
    # the one file to compile again where `file` is a header of many, whose other users then go
    # without the bug.
    checks: tuple[str, ...] = ()
    unit: str = ""


BUGS = [
    Bug(
        "norm: weight before the rounding",
        "csrc/cpu/norm.isa.cpp",
        "const F32 normed = round_to(mul(load_n(x + j, m), scale), x);",
        "const F32 normed = mul(load_n(x + j, m), scale);",
        NORM,
    ),
    Bug(
        "norm: eps outside the root",
        "csrc/cpu/norm.isa.cpp",
        "set(1.f / sqrtf(sum_sq / static_cast<float>(n) + eps))",
        "set(1.f / (sqrtf(sum_sq / static_cast<float>(n)) + eps))",
        NORM,
    ),
    Bug(
        "norm: tail left out of the sum",
        "csrc/cpu/norm.isa.cpp",
        "for (; i < n; ++i) sum_sq += load1(x + i) * load1(x + i);",
        "for (; i + 1 < n; ++i) sum_sq += load1(x + i) * load1(x + i);",
        NORM,
    ),
    Bug(
        "norm: rows taken as contiguous",
        "csrc/cpu/norm.cpp",
        "return t.ptr<T>() + row * t.step(0);",
        "return t.ptr<T>() + row * t.size(1);",
        NORM,
    ),
    Bug(
        "norm: overlap of out and x not refused",
        "csrc/ops/norm.cpp",
        'check.disjoint("out", out, "x", x);',
        "(void)0;",
        NORM,
    ),
    Bug(
        "moe route: probabilities below e^-87 lost",
        "csrc/ops/moe_core.h",
        "0xc2d00000u;  // of -104",
        "0xc2ae0000u;",
        MOE,
    ),
    Bug(
        "moe route: infinities taken for finite",
        "csrc/ops/moe_core.h",
        "< 0x7f800000u;",
        "<= 0x7f800000u;",
        MOE,
    ),
    Bug(
        "moe route: the bias weighs",
        "csrc/cpu/moe.cpp",
        "weights[j] = p[ids[j]];",
        "weights[j] = scores[ids[j]];",
        MOE,
    ),
    Bug(
        "moe route: the bias does not choose",
        "csrc/cpu/moe.cpp",
        "sample_key(scores[e],",
        "sample_key(p[e],",
        MOE,
    ),
    Bug(
        "moe route: every row is flagged",
        "csrc/cpu/moe.cpp",
        "if (!finite && a.flags)",
        "if (a.flags)",
        MOE,
    ),
    Bug(
        "moe route: norm_min not heeded",
        "csrc/cpu/moe.cpp",
        "std::max(sum_of(weights, k), a.norm_min)",
        "sum_of(weights, k)",
        MOE,
    ),
    Bug(
        "moe route: tail left out of the sum",
        "csrc/cpu/moe.isa.cpp",
        "for (int64_t l = 0; i + l < n; ++l)",
        "for (int64_t l = 0; i + l + 1 < n; ++l)",
        MOE,
    ),
    Bug(
        "moe sort: entries of an expert in descending order",
        "csrc/cpu/moe.cpp",
        "for (int64_t i = num_entries - 1; i >= 0; --i)",
        "for (int64_t i = 0; i < num_entries; ++i)",
        MOE,
    ),
    Bug(
        "moe sort: the id after the last passes",
        "csrc/cpu/moe.cpp",
        "ids[i] >= a.num_experts",
        "ids[i] > a.num_experts",
        MOE,
    ),
    Bug(
        "moe sort: slots for tokens",
        "csrc/cpu/moe.cpp",
        "static_cast<int32_t>(i / top_k);",
        "static_cast<int32_t>(i % top_k);",
        MOE,
    ),
    Bug(
        "moe dispatch: rows taken as contiguous",
        "csrc/cpu/moe.cpp",
        "t * a.hidden_states.step(0) * itemsize",
        "t * row_bytes",
        MOE,
    ),
    Bug(
        "moe combine: shared experts left out of the tail",
        "csrc/cpu/moe.isa.cpp",
        "if (shared != nullptr) acc = add(acc, load_n(",
        "if (false) acc = add(acc, load_n(",
        MOE,
    ),
    Bug(
        "moe combine: the place after the last passes",
        "csrc/cpu/moe.cpp",
        "places[i] >= num_entries",
        "places[i] > num_entries",
        MOE,
    ),
    Bug(
        "moe combine: overlap of out and shared not refused",
        "csrc/ops/moe.cpp",
        "in_place ? nullptr : shared",
        "nullptr",
        MOE,
    ),
    Bug(
        "linear: first of a bfloat16 pair used twice",
        "csrc/cpu/gemm.isa.cpp",
        "half_step<true>(acc, x, x_stride, w, w_stride);",
        "half_step<false>(acc, x, x_stride, w, w_stride);",
        GEMM,
    ),
    Bug(
        "linear: depth blocks start afresh",
        "csrc/cpu/gemm.cpp",
        ".accumulate = k > 0});",
        ".accumulate = false});",
        GEMM,
    ),
    Bug(
        "linear: order of k depends on the rows",
        "csrc/cpu/gemm.isa.cpp",
        "  for (int64_t s = 0; s < steps; ++s, x += advance, w += advance * kPanelRows)\n"
        "    step(acc, x, x_stride, w, w_stride);\n",
        "  int64_t s = 0;\n"
        "  for (; s < (ROWS == 1 ? steps / 2 : steps); ++s, x += advance, w += advance * kPanelRows)\n"
        "    step(acc, x, x_stride, w, w_stride);\n"
        "  F32 rest[ROWS][NV];\n"
        "  for (int r = 0; r < ROWS; ++r)\n"
        "    for (int v = 0; v < NV; ++v) rest[r][v] = set(0.f);\n"
        "  for (; s < steps; ++s, x += advance, w += advance * kPanelRows)\n"
        "    step(rest, x, x_stride, w, w_stride);\n"
        "  for (int r = 0; r < ROWS; ++r)\n"
        "    for (int v = 0; v < NV; ++v) acc[r][v] = add(acc[r][v], rest[r][v]);\n",
        GEMM,
    ),
    Bug(
        "linear: padding of an odd row not cleared",
        "csrc/cpu/gemm.isa.cpp",
        "for (int64_t i = n; i < padded_n; ++i) out[i] = 0.f;",
        "(void)padded_n;",
        GEMM,
    ),
    Bug(
        "linear: last panel one column short",
        "csrc/cpu/gemm_blocks.h",
        "std::min(kWidth, out_features - column)",
        "std::min(kWidth, out_features - column - 1)",
        GEMM,
    ),
    Bug(
        "linear: bias of the first panel for all",
        "csrc/cpu/gemm.cpp",
        "a.bias->ptr<B>() + column : nullptr;\n  for",
        "a.bias->ptr<B>() : nullptr;\n  for",
        GEMM,
    ),
    Bug(
        "linear_silu_and_mul: up rows from the panel's first",
        "csrc/cpu/gemm_blocks.h",
        "finish(gate, up + skip,",
        "finish(gate, up,",
        GEMM,
    ),
    Bug(
        "linear_silu_and_mul: up bias is the gate's",
        "csrc/cpu/gemm.cpp",
        "gate_bias + size : nullptr",
        "gate_bias : nullptr",
        GEMM,
    ),
    Bug(
        "linear_silu_and_mul: projections not rounded",
        "csrc/cpu/gemm.isa.cpp",
        "                    static_cast<T*>(nullptr));\n",
        "                    static_cast<float*>(nullptr));\n",
        GEMM,
    ),
    Bug(
        "wint8: halves rounded towards zero",
        "csrc/cpu/wint8.cpp",
        "(rest >= 0.5f)",
        "(rest > 0.5f)",
        WINT8,
    ),
    Bug(
        "wint8: up rows scaled as the gate's",
        "csrc/cpu/wint8.cpp",
        "scale_row(up, scale + size, columns);",
        "scale_row(up, scale, columns);",
        WINT8,
    ),
    Bug(
        "wint8: shift of the unsigned operand not taken back",
        "csrc/cpu/wint8.isa.cpp",
        "-128 * x_sum",
        "-127 * x_sum",
        WINT8,
    ),
    Bug(
        "wint8: last pair of columns left out",
        "csrc/cpu/wint8.isa.cpp",
        "if (b.k % 4 != 0) pair_step<0>",
        "if (b.k % 4 == 1) pair_step<0>",
        WINT8,
    ),
    Bug(
        "wint8: scale of a row's first columns for all",
        "csrc/cpu/wint8.isa.cpp",
        "g.x_scale += 1;",
        "g.x_scale += 0;",
        WINT8,
    ),
    Bug(
        "wint8: blocks of columns start afresh",
        "csrc/cpu/wint8.cpp",
        ".accumulate = g > 0});",
        ".accumulate = false});",
        WINT8,
    ),
    Bug(
        "wint8: small activations taken as zero",
        "csrc/cpu/quantize_activations.isa.cpp",
        "factor > kMaxFloat",
        "factor > 1e30f",
        WINT8,
    ),
    Bug(
        "embedding: int8 rows by the first row's scale",
        "csrc/cpu/embedding.cpp",
        "a.scale->ptr<float>()[id]",
        "a.scale->ptr<float>()[id / 16]",
        ["tests/ops/test_random_cases.py"],
    ),
    Bug(
        "layers: outputs of the first rows",
        "python/ernie_kernels/runner/batch.py",
        "np.arange(stop - n, stop)",
        "np.arange(stop - n, stop) - stop + lengths[0]",
        FORWARD,
    ),
    Bug(
        "linear: tile of five rows as four",
        "csrc/cpu/tile.isa.h",
        "return tile.template operator()<(kTileRows < 5 ? 1 : 5), PANELS>(row, panel);",
        "return tile.template operator()<(kTileRows < 5 ? 1 : 4), PANELS>(row, panel);",
        GEMM,
    ),
    Bug(
        "pack: rows of an odd matrix shifted",
        "csrc/cpu/gemm.cpp",
        "r < rows && column < k ? weight[r * row_stride + column] : T{}",
        "r < rows && column <= k ? weight[r * row_stride + column] : T{}",
        GEMM,
    ),
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
    Bug(
        "simd: exp loses the low part of ln 2",
        "csrc/cpu/simd.isa.h",
        "r = fma(n, set(-1.42860682030941723212e-6f), r);",
        "",
        ACTIVATION,
    ),
    Bug(
        "simd: bfloat16 truncated instead of rounded",
        "csrc/cpu/simd.isa.h",
        "const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));",
        "const __m512i up = _mm512_add_epi32(u, _mm512_and_epi32(odd, _mm512_setzero_si512()));",
        GEMM,
    ),
    Bug(
        "tensor: a slice forgets its offset",
        "csrc/core/storage.cpp",
        "begin * t.view.stride[dim] * size_of(t.view.dtype)",
        "begin * t.view.stride[dim]",
        TENSOR,
    ),
    Bug(
        "tensor: size overflow not noticed",
        "csrc/core/storage.cpp",
        "if (extent > 0 && !checked_mul(nbytes, extent, &nbytes))",
        "if (extent > 0 && (nbytes *= extent) < -1)",
        TENSOR,
    ),
    Bug(
        "threads: last chunk lost",
        "csrc/core/parallel.cpp",
        "const int64_t chunks = ceil_div(count, grain);",
        "const int64_t chunks = count / grain;",
        [*PARALLEL, *GEMM],
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
    Bug(
        "sampling: of equal logits the higher id",
        "csrc/ops/sampling_core.h",
        "| (0xFFFFFFFFu - id);",
        "| id;",
        SAMPLING,
    ),
    Bug(
        "sampling: top_p prefix one short",
        "csrc/cpu/sampling.cpp",
        "if (upper >= mass) {",
        "if (upper > mass) {",
        SAMPLING,
    ),
    Bug(
        "sampling: top_p of all instead of the top_k",
        "csrc/cpu/sampling.cpp",
        "for (const Candidate& c : candidates) total += c.weight;",
        "total = sum_of(block_sums(row));",
        SAMPLING,
    ),
    Bug(
        "sampling: min_p before top_p",
        "csrc/cpu/sampling.cpp",
        "if (row.top_p == 1.f && row.min_p > 0.f)",
        "if (row.min_p > 0.f)",
        SAMPLING,
    ),
    Bug(
        "sampling: bound of top_k too high",
        "csrc/cpu/sampling.cpp",
        "return maxima[k - 1];",
        "return maxima[k / 2];",
        SAMPLING,
    ),
    Bug(
        "sampling: position without effect",
        "csrc/ops/sampling_core.h",
        "philox({{static_cast<uint32_t>(p),",
        "philox({{static_cast<uint32_t>(p) * 0,",
        SAMPLING,
    ),
    Bug(
        "sampling: tail weights in the total",
        "csrc/cpu/sampling.isa.cpp",
        "total = add(total, first_lanes(weight, m));",
        "total = add(total, weight);",
        SAMPLING,
    ),
    Bug(
        "penalties: count of the prompt too",
        "csrc/cpu/sampling.cpp",
        "+ (i >= prompt_len)",
        "+ (i >= 0)",
        SAMPLING,
    ),
    Bug(
        "penalties: repetition applied at every occurrence",
        "csrc/cpu/sampling.cpp",
        "if (marks == 0) continue;",
        "if (marks == 0) marks = kSeen;",
        SAMPLING,
    ),
    Bug(
        "cache: a block is free although others hold it",
        "python/ernie_kernels/runner/block_manager.py",
        "self._holders[block] -= 1",
        "self._holders[block] = 0",
        BLOCK_MANAGER,
    ),
    Bug(
        "cache: a block keeps its hash when it is taken",
        "python/ernie_kernels/runner/block_manager.py",
        "            self._hashes[block] = None\n            if forgotten",
        "            if forgotten",
        BLOCK_MANAGER,
    ),
    Bug(
        "cache: mended blocks have one holder",
        "python/ernie_kernels/runner/block_manager.py",
        "                holders[block] += 1",
        "                holders[block] = 1",
        BLOCK_MANAGER,
    ),
    Bug(
        "prefix: salt left out of the hash",
        "python/ernie_kernels/runner/sequence.py",
        "salt_hash(self.salt)",
        'salt_hash(b"")',
        SCHEDULER,
    ),
    Bug(
        "prefix: tokens before the block left out of the hash",
        "python/ernie_kernels/runner/prefix.py",
        "_digest(parent + token_ids.tobytes()",
        "_digest(parent[:0] + token_ids.tobytes()",
        SCHEDULER,
    ),
    Bug(
        "scheduler: no token left to compute",
        "python/ernie_kernels/runner/scheduler.py",
        "count = (sequence.num_tokens - 1) // self._block_size",
        "count = sequence.num_tokens // self._block_size",
        SCHEDULER,
    ),
    Bug(
        "scheduler: the first comer is preempted",
        "python/ernie_kernels/runner/scheduler.py",
        "last = self._running[-1]",
        "last = self._running[0]",
        SCHEDULER,
    ),
    Bug(
        "scheduler: a preempted sequence queues up again",
        "python/ernie_kernels/runner/scheduler.py",
        "        self._waiting.move_to_end(sequence, last=False)\n",
        "",
        SCHEDULER,
    ),
    Bug(
        "scheduler: a preempted sequence runs all the same",
        "python/ernie_kernels/runner/scheduler.py",
        "            step.drop(last)\n",
        "",
        SCHEDULER,
    ),
    Bug(
        "scheduler: a block is shared before it is full",
        "python/ernie_kernels/runner/scheduler.py",
        "now_full = stop // self._block_size",
        "now_full = -(-stop // self._block_size)",
        SCHEDULER,
    ),
    Bug(
        "scheduler: found blocks count as free, too",
        "python/ernie_kernels/runner/scheduler.py",
        "manager.num_free - manager.num_cached_of(found)",
        "manager.num_free",
        SCHEDULER,
    ),
    Bug(
        "engine: text goes on from an interrupted token",
        "python/ernie_kernels/runner/engine.py",
        "            sequence.replay_text()\n",
        "            pass\n",
        INTERRUPTS,
    ),
    Bug(
        "engine: an interrupted step is not mended",
        "python/ernie_kernels/runner/engine.py",
        "        self._is_torn = True\n        scheduled:",
        "        scheduled:",
        INTERRUPTS,
    ),
    Bug(
        "engine: an abort ends all answers",
        "python/ernie_kernels/runner/engine.py",
        "isdisjoint(((s.request_id, None), (s.request_id, s.index)))",
        "isdisjoint((s.request_id, i) for i in (None, *range(s.params.n)))",
        THREADS,
    ),
    Bug(
        "engine: an abort overtakes its request",
        "python/ernie_kernels/runner/engine.py",
        "        if num_aborted:\n",
        "        num_aborted = len(self._aborted)\n        if num_aborted:\n",
        THREADS,
    ),
    Bug(
        "engine: who comes and goes at once is remembered for ever",
        "python/ernie_kernels/runner/engine.py",
        "        if num_ended:\n",
        "        num_ended = len(self._ended)\n        if num_ended:\n",
        THREADS,
    ),
    Bug(
        "engine: code of ours at the end of a forgotten stream",
        "python/ernie_kernels/runner/engine.py",
        "            # that struck in code of ours here, and none strikes where nothing is called.\n",
        "            ticket.close()\n",
        THREADS,
    ),
    Bug(
        "engine: who asks for figures does not stand in line",
        "python/ernie_kernels/runner/engine.py",
        '            ``preemptions``.\n        """\n        with self._waiting, self._lock:',
        '            ``preemptions``.\n        """\n        with self._lock:',
        THREADS,
    ),
    Bug(
        "engine: a call's sequences refer to each other",
        "python/ernie_kernels/runner/engine.py",
        "            sequence.siblings = []\n",
        "",
        LEFTOVERS,
    ),
    Bug(
        "engine: a failed step ends everybody",
        "python/ernie_kernels/runner/engine.py",
        "if not sequences or not sequences.isdisjoint(call.sequences)",
        "if True",
        THREADS,
    ),
    Bug(
        "engine: a forgotten ticket lives on",
        "python/ernie_kernels/runner/ticket.py",
        "self.is_closed or self.ticket is None or self.ticket() is None",
        "self.is_closed",
        THREADS,
    ),
    Bug(
        "engine: rows of whole prompts among the others",
        "python/ernie_kernels/runner/engine.py",
        "scheduled = sorted(scheduled, key=lambda item: item[0].logits is not None)",
        "scheduled = list(scheduled)",
        INVARIANCE,
    ),
    Bug(
        "sampler: seed by what is in the cache",
        "python/ernie_kernels/runner/sampler.py",
        "[sequence.num_tokens for sequence in sequences]",
        "[sequence.num_computed for sequence in sequences]",
        GENERATE,
    ),
]
