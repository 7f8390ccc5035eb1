#include "ops/vision.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/bf16.h"
#include "core/check.h"
#include "core/checked.h"
#include "core/isa.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/gemm_blocks.h"
#include "ops/gemm.h"
#include "ops/vision_index.h"

namespace ernie::cpu {
namespace {

constexpr int64_t kLevels = 256;
constexpr int64_t kElementsPerChunk = 16384;
constexpr int64_t kBytesPerChunk = 65536;

// ---------------------------------------------------------------------------------------- items

// Items in scratch of the calling thread.
template <class Item>
struct Items {
  const Item* items;
  int64_t count;

  const Item& of(int64_t index) const { return item_of(items, count, index); }
};

// next(thw) makes an item of a row of grid_thw.
template <class Item, class Next>
Items<Item> items_from(const TensorView& grid_thw, const Next& next) {
  const int64_t count = grid_thw.size(0);
  auto* items = static_cast<Item*>(scratch(ScratchSlot::kBlocks, count * sizeof(Item)));
  for (int64_t i = 0; i < count; ++i) items[i] = next(grid_thw.ptr<int64_t>() + 3 * i);
  return {items, count};
}

Items<PatchItem> patch_items(const TensorView& grid_thw) {
  int64_t first = 0;
  return items_from<PatchItem>(grid_thw,
                               [&](const int64_t* thw) { return next_patch_item(thw, &first); });
}

Items<MergeItem> merge_items(const TemporalMergeArgs& a) {
  int64_t first = 0, first_source = 0;
  return items_from<MergeItem>(a.grid_thw, [&](const int64_t* thw) {
    return next_merge_item(thw, a.merge_size, a.temporal_size, &first, &first_source);
  });
}

// -------------------------------------------------------------------------------------- patches

// One lookup an element, by plain loads: about one a cycle, as fast as memory takes float32
// patches, and a twentieth of what their product with a bfloat16 weight takes. A table of 256
// entries in vector registers would be the next step, where patches in a cache are all that is
// wanted.
template <class T>
void copy_patch(const uint8_t* pixels, int64_t row_bytes, const T* levels, int64_t patch_size,
                T* out) {
  const int64_t area = patch_size * patch_size;
  for (int64_t dy = 0; dy < patch_size; ++dy, pixels += row_bytes, out += patch_size)
    for (int64_t dx = 0; dx < patch_size; ++dx)
      for (int64_t c = 0; c < kPixelChannels; ++c)
        out[c * area + dx] = levels[c * kLevels + pixels[kPixelChannels * dx + c]];
}

void convert(float from, float* to) { *to = from; }
void convert(float from, bf16* to) { *to = to_bf16(from); }

// Any of the patches that the arguments describe, as T.
template <class T>
class Patches {
 public:
  // `rounds`: to bfloat16, also where T is float.
  template <class Args>
  Patches(const Args& a, bool rounds)
      : pixels_(a.pixels.template ptr<uint8_t>()),
        items_(patch_items(a.grid_thw)),
        patch_size_(a.patch_size),
        merge_size_(a.merge_size) {
    const float* levels = a.levels.template ptr<float>();
    for (int64_t i = 0; i < kPixelChannels * kLevels; ++i)
      convert(rounds ? to_float(to_bf16(levels[i])) : levels[i], levels_ + i);
  }

  int64_t width() const { return kPixelChannels * patch_size_ * patch_size_; }

  // Patches [first, first + count) to rows of out.
  void copy(int64_t first, int64_t count, T* out, int64_t out_stride) const {
    parallel_for(count, ceil_div(kElementsPerChunk, width()), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const PatchPlace place =
            place_of_patch(items_.of(first + p), first + p, patch_size_, merge_size_);
        copy_patch(pixels_ + place.first_byte, place.row_bytes, levels_, patch_size_,
                   out + p * out_stride);
      }
    });
  }

 private:
  const uint8_t* const pixels_;
  const Items<PatchItem> items_;
  const int64_t patch_size_, merge_size_;
  T levels_[kPixelChannels * kLevels];
};

template <class T>
void image_patches_t(const ImagePatchesArgs& a) {
  Patches<T>(a, false).copy(0, a.out.size(0), a.out.ptr<T>(), a.out.step(0));
}

// ------------------------------------------------------------------------------------ embedding

// As many patches as stay in a last-level cache until linear has read them; where it can be, in
// whole blocks of its rows.
int64_t patches_per_chunk(int64_t patch_bytes) {
  constexpr int64_t kBytes = 4 << 20;
  const int64_t most = std::max<int64_t>(kBytes / patch_bytes, 1);
  return most < kRowBlock ? most : most / kRowBlock * kRowBlock;
}

template <class T>
void patch_embed_t(const PatchEmbedArgs& a, const Stream& stream) {
  const Patches<T> patches(a, a.out.dtype == DType::kBF16);
  const int64_t width = patches.width(), num_patches = a.out.size(0);
  const int64_t patch_bytes = width * static_cast<int64_t>(sizeof(T));
  const int64_t chunk = std::min(patches_per_chunk(patch_bytes), num_patches);
  T* room = static_cast<T*>(scratch(ScratchSlot::kGathered, chunk * patch_bytes));
  for (int64_t first = 0; first < num_patches; first += chunk) {
    const int64_t count = std::min(chunk, num_patches - first);
    patches.copy(first, count, room, width);
    const TensorView x{.data = room,
                       .dtype = sizeof(T) == sizeof(float) ? DType::kF32 : DType::kBF16,
                       .device = a.out.device,
                       .rank = 2,
                       .shape = {count, width},
                       .stride = {width, 1}};
    cpu::linear(
        {.out = rows_of(a.out, first, count), .x = x, .weight = a.weight, .bias = std::nullopt},
        stream);
  }
}

// ----------------------------------------------------------------------------------- whole rows

// Calls destination(i) and source(i), rows of `row_bytes` bytes, for all i < count, and copies.
template <class To, class From>
void copy_rows(int64_t count, int64_t row_bytes, const To& destination, const From& source) {
  parallel_for(count, ceil_div(kBytesPerChunk, row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::memcpy(destination(i), source(i), row_bytes);
  });
}

void check_rows(const TensorView& rows, int64_t num_tokens) {
  const int64_t bytes = ceil_div(num_tokens, 8);
  auto* seen = static_cast<uint8_t*>(scratch(ScratchSlot::kBlocks, bytes));
  std::fill_n(seen, bytes, uint8_t{0});
  for (int64_t i = 0; i < rows.size(0); ++i) {
    const int64_t row = rows.ptr<int32_t>()[i];
    const bool is_inside = row >= 0 && row < num_tokens;
    if (!is_inside || (seen[row / 8] >> row % 8 & 1) != 0)
      Check("scatter_rows")
          .fail("rows", "distinct rows from 0 to " + std::to_string(num_tokens - 1),
                std::to_string(row) + (is_inside ? " again" : "") + " at " + std::to_string(i));
    seen[row / 8] |= static_cast<uint8_t>(1 << row % 8);
  }
}

}  // namespace

void image_patches(const ImagePatchesArgs& a, const Stream&) {
  a.out.dtype == DType::kF32 ? image_patches_t<float>(a) : image_patches_t<bf16>(a);
}

void patch_embed(const PatchEmbedArgs& a, const Stream& stream) {
  // Where linear would widen rounded patches, they are looked up wide: the same values.
  if (a.out.dtype == DType::kBF16 && prefers_bf16_dot())
    patch_embed_t<bf16>(a, stream);
  else
    patch_embed_t<float>(a, stream);
}

void temporal_merge(const TemporalMergeArgs& a, const Stream&) {
  const Items<MergeItem> items = merge_items(a);
  const int64_t parts = a.temporal_size, itemsize = size_of(a.x.dtype);
  const int64_t row_bytes = a.x.size(1) * itemsize;
  copy_rows(
      a.out.size(0) * parts, row_bytes,
      [&](int64_t i) {
        return a.out.ptr<char>() + i / parts * a.out.step(0) * itemsize + i % parts * row_bytes;
      },
      [&](int64_t i) {
        const int64_t row = i / parts;
        return a.x.ptr<char>() +
               source_of_merged(items.of(row), row, i % parts, parts) * a.x.step(0) * itemsize;
      });
}

void scatter_rows(const ScatterRowsArgs& a, const Stream&) {
  check_rows(a.rows, a.out.size(0));
  const int64_t itemsize = size_of(a.x.dtype);
  copy_rows(
      a.x.size(0), a.x.size(1) * itemsize,
      [&](int64_t i) {
        return a.out.ptr<char>() + a.rows.ptr<int32_t>()[i] * a.out.step(0) * itemsize;
      },
      [&](int64_t i) { return a.x.ptr<char>() + i * a.x.step(0) * itemsize; });
}

}  // namespace ernie::cpu
