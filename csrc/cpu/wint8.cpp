#include "ops/wint8.h"

#include "cpu/int8_product.h"
#include "cpu/panel_product.h"
#include "cpu/quantized_weight.h"
#include "cpu/scaled_linear.h"

namespace ernie::cpu {
namespace {

struct Format {
  static constexpr float kLargest = 127.f;
  static int64_t row_bytes(int64_t in_features) { return in_features; }

  template <class T>
  static void round_row(const T* weight, int64_t n, float max_abs, uint8_t* out) {
    for (int64_t k = 0; k < n; ++k)
      out[k] = static_cast<uint8_t>(rounded_weight(to_float(weight[k]), max_abs, kLargest));
  }

  static uint32_t packed(uint32_t bytes) { return bytes; }
};

using FloatProduct = MatrixProduct<pack_panel_of<Format>>;

// Blocks of x * weight with x as int8, which it is made here, by any thread.
class Int8Product {
 public:
  Int8Product(const TensorView& x, const TensorView& weight)
      : quads_(ceil_div(x.size(1), 4)),
        end_(static_cast<const int8_t*>(end_of_packed(weight, 2))),
        panels_(weight, quads_ * 4 * kPanelRows),
        x_(quantized_rows(x)) {}

  void multiply(int64_t row, int64_t rows, int64_t panel, int64_t panels, float* acc,
                int64_t acc_stride) const {
    multiply_int8(x_.from(row), rows, static_cast<const int8_t*>(panels_.at(panel, panels)), panels,
                  quads_, end_, acc, acc_stride);
  }

 private:
  const int64_t quads_;
  const int8_t* const end_;
  const MatrixPanels<pack_panel_of<Format>> panels_;
  const Int8Rows x_;
};

}  // namespace

void wint8_linear(const Wint8LinearArgs& a, const Stream&) {
  if (a.int8_activations)
    scaled_linear(a, Int8Product(a.x, a.weight));
  else
    scaled_linear(a, FloatProduct(PanelKind::kWint8, a.x, a.weight));
}

void wint8_linear_silu_and_mul(const Wint8LinearSiluAndMulArgs& a, const Stream&) {
  if (a.int8_activations)
    scaled_linear_silu_and_mul(a, Int8Product(a.x, a.weight));
  else
    scaled_linear_silu_and_mul(a, FloatProduct(PanelKind::kWint8, a.x, a.weight));
}

void wint8_quantize(const Wint8QuantizeArgs& a, const Stream&) { quantize<Format>(a); }

void wint8_pack(const Wint8PackArgs& a, const Stream&) { pack<Format>(a); }

}  // namespace ernie::cpu
