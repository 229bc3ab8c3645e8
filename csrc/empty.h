// New tensors by the direct call of the stable ABI: torch::stable::empty_like and new_empty look their operator up by
// name at every call, which costs as much as the allocation.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "stable.h"

namespace sod_ops {

inline torch::stable::Tensor empty_strided_like(const torch::stable::Tensor& like, int64_t rank, const int64_t* sizes,
                                                const int64_t* strides, torch::headeronly::ScalarType dtype) {
  int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(rank, sizes, strides, type, device, like.get_device_index(), &handle));
  return torch::stable::Tensor(handle);
}

// A contiguous tensor of these sizes on the device of `like`.
inline torch::stable::Tensor new_empty(const torch::stable::Tensor& like, const std::vector<int64_t>& sizes,
                                       torch::headeronly::ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (int64_t i = static_cast<int64_t>(sizes.size()) - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= std::max<int64_t>(1, sizes[i]);
  }
  return empty_strided_like(like, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype);
}

// What torch.empty_like gives: the strides of x where it is contiguous, otherwise PyTorch decides.
inline torch::stable::Tensor new_like(const torch::stable::Tensor& x) {
  if (!x.is_contiguous()) return torch::stable::empty_like(x);
  return empty_strided_like(x, x.dim(), x.sizes().data(), x.strides().data(), x.scalar_type());
}

}  // namespace sod_ops
