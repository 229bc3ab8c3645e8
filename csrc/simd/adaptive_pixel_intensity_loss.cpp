// The adaptive pixel intensity loss along a row; compiled once for each instruction set (see capability.h). The
// formulas stand in ../math/adaptive_pixel_intensity_loss.h.
#include "logarithm.h"
#include "vector.h"
// After these, whose functions its templates call.
#include "adaptive_pixel_intensity_loss.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::for_each_piece;
using simd::Lanes;

template <typename Acc>
Acc weigh(const Acc* small, const Acc* medium, const Acc* large, const Acc* y, int64_t n, Acc* weights) {
  using L = Lanes<Acc>;
  L total = L::fill(0);
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    const auto at = [&](const Acc* p) { return L::load(p + i, count).v[0]; };
    L{{math::intensity_weight(at(small), at(medium), at(large), at(y))}}.store(weights + i, count);
    total = total + L::load(weights + i, count);
  });
  return total.sum();
}

template <bool kPublished, typename Acc>
math::IntensitySums<Acc> sums(const Acc* p, const Acc* y, const Acc* weights, int64_t n, bool& outside) {
  using L = Lanes<Acc>;
  using V = simd::Vectorized<Acc>;
  L cross_entropy = L::fill(0), absolute_error = L::fill(0), intersection = L::fill(0), total = L::fill(0);
  V farthest(0);
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    // Beyond the end p, y and the weight are 0, and so is all that they add.
    const V probability = L::load(p + i, count).v[0];
    const auto part =
        math::intensity_sums<kPublished>(probability, L::load(y + i, count).v[0], L::load(weights + i, count).v[0]);
    cross_entropy = cross_entropy + L{{part.cross_entropy}};
    absolute_error = absolute_error + L{{part.absolute_error}};
    intersection = intersection + L{{part.intersection}};
    total = total + L{{part.total}};
    farthest = at::vec::maximum(farthest, math::abs(probability - V(0.5)));
  });
  const Acc reach = at::vec::vec_reduce_all<Acc>([](V a, V b) { return at::vec::maximum(a, b); }, farthest);
  outside = outside || reach > Acc(0.5);
  return {cross_entropy.sum(), absolute_error.sum(), intersection.sum(), total.sum()};
}

template <typename Acc>
void derivative(const math::IntensityCoefficients<Acc>& c, const Acc* p, const Acc* y, const Acc* weights, int64_t n,
                Acc* to) {
  using L = Lanes<Acc>;
  using V = simd::Vectorized<Acc>;
  const math::IntensityCoefficients<V> coefficients{V(c.cross_entropy_w), V(c.cross_entropy), V(c.error_w),
                                                    V(c.error),           V(c.slope),         V(c.offset)};
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    L{{math::intensity_derivative(coefficients, L::load(p + i, count).v[0], L::load(y + i, count).v[0],
                                  L::load(weights + i, count).v[0])}}
        .store(to + i, count);
  });
}

template <typename Acc>
constexpr IntensityKernels<Acc> kernels() {
  return {weigh<Acc>, {sums<false, Acc>, sums<true, Acc>}, derivative<Acc>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllIntensityKernels SOD_OPS_THIS_TABLE(intensity_kernels) = {kernels<float>(), kernels<double>()};

}  // namespace sod_ops
