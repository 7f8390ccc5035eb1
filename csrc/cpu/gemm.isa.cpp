// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/gemm.isa.h"

#include "cpu/activation_functions.isa.h"
#include "cpu/tile.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

// -------------------------------------------------------------------------------- the inner loops

// One step of k for float weights: NV registers of weights against ROWS broadcast values.
template <int ROWS, int NV>
inline void step(F32 (&acc)[ROWS][NV], const float* x, int64_t x_stride, const float* w,
                 int64_t w_stride) {
  F32 weight[NV];
  ERNIE_UNROLL for (int v = 0; v < NV; ++v) weight[v] =
      load(w + v / kVectors * w_stride + v % kVectors * F32::kWidth);
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    const F32 value = set(x[r * x_stride]);
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] = fma(value, weight[v], acc[r][v]);
  }
}

// Of kWidth pairs of bfloat16, the first ones (SECOND = false) or the second ones.
template <bool SECOND>
inline F32 load_half(const bf16* p) {
#if defined(__AVX512F__)
  const __m512i u = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(SECOND ? _mm512_and_si512(u, _mm512_set1_epi32(-65536))
                                     : _mm512_slli_epi32(u, 16))};
#elif defined(__AVX2__)
  const __m256i u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  // Two shifts, not a mask: twelve accumulators leave no register for a constant.
  return {_mm256_castsi256_ps(_mm256_slli_epi32(SECOND ? _mm256_srli_epi32(u, 16) : u, 16))};
#else
  F32 half;
  for (int i = 0; i < F32::kWidth; ++i) half.v[i] = to_float(p[2 * i + SECOND]);
  return half;
#endif
}

// One of the two steps of k in a pair. The halves come one after the other, though that loads each
// pair twice: with both at hand AVX2 would run out of registers.
template <bool SECOND, int ROWS, int NV>
inline void half_step(F32 (&acc)[ROWS][NV], const float* x, int64_t x_stride, const bf16* w,
                      int64_t w_stride) {
  F32 weight[NV];
  ERNIE_UNROLL for (int v = 0; v < NV; ++v) weight[v] =
      load_half<SECOND>(w + v / kVectors * w_stride + v % kVectors * 2 * F32::kWidth);
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    const F32 value = set(x[r * x_stride + SECOND]);
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] = fma(value, weight[v], acc[r][v]);
  }
}

// Two steps of k for bfloat16 weights.
template <int ROWS, int NV>
inline void step(F32 (&acc)[ROWS][NV], const float* x, int64_t x_stride, const bf16* w,
                 int64_t w_stride) {
  half_step<false>(acc, x, x_stride, w, w_stride);
  half_step<true>(acc, x, x_stride, w, w_stride);
}

#if defined(__AVX512BF16__)
template <int ROWS, int NV>
inline void step(F32 (&acc)[ROWS][NV], const bf16* x, int64_t x_stride, const bf16* w,
                 int64_t w_stride) {
  __m512bh weight[NV];
  ERNIE_UNROLL for (int v = 0; v < NV; ++v) weight[v] =
      (__m512bh)_mm512_loadu_si512(w + v * w_stride);
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    int32_t bits;
    memcpy(&bits, x + r * x_stride, sizeof bits);
    const __m512bh value = (__m512bh)_mm512_set1_epi32(bits);
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v].v =
        _mm512_dpbf16_ps(acc[r][v].v, weight[v], value);
  }
}
#endif

constexpr int64_t kLineBytes = 64;

constexpr int64_t steps_of(const float*, int64_t k) { return k; }
constexpr int64_t steps_of(const bf16*, int64_t k) { return k / 2; }
constexpr int64_t kStepSize(const float*) { return 1; }
constexpr int64_t kStepSize(const bf16*) { return 2; }

// One register tile: ROWS x PANELS, all of k.
template <int ROWS, int PANELS, class X, class W>
inline void tile(const GemmBlock& b, int64_t row, int64_t panel) {
  constexpr int NV = PANELS * static_cast<int>(kVectors);
  const X* x = static_cast<const X*>(b.x) + row * b.x_stride;
  const W* w = static_cast<const W*>(b.w) + panel * b.w_stride;
  float* out = b.acc + row * b.acc_stride + panel * kPanelRows;
  const int64_t x_stride = b.x_stride, w_stride = b.w_stride, acc_stride = b.acc_stride;
  const int64_t steps = steps_of(w, b.k), advance = kStepSize(w);

  F32 acc[ROWS][NV];
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] =
        b.accumulate ? load(out + r * acc_stride + v * F32::kWidth) : set(0.f);
  }
  // The tiles of all rows bring a part each of what comes next, evenly over their steps.
  const int64_t turns = row_tiles(b.rows), turn = turns - row_tiles(b.rows - row);
  const int64_t interval = b.columns_per_line / advance * turns;
  const char* next = static_cast<const char*>(b.next) + panel * b.next_stride + turn * kLineBytes;
  int64_t wait = b.next == nullptr ? steps : turn * b.columns_per_line / advance;
  for (int64_t s = 0; s < steps; ++s, x += advance, w += advance * kPanelRows) {
    if (wait-- == 0) {
      ERNIE_UNROLL for (int p = 0; p < PANELS; ++p) __builtin_prefetch(next + p * b.next_stride);
      next += turns * kLineBytes;
      wait = interval - 1;
    }
    step(acc, x, x_stride, w, w_stride);
  }
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    ERNIE_UNROLL for (int v = 0; v < NV; ++v)
        store(out + r * acc_stride + v * F32::kWidth, acc[r][v]);
  }
}

template <class X, class W>
inline void gemm_t(const GemmBlock& b) {
  for_each_tile(b.rows, b.panels, [&]<int ROWS, int PANELS>(int64_t row, int64_t panel) {
    tile<ROWS, PANELS, X, W>(b, row, panel);
  });
}

// What f makes of acc + bias, a register at a time.
template <class B, class T, class F>
inline void finish_by(const float* acc, const B* bias, T* out, int64_t n, const F& f) {
  for_each_register(n, [&](int64_t i, int64_t m) {
    const F32 sum = load_n(acc + i, m);
    store_n(out + i, f(bias == nullptr ? sum : add(sum, load_n(bias + i, m))), m);
  });
}

template <class B, class T>
void finish_row_t(const float* acc, const B* bias, T* out, int64_t n) {
  finish_by(acc, bias, out, n, [](F32 sum) { return sum; });
}

template <class B, class T>
void finish_activated_t(const float* acc, const B* bias, T* out, int64_t n, Activation activation) {
  if (activation == Activation::kGelu)
    finish_by(acc, bias, out, n, [](F32 sum) { return gelu(sum); });
  else
    finish_by(acc, bias, out, n, [](F32 sum) { return quick_gelu(sum); });
}

template <class B, class T>
void finish_silu_and_mul_t(const float* gate, const float* up, const B* gate_bias, const B* up_bias,
                           T* out, int64_t n) {
  const auto sum = [](const float* acc, const B* bias, int64_t m) {
    const F32 value = load_n(acc, m);
    return round_to(bias == nullptr ? value : add(value, load_n(bias, m)),
                    static_cast<T*>(nullptr));
  };
  for_each_register(n, [&](int64_t i, int64_t m) {
    const F32 gated = silu(sum(gate + i, gate_bias ? gate_bias + i : nullptr, m));
    store_n(out + i, mul(gated, sum(up + i, up_bias ? up_bias + i : nullptr, m)), m);
  });
}

template <class T>
void widen_row_t(const T* x, float* out, int64_t n, int64_t padded_n) {
  for_each_register(n, [&](int64_t i, int64_t m) { store_n(out + i, load_n(x + i, m), m); });
  for (int64_t i = n; i < padded_n; ++i) out[i] = 0.f;
}

}  // namespace

void gemm_f32_f32(const GemmBlock& b) { gemm_t<float, float>(b); }

void gemm_f32_bf16(const GemmBlock& b) {
  const FlushDenormals scope;
  gemm_t<float, bf16>(b);
}

void gemm_bf16_bf16(const GemmBlock& b) {
#if defined(__AVX512BF16__)
  gemm_t<bf16, bf16>(b);
#else
  const bf16* x = static_cast<const bf16*>(b.x);
  const bf16* w = static_cast<const bf16*>(b.w);
  for (int64_t r = 0; r < b.rows; ++r)
    for (int64_t n = 0; n < b.panels * kPanelRows; ++n) {
      float* out = b.acc + r * b.acc_stride + n;
      float sum = b.accumulate ? *out : 0.f;
      for (int64_t k = 0; k < b.k; ++k)
        sum +=
            to_float(x[r * b.x_stride + k]) *
            to_float(
                w[n / kPanelRows * b.w_stride + (k / 2 * kPanelRows + n % kPanelRows) * 2 + k % 2]);
      *out = sum;
    }
#endif
}

void finish_row(const float* acc, const float* bias, float* out, int64_t n) {
  finish_row_t(acc, bias, out, n);
}
void finish_row(const float* acc, const float* bias, bf16* out, int64_t n) {
  finish_row_t(acc, bias, out, n);
}
void finish_row(const float* acc, const bf16* bias, float* out, int64_t n) {
  finish_row_t(acc, bias, out, n);
}
void finish_row(const float* acc, const bf16* bias, bf16* out, int64_t n) {
  finish_row_t(acc, bias, out, n);
}

void finish_activated(const float* acc, const float* bias, float* out, int64_t n,
                      Activation activation) {
  finish_activated_t(acc, bias, out, n, activation);
}
void finish_activated(const float* acc, const float* bias, bf16* out, int64_t n,
                      Activation activation) {
  finish_activated_t(acc, bias, out, n, activation);
}
void finish_activated(const float* acc, const bf16* bias, float* out, int64_t n,
                      Activation activation) {
  finish_activated_t(acc, bias, out, n, activation);
}
void finish_activated(const float* acc, const bf16* bias, bf16* out, int64_t n,
                      Activation activation) {
  finish_activated_t(acc, bias, out, n, activation);
}

void finish_silu_and_mul(const float* gate, const float* up, const float* gate_bias,
                         const float* up_bias, float* out, int64_t n) {
  finish_silu_and_mul_t(gate, up, gate_bias, up_bias, out, n);
}
void finish_silu_and_mul(const float* gate, const float* up, const bf16* gate_bias,
                         const bf16* up_bias, float* out, int64_t n) {
  finish_silu_and_mul_t(gate, up, gate_bias, up_bias, out, n);
}
void finish_silu_and_mul(const float* gate, const float* up, const float* gate_bias,
                         const float* up_bias, bf16* out, int64_t n) {
  finish_silu_and_mul_t(gate, up, gate_bias, up_bias, out, n);
}
void finish_silu_and_mul(const float* gate, const float* up, const bf16* gate_bias,
                         const bf16* up_bias, bf16* out, int64_t n) {
  finish_silu_and_mul_t(gate, up, gate_bias, up_bias, out, n);
}

void widen_row(const bf16* x, float* out, int64_t n, int64_t padded_n) {
  widen_row_t(x, out, n, padded_n);
}
void widen_row(const float* x, float* out, int64_t n, int64_t padded_n) {
  widen_row_t(x, out, n, padded_n);
}

}  // namespace ernie::cpu::ERNIE_ISA
