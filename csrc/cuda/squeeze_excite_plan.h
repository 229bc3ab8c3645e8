// How a call of squeeze_excite is laid out in the shared memory of clusters, and whether it fits.
#pragma once

#include <algorithm>

#include "../squeeze_excite.h"
#include "cluster_limits.h"
#include "held_map.h"

namespace sod_ops::cuda {

// Where a block keeps what besides its rows of the map; in numbers of the type that sums are taken in.
struct SqueezeExciteNumbers {
  unsigned own;         // [block_channels] of this block's channels: sums over pixels, then m; in the backward dz2
  unsigned factors;     // [block_channels] likewise: what the map is scaled with
  unsigned shifts;      // [block_channels] likewise: what is added to it in the backward
  unsigned partial;     // [R]: this block's part of z1; in the backward of the gradient of h
  unsigned hidden;      // [R], or [C] without a reduction: what the last matrix is multiplied with
  unsigned totals;      // [C] where rows are pixels: sums over the block's pixels, then the factors of all channels
  unsigned all_shifts;  // [C] likewise
  unsigned scratch;
  unsigned count;
};

struct SqueezeExcitePlan {
  int cluster = 1;  // blocks that hold a sample
  HeldShape map{};
  unsigned channels = 0, reduced = 0, block_channels = 0;
  bool reduces = false;
  SqueezeExciteNumbers numbers{};
  int64_t map_bytes = 0;     // of a block's rows, rounded up so that numbers can follow
  int64_t shared_bytes = 0;  // of a block

  SqueezeExcitePlan() = default;

  // With this many blocks to a sample. Sizes that don't fit 32 bits don't fit a cluster either: shared_bytes says so.
  SqueezeExcitePlan(const MapShape& shape, bool reduces_, int64_t reduced_, int64_t item_size, int blocks)
      : cluster(blocks), reduces(reduces_) {
    const int64_t rows = shape.planar ? shape.channels : shape.pixels;
    const int64_t row = shape.planar ? shape.pixels : shape.channels;
    const int64_t block_rows = (rows + blocks - 1) / blocks, of_block = (shape.channels + blocks - 1) / blocks;
    constexpr int64_t kMost = int64_t{1} << 24;
    if (std::max({rows, row, shape.channels, shape.pixels, reduced_}) >= kMost || block_rows * row >= kMost) {
      shared_bytes = kMost;
      return;
    }
    map = {static_cast<unsigned>(rows), static_cast<unsigned>(row), static_cast<unsigned>(block_rows), shape.planar};
    channels = static_cast<unsigned>(shape.channels);
    reduced = static_cast<unsigned>(reduced_);
    block_channels = static_cast<unsigned>(of_block);
    const auto reserve = [&](unsigned& place, unsigned count) {
      place = numbers.count;
      numbers.count += count;
    };
    for (unsigned* own : {&numbers.own, &numbers.factors, &numbers.shifts}) reserve(*own, block_channels);
    reserve(numbers.partial, reduced);
    reserve(numbers.hidden, reduces ? reduced : channels);
    reserve(numbers.totals, shape.planar ? 0 : channels);
    reserve(numbers.all_shifts, shape.planar ? 0 : channels);
    // For packs of any size, so that it does not depend on where tensors lie.
    const unsigned widest = static_cast<unsigned>(16 / item_size);
    const unsigned of_columns = std::min(kHeldThreads * widest, kMostColumnGroups * channels);
    reserve(numbers.scratch, std::max(kHeldThreads, shape.planar ? 0 : of_columns));
    map_bytes = (block_rows * row * item_size + 15) / 16 * 16;
    shared_bytes = map_bytes + numbers.count * std::max<int64_t>(4, item_size);
  }
};

// The fewest blocks that hold a sample and leave a multiprocessor room for another block, which moves its map while
// this one computes, but enough that all multiprocessors have work, as long as a block has some; then the fewest of all
// that hold it. That two blocks to a multiprocessor are better than one, and 8 to a cluster than 16, is argued and not
// measured. Where nothing fits, what needs least.
inline SqueezeExcitePlan plan_squeeze_excite(const SqueezeExciteShape& shape, int64_t item_size,
                                             const ClusterLimits& limits) {
  constexpr int64_t kLeast = 1 << 14;  // bytes of a sample to a block, below which more blocks gain nothing
  const int64_t half = limits.multiprocessor_bytes / 2 - limits.reserved_bytes;
  const auto with = [&](int blocks) {
    return SqueezeExcitePlan(shape.map, shape.reduces, shape.reduced, item_size, blocks);
  };
  const int portable = std::min(limits.largest, kPortableCluster);
  for (int blocks = 1; blocks <= portable; blocks *= 2) {
    const auto plan = with(blocks);
    const bool enough = shape.samples * blocks >= limits.multiprocessors || plan.map_bytes <= kLeast;
    if (plan.shared_bytes <= half && (enough || 2 * blocks > portable)) return plan;
  }
  for (int blocks = 1; blocks < limits.largest; blocks *= 2) {
    const auto plan = with(blocks);
    if (plan.shared_bytes <= limits.block_bytes) return plan;
  }
  return with(std::max(1, limits.largest));
}

// Whether a sample fits whatever its memory format is.
inline bool squeeze_excite_fits(int64_t channels, int64_t pixels, bool reduces, int64_t reduced, int64_t item_size,
                                const ClusterLimits& limits) {
  if (limits.largest == 0) return false;
  const auto fits = [&](bool planar) {
    const SqueezeExcitePlan plan({channels, pixels, planar}, reduces, reduced, item_size, limits.largest);
    return plan.shared_bytes <= limits.block_bytes;
  };
  return fits(true) && fits(false);
}

}  // namespace sod_ops::cuda
