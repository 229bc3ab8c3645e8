// The IoU losses on the CPU: memory and threads. The arithmetic stands in ../simd/box_iou_loss.cpp.
#include "../simd/box_iou_loss.h"

#include <algorithm>
#include <vector>

#include "../box_iou_loss.h"
#include "parallel.h"

namespace sod_ops {
namespace {

using torch::stable::Tensor;

// Pairs that a thread takes at once. Each such run gives one partial sum, so that the order of summation depends on the
// number of pairs only.
constexpr int64_t kRun = 1024;
// What a pair costs, counted in elements of a kernel that waits for memory: see kGrain.
constexpr int64_t kPairCost = 8;

template <typename T>
BoxLossKernel<T> kernel() {
  return kernels_of<T>(box_iou_loss_kernels());
}

// Does `all` run by run on all threads; returns the sum of the losses.
template <typename T>
double for_each_run(int64_t loss, const BoxLossRun<T>& all) {
  std::vector<double> sums((all.count + kRun - 1) / kRun);
  parallel_tasks(sums.size(), kRun * kPairCost, [&](int64_t begin_run, int64_t end_run) {
    for (int64_t i = begin_run; i < end_run; ++i) {
      const int64_t begin = i * kRun;
      BoxLossRun<T> run = all;
      run.count = std::min(kRun, all.count - begin);
      run.first += begin * all.first_step;
      run.second += begin * all.second_step;
      if (all.losses != nullptr) run.losses += begin;
      if (all.grad_first != nullptr) run.grad_first += 4 * begin;
      if (all.grad_second != nullptr) run.grad_second += 4 * begin;
      run.grad += begin * all.grad_step;
      sums[i] = kernel<T>()(loss, run);
    }
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

template <typename T>
BoxLossRun<T> all_pairs(const BoxLossCall& call, const Tensor& boxes1, const Tensor& boxes2, double eps) {
  return {.first = static_cast<const T*>(boxes1.data_ptr()),
          .first_step = call.first_step,
          .second = static_cast<const T*>(boxes2.data_ptr()),
          .second_step = call.second_step,
          .count = call.pairs,
          .eps = eps,
          .scale = call.scale()};
}

std::tuple<Tensor, Tensor, Tensor> box_iou_loss(const Tensor& boxes1, const Tensor& boxes2, int64_t loss,
                                                int64_t reduction, double eps, bool first, bool second) {
  const BoxLossCall call(boxes1, boxes2, loss, reduction, eps);
  const bool keeps = call.keeps_gradients(boxes1.scalar_type());
  Tensor result = call.empty_result(boxes1);
  Tensor grad_boxes1 = empty_box_gradient(boxes1, keeps && first);
  Tensor grad_boxes2 = empty_box_gradient(boxes2, keeps && second);
  for_floating("box_iou_loss", "boxes1", boxes1.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = typename BoxLossRun<T>::Acc;
    const Acc one = 1;
    auto* losses = static_cast<Acc*>(result.data_ptr());
    auto run = all_pairs<T>(call, boxes1, boxes2, eps);
    run.losses = call.reduction == Reduction::none ? losses : nullptr;
    run.grad_first = keeps && first ? static_cast<T*>(grad_boxes1.data_ptr()) : nullptr;
    run.grad_second = keeps && second ? static_cast<T*>(grad_boxes2.data_ptr()) : nullptr;
    run.grad = &one;
    const double sum = for_each_run(loss, run);
    if (call.reduction != Reduction::none) *losses = static_cast<Acc>(sum * call.scale());
  });
  return {result, grad_boxes1, grad_boxes2};
}

std::tuple<Tensor, Tensor> box_iou_loss_backward(const Tensor& grad_output, const Tensor& boxes1, const Tensor& boxes2,
                                                 int64_t loss, int64_t reduction, double eps, bool first, bool second) {
  const BoxLossCall call(boxes1, boxes2, loss, reduction, eps);
  const int64_t grad_step = call.grad_step(grad_output, boxes1);
  Tensor grad_boxes1 = empty_box_gradient(boxes1, first);
  Tensor grad_boxes2 = empty_box_gradient(boxes2, second);
  for_floating("box_iou_loss_backward", "boxes1", boxes1.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    auto run = all_pairs<T>(call, boxes1, boxes2, eps);
    run.grad_first = first ? static_cast<T*>(grad_boxes1.data_ptr()) : nullptr;
    run.grad_second = second ? static_cast<T*>(grad_boxes2.data_ptr()) : nullptr;
    run.grad = static_cast<const typename BoxLossRun<T>::Acc*>(grad_output.data_ptr());
    run.grad_step = grad_step;
    for_each_run(loss, run);
  });
  return {grad_boxes1, grad_boxes2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("box_iou_loss", TORCH_BOX(&box_iou_loss));
  m.impl("box_iou_loss_backward", TORCH_BOX(&box_iou_loss_backward));
}

}  // namespace sod_ops
