// The kernels that object attention is made of, on raw pointers. cpu/object_attention.cpp calls them for runs of pixels
// of one sample, short enough that what there is for each pixel stays in the first-level cache.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "capability.h"
#include "map_shape.h"

namespace sod_ops {

template <typename T>
struct ObjectAttentionKernels {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

  // The factors of n logits and, unless `slopes` is null, their derivatives.
  void (*factors)(const Acc* logits, int64_t n, Acc lowest, Acc* factors, Acc* slopes);

  // y[c, p] = a[c, p] * factors[p]. `stream` says that y is too large to be found in a cache later, so that it is
  // written past them.
  void (*scale)(MapShape shape, const T* a, int64_t a_step, const Acc* factors, T* y, int64_t y_step, bool stream);

  // grad_x[c, p] = grad[c, p] * factors[p] and sums[p] = sum over c of grad[c, p] * x[c, p]. `scratch` has room for a
  // number per pixel.
  void (*scale_backward)(MapShape shape, const T* grad, int64_t grad_step, const T* x, int64_t x_step,
                         const Acc* factors, T* grad_x, int64_t grad_x_step, Acc* sums, Acc* scratch, bool stream);
};

struct ObjectAttentionTable {
  ObjectAttentionKernels<float> float32;
  ObjectAttentionKernels<double> float64;
  ObjectAttentionKernels<c10::BFloat16> bfloat16;
  ObjectAttentionKernels<c10::Half> float16;
};

SOD_OPS_KERNEL_TABLE(ObjectAttentionTable, object_attention_kernels)

}  // namespace sod_ops
