#include "ops/grouped_gemm.h"

#include <algorithm>
#include <string>

#include "core/check.h"
#include "core/checked.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/expert_products.h"
#include "cpu/gemm.isa.h"
#include "cpu/gemm_blocks.h"
#include "cpu/wint8.isa.h"

namespace ernie::cpu {
namespace {

// -------------------------------------------------------------------------------------- arguments

void check_offsets(const char* op, const TensorView& offsets, int64_t num_rows) {
  const int64_t* at = offsets.ptr<int64_t>();
  const int64_t num_experts = offsets.size(0) - 1;
  for (int64_t e = 0; e <= num_experts; ++e) {
    const int64_t least = e == 0 ? 0 : at[e - 1];
    const bool is_end = e == 0 || e == num_experts;
    if (at[e] < least || (is_end && at[e] != (e == 0 ? 0 : num_rows)))
      Check(op).fail("expert_offsets", "rows ascending from 0 to " + std::to_string(num_rows),
                     std::to_string(at[e]) + " at " + std::to_string(e));
  }
}

void check_source_rows(const char* op, const TensorView& rows, int64_t num_tokens) {
  const int32_t* tokens = rows.ptr<int32_t>();
  for (int64_t i = 0; i < rows.size(0); ++i)
    if (tokens[i] < 0 || tokens[i] >= num_tokens)
      Check(op).fail("source_rows", "tokens from 0 to " + std::to_string(num_tokens - 1),
                     std::to_string(tokens[i]) + " at " + std::to_string(i));
}

template <class Args>
const int32_t* source_rows_of(const Args& a) {
  return a.source_rows ? a.source_rows->template ptr<int32_t>() : nullptr;
}

// ------------------------------------------------------------------------------------------ blocks

// Rows of one expert that are multiplied together.
struct RowBlock {
  int64_t expert, row, rows;
};

struct RowBlocks {
  const RowBlock* blocks;
  int64_t count;
};

// Of every expert that has rows: as few blocks as can be, of about equal size. In scratch of the
// calling thread.
RowBlocks blocks_of(const TensorView& expert_offsets, int64_t num_rows) {
  const int64_t* offsets = expert_offsets.ptr<int64_t>();
  const int64_t num_experts = expert_offsets.size(0) - 1;
  const int64_t most = std::min(num_experts, num_rows) + num_rows / kRowBlock;
  auto* blocks = static_cast<RowBlock*>(
      scratch(ScratchSlot::kBlocks, most * static_cast<int64_t>(sizeof(RowBlock))));
  int64_t count = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    const int64_t rows = offsets[e + 1] - offsets[e];
    if (rows == 0) continue;
    const int64_t size = ceil_div(rows, ceil_div(rows, kRowBlock));
    for (int64_t row = offsets[e]; row < offsets[e + 1]; row += size)
      blocks[count++] = {e, row, std::min(size, offsets[e + 1] - row)};
  }
  return {blocks, count};
}

// Some columns of a block of rows, and those that come after them.
struct Turn {
  const RowBlock& block;
  int64_t group;
  int64_t next_expert, next_group;
};

// Calls f(turn, x) for all blocks of rows and groups of columns. A piece of work is a block and
// some groups one after the other, which share its gathered rows; pieces follow each other as the
// weights lie in memory, so that what comes next is known.
template <class Product, class F>
void for_each_group(const Product& product, const RowBlocks& blocks, int64_t groups, const F& f) {
  // Enough pieces that threads end together, and few enough that gathering is nothing.
  constexpr int64_t kPieces = 128, kMostGroups = 4;
  const int64_t size = std::clamp<int64_t>(blocks.count * groups / kPieces, 1, kMostGroups);
  const int64_t pieces = ceil_div(groups, size);
  parallel_for(blocks.count * pieces, 1, [&](int64_t piece, int64_t) {
    const int64_t index = piece / pieces, first = piece % pieces * size;
    const RowBlock& block = blocks.blocks[index];
    const RowBlock& after = blocks.blocks[std::min(index + 1, blocks.count - 1)];
    const auto x = product.rows(block.row, block.rows);
    for (int64_t group = first; group < std::min(first + size, groups); ++group) {
      const bool goes_on = group + 1 < groups;
      f(Turn{block, group, goes_on ? block.expert : after.expert, goes_on ? group + 1 : 0}, x);
    }
  });
}

// ----------------------------------------------------------------------------------------- outputs

void scale_rows(float* acc, int64_t acc_stride, int64_t rows, const float* scale, int64_t n) {
  using Fn = void (*)(float*, const float*, int64_t);
  static const auto scale_row = ERNIE_SELECT_ISA(Fn, scale_columns);
  if (scale == nullptr) return;
  for (int64_t r = 0; r < rows; ++r) scale_row(acc + r * acc_stride, scale, n);
}

template <class T, class Product>
void linear_t(const GroupedLinearArgs& a, const Product& product) {
  using FinishFn = void (*)(const float*, const float*, T*, int64_t);
  static const auto finish = ERNIE_SELECT_ISA(FinishFn, finish_row);
  constexpr int64_t kWidth = kMaxPanels * kPanelRows;
  const int64_t out_features = a.out.size(1), num_panels = ceil_div(out_features, kPanelRows);
  const ExpertPanels& w = product.panels();
  for_each_group(product, blocks_of(a.expert_offsets, a.out.size(0)),
                 ceil_div(num_panels, kMaxPanels), [&](const Turn& turn, const auto& x) {
                   const auto [expert, row, rows] = turn.block;
                   const int64_t panel = turn.group * kMaxPanels, column = turn.group * kWidth;
                   const int64_t panels = std::min(kMaxPanels, num_panels - panel);
                   const int64_t columns = std::min(kWidth, out_features - column);
                   float* acc = accumulators(rows, kWidth);
                   product.multiply(x, rows, w.at(expert, panel, panels), panels,
                                    w.peek(turn.next_expert, turn.next_group * kMaxPanels), acc,
                                    kWidth);
                   scale_rows(acc, kWidth, rows, w.scale(expert, column), columns);
                   for (int64_t r = 0; r < rows; ++r)
                     finish(acc + r * kWidth, nullptr,
                            a.out.ptr<T>() + (row + r) * a.out.step(0) + column, columns);
                 });
}

template <class T, class Product>
void linear_silu_and_mul_t(const GroupedLinearSiluAndMulArgs& a, const Product& product) {
  using FinishFn = void (*)(const float*, const float*, const float*, const float*, T*, int64_t);
  static const auto finish = ERNIE_SELECT_ISA(FinishFn, finish_silu_and_mul);
  constexpr int64_t kWidth = kMaxPanels * kPanelRows;
  // The up rows may begin inside a panel, and end in one more.
  constexpr int64_t kStride = 2 * kWidth + kPanelRows;
  const int64_t size = a.out.size(1);
  const ExpertPanels& w = product.panels();
  for_each_group(product, blocks_of(a.expert_offsets, a.out.size(0)), ceil_div(size, kWidth),
                 [&](const Turn& turn, const auto& x) {
                   const auto [expert, row, rows] = turn.block;
                   const int64_t column = turn.group * kWidth,
                                 columns = std::min(kWidth, size - column);
                   float* gate = accumulators(rows, kStride);
                   // The sums of `columns` outputs from `first` on: where they begin.
                   const auto multiply = [&](int64_t first, int64_t next, float* acc) {
                     const int64_t panel = first / kPanelRows, skip = first % kPanelRows;
                     const int64_t panels = ceil_div(skip + columns, kPanelRows);
                     product.multiply(x, rows, w.at(expert, panel, panels), panels,
                                      w.peek(turn.next_expert, next / kPanelRows), acc, kStride);
                     acc += skip;
                     scale_rows(acc, kStride, rows, w.scale(expert, first), columns);
                     return acc;
                   };
                   const int64_t next = turn.next_group * kWidth;
                   multiply(column, next, gate);
                   const float* up = multiply(size + column, size + next, gate + kWidth);
                   for (int64_t r = 0; r < rows; ++r)
                     finish(gate + r * kStride, up + r * kStride, nullptr, nullptr,
                            a.out.ptr<T>() + (row + r) * a.out.step(0) + column, columns);
                 });
}

// Calls f<T>(product) with T the type of the rows.
template <class Args, class F>
void with_product(const char* op, const Args& a, const F& f) {
  check_offsets(op, a.expert_offsets, a.out.size(0));
  if (a.source_rows) check_source_rows(op, *a.source_rows, a.x.size(0));
  if (a.out.numel() == 0) return;
  const auto call = [&](const auto& product) {
    a.x.dtype == DType::kF32 ? f.template operator()<float>(product)
                             : f.template operator()<bf16>(product);
  };
  if (a.int8_activations)
    call(GatheredInt8Product(a.x, source_rows_of(a), a.weight));
  else
    call(GatheredFloatProduct(a.x, source_rows_of(a), a.weight));
}

}  // namespace

void grouped_linear(const GroupedLinearArgs& a, const Stream&) {
  with_product("grouped_linear", a, [&]<class T>(const auto& product) { linear_t<T>(a, product); });
}

void grouped_linear_silu_and_mul(const GroupedLinearSiluAndMulArgs& a, const Stream&) {
  with_product("grouped_linear_silu_and_mul", a,
               [&]<class T>(const auto& product) { linear_silu_and_mul_t<T>(a, product); });
}

}  // namespace ernie::cpu
