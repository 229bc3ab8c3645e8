// Sigmoid focal loss over a run of elements; compiled once for each instruction set (see capability.h). The formula
// stands in ../math/focal_loss.h.
#include "vector.h"
// After vector.h, whose functions its templates call.
#include "sigmoid_focal_loss.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using math::Focus;
using simd::for_each_piece;
using simd::Lanes;

template <Focus kFocus, bool kDerivative, typename Acc>
Acc run_of(const SigmoidFocalParameters<Acc>& p, const Acc* x, const Acc* y, int64_t n, Acc* loss, const Acc* upstream,
           Acc* derivative) {
  using V = simd::Vectorized<Acc>;
  const V positive(p.positive), negative(p.negative), gamma(p.gamma);
  Lanes<Acc> total = Lanes<Acc>::fill(0);
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    const V logit = Lanes<Acc>::load(x + i, count).v[0], target = Lanes<Acc>::load(y + i, count).v[0];
    const auto focal = math::sigmoid_focal<kFocus>(logit, target, positive, negative, gamma);
    Lanes<Acc> value{{focal.loss}};
    if (count < Lanes<Acc>::kSize) value.v[0] = V::set(V(0), focal.loss, count);
    total = total + value;
    if (loss != nullptr) value.store(loss + i, count);
    if constexpr (kDerivative) {
      Lanes<Acc> slope{{focal.derivative}};
      if (upstream != nullptr) slope = slope * Lanes<Acc>::load(upstream + i, count);
      slope.store(derivative + i, count);
    }
  });
  return total.sum();
}

template <Focus kFocus, typename Acc>
Acc run(const SigmoidFocalParameters<Acc>& p, const Acc* x, const Acc* y, int64_t n, Acc* loss, const Acc* upstream,
        Acc* derivative) {
  return derivative == nullptr ? run_of<kFocus, false>(p, x, y, n, loss, upstream, derivative)
                               : run_of<kFocus, true>(p, x, y, n, loss, upstream, derivative);
}

template <typename Acc>
constexpr SigmoidFocalKernels<Acc> kernels() {
  return {{run<Focus::zero, Acc>, run<Focus::one, Acc>, run<Focus::two, Acc>, run<Focus::power, Acc>}};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllSigmoidFocalKernels SOD_OPS_THIS_TABLE(sigmoid_focal_kernels) = {kernels<float>(), kernels<double>()};

}  // namespace sod_ops
