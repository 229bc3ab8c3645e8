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
const BoxLossKernels<T>& kernels() {
  const auto& table = box_iou_loss_kernels();
  if constexpr (std::is_same_v<T, float>) return table.float32;
  if constexpr (std::is_same_v<T, double>) return table.float64;
  if constexpr (std::is_same_v<T, c10::BFloat16>) return table.bfloat16;
  if constexpr (std::is_same_v<T, c10::Half>) return table.float16;
}

// Calls body(run, begin, pairs), with the pairs from begin on, for every run.
template <typename T, typename Body>
void for_each_run(const BoxLossCall& call, const Tensor& boxes1, const Tensor& boxes2, const Body& body) {
  const auto* first = static_cast<const T*>(boxes1.data_ptr());
  const auto* second = static_cast<const T*>(boxes2.data_ptr());
  parallel_tasks((call.pairs + kRun - 1) / kRun, kRun * kPairCost, [&](int64_t begin_run, int64_t end_run) {
    for (int64_t run = begin_run; run < end_run; ++run) {
      const int64_t begin = run * kRun;
      body(run, begin,
           BoxPairs<T>{first + begin * call.first_step, call.first_step, second + begin * call.second_step,
                       call.second_step, std::min(kRun, call.pairs - begin)});
    }
  });
}

Tensor box_iou_loss(const Tensor& boxes1, const Tensor& boxes2, int64_t loss, int64_t reduction, double eps) {
  const BoxLossCall call(boxes1, boxes2, loss, reduction);
  Tensor result = call.empty_result(boxes1);
  for_floating("box_iou_loss", "boxes1", boxes1.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    auto* losses = static_cast<typename BoxLossKernels<T>::Acc*>(result.data_ptr());
    if (call.reduction == Reduction::none) {
      return for_each_run<T>(call, boxes1, boxes2, [&](int64_t, int64_t begin, const BoxPairs<T>& pairs) {
        kernels<T>().forward(loss, pairs, eps, losses + begin);
      });
    }
    std::vector<double> sums((call.pairs + kRun - 1) / kRun);
    for_each_run<T>(call, boxes1, boxes2, [&](int64_t run, int64_t, const BoxPairs<T>& pairs) {
      sums[run] = kernels<T>().forward(loss, pairs, eps, nullptr);
    });
    double total = 0;
    for (const double sum : sums) total += sum;
    *losses = static_cast<typename BoxLossKernels<T>::Acc>(total * call.scale());
  });
  return result;
}

std::tuple<Tensor, Tensor> box_iou_loss_backward(const Tensor& grad_output, const Tensor& boxes1, const Tensor& boxes2,
                                                 int64_t loss, int64_t reduction, double eps, bool first, bool second) {
  const BoxLossCall call(boxes1, boxes2, loss, reduction);
  const int64_t grad_step = call.grad_step(grad_output, boxes1);
  Tensor grad_boxes1 = empty_box_gradient(boxes1, first);
  Tensor grad_boxes2 = empty_box_gradient(boxes2, second);
  for_floating("box_iou_loss_backward", "boxes1", boxes1.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto* grad = static_cast<const typename BoxLossKernels<T>::Acc*>(grad_output.data_ptr());
    auto* grad_first = first ? static_cast<T*>(grad_boxes1.data_ptr()) : nullptr;
    auto* grad_second = second ? static_cast<T*>(grad_boxes2.data_ptr()) : nullptr;
    for_each_run<T>(call, boxes1, boxes2, [&](int64_t, int64_t begin, const BoxPairs<T>& pairs) {
      kernels<T>().backward(loss, pairs, eps, grad + begin * grad_step, grad_step, call.scale(),
                            first ? grad_first + 4 * begin : nullptr, second ? grad_second + 4 * begin : nullptr);
    });
  });
  return {grad_boxes1, grad_boxes2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("box_iou_loss", TORCH_BOX(&box_iou_loss));
  m.impl("box_iou_loss_backward", TORCH_BOX(&box_iou_loss_backward));
}

}  // namespace sod_ops
