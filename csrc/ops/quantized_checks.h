// What the front doors of the linear layers with quantized weights ask alike: wint8.cpp, wint4.cpp.
#pragma once

#include "ops/linear_checks.h"

namespace ernie {

// What a weight is made of.
struct WeightFormat {
  DType dtype;
  int64_t per_element;        // weights in an element of a plain row; four elements are a word
  const char* plain_columns;  // how messages call the elements of a row,
  const char* packed_words;   // and its words

  int64_t columns_of(int64_t in_features) const { return ceil_div(in_features, per_element); }
};

// `columns` of a plain row.
inline void check_packed(const Check& check, const WeightFormat& format, const char* name,
                         const TensorView& w, int64_t out_features, int64_t columns) {
  check.shape(name, w,
              {panels_of(out_features),
               {format.packed_words, ceil_div(columns, 4)},
               {"16", kPanelRows},
               {"4", 4}});
}

inline void check_quantized(const Check& check, const WeightFormat& format, const char* name,
                            const TensorView& w, int64_t out_features, int64_t in_features) {
  const int64_t columns = format.columns_of(in_features);
  check.dtype(name, w, {format.dtype});
  if (w.rank == 2)
    check.shape(name, w, {{"out_features", out_features}, {format.plain_columns, columns}});
  else
    check_packed(check, format, name, w, out_features, columns);
  check.contiguous(name, w);
}

// Operands of a product, all but `out`.
template <class Args>
void check_quantized_operands(const Check& check, const WeightFormat& format, const Args& a,
                              int64_t out_features, const Stream& stream) {
  check_quantized(check, format, "weight", a.weight, out_features, a.x.size(1));
  check_scale(check, a.scale, out_features);
  check_bias(check, a.bias, out_features, {DType::kF32, DType::kBF16}, stream);
  check.device(stream.device,
               {{"out", &a.out}, {"x", &a.x}, {"weight", &a.weight}, {"scale", &a.scale}});
  check_apart(check, "out", a.out, a);
  check_unpacked_on_cuda(check, a.weight, stream, format.plain_columns);
}

template <class Args>
void check_quantized_linear(const Check& check, const WeightFormat& format, const Args& a,
                            const Stream& stream) {
  const int64_t out_features = check_x_and_out(check, a, "out_features", {a.x.dtype, DType::kF32});
  check_quantized_operands(check, format, a, out_features, stream);
}

template <class Args>
void check_quantized_linear_silu_and_mul(const Check& check, const WeightFormat& format,
                                         const Args& a, const Stream& stream) {
  const int64_t intermediate_size = check_x_and_out(check, a, "intermediate_size", {a.x.dtype});
  check_quantized_operands(check, format, a, 2 * intermediate_size, stream);
  check_gate_up(check, a, stream);
}

template <class Args>
void check_quantize(const Check& check, const WeightFormat& format, const Args& a,
                    const Stream& stream) {
  check.rank("weight", a.weight, 2);
  check.dtype("weight", a.weight, {DType::kF32, DType::kBF16});
  check.inner_contiguous("weight", a.weight);
  const int64_t out_features = a.weight.size(0);
  check_quantized(check, format, "out", a.out, out_features, a.weight.size(1));
  check.writable("out", a.out);
  check_scale(check, a.scale, out_features);
  check.writable("scale", a.scale);
  check.disjoint("out", a.out, "weight", a.weight);
  check.disjoint("scale", a.scale, "weight", a.weight);
  check.disjoint("out", a.out, "scale", a.scale);
  check.device(stream.device, {{"out", &a.out}, {"scale", &a.scale}, {"weight", &a.weight}});
}

template <class Args>
void check_pack(const Check& check, const WeightFormat& format, const Args& a,
                const Stream& stream) {
  check.rank("weight", a.weight, 2);
  check.dtype("weight", a.weight, {format.dtype});
  check.inner_contiguous("weight", a.weight);
  check_packed(check, format, "out", a.out, a.weight.size(0), a.weight.size(1));
  check.dtype("out", a.out, {format.dtype});
  check.contiguous("out", a.out);
  check.writable("out", a.out);
  check.disjoint("out", a.out, "weight", a.weight);
  check.device(stream.device, {{"out", &a.out}, {"weight", &a.weight}});
}

}  // namespace ernie
