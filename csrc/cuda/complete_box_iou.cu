// The pairwise complete IoU on the GPU: one launch; in the backward one for each box set whose gradient is wanted, and
// a second that adds up partial sums where few boxes meet many. The arithmetic stands in ../math/complete_box_iou.h.
#include "../complete_box_iou.h"

#include <algorithm>
#include <tuple>

#include "../math/complete_box_iou.h"
#include "boxes.h"
#include "launch.h"

namespace sod_ops::cuda {
namespace {

using torch::stable::Tensor;

constexpr int kThreads = 128;
constexpr int kRows = 16;    // of the matrix, in a block's tile of the forward
constexpr int kOthers = 64;  // boxes that a block of the backward holds in shared memory at a time
// Enough to fill the largest GPUs with several blocks for each multiprocessor.
constexpr int64_t kMostBlocks = 1024;
constexpr int kFields = 6;  // of a partial sum: x1, y1, x2, y2, the area and the angle

int64_t divide_up(int64_t count, int64_t size) { return (count + size - 1) / size; }

// As many threads as there are boxes to give each one, in whole warps; one warp at least.
int threads_for(int64_t boxes) {
  return static_cast<int>(std::clamp<int64_t>(divide_up(boxes, 32) * 32, 32, kThreads));
}

// A tile of result [rows, columns]: a thread holds the box of its column and meets one row's after the other.
template <typename Acc>
__global__ void __launch_bounds__(kThreads) complete_box_iou_kernel(const Boxes first, const Boxes second, int64_t rows,
                                                                    int64_t columns, Acc eps, Acc* result) {
  __shared__ math::Box<Acc> of_rows[kRows];
  const int64_t across = (columns + blockDim.x - 1) / blockDim.x;
  const int64_t row = blockIdx.x / across * kRows;
  const int64_t column = blockIdx.x % across * blockDim.x + threadIdx.x;
  const int height = static_cast<int>(rows - row < kRows ? rows - row : kRows);
  if (threadIdx.x < height) of_rows[threadIdx.x] = math::make_box<true>(load_box<Acc>(first, row + threadIdx.x));
  __syncthreads();
  if (column >= columns) return;
  const auto box = math::make_box<true>(load_box<Acc>(second, column));
  for (int i = 0; i < height; ++i) {
    result[(row + i) * columns + column] = math::complete_box_iou<false>(of_rows[i], box, eps);
  }
}

// One set of boxes, `mine`, whose gradient is wanted, and the other one. All pairs are symmetric but for the strides of
// the incoming gradient.
template <typename Acc>
struct Side {
  Boxes mine;
  Boxes others;
  int64_t count;  // of mine
  int64_t other_count;
  const Acc* grad;
  int64_t grad_step;  // from one of mine to the next
  int64_t other_grad_step;
  Acc eps;
  int64_t blocks;  // over mine
  int64_t part;    // how many of the others a block meets
  Acc* sums;       // [parts, kFields, count], or null where there is one part
  void* gradient;  // [count, 4] in the dtype of the boxes
};

template <typename Acc>
__device__ void store_gradient(const Side<Acc>& side, int64_t i, const math::Box<Acc>& box, const Acc* fields) {
  const math::Corners<Acc> sides{fields[0], fields[1], fields[2], fields[3]};
  store_box(side.gradient, side.mine.dtype, i, math::add_shape_gradient<true>(box, fields[4], fields[5], sides));
}

// A thread holds one of mine and meets its part of the others.
template <typename Acc>
__global__ void __launch_bounds__(kThreads) box_gradient_kernel(const Side<Acc> side) {
  __shared__ math::Box<Acc> others[kOthers];
  const int64_t part = blockIdx.x / side.blocks;
  const int64_t i = blockIdx.x % side.blocks * blockDim.x + threadIdx.x;
  const bool inside = i < side.count;
  const int64_t begin = part * side.part;
  const int64_t end = begin + side.part < side.other_count ? begin + side.part : side.other_count;
  math::Box<Acc> box;
  if (inside) box = math::make_box<true>(load_box<Acc>(side.mine, i));
  Acc fields[kFields] = {};
  for (int64_t start = begin; start < end; start += kOthers) {
    const int length = static_cast<int>(end - start < kOthers ? end - start : kOthers);
    __syncthreads();
    for (int j = threadIdx.x; j < length; j += blockDim.x) {
      others[j] = math::make_box<true>(load_box<Acc>(side.others, start + j));
    }
    __syncthreads();
    if (!inside) continue;
    const Acc* grad = side.grad + i * side.grad_step + start * side.other_grad_step;
    for (int j = 0; j < length; ++j, grad += side.other_grad_step) {
      math::PairGradient<Acc> g;
      math::complete_box_iou<true>(box, others[j], side.eps, *grad, &g);
      const auto sides = math::sides_gradient<true, Acc>(box, others[j], g);
      fields[0] += sides.x1;
      fields[1] += sides.y1;
      fields[2] += sides.x2;
      fields[3] += sides.y2;
      fields[4] += g.area;
      fields[5] += g.angle;
    }
  }
  if (!inside) return;
  if (side.sums == nullptr) return store_gradient(side, i, box, fields);
#pragma unroll
  for (int field = 0; field < kFields; ++field) side.sums[(part * kFields + field) * side.count + i] = fields[field];
}

// The gradient of mine from the sums of all parts.
template <typename Acc>
__global__ void __launch_bounds__(kThreads) sum_gradient_kernel(const Side<Acc> side, int64_t parts) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= side.count) return;
  Acc fields[kFields] = {};
  for (int64_t part = 0; part < parts; ++part) {
#pragma unroll
    for (int field = 0; field < kFields; ++field) fields[field] += side.sums[(part * kFields + field) * side.count + i];
  }
  store_gradient(side, i, math::make_box<true>(load_box<Acc>(side.mine, i)), fields);
}

template <typename Acc>
void launch(const Launcher& launcher, const Tensor& boxes, Side<Acc> side) {
  const int threads = threads_for(side.count);
  side.blocks = divide_up(side.count, threads);
  // A part is long enough for its partial sum to be under a tenth of the gradients that it meets.
  const int64_t most = std::max<int64_t>(1, kMostBlocks / std::max<int64_t>(1, side.blocks));
  side.part = std::max<int64_t>(kOthers, divide_up(side.other_count, most));
  const int64_t parts = std::max<int64_t>(1, divide_up(side.other_count, side.part));
  if (parts == 1) {
    launcher(box_gradient_kernel<Acc>, side.blocks, threads, side);
    return;
  }
  const Tensor sums = new_dense(boxes, {parts * kFields, side.count}, accumulator_of(boxes.scalar_type()));
  side.sums = static_cast<Acc*>(sums.data_ptr());
  launcher(box_gradient_kernel<Acc>, side.blocks * parts, threads, side);
  launcher(sum_gradient_kernel<Acc>, side.blocks, threads, side, parts);
}

Tensor complete_box_iou(const Tensor& boxes1, const Tensor& boxes2, double eps) {
  const BoxIouCall call(boxes1, boxes2, eps);
  const Launcher launcher(boxes1);
  const int64_t rows = call.first.count, columns = call.second.count;
  Tensor result = new_dense(boxes1, {rows, columns}, accumulator_of(boxes1.scalar_type()));
  if (call.pairs() == 0) return result;
  for_accumulator(boxes1.scalar_type(), [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    const int threads = threads_for(columns);
    launcher(complete_box_iou_kernel<Acc>, divide_up(rows, kRows) * divide_up(columns, threads), threads,
             Boxes(boxes1, call.first.step), Boxes(boxes2, call.second.step), rows, columns, static_cast<Acc>(eps),
             static_cast<Acc*>(result.data_ptr()));
  });
  return result;
}

std::tuple<Tensor, Tensor> complete_box_iou_backward(const Tensor& grad_output, const Tensor& boxes1,
                                                     const Tensor& boxes2, double eps, bool first, bool second) {
  const BoxIouCall call(boxes1, boxes2, eps);
  call.check_grad_output(grad_output, boxes1);
  const Launcher launcher(boxes1);
  Tensor grad_boxes1 = empty_box_gradient(boxes1, first);
  Tensor grad_boxes2 = empty_box_gradient(boxes2, second);
  const Boxes rows(boxes1, call.first.step), columns(boxes2, call.second.step);
  const int64_t row_step = grad_output.stride(0), column_step = grad_output.stride(1);
  for_accumulator(boxes1.scalar_type(), [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    const auto* grad = static_cast<const Acc*>(grad_output.data_ptr());
    const auto eps_value = static_cast<Acc>(eps);
    if (first) {
      launch(launcher, boxes1,
             Side<Acc>{rows, columns, call.first.count, call.second.count, grad, row_step, column_step, eps_value, 0, 0,
                       nullptr, grad_boxes1.data_ptr()});
    }
    if (second) {
      launch(launcher, boxes2,
             Side<Acc>{columns, rows, call.second.count, call.first.count, grad, column_step, row_step, eps_value, 0, 0,
                       nullptr, grad_boxes2.data_ptr()});
    }
  });
  return {grad_boxes1, grad_boxes2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CUDA, m) {
  m.impl("complete_box_iou", TORCH_BOX(&complete_box_iou));
  m.impl("complete_box_iou_backward", TORCH_BOX(&complete_box_iou_backward));
}

}  // namespace sod_ops::cuda
