// The structure loss along a row; compiled once for each instruction set (see capability.h). The formulas stand in
// ../math/structure_loss.h.
#include "vector.h"
// After vector.h, whose functions its templates call.
#include "structure_loss.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::for_each_piece;
using simd::Lanes;

template <typename Acc>
Acc weigh(const Acc* averages, const Acc* y, int64_t n, Acc* weights) {
  using L = Lanes<Acc>;
  L total = L::fill(0);
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    L weight{{math::structure_weight(L::load(averages + i, count).v[0], L::load(y + i, count).v[0])}};
    weight.store(weights + i, count);
    total = total + L::load(weights + i, count);
  });
  return total.sum();
}

template <bool kPublished, typename Acc>
math::StructureSums<Acc> sums(const Acc* x, const Acc* y, const Acc* weights, int64_t n) {
  using L = Lanes<Acc>;
  using V = simd::Vectorized<Acc>;
  L cross_entropy = L::fill(0), intersection = L::fill(0), total = L::fill(0);
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    const auto part = math::structure_sums<kPublished>(L::load(x + i, count).v[0], L::load(y + i, count).v[0],
                                                       L::load(weights + i, count).v[0]);
    // Beyond the end the weight is 0, but the unweighted cross entropy of the zeros there is not.
    const V plain = count < L::kSize ? V::set(V(0), part.cross_entropy, count) : part.cross_entropy;
    cross_entropy = cross_entropy + L{{plain}};
    intersection = intersection + L{{part.intersection}};
    total = total + L{{part.total}};
  });
  return {cross_entropy.sum(), intersection.sum(), total.sum()};
}

template <typename Acc>
void derivative(const math::StructureCoefficients<Acc>& c, const Acc* x, const Acc* y, const Acc* weights, int64_t n,
                Acc* to) {
  using L = Lanes<Acc>;
  using V = simd::Vectorized<Acc>;
  const math::StructureCoefficients<V> coefficients{V(c.weighted), V(c.plain), V(c.slope), V(c.offset)};
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    L{{math::structure_derivative(coefficients, L::load(x + i, count).v[0], L::load(y + i, count).v[0],
                                  L::load(weights + i, count).v[0])}}
        .store(to + i, count);
  });
}

template <typename Acc>
constexpr StructureKernels<Acc> kernels() {
  return {weigh<Acc>, {sums<false, Acc>, sums<true, Acc>}, derivative<Acc>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllStructureKernels SOD_OPS_THIS_TABLE(structure_kernels) = {kernels<float>(), kernels<double>()};

}  // namespace sod_ops
