// Where an output position of torch.nn.functional.interpolate reads, along one axis; for the CPU and for CUDA.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace sod_ops::math {

// value = weight0 * input[index0] + weight1 * input[index1]
template <typename T>
struct Tap {
  int64_t index0;
  int64_t index1;
  T weight0;
  T weight1;
};

// Bilinear interpolation from `from` to `to` positions (align_corners as in PyTorch), or nearest neighbours. The
// position is computed in T, float or double, as PyTorch does, so that both round to the same neighbours.
template <typename T>
SOD_OPS_HD Tap<T> interpolation_tap(int64_t position, int64_t from, int64_t to, bool align_corners, bool nearest) {
  if (from == to) return {position, position, T(1), T(0)};
  if (nearest) {
    const T scale = static_cast<T>(from) / static_cast<T>(to);
    const int64_t index = static_cast<int64_t>(static_cast<T>(position) * scale);
    const int64_t last = from - 1;
    return {index < last ? index : last, index < last ? index : last, T(1), T(0)};
  }
  T source;
  if (align_corners) {
    const T scale = to > 1 ? static_cast<T>(from - 1) / static_cast<T>(to - 1) : T(0);
    source = scale * static_cast<T>(position);
  } else {
    const T scale = static_cast<T>(from) / static_cast<T>(to);
    source = scale * (static_cast<T>(position) + T(0.5)) - T(0.5);
    if (source < T(0)) source = T(0);
  }
  int64_t index = static_cast<int64_t>(source);
  if (index > from - 1) index = from - 1;
  T weight = source - static_cast<T>(index);
  if (weight > T(1)) weight = T(1);
  return {index, index < from - 1 ? index + 1 : index, T(1) - weight, weight};
}

}  // namespace sod_ops::math
