// Sigmoid focal loss on the CPU: checks, threads and memory. The arithmetic stands in ../math/focal_loss.h.
#include "../simd/sigmoid_focal_loss.h"

#include <cmath>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../loss.h"
#include "../stable.h"
#include "elements.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "sigmoid_focal_loss";

// Runs whose losses are summed by one thread: a fixed number, so that the sum doesn't depend on the number of threads.
constexpr int64_t kRunsPerTask = 16;

template <typename Acc>
auto run_kernel(double gamma) {
  const auto& kernels = sigmoid_focal_kernels();
  const int focus = static_cast<int>(math::focus_of(gamma));
  if constexpr (std::is_same_v<Acc, float>) return kernels.float32.run[focus];
  if constexpr (std::is_same_v<Acc, double>) return kernels.float64.run[focus];
}

// sod_ops.sigmoid_focal_loss calls the operator before it looks at its arguments, and gives a better message where this
// one refuses them.
void check(const Tensor& inputs, const Tensor& targets, double alpha, double gamma) {
  STD_TORCH_CHECK(inputs.is_cpu() && targets.is_cpu(), kOp, ": inputs and targets must be on the CPU");
  STD_TORCH_CHECK(is_floating(inputs.scalar_type()), kOp, ": inputs must be float32, float64, bfloat16 or float16");
  const int dtype = static_cast<int>(targets.scalar_type());
  STD_TORCH_CHECK(dtype < kDtypes && convert_kernels().to_float.read[dtype] != nullptr, kOp,
                  ": targets must be float32, float64, bfloat16, float16, bool, uint8 or a signed integer");
  STD_TORCH_CHECK(same_shape(inputs, targets), kOp, ": targets must have the shape of inputs");
  STD_TORCH_CHECK((alpha >= 0 && alpha <= 1) || alpha == -1, kOp, ": alpha must be in [0, 1], or -1, got ", alpha);
  STD_TORCH_CHECK(gamma >= 0 && std::isfinite(gamma), kOp, ": gamma must be 0 or more, got ", gamma);
}

template <typename Acc>
struct Pass {
  int64_t count;
  Source<Acc> inputs, targets, upstream;
  Sink<Acc> loss, gradient;
};

// The sum of factor times the losses; every derivative has the factor too.
template <typename Acc>
double run(const Pass<Acc>& pass, double alpha, double gamma, double factor = 1) {
  const auto kernel = run_kernel<Acc>(gamma);
  const bool balanced = alpha >= 0;
  const SigmoidFocalParameters<Acc> parameters{static_cast<Acc>(factor * (balanced ? alpha : 1)),
                                               static_cast<Acc>(factor * (balanced ? 1 - alpha : 1)),
                                               static_cast<Acc>(gamma)};
  constexpr int64_t kPerTask = kRunsPerTask * kRun;
  const int64_t tasks = (pass.count + kPerTask - 1) / kPerTask;
  auto partial = scratch<double>(tasks);
  parallel_tasks(tasks, kPerTask, [&](int64_t first, int64_t last) {
    Acc inputs[kRun], targets[kRun], upstream[kRun], loss[kRun], gradient[kRun];
    for (int64_t task = first; task < last; ++task) {
      double sum = 0;
      const int64_t end = std::min(pass.count, (task + 1) * kPerTask);
      for (int64_t begin = task * kPerTask; begin < end; begin += kRun) {
        const int64_t n = std::min(kRun, end - begin);
        sum += kernel(parameters, pass.inputs.read(begin, n, inputs), pass.targets.read(begin, n, targets), n,
                      pass.loss.at(begin, loss), pass.upstream.read(begin, n, upstream), pass.gradient.at(begin, gradient));
        pass.loss.write(begin, n, loss);
        pass.gradient.write(begin, n, gradient);
      }
      partial[task] = sum;
    }
  });
  double sum = 0;
  for (int64_t task = 0; task < tasks; ++task) sum += partial[task];
  return sum;
}

// The loss, and its gradient by inputs where it is a mean or a sum and `with_gradient` holds, otherwise an empty tensor.
std::tuple<Tensor, Tensor> sigmoid_focal_loss(const Tensor& inputs, const Tensor& targets, double alpha, double gamma,
                                              int64_t reduction, bool with_gradient) {
  check(inputs, targets, alpha, gamma);
  const Reduction kind = check_reduction(kOp, reduction);
  const ScalarType dtype = promote(inputs.scalar_type(), targets.scalar_type());
  const bool reduces = kind != Reduction::none;
  const auto rows = rows_of(kOp, inputs, targets);
  Tensor loss = reduces ? torch::stable::new_empty(inputs, {}, dtype) : empty_like(inputs, dtype);
  Tensor gradient =
      reduces && with_gradient ? torch::stable::empty_like(inputs) : torch::stable::new_empty(inputs, {0});
  for_accumulator(dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    Pass<Acc> pass{rows.count(), {inputs, rows.steps[0], rows.columns}, {targets, rows.steps[1], rows.columns}};
    if (!reduces) {
      pass.loss = Sink<Acc>(loss);
      run(pass, alpha, gamma);
      return;
    }
    if (with_gradient) pass.gradient = Sink<Acc>(gradient);
    const double factor = kind == Reduction::mean ? 1.0 / static_cast<double>(rows.count()) : 1.0;
    // The factor of a mean of nothing is infinite: 0 * infinity gives the NaN that it is.
    const Acc sum = static_cast<Acc>(rows.count() == 0 ? 0 * factor : run(pass, alpha, gamma, factor));
    converters<Acc>().write[static_cast<int>(dtype)](&sum, 1, loss.data_ptr(), 0);
  });
  return {loss, gradient};
}

// The gradient by inputs: grad_output, of the shape of inputs for no reduction, otherwise a single number, times the
// derivative.
Tensor sigmoid_focal_loss_backward(const Tensor& grad_output, const Tensor& inputs, const Tensor& targets, double alpha,
                                   double gamma, int64_t reduction) {
  check(inputs, targets, alpha, gamma);
  const Reduction kind = check_reduction(kOp, reduction);
  const ScalarType dtype = promote(inputs.scalar_type(), targets.scalar_type());
  const bool reduces = kind != Reduction::none;
  STD_TORCH_CHECK(grad_output.is_cpu() && grad_output.scalar_type() == dtype &&
                      (reduces ? grad_output.dim() == 0 : same_shape(grad_output, inputs)),
                  kOp, "_backward: grad_output must have the shape, dtype and device of the loss");
  const auto rows = rows_of(kOp, inputs, targets, reduces ? inputs : grad_output);
  Tensor gradient = torch::stable::empty_like(inputs);
  for_accumulator(dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    Pass<Acc> pass{rows.count(), {inputs, rows.steps[0], rows.columns}, {targets, rows.steps[1], rows.columns}};
    pass.gradient = Sink<Acc>(gradient);
    double factor = 1;
    if (reduces) {
      Acc buffer;
      factor = *Source<Acc>(grad_output, {0, 1}, 1).read(0, 1, &buffer);
      if (kind == Reduction::mean) factor /= static_cast<double>(rows.count());
    } else {
      pass.upstream = Source<Acc>(grad_output, rows.steps[2], rows.columns);
    }
    run(pass, alpha, gamma, factor);
  });
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace sod_ops
