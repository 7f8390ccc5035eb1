#include "ops/grouped_gemm.h"

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

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

struct ExpertRange {
  int64_t first, rows;
};

// The rows of a product whose experts' offsets these are.
ExpertRange rows_of(const TensorView& expert_offsets) {
  const int64_t* offsets = expert_offsets.ptr<int64_t>();
  return {offsets[0], offsets[expert_offsets.size(0) - 1] - offsets[0]};
}

int64_t most_blocks(const TensorView& expert_offsets) {
  const int64_t num_experts = expert_offsets.size(0) - 1, num_rows = rows_of(expert_offsets).rows;
  return std::min(num_experts, num_rows) + num_rows / kRowBlock;
}

// Of every expert that has rows: as few blocks as can be, of about equal size.
RowBlocks write_blocks(const TensorView& expert_offsets, RowBlock* blocks) {
  const int64_t* offsets = expert_offsets.ptr<int64_t>();
  const int64_t num_experts = expert_offsets.size(0) - 1;
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

// The product of a bank: its rows in blocks, its outputs in groups of columns.
template <class Product>
struct BankProduct {
  TensorView out;
  Product product;
  RowBlocks rows;
  int64_t groups;
};

// Some columns of a block of rows, and those that come after them.
struct Turn {
  const RowBlock& block;
  int64_t group;
  int64_t next_expert, next_group;
};

// Calls f(bank, turn, x) for all blocks of rows and groups of columns of all banks. A piece of work
// is a block and some groups one after the other, which share its gathered rows; pieces follow each
// other as the weights lie in memory, so that what comes next is known.
template <class Product, class F>
void for_each_group(std::span<const BankProduct<Product>> banks, const F& f) {
  // Enough pieces that threads end together, and few enough that gathering is nothing.
  constexpr int64_t kPieces = 128, kMostGroups = 4;
  int64_t turns = 0, all_pieces = 0;
  for (const auto& bank : banks) turns += bank.rows.count * bank.groups;
  const int64_t size = std::clamp<int64_t>(turns / kPieces, 1, kMostGroups);
  for (const auto& bank : banks) all_pieces += bank.rows.count * ceil_div(bank.groups, size);
  parallel_for(all_pieces, 1, [&](int64_t piece, int64_t) {
    const BankProduct<Product>* bank = banks.data();
    int64_t pieces = ceil_div(bank->groups, size);  // of a block
    while (piece >= bank->rows.count * pieces) {
      piece -= bank->rows.count * pieces;
      pieces = ceil_div((++bank)->groups, size);
    }
    const int64_t index = piece / pieces, first = piece % pieces * size;
    const RowBlocks& rows = bank->rows;
    const RowBlock& block = rows.blocks[index];
    const RowBlock& after = rows.blocks[std::min(index + 1, rows.count - 1)];
    const typename Product::X x = bank->product.rows(block.row, block.rows);
    for (int64_t group = first; group < std::min(first + size, bank->groups); ++group) {
      const bool goes_on = group + 1 < bank->groups;
      f(*bank, Turn{block, group, goes_on ? block.expert : after.expert, goes_on ? group + 1 : 0},
        x);
    }
  });
}

// ----------------------------------------------------------------------------------------- outputs

constexpr int64_t kWidth = kMaxPanels * kPanelRows;  // columns of a group

void scale_rows(float* acc, int64_t acc_stride, int64_t rows, const float* scale, int64_t n) {
  using Fn = void (*)(float*, const float*, int64_t);
  static const auto scale_row = ERNIE_SELECT_ISA(Fn, scale_columns);
  if (scale == nullptr) return;
  for (int64_t r = 0; r < rows; ++r) scale_row(acc + r * acc_stride, scale, n);
}

template <class T, class Product>
void linear_t(std::span<const BankProduct<Product>> banks) {
  using FinishFn = void (*)(const float*, const float*, T*, int64_t);
  static const auto finish = ERNIE_SELECT_ISA(FinishFn, finish_row);
  for_each_group(
      banks, [&](const BankProduct<Product>& bank, const Turn& turn, const typename Product::X& x) {
        const auto [expert, row, rows] = turn.block;
        const int64_t out_features = bank.out.size(1), column = turn.group * kWidth;
        const int64_t panel = turn.group * kMaxPanels;
        const int64_t panels = std::min(kMaxPanels, ceil_div(out_features, kPanelRows) - panel);
        const int64_t columns = std::min(kWidth, out_features - column);
        const ExpertPanels& w = bank.product.panels();
        float* acc = accumulators(rows, kWidth);
        bank.product.multiply(x, rows, w.at(expert, panel, panels), panels,
                              w.peek(turn.next_expert, turn.next_group * kMaxPanels), acc, kWidth);
        scale_rows(acc, kWidth, rows, w.scale(expert, column), columns);
        for (int64_t r = 0; r < rows; ++r)
          finish(acc + r * kWidth, nullptr,
                 bank.out.template ptr<T>() + (row + r) * bank.out.step(0) + column, columns);
      });
}

template <class T, class Product>
void linear_silu_and_mul_t(std::span<const BankProduct<Product>> banks) {
  using FinishFn = void (*)(const float*, const float*, const float*, const float*, T*, int64_t);
  static const auto finish = ERNIE_SELECT_ISA(FinishFn, finish_silu_and_mul);
  // The up rows may begin inside a panel, and end in one more.
  constexpr int64_t kStride = 2 * kWidth + kPanelRows;
  for_each_group(
      banks, [&](const BankProduct<Product>& bank, const Turn& turn, const typename Product::X& x) {
        const auto [expert, row, rows] = turn.block;
        const int64_t size = bank.out.size(1), column = turn.group * kWidth;
        const int64_t columns = std::min(kWidth, size - column);
        const ExpertPanels& w = bank.product.panels();
        float* gate = accumulators(rows, kStride);
        // The sums of `columns` outputs from `first` on: where they begin.
        const auto multiply = [&](int64_t first, int64_t next, float* acc) {
          const int64_t panel = first / kPanelRows, skip = first % kPanelRows;
          const int64_t panels = ceil_div(skip + columns, kPanelRows);
          bank.product.multiply(x, rows, w.at(expert, panel, panels), panels,
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
                 bank.out.template ptr<T>() + (row + r) * bank.out.step(0) + column, columns);
      });
}

// ----------------------------------------------------------------------------------------- banks

// What make(args) multiplies, bank after bank; their blocks are in scratch of the calling thread.
template <class Args, class Make>
auto products_of(std::span<const Args> banks, const Make& make) {
  using Product = std::invoke_result_t<Make, const Args&>;
  int64_t most = 0;
  for (const Args& a : banks) most += most_blocks(a.expert_offsets);
  auto* next = static_cast<RowBlock*>(
      scratch(ScratchSlot::kBlocks, most * static_cast<int64_t>(sizeof(RowBlock))));
  std::vector<BankProduct<Product>> products;
  products.reserve(banks.size());
  for (const Args& a : banks) {
    const RowBlocks rows = write_blocks(a.expert_offsets, next);
    products.push_back({a.out, make(a), rows, ceil_div(a.out.size(1), kWidth)});
    next += rows.count;
  }
  return products;
}

template <class Args>
auto float_products(std::span<const Args> banks) {
  return products_of(
      banks, [](const Args& a) { return GatheredFloatProduct(a.x, source_rows_of(a), a.weight); });
}

// Gathered rows are of one x; else each bank has rows of its own width.
template <class Args>
auto int8_products(std::span<const Args> banks) {
  if (banks[0].source_rows) {
    const Int8Rows x = quantized_rows(banks[0].x);
    return products_of(banks, [&](const Args& a) {
      return GatheredInt8Product(x, 0, source_rows_of(a), a.weight);
    });
  }
  constexpr int64_t kAlignment = 64;
  const auto bytes_of = [](const Args& a) {
    return round_up(Int8Rows::nbytes(rows_of(a.expert_offsets).rows, activation_groups(a.x)),
                    kAlignment);
  };
  int64_t bytes = 0;
  for (const Args& a : banks) bytes += bytes_of(a);
  char* buffer = static_cast<char*>(scratch(ScratchSlot::kRows, bytes));
  return products_of(banks, [&](const Args& a) {
    const auto [first, rows] = rows_of(a.expert_offsets);
    const Int8Rows x = Int8Rows::at(buffer, rows, activation_groups(a.x));
    quantize_rows(a.x, first, rows, x);
    buffer += bytes_of(a);
    return GatheredInt8Product(x, first, nullptr, a.weight);
  });
}

// Calls f<T>(products) with T the type of the rows.
template <class Args, class F>
void with_products(std::span<const Args> banks, const F& f) {
  const auto call = [&](const auto& products) {
    const std::span all(products);
    banks[0].x.dtype == DType::kF32 ? f.template operator()<float>(all)
                                    : f.template operator()<bf16>(all);
  };
  banks[0].int8_activations ? call(int8_products(banks)) : call(float_products(banks));
}

template <class Args>
void check_rows(const char* op, const Args& a) {
  check_offsets(op, a.expert_offsets, a.out.size(0));
  if (a.source_rows) check_source_rows(op, *a.source_rows, a.x.size(0));
}

}  // namespace

void grouped_linear_of_banks(std::span<const GroupedLinearArgs> banks, const Stream&) {
  with_products(banks, [&]<class T>(const auto& products) { linear_t<T>(products); });
}

void grouped_linear_silu_and_mul_of_banks(std::span<const GroupedLinearSiluAndMulArgs> banks,
                                          const Stream&) {
  with_products(banks, [&]<class T>(const auto& products) { linear_silu_and_mul_t<T>(products); });
}

void grouped_linear(const GroupedLinearArgs& a, const Stream& stream) {
  check_rows("grouped_linear", a);
  cpu::grouped_linear_of_banks({&a, 1}, stream);
}

void grouped_linear_silu_and_mul(const GroupedLinearSiluAndMulArgs& a, const Stream& stream) {
  check_rows("grouped_linear_silu_and_mul", a);
  cpu::grouped_linear_silu_and_mul_of_banks({&a, 1}, stream);
}

}  // namespace ernie::cpu
