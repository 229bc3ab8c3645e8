// Object attention on runs of pixels; compiled once for each instruction set (see capability.h). The formula stands in
// sod_ops/reference/object_attention.py.
#include "object_attention.h"

#include "pixel_factors.h"
// After vector.h, whose functions its templates call.
#include "../math/object_attention.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

template <typename Acc>
void factors(const Acc* logits, int64_t n, Acc lowest, Acc* factors, Acc* slopes) {
  using L = simd::Lanes<Acc>;
  using V = at::vec::Vectorized<Acc>;
  simd::for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    const auto value = math::object_factor<V>(L::load(logits + i, count).v[0], V(lowest));
    L{{value.factor}}.store(factors + i, count);
    if (slopes != nullptr) L{{value.slope}}.store(slopes + i, count);
  });
}

template <typename T>
constexpr ObjectAttentionKernels<T> kernels() {
  return {factors<simd::Accumulator<T>>, simd::scale_pixels<T>, simd::scale_pixels_backward<T>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const ObjectAttentionTable SOD_OPS_THIS_TABLE(object_attention_kernels) = {
    kernels<float>(), kernels<double>(), kernels<c10::BFloat16>(), kernels<c10::Half>()};

}  // namespace sod_ops
