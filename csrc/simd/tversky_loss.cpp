// The Tversky loss along a row; compiled once for each instruction set (see capability.h). The formulas stand in
// ../math/tversky_loss.h.
#include "vector.h"
// After vector.h, whose functions its templates call.
#include "tversky_loss.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::for_each_piece;
using simd::Lanes;

template <typename Acc>
math::TverskySums<Acc> sums(const Acc* x, const Acc* y, int64_t n) {
  using L = Lanes<Acc>;
  using V = simd::Vectorized<Acc>;
  L intersection = L::fill(0), predicted = L::fill(0), target = L::fill(0);
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    const auto part = math::tversky_sums(L::load(x + i, count).v[0], L::load(y + i, count).v[0]);
    // Beyond the end the target is 0, but the probability of the zeros there is not.
    const V probability = count < L::kSize ? V::set(V(0), part.predicted, count) : part.predicted;
    intersection = intersection + L{{part.intersection}};
    predicted = predicted + L{{probability}};
    target = target + L{{part.target}};
  });
  return {intersection.sum(), predicted.sum(), target.sum()};
}

template <typename Acc>
void derivative(const math::TverskyCoefficients<Acc>& c, const Acc* x, const Acc* y, int64_t n, Acc* to) {
  using L = Lanes<Acc>;
  using V = simd::Vectorized<Acc>;
  const math::TverskyCoefficients<V> coefficients{V(c.inside), V(c.outside)};
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    L{{math::tversky_derivative(coefficients, L::load(x + i, count).v[0], L::load(y + i, count).v[0])}}.store(to + i,
                                                                                                              count);
  });
}

template <typename Acc>
constexpr TverskyKernels<Acc> kernels() {
  return {sums<Acc>, derivative<Acc>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllTverskyKernels SOD_OPS_THIS_TABLE(tversky_kernels) = {kernels<float>(), kernels<double>()};

}  // namespace sod_ops
