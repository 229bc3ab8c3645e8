// Sigmoid focal loss on the CPU: threads and memory. The arithmetic stands in ../math/focal_loss.h.
#include "../sigmoid_focal_loss.h"

#include <tuple>
#include <type_traits>

#include "../simd/sigmoid_focal_loss.h"
#include "elements.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::stable::Tensor;

// Runs whose losses are summed by one thread: a fixed number, so that the sum doesn't depend on the number of threads.
constexpr int64_t kRunsPerTask = 16;

template <typename Acc>
auto run_kernel(double gamma) {
  const auto& kernels = sigmoid_focal_kernels();
  const int focus = static_cast<int>(math::focus_of(gamma));
  if constexpr (std::is_same_v<Acc, float>) return kernels.float32.run[focus];
  if constexpr (std::is_same_v<Acc, double>) return kernels.float64.run[focus];
}

template <typename Acc>
struct Pass {
  int64_t count;
  Source<Acc> inputs, targets, upstream;
  Sink<Acc> loss, gradient;
};

// The sum of factor times the losses; every derivative has the factor too.
template <typename Acc>
double run(const Pass<Acc>& pass, const SigmoidFocalCall& call, double factor) {
  const auto kernel = run_kernel<Acc>(call.gamma);
  const SigmoidFocalParameters<Acc> parameters{static_cast<Acc>(factor * call.positive),
                                               static_cast<Acc>(factor * call.negative), static_cast<Acc>(call.gamma)};
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
                      pass.loss.at(begin, loss), pass.upstream.read(begin, n, upstream),
                      pass.gradient.at(begin, gradient));
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

// The loss, and its gradient by inputs where it is a mean or a sum and `with_gradient` holds, otherwise an empty
// tensor.
std::tuple<Tensor, Tensor> sigmoid_focal_loss(const Tensor& inputs, const Tensor& targets, double alpha, double gamma,
                                              int64_t reduction, bool with_gradient) {
  const SigmoidFocalCall call(inputs, targets, alpha, gamma, reduction);
  const auto rows = rows_of(call.kOp, inputs, targets);
  Tensor loss = call.empty_loss(inputs), gradient = call.empty_gradient(inputs, with_gradient);
  for_accumulator(call.dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    Pass<Acc> pass{rows.count(), {inputs, rows.steps[0], rows.columns}, {targets, rows.steps[1], rows.columns}};
    if (!call.reduces()) pass.loss = Sink<Acc>(loss);
    if (call.reduces() && with_gradient) pass.gradient = Sink<Acc>(gradient);
    const double factor = call.factor(rows.count());
    const Acc sum = static_cast<Acc>(rows.count() == 0 ? factor * 0 : run(pass, call, factor));
    if (call.reduces()) Sink<Acc>(loss).put(sum);
  });
  return {loss, gradient};
}

// The gradient by inputs: grad_output, a single number for a mean or a sum, times the derivative.
Tensor sigmoid_focal_loss_backward(const Tensor& grad_output, const Tensor& inputs, const Tensor& targets, double alpha,
                                   double gamma, int64_t reduction) {
  const SigmoidFocalCall call(inputs, targets, alpha, gamma, reduction);
  call.check_grad_output(grad_output, inputs);
  const auto rows = rows_of(call.kOp, inputs, targets, call.reduces() ? inputs : grad_output);
  Tensor gradient = torch::stable::empty_like(inputs);
  for_accumulator(call.dtype, [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    Pass<Acc> pass{rows.count(), {inputs, rows.steps[0], rows.columns}, {targets, rows.steps[1], rows.columns}};
    pass.gradient = Sink<Acc>(gradient);
    double factor = call.factor(rows.count());
    if (call.reduces()) {
      factor *= Source<Acc>(grad_output).get();
    } else {
      pass.upstream = Source<Acc>(grad_output, rows.steps[2], rows.columns);
    }
    run(pass, call, factor);
  });
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace sod_ops
