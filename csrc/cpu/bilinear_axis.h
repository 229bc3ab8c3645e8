// Where every output position of one axis of a bilinear resize reads, computed once per call.
#pragma once

#include <cstdint>
#include <vector>

#include "../math/interpolation.h"

namespace sod_ops {

template <typename A>
std::vector<math::Tap<A>> bilinear_taps(int64_t inputs, int64_t outputs, bool align_corners) {
  std::vector<math::Tap<A>> taps(outputs);
  for (int64_t i = 0; i < outputs; ++i) taps[i] = math::interpolation_tap<A>(i, inputs, outputs, align_corners, false);
  return taps;
}

}  // namespace sod_ops
