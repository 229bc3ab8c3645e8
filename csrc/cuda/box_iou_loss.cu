// The IoU losses on the GPU: one launch, and a second that adds up the blocks' sums where a mean or a sum takes more
// than one block. The arithmetic stands in ../math/box_iou_loss.h.
#include "../box_iou_loss.h"

#include <algorithm>
#include <tuple>

#include "block_sum.h"
#include "boxes.h"
#include "launch.h"

namespace sod_ops::cuda {
namespace {

using math::BoxLoss;
using torch::stable::Tensor;

constexpr int kMostThreads = 512;
constexpr int kThreads = 128;
// 1,000 pairs, a usual number, are one block's: a second launch would cost more than its loop.
constexpr int64_t kAlone = 2048;
constexpr int64_t kMostBlocks = 1024;

// A run over all pairs, and what to do with their losses.
template <typename Acc>
struct Pass {
  Boxes first;
  Boxes second;
  int64_t pairs;
  Acc eps;
  Acc scale;  // of sums, and of gradients

  Acc* losses = nullptr;       // [pairs], or null
  Acc* sums = nullptr;         // [blocks], or null; the scaled sum of all pairs where there is one block
  void* grad_first = nullptr;  // [pairs, 4] in the dtype of the boxes, or null
  void* grad_second = nullptr;
  const Acc* grad = nullptr;  // null: 1
  int64_t grad_step = 0;
};

template <BoxLoss kLoss, bool kGradient, typename Acc>
__global__ void __launch_bounds__(kMostThreads, 1) box_iou_loss_kernel(const Pass<Acc> pass) {
  constexpr bool kAngle = kLoss == BoxLoss::complete;
  Acc sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < pass.pairs;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const auto a = math::make_box<kAngle>(load_box<Acc>(pass.first, i));
    const auto b = math::make_box<kAngle>(load_box<Acc>(pass.second, i));
    const Acc grad = pass.grad == nullptr ? pass.scale : pass.scale * pass.grad[i * pass.grad_step];
    math::PairGradient<Acc> gradient;
    const Acc loss = math::box_iou_loss<kLoss, kGradient>(a, b, pass.eps, grad, &gradient);
    if constexpr (kGradient) {
      if (pass.grad_first != nullptr) {
        store_box(pass.grad_first, pass.first.dtype, i, math::corners_gradient<true, kAngle>(a, b, gradient));
      }
      if (pass.grad_second != nullptr) {
        store_box(pass.grad_second, pass.second.dtype, i, math::corners_gradient<false, kAngle>(b, a, gradient));
      }
    }
    if (pass.losses != nullptr) pass.losses[i] = loss;
    sum += loss;
  }
  if (pass.sums == nullptr) return;
  sum = block_sum(sum);
  if (threadIdx.x == 0) pass.sums[blockIdx.x] = gridDim.x == 1 ? sum * pass.scale : sum;
}

// result = scale * the sum of sums [count], by one block.
template <typename Acc>
__global__ void __launch_bounds__(kMostThreads)
    sum_losses_kernel(const Acc* sums, int64_t count, Acc scale, Acc* result) {
  Acc sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += sums[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *result = sum * scale;
}

template <bool kGradient, typename Acc>
auto kernel_for(int64_t loss) {
  switch (static_cast<BoxLoss>(loss)) {
    case BoxLoss::generalized: return box_iou_loss_kernel<BoxLoss::generalized, kGradient, Acc>;
    case BoxLoss::distance: return box_iou_loss_kernel<BoxLoss::distance, kGradient, Acc>;
    default: return box_iou_loss_kernel<BoxLoss::complete, kGradient, Acc>;
  }
}

int64_t blocks_for(int64_t pairs) {
  return pairs <= kAlone ? std::min<int64_t>(pairs, 1) : std::min(kMostBlocks, (pairs + kThreads - 1) / kThreads);
}

template <typename Acc>
void launch(const Launcher& launcher, int64_t loss, const Pass<Acc>& pass) {
  const bool gradient = pass.grad_first != nullptr || pass.grad_second != nullptr;
  const int64_t blocks = blocks_for(pass.pairs);
  const int threads = blocks > 1 || pass.pairs <= kThreads ? kThreads : kMostThreads;
  launcher(gradient ? kernel_for<true, Acc>(loss) : kernel_for<false, Acc>(loss), blocks, threads, pass);
}

template <typename Acc>
Pass<Acc> all_pairs(const BoxLossCall& call, const Tensor& boxes1, const Tensor& boxes2, double eps) {
  return {.first = Boxes(boxes1, call.first_step),
          .second = Boxes(boxes2, call.second_step),
          .pairs = call.pairs,
          .eps = static_cast<Acc>(eps),
          .scale = static_cast<Acc>(call.scale())};
}

std::tuple<Tensor, Tensor, Tensor> box_iou_loss(const Tensor& boxes1, const Tensor& boxes2, int64_t loss,
                                                int64_t reduction, double eps, bool first, bool second) {
  const BoxLossCall call(boxes1, boxes2, loss, reduction, eps);
  const Launcher launcher(boxes1);
  const bool keeps = call.keeps_gradients(boxes1.scalar_type());
  Tensor result = call.empty_result(boxes1);
  Tensor grad_boxes1 = empty_box_gradient(boxes1, keeps && first);
  Tensor grad_boxes2 = empty_box_gradient(boxes2, keeps && second);
  for_accumulator(boxes1.scalar_type(), [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    auto* losses = static_cast<Acc*>(result.data_ptr());
    auto pass = all_pairs<Acc>(call, boxes1, boxes2, eps);
    if (call.reduction == Reduction::none) {
      pass.losses = losses;
      return launch(launcher, loss, pass);
    }
    if (call.pairs == 0) {
      torch::stable::zero_(result);
      return;
    }
    const int64_t blocks = blocks_for(call.pairs);
    Tensor sums = blocks == 1 ? result : torch::stable::new_empty(result, {blocks});
    pass.sums = static_cast<Acc*>(sums.data_ptr());
    pass.grad_first = keeps && first ? grad_boxes1.data_ptr() : nullptr;
    pass.grad_second = keeps && second ? grad_boxes2.data_ptr() : nullptr;
    launch(launcher, loss, pass);
    if (blocks > 1) {
      launcher(sum_losses_kernel<Acc>, 1, kMostThreads, static_cast<const Acc*>(pass.sums), blocks, pass.scale, losses);
    }
  });
  return {result, grad_boxes1, grad_boxes2};
}

std::tuple<Tensor, Tensor> box_iou_loss_backward(const Tensor& grad_output, const Tensor& boxes1, const Tensor& boxes2,
                                                 int64_t loss, int64_t reduction, double eps, bool first, bool second) {
  const BoxLossCall call(boxes1, boxes2, loss, reduction, eps);
  const int64_t grad_step = call.grad_step(grad_output, boxes1);
  const Launcher launcher(boxes1);
  Tensor grad_boxes1 = empty_box_gradient(boxes1, first);
  Tensor grad_boxes2 = empty_box_gradient(boxes2, second);
  for_accumulator(boxes1.scalar_type(), [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    auto pass = all_pairs<Acc>(call, boxes1, boxes2, eps);
    pass.grad_first = first ? grad_boxes1.data_ptr() : nullptr;
    pass.grad_second = second ? grad_boxes2.data_ptr() : nullptr;
    pass.grad = static_cast<const Acc*>(grad_output.data_ptr());
    pass.grad_step = grad_step;
    launch(launcher, loss, pass);
  });
  return {grad_boxes1, grad_boxes2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CUDA, m) {
  m.impl("box_iou_loss", TORCH_BOX(&box_iou_loss));
  m.impl("box_iou_loss_backward", TORCH_BOX(&box_iou_loss_backward));
}

}  // namespace sod_ops::cuda
