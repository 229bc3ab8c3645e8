// Sigmoid focal loss on the GPU: one launch, and a second that adds up the blocks' sums for a mean or a sum. The
// arithmetic stands in ../math/focal_loss.h and is done in float, in double where either tensor is float64.
#include "../sigmoid_focal_loss.h"

#include <tuple>

#include "../math/focal_loss.h"
#include "elements.h"
#include "launch.h"
#include "sum.h"

namespace sod_ops::cuda {
namespace {

using math::Focus;
using torch::stable::Tensor;

constexpr int kThreads = 256;
// Elements to a thread at a time: 16 bytes of a two-byte type, 32 of float.
constexpr int kPack = 8;
// Enough to fill the largest GPUs a few times; threads of a larger tensor take several packs.
constexpr int64_t kMostBlocks = 8192;

// Tensors [rows, columns]; whichever of them are there.
template <typename Acc>
struct Pass {
  int64_t rows;
  int64_t columns;
  View inputs;
  View targets;
  View upstream;  // the incoming gradient of every element
  View factor;    // or that of the mean or sum: one number
  Output loss;
  Output gradient;
  Acc* sums;  // [blocks]
  double positive;
  double negative;
  double gamma;
};

// Each thread takes packs of kCount columns in steps of the grid: their losses, their sum, the derivatives times the
// incoming gradient.
template <typename Acc, Focus kFocus, int kCount>
__global__ void __launch_bounds__(kThreads) sigmoid_focal_loss_kernel(const Pass<Acc> pass) {
  double factor = 1;
  if (pass.factor.data != nullptr) {
    double value[1];
    read(pass.factor, 0, 0, 1, value);
    factor = value[0];
  }
  const Acc positive = static_cast<Acc>(pass.positive * factor), negative = static_cast<Acc>(pass.negative * factor);
  const Acc gamma = static_cast<Acc>(pass.gamma);
  const int64_t across = (pass.columns + kCount - 1) / kCount, packs = pass.rows * across;
  Acc sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < packs;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    // A division of 32 bits takes a fraction of one of 64.
    const int64_t row = pass.rows == 1        ? 0
                        : packs <= UINT32_MAX ? static_cast<uint32_t>(i) / static_cast<uint32_t>(across)
                                              : i / across;
    const int64_t column = (i - row * across) * kCount;
    const int count = static_cast<int>(min(static_cast<int64_t>(kCount), pass.columns - column));
    Acc x[kCount], y[kCount], loss[kCount], gradient[kCount];
    read(pass.inputs, row, column, count, x);
    read(pass.targets, row, column, count, y);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const auto focal = math::sigmoid_focal<kFocus>(x[k], y[k], positive, negative, gamma);
      loss[k] = focal.loss;
      gradient[k] = focal.derivative;
      sum += k < count ? focal.loss : Acc(0);
    }
    const int64_t at = row * pass.columns + column;
    if (pass.loss.data != nullptr) write(pass.loss, at, count, loss);
    if (pass.upstream.data != nullptr) {
      Acc upstream[kCount];
      read(pass.upstream, row, column, count, upstream);
#pragma unroll
      for (int k = 0; k < kCount; ++k) gradient[k] *= upstream[k];
    }
    if (pass.gradient.data != nullptr) write(pass.gradient, at, count, gradient);
  }
  if (pass.sums != nullptr) {
    sum = block_sum(sum);
    if (threadIdx.x == 0) pass.sums[blockIdx.x] = sum;
  }
}

template <typename Acc, int kCount>
auto kernel_for(double gamma) {
  switch (math::focus_of(gamma)) {
    case Focus::zero: return sigmoid_focal_loss_kernel<Acc, Focus::zero, kCount>;
    case Focus::one: return sigmoid_focal_loss_kernel<Acc, Focus::one, kCount>;
    case Focus::two: return sigmoid_focal_loss_kernel<Acc, Focus::two, kCount>;
    default: return sigmoid_focal_loss_kernel<Acc, Focus::power, kCount>;
  }
}

// What the operators launch; `upstream` is walked like inputs, and may be inputs where there is none.
struct Plan {
  Rows<3> rows;
  bool packed;
  int64_t blocks;

  Plan(const Tensor& inputs, const Tensor& targets, const Tensor& upstream)
      : rows(rows_of(SigmoidFocalCall::kOp, inputs, targets, upstream)) {
    packed = (rows.rows == 1 || rows.columns % kPack == 0) && packable(inputs, 0) && packable(targets, 1) &&
             packable(upstream, 2);
    const int64_t count = packed ? kPack : 1;
    const int64_t packs = rows.rows * ((rows.columns + count - 1) / count);
    blocks = std::min(kMostBlocks, (packs + kThreads - 1) / kThreads);
  }

  bool packable(const Tensor& tensor, int index) const {
    return packs<kPack>(view_of(tensor, rows.steps[index]), tensor, rows.rows);
  }
};

template <typename Acc>
void launch(const Launcher& launcher, const Plan& plan, const SigmoidFocalCall& call, const Tensor& inputs,
            const Tensor& targets, Pass<Acc> pass) {
  pass.rows = plan.rows.rows;
  pass.columns = plan.rows.columns;
  pass.inputs = view_of(inputs, plan.rows.steps[0]);
  pass.targets = view_of(targets, plan.rows.steps[1]);
  const double factor = call.factor(plan.rows.count());
  pass.positive = factor * call.positive;
  pass.negative = factor * call.negative;
  pass.gamma = call.gamma;
  launcher(plan.packed ? kernel_for<Acc, kPack>(call.gamma) : kernel_for<Acc, 1>(call.gamma), plan.blocks, kThreads,
           pass);
}

template <typename Acc>
void forward(const SigmoidFocalCall& call, const Tensor& inputs, const Tensor& targets, const Tensor& loss,
             const Tensor* gradient) {
  const Launcher launcher(inputs);
  const Plan plan(inputs, targets, inputs);
  Pass<Acc> pass{};
  if (!call.reduces()) {
    pass.loss = output_of(loss);
    return launch(launcher, plan, call, inputs, targets, pass);
  }
  if (plan.blocks == 0) {
    torch::stable::fill_(loss, call.factor(0) * 0);
    return;
  }
  const Tensor sums = torch::stable::new_empty(inputs, {plan.blocks}, accumulator_of(call.dtype));
  pass.sums = static_cast<Acc*>(sums.data_ptr());
  if (gradient != nullptr) pass.gradient = output_of(*gradient);
  launch(launcher, plan, call, inputs, targets, pass);
  launcher(sum_kernel<Acc>, 1, kSumThreads, static_cast<const Acc*>(pass.sums), plan.blocks, output_of(loss));
}

template <typename Acc>
void backward(const SigmoidFocalCall& call, const Tensor& grad_output, const Tensor& inputs, const Tensor& targets,
              const Tensor& gradient) {
  const Launcher launcher(inputs);
  const Plan plan(inputs, targets, call.reduces() ? inputs : grad_output);
  Pass<Acc> pass{};
  (call.reduces() ? pass.factor : pass.upstream) = view_of(grad_output, plan.rows.steps[2]);
  pass.gradient = output_of(gradient);
  launch(launcher, plan, call, inputs, targets, pass);
}

// The loss, and its gradient by inputs where it is a mean or a sum and `with_gradient` holds, otherwise an empty
// tensor.
std::tuple<Tensor, Tensor> sigmoid_focal_loss(const Tensor& inputs, const Tensor& targets, double alpha, double gamma,
                                              int64_t reduction, bool with_gradient) {
  const SigmoidFocalCall call(inputs, targets, alpha, gamma, reduction);
  Tensor loss = call.empty_loss(inputs), gradient = call.empty_gradient(inputs, with_gradient);
  const Tensor* wanted = with_gradient ? &gradient : nullptr;
  accumulator_of(call.dtype) == torch::headeronly::ScalarType::Double
      ? forward<double>(call, inputs, targets, loss, wanted)
      : forward<float>(call, inputs, targets, loss, wanted);
  return {loss, gradient};
}

// The gradient by inputs: grad_output, a single number for a mean or a sum, times the derivative.
Tensor sigmoid_focal_loss_backward(const Tensor& grad_output, const Tensor& inputs, const Tensor& targets, double alpha,
                                   double gamma, int64_t reduction) {
  const SigmoidFocalCall call(inputs, targets, alpha, gamma, reduction);
  call.check_grad_output(grad_output, inputs);
  Tensor gradient = torch::stable::empty_like(inputs);
  accumulator_of(call.dtype) == torch::headeronly::ScalarType::Double
      ? backward<double>(call, grad_output, inputs, targets, gradient)
      : backward<float>(call, grad_output, inputs, targets, gradient);
  return gradient;
}

}  // namespace
}  // namespace sod_ops::cuda

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sod_ops::cuda::sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sod_ops::cuda::sigmoid_focal_loss_backward));
}
