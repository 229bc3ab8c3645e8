// Squeeze-and-excitation on the GPU, where a cluster of thread blocks holds a sample in its shared memory:
//
//     m = mean of x over pixels     z1 = W1 m + b1     h = activation(z1)     z2 = W2 h + b2     y = x gate(z2)
//
// and backward, with the sums S = sum over pixels of dy x:
//
//     dz2 = gate'(z2) S     dz1 = activation'(z1) W2^T dz2     dm = W1^T dz1     dx = dy gate(z2) + dm / P
//
// One launch forward. x crosses memory once and y once. Two launches backward: the cluster holds dy, while x passes by
// once for S and is not needed again, so that dy, x and dx cross memory once each; the second launch sums the weights'
// gradients over the samples, from rows dz1, dz2 in a workspace [N, R + C]. Without a reduction h = m and there is no
// z1.
//
// One cluster takes a sample, of C x P numbers; each of its 1 to 16 blocks of 384 threads holds a share of the planes,
// or of the pixels where channels lie side by side (held_map.h). A block also owns a share of the channels: it
// multiplies the columns of W1 that belong to them, adds the parts of z1 of all blocks, which are R numbers through
// distributed shared memory, always in the blocks' order, and multiplies its rows of W2. Shared memory of a block:
// its share of the map, and some numbers for each channel and hidden unit (squeeze_excite_plan.h). On an H100 16 blocks
// hold up to 3.5 MB. Sums and products are taken in float, or double for double.
//
// That this is faster than Triton's three launches is argued from the traffic and not measured: nothing here has run on
// a GPU.
#include "../squeeze_excite.h"

#include <cooperative_groups.h>

#include <tuple>

#include "../squeeze_excite_fits.h"
#include "launch.h"
#include "squeeze_excite_block.h"
#include "weight_gradient.h"
#include "workspace.h"

namespace sod_ops::cuda {
namespace {

using torch::stable::Tensor;

// More samples are taken in turns.
constexpr int64_t kMostClusters = 1 << 20;

template <typename T>
constexpr int kBlocksTogether = sizeof(T) < 8 ? 2 : 1;

template <typename T, int kPack>
__global__ void __launch_bounds__(kHeldThreads, kBlocksTogether<T>)
    squeeze_excite_kernel(const __grid_constant__ SqueezeExciteCall<T> call) {
#ifdef SOD_OPS_HAS_CLUSTERS
  using Acc = Accumulator<T>;
  const auto cluster = cooperative_groups::this_cluster();
  const SqueezeExciteBlock<T, decltype(cluster)> block(call, cluster);
  const HeldMap<T, kPack> held(call.plan.map, cluster.block_rank(), shared_memory());
  const unsigned size = static_cast<unsigned>(call.plan.cluster);
  for (int64_t sample = blockIdx.x / size; sample < call.samples; sample += gridDim.x / size) {
    Acc* row = call.statistics + sample * (2 * call.plan.channels + call.plan.reduced);
    held.copy(call.map.data + sample * call.map.sample_step, call.map.step);
    block.template pool<false>(
        held, sample, [&](unsigned channel, Acc sum) { return row[channel] = sum / static_cast<Acc>(call.pixels); });
    if (call.wide) {
      block.template excite<Acc>(row);
    } else {
      block.template excite<T>(row);
    }
    block.template scale<false>(held, sample);
  }
#endif
}

template <typename T, int kPack>
__global__ void __launch_bounds__(kHeldThreads, kBlocksTogether<T>)
    squeeze_excite_backward_kernel(const __grid_constant__ SqueezeExciteCall<T> call) {
#ifdef SOD_OPS_HAS_CLUSTERS
  using Acc = Accumulator<T>;
  const auto cluster = cooperative_groups::this_cluster();
  const SqueezeExciteBlock<T, decltype(cluster)> block(call, cluster);
  const HeldMap<T, kPack> held(call.plan.map, cluster.block_rank(), shared_memory());
  const unsigned size = static_cast<unsigned>(call.plan.cluster), channels = call.plan.channels;
  for (int64_t sample = blockIdx.x / size; sample < call.samples; sample += gridDim.x / size) {
    const Acc* row = call.statistics + sample * (2 * channels + call.plan.reduced);
    Acc* gradients = call.gradients + sample * (call.plan.reduced + channels);
    held.copy(call.map.data + sample * call.map.sample_step, call.map.step);
    block.template pool<true>(held, sample, [&](unsigned channel, Acc sum) {
      const Acc z2 = row[channels + call.plan.reduced + channel];
      return gradients[call.plan.reduced + channel] = sum * math::gate_derivative(call.gate, z2);
    });
    if (call.wide) {
      block.template excite_backward<Acc>(row, gradients);
    } else {
      block.template excite_backward<T>(row, gradients);
    }
    block.template scale<true>(held, sample);
  }
#endif
}

// Tiles of the gradients of expand_weight and, behind them, of reduce_weight.
template <typename Acc>
__global__ void __launch_bounds__(kWeightThreads)
    squeeze_excite_weights_kernel(const __grid_constant__ WeightGradient<Acc> expand,
                                  const __grid_constant__ WeightGradient<Acc> reduce, int64_t samples,
                                  math::Activation activation) {
  const int64_t tile = blockIdx.x, before = expand.tiles();
  const bool expands = tile < before;
  (expands ? expand : reduce)
      .compute(expands ? tile : tile - before, samples, expands ? activation : math::Activation::identity);
}

const ClusterLimits& limits_of(int device) {
  return cluster_limits<squeeze_excite_kernel<float, 4>>(device, static_cast<int>(kHeldThreads));
}

// The plan of a call; refuses what can't be served.
SqueezeExcitePlan plan_on(const ClusterLimits& limits, const SqueezeExciteShape& shape, const Tensor& x) {
  STD_TORCH_CHECK(limits.largest > 0,
                  "squeeze_excite: the cuda backend has no kernel for this device: it takes a GPU of compute "
                  "capability 9.0 or higher, and a build for it; the triton backend serves others");
  const auto plan = plan_squeeze_excite(shape, static_cast<int64_t>(x.element_size()), limits);
  STD_TORCH_CHECK(plan.shared_bytes <= limits.block_bytes,
                  "squeeze_excite: the cuda backend holds a sample of x on chip, and one of C = ", shape.map.channels,
                  ", H W = ", shape.map.pixels, " does not fit: ", plan.cluster, " blocks of ", limits.block_bytes,
                  " bytes are the most on this device; the triton backend takes any size");
  return plan;
}

// Whether packs of this many elements can be moved: rows of a map that are read or written.
template <typename T>
bool packs(const Samples<T>& map, int64_t rows, int64_t samples, int pack) {
  const int64_t bytes = static_cast<int64_t>(sizeof(T)) * pack;
  return reinterpret_cast<uintptr_t>(map.data) % bytes == 0 &&
         (rows <= 1 || map.step * static_cast<int64_t>(sizeof(T)) % bytes == 0) &&
         (samples <= 1 || map.sample_step * static_cast<int64_t>(sizeof(T)) % bytes == 0);
}

// Calls body with the largest pack that fits a call: 16 bytes, 8 (of two-byte elements), or an element.
template <typename T, typename Body>
void for_pack(const SqueezeExciteCall<T>& call, bool backward, const Body& body) {
  const auto fits = [&](int pack) {
    const auto all = [&](const auto& map) { return packs(map, call.plan.map.rows, call.samples, pack); };
    return call.plan.map.columns % static_cast<unsigned>(pack) == 0 && all(call.map) && all(call.result) &&
           (!backward || all(call.factor));
  };
  constexpr int kWidest = 16 / sizeof(T);
  if (fits(kWidest)) return body(std::integral_constant<int, kWidest>());
  if constexpr (sizeof(T) == 2) {
    if (fits(4)) return body(std::integral_constant<int, 4>());
  }
  body(std::integral_constant<int, 1>());
}

const void* data_of(const std::optional<Tensor>& parameter) {
  return parameter.has_value() ? parameter->data_ptr() : nullptr;
}

std::tuple<Tensor, Tensor> squeeze_excite(const Tensor& x, const std::optional<Tensor>& reduce_weight,
                                          const std::optional<Tensor>& reduce_bias, const Tensor& expand_weight,
                                          const std::optional<Tensor>& expand_bias, int64_t activation, int64_t gate) {
  const auto shape = check_squeeze_excite(x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate);
  const auto& limits = limits_of(x.get_device_index());
  const auto plan = plan_on(limits, shape, x);
  const SqueezeExciteResults results(shape, x);
  const Launcher launcher(x);
  for_floating("squeeze_excite", "x", x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const SqueezeExciteCall<T> call{plan,
                                    shape.samples,
                                    shape.map.pixels,
                                    data_of(reduce_weight),
                                    data_of(reduce_bias),
                                    expand_weight.data_ptr(),
                                    data_of(expand_bias),
                                    expand_weight.scalar_type() != x.scalar_type(),
                                    samples_of<const T>(x, shape.map.planar),
                                    {},
                                    samples_of<T>(results.y, shape.map.planar),
                                    static_cast<Accumulator<T>*>(results.statistics.data_ptr()),
                                    nullptr,
                                    static_cast<math::Activation>(activation),
                                    static_cast<math::Gate>(gate)};
    for_pack(call, false, [&](auto pack) {
      launcher.clusters<squeeze_excite_kernel<T, pack()>>(limits, std::min(shape.samples, kMostClusters), plan.cluster,
                                                          static_cast<int>(kHeldThreads), plan.shared_bytes, call);
    });
  });
  return {results.y, results.statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> squeeze_excite_backward(const Tensor& grad_y, const Tensor& x,
                                                                           const std::optional<Tensor>& reduce_weight,
                                                                           const Tensor& expand_weight,
                                                                           const Tensor& statistics, int64_t activation,
                                                                           int64_t gate) {
  const auto shape =
      check_squeeze_excite_backward(grad_y, x, reduce_weight, expand_weight, statistics, activation, gate);
  const auto& limits = limits_of(x.get_device_index());
  const auto plan = plan_on(limits, shape, x);
  const SqueezeExciteGradients grads(shape, x, reduce_weight, expand_weight);
  const Launcher launcher(x);
  for_floating("squeeze_excite_backward", "x", x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = Accumulator<T>;
    const int64_t channels = shape.map.channels, reduced = shape.reduced;
    Workspace workspace;
    const auto rows = workspace.reserve<Acc>(shape.samples * (reduced + channels));
    workspace.allocate(x);
    const Acc *m = static_cast<const Acc*>(statistics.data_ptr()), *z1 = m + channels;
    const SqueezeExciteCall<T> call{plan,
                                    shape.samples,
                                    shape.map.pixels,
                                    data_of(reduce_weight),
                                    nullptr,
                                    expand_weight.data_ptr(),
                                    nullptr,
                                    expand_weight.scalar_type() != x.scalar_type(),
                                    samples_of<const T>(grad_y, shape.map.planar),
                                    samples_of<const T>(x, shape.map.planar),
                                    samples_of<T>(grads.x, shape.map.planar),
                                    const_cast<Acc*>(m),
                                    workspace.at(rows),
                                    static_cast<math::Activation>(activation),
                                    static_cast<math::Gate>(gate)};
    for_pack(call, true, [&](auto pack) {
      launcher.clusters<squeeze_excite_backward_kernel<T, pack()>>(limits, std::min(shape.samples, kMostClusters),
                                                                   plan.cluster, static_cast<int>(kHeldThreads),
                                                                   plan.shared_bytes, call);
    });

    const Acc *dz1 = call.gradients, *dz2 = dz1 + reduced;
    const int64_t step = reduced + channels, width = shape.statistics_width();
    const WeightGradient<Acc> expand{
        dz2,      step,           shape.reduces ? z1 : m,         width,
        channels, shape.hidden(), output_of(grads.expand_weight), output_of(grads.expand_bias)};
    const WeightGradient<Acc> reduce{
        dz1, step, m, width, reduced, channels, output_of(grads.reduce_weight), output_of(grads.reduce_bias)};
    launcher(squeeze_excite_weights_kernel<Acc>, expand.tiles() + reduce.tiles(), static_cast<int>(kWeightThreads),
             expand, reduce, shape.samples,
             shape.reduces ? static_cast<math::Activation>(activation) : math::Activation::identity);
  });
  return {grads.x, grads.reduce_weight, grads.reduce_bias, grads.expand_weight, grads.expand_bias};
}

// For Python, which asks before it chooses this backend by itself.
[[maybe_unused]] const bool kAnswers = [] {
  sod_ops::squeeze_excite_fits = [](int device, int64_t channels, int64_t pixels, bool reduces, int64_t reduced,
                                    int64_t item_size) {
    return squeeze_excite_fits(channels, pixels, reduces, reduced, item_size, limits_of(device));
  };
  return true;
}();

}  // namespace
}  // namespace sod_ops::cuda

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CUDA, m) {
  m.impl("squeeze_excite", TORCH_BOX(&sod_ops::cuda::squeeze_excite));
  m.impl("squeeze_excite_backward", TORCH_BOX(&sod_ops::cuda::squeeze_excite_backward));
}
