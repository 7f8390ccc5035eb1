#include "ops/wint4.h"

#include "cpu/panel_product.h"
#include "cpu/quantized_weight.h"
#include "cpu/scaled_linear.h"

namespace ernie::cpu {
namespace {

// Values -7 to 7, two in a byte.
struct Format {
  static constexpr float kLargest = 7.f;
  static int64_t row_bytes(int64_t in_features) { return ceil_div(in_features, 2); }

  template <class T>
  static void round_row(const T* weight, int64_t n, float max_abs, uint8_t* out) {
    const auto nibble = [&](int64_t k) {
      const int32_t value = rounded_weight(to_float(weight[k]), max_abs, kLargest);
      return static_cast<uint32_t>(value) & 15u;
    };
    for (int64_t j = 0; j < n / 2; ++j)
      out[j] = static_cast<uint8_t>(nibble(2 * j) | nibble(2 * j + 1) << 4);
    if (n % 2 != 0) out[n / 2] = static_cast<uint8_t>(nibble(n - 1));
  }

  // The low nibbles first, then the high ones.
  static uint32_t packed(uint32_t bytes) {
    const auto gather = [](uint32_t nibbles) {  // 0x0d0c0b0a -> 0xdcba
      nibbles = (nibbles | nibbles >> 4) & 0x00ff00ffu;
      return (nibbles | nibbles >> 8) & 0xffffu;
    };
    return gather(bytes & 0x0f0f0f0fu) | gather(bytes >> 4 & 0x0f0f0f0fu) << 16;
  }
};

using Product = MatrixProduct<pack_panel_of<Format>>;

}  // namespace

void wint4_linear(const Wint4LinearArgs& a, const Stream&) {
  scaled_linear(a, Product(PanelKind::kWint4, a.x, a.weight));
}

void wint4_linear_silu_and_mul(const Wint4LinearSiluAndMulArgs& a, const Stream&) {
  scaled_linear_silu_and_mul(a, Product(PanelKind::kWint4, a.x, a.weight));
}

void wint4_quantize(const Wint4QuantizeArgs& a, const Stream&) { quantize<Format>(a); }

void wint4_pack(const Wint4PackArgs& a, const Stream&) { pack<Format>(a); }

}  // namespace ernie::cpu
