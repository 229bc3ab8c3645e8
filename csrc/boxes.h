// What the box operators on the CPU and on the GPU check and allocate alike. sod_ops' Python functions give better
// messages; these guard direct calls of the operators.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <initializer_list>

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

// A dense tensor on the device of `like`. torch::stable::new_empty looks its operator up by name at every call, 1 us.
inline torch::stable::Tensor new_dense(const torch::stable::Tensor& like, std::initializer_list<int64_t> sizes,
                                       torch::headeronly::ScalarType dtype) {
  const int64_t strides[2] = {sizes.size() == 2 ? std::max<int64_t>(1, sizes.begin()[1]) : 1, 1};
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
                               like.get_device_index(), &handle));
  return torch::stable::Tensor(handle);
}

// A gradient of the shape of `boxes`, contiguous; empty where it isn't wanted.
inline torch::stable::Tensor empty_box_gradient(const torch::stable::Tensor& boxes, bool wanted) {
  if (!wanted) return new_dense(boxes, {0}, boxes.scalar_type());
  return boxes.dim() == 1 ? new_dense(boxes, {4}, boxes.scalar_type())
                          : new_dense(boxes, {boxes.size(0), 4}, boxes.scalar_type());
}

inline bool on_same_device(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline void check_boxes_alike(const char* op, const torch::stable::Tensor& boxes1,
                              const torch::stable::Tensor& boxes2) {
  STD_TORCH_CHECK(boxes1.scalar_type() == boxes2.scalar_type(), op, ": boxes2 must have the dtype of boxes1");
  STD_TORCH_CHECK(on_same_device(boxes1, boxes2), op, ": boxes2 must be on the device of boxes1");
}

}  // namespace sod_ops
