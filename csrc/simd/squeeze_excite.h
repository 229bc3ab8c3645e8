// The kernels that squeeze-and-excitation is made of, on raw pointers. cpu/squeeze_excite.cpp calls them for each
// sample.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "capability.h"
#include "map_shape.h"

namespace sod_ops {

template <typename T>
struct MapKernels {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

  // sums[c] = sum over pixels of a, or of a * b where b is not null. Both have their own step.
  void (*sums)(MapShape shape, const T* a, int64_t a_step, const T* b, int64_t b_step, Acc* sums);

  // y[c, p] = a[c, p] * factor[c] + offset[c]; a null offset is 0. `stream` says that y is too large to be found in a
  // cache later, so that it is written past them.
  void (*scale)(MapShape shape, const T* a, int64_t a_step, const Acc* factor, const Acc* offset, T* y, int64_t y_step,
                bool stream);

  // Between parameters of type T and the type that they are computed in.
  void (*widen)(const T* from, Acc* to, int64_t n);
  void (*narrow)(const Acc* from, T* to, int64_t n);
};

// The two matrix products. Without a reduction the means go straight into `expand_weight` [C, R] (R = C), and
// `reduce_weight` [R, C] is not read. Biases may be null. (An empty weight's pointer may be null too.)
template <typename Acc>
struct Excitation {
  bool reduces;
  int64_t channels;
  int64_t reduced;
  const Acc* reduce_weight;
  const Acc* reduce_bias;
  const Acc* expand_weight;
  const Acc* expand_bias;
  int64_t activation;
  int64_t gate;
};

template <typename Acc>
struct ExcitationKernels {
  // From the means m [C]: z1 = W1 m + b1 [R], hidden = activation(z1) [R], z2 = W2 hidden + b2 [C], gates = gate(z2)
  // [C]. Without a reduction hidden is m, and z1 and `hidden` are not written.
  void (*forward)(const Excitation<Acc>& e, const Acc* means, Acc* z1, Acc* hidden, Acc* z2, Acc* gates);

  // From the gradient of the gates [C]: those of z2 [C], z1 [R] and the means [C]; and `hidden` and `gates` once more.
  void (*backward)(const Excitation<Acc>& e, const Acc* z1, const Acc* z2, const Acc* grad_gates, Acc* hidden,
                   Acc* gates, Acc* grad_z2, Acc* grad_z1, Acc* grad_means);

  // For i in [begin, end): product[i, j] = sum over n of a[n, i] * b[n, j], and sum[i] = sum over n of a[n, i].
  void (*outer_sums)(const Acc* a, int64_t a_step, const Acc* b, int64_t b_step, int64_t samples, int64_t begin,
                     int64_t end, int64_t width, Acc* product, Acc* sum);
};

struct SqueezeExciteKernels {
  MapKernels<float> float32;
  MapKernels<double> float64;
  MapKernels<c10::BFloat16> bfloat16;
  MapKernels<c10::Half> float16;
  ExcitationKernels<float> excitation32;
  ExcitationKernels<double> excitation64;
};

SOD_OPS_KERNEL_TABLE(SqueezeExciteKernels, squeeze_excite_kernels)

}  // namespace sod_ops
