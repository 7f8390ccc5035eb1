// Token embedding: out[t] = weight[input_ids[t]].
//
// The table is [vocab_size, hidden_size], or what linear_pack makes of it (gemm.h): a model whose
// head is tied to its embedding keeps one copy, packed. Values are converted to the dtype of out.
//
// An int8 table, plain or as wint8_pack makes it (wint8.h), and one of 4 bits, plain or as
// wint4_pack makes it (wint4.h), have a scale for each row:
//
//   out[t, h] = round(scale[input_ids[t]] * weight[input_ids[t], h])
#pragma once

#include <optional>

#include "core/tensor.h"

namespace ernie {

struct EmbeddingArgs {
  TensorView out;        // [num_tokens, hidden_size], float32 or bfloat16, last stride 1
  TensorView input_ids;  // [num_tokens], int64, contiguous, each in [0, vocab_size)
  TensorView weight;     // [vocab_size, hidden_size], float32, bfloat16 or int8, contiguous; or
                         // uint8 [vocab_size, ceil(hidden_size / 2)], two of 4 bits in each; or
                         // packed (gemm.h, wint8.h, wint4.h), contiguous
  std::optional<TensorView> scale;  // [vocab_size], float32, contiguous: of int8 and uint8 alone
  int64_t vocab_size;               // rows of the table: a packed one is padded to a multiple of 16
};

void embedding(const EmbeddingArgs&, const Stream&);

namespace cpu {
void embedding(const EmbeddingArgs&, const Stream&);
}
namespace cuda {
void embedding(const EmbeddingArgs&, const Stream&);  // not packed
}

}  // namespace ernie
