// The pairwise complete IoU on the CPU: memory and threads. The arithmetic stands in ../simd/complete_box_iou.cpp.
#include "../simd/complete_box_iou.h"

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "../complete_box_iou.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::stable::Tensor;

// The matrix of pairs is taken in tiles: the columns' boxes and gradients of one stay in the first-level cache. Each
// leaves a partial sum for its boxes' gradients, a fraction of 6 / kRows and 6 / kColumns of the matrix.
constexpr int64_t kRows = 64;
constexpr int64_t kColumns = 1024;
// What a pair costs, counted in elements of a kernel that waits for memory: see kGrain.
constexpr int64_t kPairCost = 4;

int64_t tiles_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

template <typename Acc>
const BoxPairKernels<Acc>& pair_kernels() {
  if constexpr (std::is_same_v<Acc, float>) return complete_box_iou_kernels().pairs32;
  if constexpr (std::is_same_v<Acc, double>) return complete_box_iou_kernels().pairs64;
}

template <typename T>
const auto& table_kernels() {
  return kernels_of<T>(complete_box_iou_kernels());
}

// A set of boxes as a table of its own.
template <typename T>
class OwnTable {
 public:
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

  OwnTable(const Tensor& boxes, const BoxRows& rows)
      : data_(scratch<Acc>(BoxTable<Acc>::kFields * rows.count)), table{data_.get(), rows.count} {
    parallel_tasks(tiles_of(rows.count, kColumns), kColumns * kPairCost, [&](int64_t begin, int64_t end) {
      table_kernels<T>().fill(static_cast<const T*>(boxes.data_ptr()), rows.step, begin * kColumns,
                              std::min(end * kColumns, rows.count), table);
    });
  }

  // The gradients of the boxes, from `tiles` tables of partial sums.
  void finish(const Acc* sums, int64_t tiles, const Tensor& gradient) const {
    parallel_tasks(tiles_of(table.count, kColumns), kColumns * tiles, [&](int64_t begin, int64_t end) {
      table_kernels<T>().finish(table, sums, tiles, begin * kColumns, std::min(end * kColumns, table.count),
                                static_cast<T*>(gradient.data_ptr()));
    });
  }

 private:
  std::unique_ptr<Acc[]> data_;

 public:
  const BoxTable<Acc> table;
};

// body(tile, number of its rows, number of its columns) for every tile, where tiles are numbered in both directions.
template <typename Body>
void for_each_tile(const BoxIouCall& call, const Body& body) {
  const int64_t across = tiles_of(call.second.count, kColumns), down = tiles_of(call.first.count, kRows);
  parallel_tasks(across * down, std::min(kRows, call.first.count) * std::min(kColumns, call.second.count) * kPairCost,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t row = i / across * kRows, column = i % across * kColumns;
                     body(PairTile{row, std::min(row + kRows, call.first.count), column,
                                   std::min(column + kColumns, call.second.count)},
                          i / across, i % across);
                   }
                 });
}

Tensor complete_box_iou(const Tensor& boxes1, const Tensor& boxes2, double eps) {
  const BoxIouCall call(boxes1, boxes2, eps);
  Tensor result = new_dense(boxes1, {call.first.count, call.second.count}, accumulator_of(boxes1.scalar_type()));
  for_floating("complete_box_iou", "boxes1", boxes1.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = typename OwnTable<T>::Acc;
    const OwnTable<T> first(boxes1, call.first), second(boxes2, call.second);
    for_each_tile(call, [&](const PairTile& tile, int64_t, int64_t) {
      pair_kernels<Acc>().forward(first.table, second.table, tile, eps, static_cast<Acc*>(result.data_ptr()));
    });
  });
  return result;
}

std::tuple<Tensor, Tensor> complete_box_iou_backward(const Tensor& grad_output, const Tensor& boxes1,
                                                     const Tensor& boxes2, double eps, bool first, bool second) {
  const BoxIouCall call(boxes1, boxes2, eps);
  call.check_grad_output(grad_output, boxes1);
  Tensor grad_boxes1 = empty_box_gradient(boxes1, first);
  Tensor grad_boxes2 = empty_box_gradient(boxes2, second);
  for_floating("complete_box_iou_backward", "boxes1", boxes1.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = typename OwnTable<T>::Acc;
    const OwnTable<T> rows(boxes1, call.first), columns(boxes2, call.second);
    // A table of sums for the rows' boxes from every tile of columns, and the other way round.
    const int64_t across = tiles_of(call.second.count, kColumns), down = tiles_of(call.first.count, kRows);
    const int64_t row_size = BoxTable<Acc>::kFields * call.first.count;
    const int64_t column_size = BoxTable<Acc>::kFields * call.second.count;
    const auto row_sums = scratch<Acc>(first ? across * row_size : 0);
    const auto column_sums = scratch<Acc>(second ? down * column_size : 0);
    if (first || second) {
      for_each_tile(call, [&](const PairTile& tile, int64_t tile_row, int64_t tile_column) {
        pair_kernels<Acc>().backward(
            rows.table, columns.table, tile, eps, static_cast<const Acc*>(grad_output.data_ptr()),
            grad_output.stride(0), call.second.count == 1 ? 1 : grad_output.stride(1),
            {first ? row_sums.get() + tile_column * row_size : nullptr, call.first.count},
            {second ? column_sums.get() + tile_row * column_size : nullptr, call.second.count});
      });
    }
    if (first) rows.finish(row_sums.get(), across, grad_boxes1);
    if (second) columns.finish(column_sums.get(), down, grad_boxes2);
  });
  return {grad_boxes1, grad_boxes2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("complete_box_iou", TORCH_BOX(&complete_box_iou));
  m.impl("complete_box_iou_backward", TORCH_BOX(&complete_box_iou_backward));
}

}  // namespace sod_ops
