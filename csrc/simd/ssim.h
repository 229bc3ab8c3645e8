// Steps of the structural similarity along a row, which cpu/similarity.h puts together.
//
// A window's averages are taken along rows and then along columns, and so are the derivatives on the way back: the
// filter is its own adjoint. Of every pixel there are up to four maps, in rows that lie `stride` apart:
//
//     x, x^2 + y^2, x y, y            and the index's derivatives by the averages of these
#pragma once

#include <cstdint>

#include "capability.h"

namespace sod_ops {

template <typename Acc>
struct SsimKernels {
  // The maps of n pixels: [0] without the last, [1] all.
  void (*maps[2])(const Acc* x, const Acc* y, int64_t n, int64_t stride, Acc* to);

  // to[i] = the sum of weights[t] rows[t][i] over t < taps.
  void (*filter)(const Acc* const* rows, const Acc* weights, int64_t taps, int64_t n, Acc* to);

  // The sum of n pixels' indices, from the maps' averages along rows. With `mean_y` the averages of y are those, and
  // the fourth map isn't there. The indices' derivatives go to `to`, a row for each map, unless that is null.
  Acc (*indices)(const Acc* const* rows, int64_t stride, const Acc* weights, int64_t taps, const Acc* mean_y, int64_t n,
                 Acc* to);

  // n derivatives by x, times `factor`, from the derivatives' averages along rows; and by y unless `by_y` is null.
  void (*derivatives)(const Acc* const* rows, int64_t stride, const Acc* weights, int64_t taps, const Acc* x,
                      const Acc* y, Acc factor, int64_t n, Acc* by_x, Acc* by_y);
};

struct AllSsimKernels {
  SsimKernels<float> float32;
  SsimKernels<double> float64;
};

SOD_OPS_KERNEL_TABLE(AllSsimKernels, ssim_kernels)

}  // namespace sod_ops
