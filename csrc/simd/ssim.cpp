// The structural similarity along a row; compiled once for each instruction set (see capability.h). The formula stands
// in ../math/ssim.h.
#include "vector.h"
// After vector.h, whose functions its templates call.
#include "../math/ssim.h"
#include "ssim.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::for_each_piece;
using simd::Lanes;
using simd::Vectorized;

template <int kMaps, typename Acc>
void maps(const Acc* x, const Acc* y, int64_t n, int64_t stride, Acc* to) {
  using L = Lanes<Acc>;
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    const L a = L::load(x + i, count), b = L::load(y + i, count);
    a.store(to + i, count);
    fmadd(a, a, b * b).store(to + stride + i, count);
    (a * b).store(to + 2 * stride + i, count);
    if constexpr (kMaps == 4) b.store(to + 3 * stride + i, count);
  });
}

// The averages of kMaps maps at `count` pixels from i on.
template <int kMaps, typename Acc, typename Count>
inline __attribute__((always_inline)) void average(const Acc* const* rows, int64_t stride, const Acc* weights,
                                                   int64_t taps, int64_t i, Count count, Vectorized<Acc> (&to)[kMaps]) {
  for (auto& value : to) value = Vectorized<Acc>(0);
  for (int64_t t = 0; t < taps; ++t) {
    const Vectorized<Acc> weight(weights[t]);
    const Acc* row = rows[t] + i;
#pragma GCC unroll 4
    for (int m = 0; m < kMaps; ++m) {
      to[m] = at::vec::fmadd(weight, Lanes<Acc>::load(row + m * stride, count).v[0], to[m]);
    }
  }
}

template <typename Acc>
void filter(const Acc* const* rows, const Acc* weights, int64_t taps, int64_t n, Acc* to) {
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    Vectorized<Acc> value[1];
    average(rows, 0, weights, taps, i, count, value);
    Lanes<Acc>{{value[0]}}.store(to + i, count);
  });
}

template <bool kMeanGiven, bool kDerivatives, typename Acc>
Acc indices(const Acc* const* rows, int64_t stride, const Acc* weights, int64_t taps, const Acc* mean_y, int64_t n,
            Acc* to) {
  using L = Lanes<Acc>;
  L total = L::fill(0);
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    Vectorized<Acc> averages[kMeanGiven ? 3 : 4];
    average(rows, stride, weights, taps, i, count, averages);
    Vectorized<Acc> of_y;
    if constexpr (kMeanGiven) {
      of_y = L::load(mean_y + i, count).v[0];
    } else {
      of_y = averages[3];
    }
    const auto found = math::similarity(averages[0], of_y, averages[1], averages[2]);
    // Beyond the end, where all is 0, the index is 1.
    total = total + L{{count < L::kSize ? Vectorized<Acc>::set(Vectorized<Acc>(0), found.index, count) : found.index}};
    if constexpr (kDerivatives) {
      L{{found.by_mean_x}}.store(to + i, count);
      L{{found.by_squares}}.store(to + stride + i, count);
      L{{found.by_product}}.store(to + 2 * stride + i, count);
      if constexpr (!kMeanGiven) L{{found.by_mean_y}}.store(to + 3 * stride + i, count);
    }
  });
  return total.sum();
}

template <typename Acc>
Acc indices_of(const Acc* const* rows, int64_t stride, const Acc* weights, int64_t taps, const Acc* mean_y, int64_t n,
               Acc* to) {
  const auto kernel = mean_y == nullptr ? (to == nullptr ? indices<false, false, Acc> : indices<false, true, Acc>)
                                        : (to == nullptr ? indices<true, false, Acc> : indices<true, true, Acc>);
  return kernel(rows, stride, weights, taps, mean_y, n, to);
}

template <bool kBoth, typename Acc>
void derivatives(const Acc* const* rows, int64_t stride, const Acc* weights, int64_t taps, const Acc* x, const Acc* y,
                 Acc factor, int64_t n, Acc* by_x, Acc* by_y) {
  using V = Vectorized<Acc>;
  using L = Lanes<Acc>;
  const V scale(factor), two(2);
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    V averages[kBoth ? 4 : 3];
    average(rows, stride, weights, taps, i, count, averages);
    const V a = L::load(x + i, count).v[0], b = L::load(y + i, count).v[0];
    const V by_square = two * averages[1];
    const auto total = [&](const V& by_mean, const V& own, const V& other) {
      return L{{scale * at::vec::fmadd(by_square, own, at::vec::fmadd(averages[2], other, by_mean))}};
    };
    total(averages[0], a, b).store(by_x + i, count);
    if constexpr (kBoth) total(averages[3], b, a).store(by_y + i, count);
  });
}

template <typename Acc>
void derivatives_of(const Acc* const* rows, int64_t stride, const Acc* weights, int64_t taps, const Acc* x,
                    const Acc* y, Acc factor, int64_t n, Acc* by_x, Acc* by_y) {
  const auto kernel = by_y == nullptr ? derivatives<false, Acc> : derivatives<true, Acc>;
  kernel(rows, stride, weights, taps, x, y, factor, n, by_x, by_y);
}

template <typename Acc>
constexpr SsimKernels<Acc> kernels() {
  return {{maps<3, Acc>, maps<4, Acc>}, filter<Acc>, indices_of<Acc>, derivatives_of<Acc>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllSsimKernels SOD_OPS_THIS_TABLE(ssim_kernels) = {kernels<float>(), kernels<double>()};

}  // namespace sod_ops
