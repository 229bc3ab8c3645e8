// What the box operators on the CPU and on the GPU check alike. sod_ops' Python functions give better messages; these
// guard direct calls of the operators.
#pragma once

#include "stable.h"

namespace sod_ops {

// Boxes in memory: [N, 4], or a single one [4].
struct BoxRows {
  int64_t count;
  int64_t step;  // in elements, from one box to the next
};

inline BoxRows box_rows(const char* op, const char* argument, const torch::stable::Tensor& boxes) {
  const int64_t rank = boxes.dim();
  STD_TORCH_CHECK((rank == 1 || rank == 2) && boxes.size(rank - 1) == 4, op, ": ", argument, " must be [N, 4] or [4]");
  STD_TORCH_CHECK(boxes.numel() == 0 || boxes.stride(rank - 1) == 1, op, ": ", argument,
                  " must have its four coordinates side by side");
  return rank == 1 ? BoxRows{1, 4} : BoxRows{boxes.size(0), boxes.stride(0)};
}

inline void check_boxes_alike(const char* op, const torch::stable::Tensor& boxes1,
                              const torch::stable::Tensor& boxes2) {
  STD_TORCH_CHECK(boxes1.scalar_type() == boxes2.scalar_type(), op, ": boxes2 must have the dtype of boxes1");
  STD_TORCH_CHECK(boxes1.is_cuda() == boxes2.is_cuda() && boxes1.get_device_index() == boxes2.get_device_index(), op,
                  ": boxes2 must be on the device of boxes1");
}

}  // namespace sod_ops
