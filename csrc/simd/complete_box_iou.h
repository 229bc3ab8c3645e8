// The kernels of the pairwise complete IoU, on raw pointers. cpu/complete_box_iou.cpp calls them.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#include "capability.h"

namespace sod_ops {

// A set of boxes with what is computed once for each, and not for every pair: kFields rows of `count` numbers, which
// are x1, y1, x2, y2, and the area and the angle (see math/boxes.h).
template <typename Acc>
struct BoxTable {
  static constexpr int64_t kFields = 6;

  Acc* data;
  int64_t count;
};

// Rows [first_begin, first_end) by columns [second_begin, second_end) of the matrix of all pairs.
struct PairTile {
  int64_t first_begin, first_end;
  int64_t second_begin, second_end;
};

template <typename Acc>
struct BoxPairKernels {
  // result[i, j] for all pairs of the tile; rows of `result` have the length of the second table.
  void (*forward)(const BoxTable<Acc>& first, const BoxTable<Acc>& second, const PairTile& tile, double eps,
                  Acc* result);

  // The tile's part of each box's gradient, in tables like theirs: of x1, y1, x2, y2 but for what comes by area and
  // angle, then of these. grad[i, j] stands at i * row_step + j * column_step, with a column step of 0 or 1. Either
  // table may have null data.
  void (*backward)(const BoxTable<Acc>& first, const BoxTable<Acc>& second, const PairTile& tile, double eps,
                   const Acc* grad, int64_t row_step, int64_t column_step, const BoxTable<Acc>& first_sums,
                   const BoxTable<Acc>& second_sums);
};

template <typename T, typename Acc>
struct BoxTableKernels {
  // Boxes [begin, end), `step` elements apart, into the table.
  void (*fill)(const T* boxes, int64_t step, int64_t begin, int64_t end, const BoxTable<Acc>& table);

  // The gradients of boxes [begin, end), side by side: the sum of `tiles` tables that backward() has written, one after
  // the other in memory.
  void (*finish)(const BoxTable<Acc>& boxes, const Acc* sums, int64_t tiles, int64_t begin, int64_t end, T* gradient);
};

struct CompleteBoxIouKernels {
  BoxPairKernels<float> pairs32;
  BoxPairKernels<double> pairs64;
  BoxTableKernels<float, float> float32;
  BoxTableKernels<double, double> float64;
  BoxTableKernels<c10::BFloat16, float> bfloat16;
  BoxTableKernels<c10::Half, float> float16;
};

SOD_OPS_KERNEL_TABLE(CompleteBoxIouKernels, complete_box_iou_kernels)

}  // namespace sod_ops
