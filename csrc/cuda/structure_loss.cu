// The structure loss on the GPU: two launches for the pixels' weights and three for up to 16 heads. The arithmetic
// stands in ../math/structure_loss.h.
#include "../structure_loss.h"

#include <tuple>

#include "../math/structure_loss.h"
#include "box_sums.h"
#include "heads.h"

namespace sod_ops::cuda {
namespace {

using torch::stable::Tensor;

struct StructureLoss {
  static constexpr int kSums = 3;
  static constexpr bool kWeighted = true;
  template <typename T>
  using Coefficients = math::StructureCoefficients<T>;

  bool published;

  template <typename T>
  __device__ __forceinline__ void add(T x, T y, T w, T (&sums)[kSums]) const {
    const auto part = published ? math::structure_sums<true>(x, y, w) : math::structure_sums<false>(x, y, w);
    sums[0] += part.cross_entropy;
    sums[1] += part.intersection;
    sums[2] += part.total;
  }

  __device__ static math::StructureSums<double> sums_of(const HeadSums& head, int64_t sample) {
    const double* sums = head.sums + sample * kSums;
    return {sums[0], sums[1], sums[2]};
  }

  __device__ math::StructureTerms terms(const HeadSums& head, int64_t sample) const {
    return math::structure_terms(sums_of(head, sample), head.weights[sample], head.pixels, published);
  }

  __device__ double loss(const HeadSums& head, int64_t sample) const {
    const auto of_sample = terms(head, sample);
    if (!published) return of_sample.cross_entropy + of_sample.overlap;
    double mean = 0;
    for (int64_t b = 0; b < head.samples; ++b) {
      mean += terms(head, b).cross_entropy / static_cast<double>(head.samples);
    }
    return mean + of_sample.overlap;
  }

  template <typename T>
  __device__ Coefficients<T> coefficients(const HeadSums& head, int64_t sample, double weight) const {
    double batch = 0;
    for (int64_t b = 0; published && b < head.samples; ++b) {
      batch += head.gradient(b) / (head.pixels * static_cast<double>(head.samples));
    }
    return math::structure_coefficients<T>(sums_of(head, sample), head.weights[sample], weight * head.gradient(sample),
                                           weight * batch, published);
  }

  template <typename T>
  __device__ __forceinline__ T derivative(const Coefficients<T>& c, T x, T y, T w) const {
    return math::structure_derivative(c, x, y, w);
  }
};

// weights [samples, height, width] of the pixels, and of each block their sum; `blocks` of them share a sample.
template <typename Acc>
__global__ void __launch_bounds__(kBoxThreads, 4)
    structure_weights_kernel(const Acc* sums, const Map mask, const Windows windows, unsigned blocks, Acc* weights,
                             Acc* parts) {
  const int64_t sample = blockIdx.x / blocks, plane = sample * windows.height * windows.width;
  const int64_t item = static_cast<int64_t>(blockIdx.x % blocks) * kBoxThreads + threadIdx.x;
  Acc total = 0;
  if (item < windows.blocks_down * windows.width) {
    average_down(windows, sums + plane, mask, sample, item, weights + plane, [&](Acc average, Acc y) {
      const Acc weight = math::structure_weight(average, y);
      total += weight;
      return weight;
    });
  }
  total = block_sum(total);
  if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

void run(const StructureCall& call, const Tensor* grad_output, const Tensor* loss,
         const std::vector<Tensor>& gradients) {
  const Launcher launcher(call.mask);
  for_accumulator(call.dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    const int64_t pixels = call.height * call.width;
    const Windows windows(call.height, call.width, call.kernel_size);
    PixelWeights<Acc> weights;
    if (pixels > 0) weights.count = (windows.blocks_down * call.width + kBoxThreads - 1) / kBoxThreads;
    Workspace workspace;
    const auto sums = workspace.reserve<Acc>(call.samples * pixels);
    const auto map = workspace.reserve<Acc>(call.samples * pixels);
    const auto parts = workspace.reserve<Acc>(call.samples * weights.count);
    workspace.allocate(call.mask);
    if (pixels > 0) {
      sum_across(launcher, Map(call.mask), call.samples, windows, workspace.at(sums));
      launcher(structure_weights_kernel<Acc>, call.samples * weights.count, kBoxThreads,
               static_cast<const Acc*>(workspace.at(sums)), Map(call.mask), windows,
               static_cast<unsigned>(weights.count), workspace.at(map), workspace.at(parts));
    }
    weights.map = workspace.at(map);
    weights.parts = workspace.at(parts);
    run_heads<Acc>(launcher, call, StructureLoss{call.published}, weights, grad_output, loss, gradients);
  });
}

// The loss, and its gradient by each head where it is a mean or a sum and `with_gradient` holds, otherwise no
// gradients.
std::tuple<Tensor, std::vector<Tensor>> structure_loss(std::vector<Tensor> logits, const Tensor& mask,
                                                       int64_t kernel_size, bool as_published,
                                                       std::vector<double> weights, int64_t reduction,
                                                       bool with_gradient) {
  const StructureCall call(logits, mask, kernel_size, as_published, weights, reduction);
  Tensor loss = call.empty_loss();
  std::vector<Tensor> gradients = call.empty_gradients(with_gradient && call.reduces());
  run(call, nullptr, &loss, gradients);
  return {loss, gradients};
}

// The gradient by each head.
std::vector<Tensor> structure_loss_backward(const Tensor& grad_output, std::vector<Tensor> logits, const Tensor& mask,
                                            int64_t kernel_size, bool as_published, std::vector<double> weights,
                                            int64_t reduction) {
  const StructureCall call(logits, mask, kernel_size, as_published, weights, reduction);
  call.check_grad_output(grad_output);
  std::vector<Tensor> gradients = call.empty_gradients(true);
  run(call, &grad_output, nullptr, gradients);
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CUDA, m) {
  m.impl("structure_loss", TORCH_BOX(&structure_loss));
  m.impl("structure_loss_backward", TORCH_BOX(&structure_loss_backward));
}

}  // namespace sod_ops::cuda
