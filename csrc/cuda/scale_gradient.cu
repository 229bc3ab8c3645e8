// A stored gradient scaled in place without the host reading the factor (sod_ops/ops/_stored_gradient.py).
#include "../scale_gradient.h"

#include "elements.h"
#include "launch.h"

namespace sod_ops::cuda {
namespace {

using torch::stable::Tensor;

constexpr int kThreads = 256;
constexpr int kPack = 8;

// gradient [count] *= factor; nothing is read or written where the factor is 1.
template <typename Acc>
__global__ void __launch_bounds__(kThreads) scale_gradient_kernel(Output gradient, int64_t count, View factor) {
  Acc scale[1];
  read(factor, 0, 0, 1, scale);
  if (scale[0] == Acc(1)) return;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack;
  const int here = static_cast<int>(min(static_cast<int64_t>(kPack), count - at));
  if (here <= 0) return;
  Acc values[kPack];
  read(View{gradient.data, gradient.dtype, {0, 1}}, 0, at, here, values);
#pragma unroll
  for (int i = 0; i < kPack; ++i) values[i] *= scale[0];
  write(gradient, at, here, values);
}

void scale_gradient_(Tensor gradient, const Tensor& factor) {
  check_scale_gradient(gradient, factor);
  const int64_t packs = (gradient.numel() + kPack - 1) / kPack, blocks = (packs + kThreads - 1) / kThreads;
  const Launcher launcher(gradient);
  launcher(gradient.scalar_type() == torch::headeronly::ScalarType::Double ? scale_gradient_kernel<double>
                                                                           : scale_gradient_kernel<float>,
           blocks, kThreads, output_of(gradient), gradient.numel(), view_of(factor, {0, 1}));
}

}  // namespace
}  // namespace sod_ops::cuda

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CUDA, m) { m.impl("scale_gradient_", TORCH_BOX(&sod_ops::cuda::scale_gradient_)); }
