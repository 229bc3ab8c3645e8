// The taps of a bilinear resize for every output position of one axis, computed once per call.
#pragma once

#include <cstdint>
#include <vector>

#include "../math/bilinear.h"

namespace sod_ops {

template <typename A>
struct BilinearAxis {
  BilinearAxis(int64_t input_size, int64_t output_size, bool align_corners)
      : inputs(input_size), outputs(output_size), taps(output_size) {
    const A scale = math::bilinear_scale<A>(inputs, outputs, align_corners);
    for (int64_t i = 0; i < outputs; ++i) taps[i] = math::bilinear_tap(i, inputs, outputs, scale, align_corners);
  }

  int64_t inputs;
  int64_t outputs;
  std::vector<math::BilinearTap<A>> taps;  // non-decreasing in `first`
};

}  // namespace sod_ops
