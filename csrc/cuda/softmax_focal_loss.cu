// Softmax focal loss on the GPU: one launch; before it one that counts the targets where the loss is a mean, after it
// one that adds up the blocks' sums where it is a mean or a sum. The arithmetic stands in ../math/focal_loss.h and is
// done in float, in double for float64.
#include "../softmax_focal_loss.h"

#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>

#include "../math/focal_loss.h"
#include "elements.h"
#include "launch.h"
#include "sum.h"

namespace sod_ops::cuda {
namespace {

using torch::stable::Tensor;

constexpr int kThreads = 256;
// Enough to fill the largest GPUs a few times; threads of a larger tensor take several positions.
constexpr int64_t kMostBlocks = 8192;
// From this many classes on, where they lie side by side, a warp takes a position; otherwise a thread does.
constexpr int64_t kManyClasses = 16;
constexpr int kWarp = 32;

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Tensors over positions [rows, columns]; whichever of them are there.
template <typename T>
struct Pass {
  using Acc = Accumulator<T>;
  int64_t rows;
  int64_t columns;
  int64_t classes;
  const T* inputs;
  T* gradient;
  ClassSteps input_steps;
  ClassSteps gradient_steps;
  View targets;
  View alpha;     // [classes] as columns
  View upstream;  // the incoming gradient of every position
  View factor;    // or that of the mean or sum: one number
  Output loss;
  Acc* sums;          // [blocks]
  const int* counts;  // [kThreads]: together, at most 2^31, the divisor of a mean
  math::Focus focus;
  double scale;
  double gamma;
  int64_t ignore_index;
};

__device__ __forceinline__ int64_t target_at(const View& targets, int64_t row, int64_t column) {
  int64_t target[1];
  read(targets, row, column, 1, target);
  return target[0];
}

// How many of each block's targets are not ignored; kThreads blocks.
__global__ void __launch_bounds__(kThreads)
    count_kernel(View targets, int64_t rows, int64_t columns, int64_t ignore_index, int* counts) {
  int found = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < rows * columns;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    found += target_at(targets, i / columns, i % columns) != ignore_index;
  }
  found = block_sum(found);
  if (threadIdx.x == 0) counts[blockIdx.x] = found;
}

// 1 / count to the last bit or two by Newton's steps: a division of doubles calls a subroutine, around which the
// compiler saves registers to memory.
__device__ __forceinline__ double reciprocal_of(int count) {
  double r = __fdividef(1.0f, static_cast<float>(count));
#pragma unroll
  for (int step = 0; step < 2; ++step) r = fma(r, fma(-static_cast<double>(count), r, 1.0), r);
  return r;
}

// What every loss is multiplied with, but for its class, computed by one thread for all: not a number for the mean of
// nothing.
template <typename T>
__device__ double factor_of(const Pass<T>& pass) {
  __shared__ double shared;
  const int counted = pass.counts == nullptr ? 0 : block_sum(pass.counts[threadIdx.x]);
  if (threadIdx.x == 0) {
    double factor[1] = {1};
    if (pass.factor.data != nullptr) read(pass.factor, 0, 0, 1, factor);
    factor[0] *= pass.scale;
    shared = pass.counts == nullptr ? factor[0] : counted == 0 ? NAN : factor[0] * reciprocal_of(counted);
  }
  __syncthreads();
  return shared;
}

// Over the lanes that share a position; all of them get the result.
template <int kLanes, typename Acc>
__device__ __forceinline__ Acc largest_of_lanes(Acc value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value = math::max(value, __shfl_xor_sync(~0u, value, step));
  return value;
}
template <int kLanes, typename Acc>
__device__ __forceinline__ Acc sum_of_lanes(Acc value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// kLanes threads take a position, each every kLanes-th class. They read the logits up to three times, of which the
// cache has them two.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads, 4) softmax_focal_loss_kernel(const Pass<T> pass) {
  using Acc = Accumulator<T>;
  constexpr int kPositions = kThreads / kLanes;
  const Acc scale = static_cast<Acc>(factor_of(pass));
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t count = pass.rows * pass.columns;
  Acc sum = isnan(scale) ? scale : Acc(0);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPositions + threadIdx.x / kLanes; i < count;
       i += static_cast<int64_t>(gridDim.x) * kPositions) {
    // A division of 32 bits takes a fraction of one of 64.
    const int64_t row = pass.rows == 1        ? 0
                        : count <= UINT32_MAX ? static_cast<uint32_t>(i) / static_cast<uint32_t>(pass.columns)
                                              : i / pass.columns;
    const int64_t column = i - row * pass.columns;
    const T* const logits =
        pass.inputs + row * pass.input_steps.position.row + column * pass.input_steps.position.column;
    const int64_t step = pass.input_steps.of_class;
    const int64_t target = target_at(pass.targets, row, column);
    const bool ignored = target == pass.ignore_index, known = target >= 0 && target < pass.classes;

    Acc largest = static_cast<Acc>(-INFINITY), others = 0;
    for (int64_t k = lane; k < pass.classes; k += kLanes) {
      largest = math::max(largest, static_cast<Acc>(logits[k * step]));
    }
    largest = largest_of_lanes<kLanes>(largest);
    for (int64_t k = lane; k < pass.classes; k += kLanes) {
      if (k != target) others += math::exp(static_cast<Acc>(logits[k * step]) - largest);
    }
    others = sum_of_lanes<kLanes>(others);

    // A target that is no class reads nothing and makes everything here NaN.
    Acc logit = static_cast<Acc>(NAN), weight = scale;
    if (known) {
      logit = static_cast<Acc>(logits[target * step]);
      if (pass.alpha.data != nullptr) {
        Acc value[1];
        read(pass.alpha, 0, target, 1, value);
        weight *= value[0];
      }
    }
    const auto likelihood = math::likelihood(largest, logit, others);
    const auto focal = math::softmax_focal(pass.focus, likelihood.cross_entropy, likelihood.target, likelihood.others,
                                           weight, static_cast<Acc>(pass.gamma));
    if (lane == 0) {
      const Acc loss[1] = {ignored ? Acc(0) : focal.loss};
      sum += loss[0];
      if (pass.loss.data != nullptr) write(pass.loss, i, 1, loss);
    }
    if (pass.gradient == nullptr) continue;
    Acc gain = focal.gain;
    if (pass.upstream.data != nullptr) {
      Acc value[1];
      read(pass.upstream, row, column, 1, value);
      gain *= value[0];
    }
    T* const gradient =
        pass.gradient + row * pass.gradient_steps.position.row + column * pass.gradient_steps.position.column;
    const Acc each = gain * likelihood.scale, at_target = -gain * likelihood.others;
    for (int64_t k = lane; k < pass.classes; k += kLanes) {
      const Acc slope = k == target ? at_target : each * math::exp(static_cast<Acc>(logits[k * step]) - largest);
      gradient[k * pass.gradient_steps.of_class] = static_cast<T>(ignored ? Acc(0) : slope);
    }
  }
  if (pass.sums != nullptr) {
    sum = block_sum(sum);
    if (threadIdx.x == 0) pass.sums[blockIdx.x] = sum;
  }
}

// What a call launches; `gradient`, `loss` and `upstream` may be null, `total` too where nothing is summed.
struct Wanted {
  const Tensor* gradient = nullptr;
  const Tensor* loss = nullptr;
  const Tensor* total = nullptr;
  const Tensor* grad_output = nullptr;
};

template <typename T>
void launch(const SoftmaxFocalCall& call, const Tensor& inputs, const Tensor& targets,
            const std::optional<Tensor>& alpha, const Wanted& wanted) {
  using Acc = Accumulator<T>;
  const Launcher launcher(inputs);
  const bool each = wanted.grad_output != nullptr && !call.reduces();
  const Positions positions(inputs, targets, wanted.gradient == nullptr ? inputs : *wanted.gradient,
                            each ? *wanted.grad_output : targets);
  if (positions.count() == 0) {
    if (wanted.total != nullptr) {
      torch::stable::fill_(*wanted.total, call.averages() ? std::numeric_limits<double>::quiet_NaN() : 0);
    }
    return;
  }
  Pass<T> pass{};
  pass.rows = positions.rows;
  pass.columns = positions.columns;
  pass.classes = call.classes;
  pass.inputs = static_cast<const T*>(inputs.data_ptr());
  pass.input_steps = positions.inputs;
  pass.gradient_steps = positions.gradient;
  pass.targets = view_of(targets, positions.targets);
  if (wanted.gradient != nullptr) pass.gradient = static_cast<T*>(wanted.gradient->data_ptr());
  if (alpha.has_value()) pass.alpha = view_of(*alpha, {0, alpha->stride(0)});
  if (wanted.grad_output != nullptr) {
    (each ? pass.upstream : pass.factor) = view_of(*wanted.grad_output, positions.upstream);
  }
  if (wanted.loss != nullptr) pass.loss = output_of(*wanted.loss);
  pass.focus = math::focus_of(call.gamma);
  pass.scale = call.scale;
  pass.gamma = call.gamma;
  pass.ignore_index = call.ignore_index;

  std::optional<Tensor> counts, sums;
  if (call.averages()) {
    counts = torch::stable::new_empty(inputs, {kThreads}, torch::headeronly::ScalarType::Int);
    pass.counts = static_cast<const int*>(counts->data_ptr());
    launcher(count_kernel, kThreads, kThreads, pass.targets, pass.rows, pass.columns, pass.ignore_index,
             static_cast<int*>(counts->data_ptr()));
  }
  const bool warps = positions.inputs.of_class == 1 && call.classes >= kManyClasses;
  const int64_t lanes = warps ? kWarp : 1, per_block = kThreads / lanes;
  const int64_t blocks = std::min(kMostBlocks, (positions.count() + per_block - 1) / per_block);
  if (wanted.total != nullptr) {
    sums = torch::stable::new_empty(inputs, {blocks}, accumulator_of(call.dtype));
    pass.sums = static_cast<Acc*>(sums->data_ptr());
  }
  launcher(warps ? softmax_focal_loss_kernel<T, kWarp> : softmax_focal_loss_kernel<T, 1>, blocks, kThreads, pass);
  if (wanted.total != nullptr) {
    launcher(sum_kernel<Acc>, 1, kSumThreads, static_cast<const Acc*>(pass.sums), blocks, output_of(*wanted.total));
  }
}

void launch_any(const SoftmaxFocalCall& call, const Tensor& inputs, const Tensor& targets,
                const std::optional<Tensor>& alpha, const Wanted& wanted) {
  for_floating(SoftmaxFocalCall::kOp, "inputs", call.dtype, [&](auto* type) {
    launch<std::remove_pointer_t<decltype(type)>>(call, inputs, targets, alpha, wanted);
  });
}

// The loss, and its gradient by inputs where it is a mean or a sum and `with_gradient` holds, otherwise an empty
// tensor.
std::tuple<Tensor, Tensor> softmax_focal_loss(const Tensor& inputs, const Tensor& targets,
                                              const std::optional<Tensor>& alpha, double scale, double gamma,
                                              int64_t ignore_index, int64_t reduction, bool with_gradient) {
  const SoftmaxFocalCall call(inputs, targets, alpha, scale, gamma, ignore_index, reduction);
  Tensor loss = call.empty_loss(inputs, targets), gradient = call.empty_gradient(inputs, with_gradient);
  Wanted wanted;
  (call.reduces() ? wanted.total : wanted.loss) = &loss;
  if (with_gradient && call.reduces()) wanted.gradient = &gradient;
  launch_any(call, inputs, targets, alpha, wanted);
  return {loss, gradient};
}

// The gradient by inputs: grad_output, a single number for a mean or a sum, times the derivative.
Tensor softmax_focal_loss_backward(const Tensor& grad_output, const Tensor& inputs, const Tensor& targets,
                                   const std::optional<Tensor>& alpha, double scale, double gamma, int64_t ignore_index,
                                   int64_t reduction) {
  const SoftmaxFocalCall call(inputs, targets, alpha, scale, gamma, ignore_index, reduction);
  call.check_grad_output(grad_output, targets);
  Tensor gradient = torch::stable::empty_like(inputs);
  launch_any(call, inputs, targets, alpha, {.gradient = &gradient, .grad_output = &grad_output});
  return gradient;
}

}  // namespace
}  // namespace sod_ops::cuda

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CUDA, m) {
  m.impl("softmax_focal_loss", TORCH_BOX(&sod_ops::cuda::softmax_focal_loss));
  m.impl("softmax_focal_loss_backward", TORCH_BOX(&sod_ops::cuda::softmax_focal_loss_backward));
}
