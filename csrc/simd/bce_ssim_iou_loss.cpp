// BASNet's hybrid loss along a row; compiled once for each instruction set (see capability.h). The formulas stand in
// ../math/bce_ssim_iou_loss.h.
#include "logarithm.h"
#include "vector.h"
// After these, whose functions its templates call.
#include "bce_ssim_iou_loss.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::for_each_piece;
using simd::Lanes;

template <typename Acc>
math::HybridSums<Acc> sums(const Acc* p, const Acc* y, int64_t n, bool& outside) {
  using L = Lanes<Acc>;
  using V = simd::Vectorized<Acc>;
  L cross_entropy = L::fill(0), intersection = L::fill(0), total = L::fill(0);
  V farthest(0);
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    // Beyond the end p and y are 0, and so is all that they add.
    const V probability = L::load(p + i, count).v[0];
    const auto part = math::hybrid_sums(probability, L::load(y + i, count).v[0]);
    cross_entropy = cross_entropy + L{{part.cross_entropy}};
    intersection = intersection + L{{part.intersection}};
    total = total + L{{part.total}};
    farthest = at::vec::maximum(farthest, math::abs(probability - V(0.5)));
  });
  const Acc reach = at::vec::vec_reduce_all<Acc>([](V a, V b) { return at::vec::maximum(a, b); }, farthest);
  outside = outside || reach > Acc(0.5);
  return {cross_entropy.sum(), intersection.sum(), total.sum()};
}

template <typename Acc>
void derivative(const math::HybridCoefficients<Acc>& c, const Acc* p, const Acc* y, int64_t n, Acc* similarity) {
  using L = Lanes<Acc>;
  using V = simd::Vectorized<Acc>;
  const math::HybridCoefficients<V> coefficients{V(c.cross_entropy), V(c.slope), V(c.offset)};
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    const V own = math::hybrid_derivative(coefficients, L::load(p + i, count).v[0], L::load(y + i, count).v[0]);
    (L::load(similarity + i, count) + L{{own}}).store(similarity + i, count);
  });
}

template <typename Acc>
constexpr HybridKernels<Acc> kernels() {
  return {sums<Acc>, derivative<Acc>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllHybridKernels SOD_OPS_THIS_TABLE(hybrid_kernels) = {kernels<float>(), kernels<double>()};

}  // namespace sod_ops
