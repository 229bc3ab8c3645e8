// Where every position of an upsampled axis reads.
#pragma once

#include <cstdint>
#include <vector>

#include "../math/interpolation.h"

namespace sod_ops {

template <typename A>
std::vector<math::Tap<A>> interpolation_axis(int64_t from, int64_t to, bool align_corners, bool nearest) {
  std::vector<math::Tap<A>> taps;
  taps.reserve(to);
  for (int64_t i = 0; i < to; ++i) taps.push_back(math::interpolation_tap<A>(i, from, to, align_corners, nearest));
  return taps;
}

}  // namespace sod_ops
