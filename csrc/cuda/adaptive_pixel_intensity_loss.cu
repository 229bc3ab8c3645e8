// The adaptive pixel intensity loss on the GPU: a launch for the pixels' weights and three for up to 16 heads. The
// arithmetic stands in ../math/adaptive_pixel_intensity_loss.h.
#include "../adaptive_pixel_intensity_loss.h"

#include <cmath>
#include <tuple>

#include "../math/adaptive_pixel_intensity_loss.h"
#include "heads.h"

namespace sod_ops::cuda {
namespace {

using torch::stable::Tensor;

struct IntensityLoss {
  static constexpr int kSums = 4;
  static constexpr bool kWeighted = true;
  template <typename T>
  using Coefficients = math::IntensityCoefficients<T>;

  bool published;

  // What is no probability makes its sample's loss and gradients NaN: to say so would wait for the device.
  template <typename T>
  __device__ __forceinline__ void add(T x, T y, T w, T (&sums)[kSums]) const {
    const T p = x >= 0 && x <= 1 ? x : static_cast<T>(NAN);
    const auto part = published ? math::intensity_sums<true>(p, y, w) : math::intensity_sums<false>(p, y, w);
    sums[0] += part.cross_entropy;
    sums[1] += part.absolute_error;
    sums[2] += part.intersection;
    sums[3] += part.total;
  }

  __device__ static math::IntensitySums<double> sums_of(const HeadSums& head, int64_t sample) {
    const double* sums = head.sums + sample * kSums;
    return {sums[0], sums[1], sums[2], sums[3]};
  }

  __device__ double loss(const HeadSums& head, int64_t sample) const {
    math::IntensitySums<double> sums = sums_of(head, sample);
    if (published) {
      const double all = head.pixels * static_cast<double>(head.samples);
      double cross_entropy = 0, error = 0;
      for (int64_t b = 0; b < head.samples; ++b) {
        cross_entropy += sums_of(head, b).cross_entropy / all;
        error += sums_of(head, b).absolute_error / all;
      }
      sums.cross_entropy = head.weights[sample] * cross_entropy;
      sums.absolute_error = head.weights[sample] * error;
    }
    return math::intensity_loss(sums, head.weights[sample], head.pixels);
  }

  template <typename T>
  __device__ Coefficients<T> coefficients(const HeadSums& head, int64_t sample, double weight) const {
    double cross_entropy = 0, error = 0;
    for (int64_t b = 0; published && b < head.samples; ++b) {
      const auto norms = math::intensity_norms(head.weights[b], head.pixels);
      const double scale = 0.7 * head.gradient(b) * head.weights[b] / (head.pixels * static_cast<double>(head.samples));
      cross_entropy += scale / norms.cross_entropy;
      error += scale / norms.absolute_error;
    }
    return math::intensity_coefficients<T>(sums_of(head, sample), head.weights[sample], head.pixels,
                                           weight * head.gradient(sample), weight * cross_entropy, weight * error,
                                           published);
  }

  template <typename T>
  __device__ __forceinline__ T derivative(const Coefficients<T>& c, T x, T y, T w) const {
    return math::intensity_derivative(c, x, y, w);
  }
};

constexpr int kSmall = 1, kMedium = 7, kLarge = 15;  // half windows
constexpr int kTile = 32;                            // a warp's columns, and as many rows
constexpr int kSeen = kTile + 2 * kLarge;            // rows and columns of the mask that a tile's windows hold
constexpr int kEach = 4;                             // sums next to each other that a thread takes
constexpr int kTileThreads = kTile * kTile / kEach;

// sums[i] = the sum of values i to i + 2 kHalf of those that lie `step` apart. What all four hold is added up once.
template <int kHalf, typename Acc>
__device__ __forceinline__ void window_sums(const Acc* values, int step, Acc (&sums)[kEach]) {
  constexpr int kLength = 2 * kHalf + 1;
  Acc common = 0, before[3], after[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    before[i] = values[i * step];
    after[i] = values[(kLength + i) * step];
  }
#pragma unroll
  for (int i = 3; i < kLength; ++i) common += values[i * step];
  sums[0] = before[0] + (before[1] + (before[2] + common));
  sums[1] = before[1] + (before[2] + common) + after[0];
  sums[2] = before[2] + common + after[0] + after[1];
  sums[3] = common + after[0] + after[1] + after[2];
}

// A tile of the mask with what surrounds it, and sums along its rows.
template <typename Acc>
struct Surroundings {
  // One more than there are columns: threads that work on columns next to each other then find them in different banks.
  Acc mask[kSeen][kSeen + 1];
  Acc sums[kSeen][kTile + 1];

  // Where the mask's first element lies, which may be outside of the map; there are zeros.
  __device__ void load(const Map& map, int64_t sample, int64_t height, int64_t width, int64_t top, int64_t left) {
    read_tile<kTileThreads>(map, sample, height, width, top, left, kSeen, kSeen, kSeen + 1, &mask[0][0]);
    __syncthreads();
  }

  // The averages at this thread's pixels: rows next to each other.
  template <int kHalf>
  __device__ __forceinline__ void average(Acc (&averages)[kEach]) {
    constexpr int kEdge = kLarge - kHalf;
    constexpr int kAcross = kTile / kEach;
    for (int i = threadIdx.x; i < (kTile + 2 * kHalf) * kAcross; i += kTileThreads) {
      const int row = kEdge + i / kAcross, column = i % kAcross * kEach;
      window_sums<kHalf>(&mask[row][kEdge + column], 1, averages);
#pragma unroll
      for (int k = 0; k < kEach; ++k) sums[row][column + k] = averages[k];
    }
    __syncthreads();
    window_sums<kHalf>(&sums[kEdge + threadIdx.x / kTile * kEach][threadIdx.x % kTile], kTile + 1, averages);
    constexpr double kScale = 1.0 / ((2 * kHalf + 1) * (2 * kHalf + 1));
#pragma unroll
    for (int k = 0; k < kEach; ++k) averages[k] *= static_cast<Acc>(kScale);
    __syncthreads();
  }
};

// weights [samples, height, width] of the pixels, and of each block their sum; across * down of them share a sample.
template <typename Acc>
__global__ void __launch_bounds__(kTileThreads, 2)
    intensity_weights_kernel(const Map mask, int64_t height, int64_t width, unsigned across, unsigned down,
                             Acc* weights, Acc* parts) {
  __shared__ Surroundings<Acc> around;
  const int64_t sample = blockIdx.x / across / down;
  const int64_t top = static_cast<int64_t>(blockIdx.x / across % down) * kTile;
  const int64_t left = static_cast<int64_t>(blockIdx.x % across) * kTile;
  around.load(mask, sample, height, width, top - kLarge, left - kLarge);
  Acc small[kEach], medium[kEach], large[kEach];
  around.template average<kSmall>(small);
  around.template average<kMedium>(medium);
  around.template average<kLarge>(large);

  const int first = threadIdx.x / kTile * kEach, column = threadIdx.x % kTile;
  Acc total = 0;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int64_t y = top + first + k, x = left + column;
    if (y >= height || x >= width) continue;
    const Acc pixel = around.mask[kLarge + first + k][kLarge + column];
    const Acc weight = math::intensity_weight(small[k], medium[k], large[k], pixel);
    weights[(sample * height + y) * width + x] = weight;
    total += weight;
  }
  total = block_sum(total);
  if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

void run(const IntensityCall& call, const Tensor* grad_output, const Tensor* loss,
         const std::vector<Tensor>& gradients) {
  const Launcher launcher(call.mask);
  for_accumulator(call.dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    const int64_t across = (call.width + kTile - 1) / kTile, down = (call.height + kTile - 1) / kTile;
    Workspace workspace;
    const auto map = workspace.reserve<Acc>(call.samples * call.height * call.width);
    const auto parts = workspace.reserve<Acc>(call.samples * across * down);
    workspace.allocate(call.mask);
    launcher(intensity_weights_kernel<Acc>, call.samples * across * down, kTileThreads, Map(call.mask), call.height,
             call.width, static_cast<unsigned>(across), static_cast<unsigned>(down), workspace.at(map),
             workspace.at(parts));
    const PixelWeights<Acc> weights{workspace.at(map), workspace.at(parts), across * down};
    run_heads<Acc>(launcher, call, IntensityLoss{call.published}, weights, grad_output, loss, gradients);
  });
}

// The loss, and its gradient by each head where it is a mean or a sum and `with_gradient` holds, otherwise no
// gradients.
std::tuple<Tensor, std::vector<Tensor>> adaptive_pixel_intensity_loss(std::vector<Tensor> probabilities,
                                                                      const Tensor& mask, bool as_published,
                                                                      std::vector<double> weights, int64_t reduction,
                                                                      bool with_gradient) {
  const IntensityCall call(probabilities, mask, as_published, weights, reduction);
  Tensor loss = call.empty_loss();
  std::vector<Tensor> gradients = call.empty_gradients(with_gradient && call.reduces());
  run(call, nullptr, &loss, gradients);
  return {loss, gradients};
}

// The gradient by each head.
std::vector<Tensor> adaptive_pixel_intensity_loss_backward(const Tensor& grad_output, std::vector<Tensor> probabilities,
                                                           const Tensor& mask, bool as_published,
                                                           std::vector<double> weights, int64_t reduction) {
  const IntensityCall call(probabilities, mask, as_published, weights, reduction);
  call.check_grad_output(grad_output);
  std::vector<Tensor> gradients = call.empty_gradients(true);
  run(call, &grad_output, nullptr, gradients);
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CUDA, m) {
  m.impl("adaptive_pixel_intensity_loss", TORCH_BOX(&adaptive_pixel_intensity_loss));
  m.impl("adaptive_pixel_intensity_loss_backward", TORCH_BOX(&adaptive_pixel_intensity_loss_backward));
}

}  // namespace sod_ops::cuda
