// Several arrays in device memory of one allocation.
#pragma once

#include "../stable.h"

namespace sod_ops::cuda {

class Workspace {
 public:
  template <typename T>
  struct Place {
    int64_t offset;
  };

  // Place for `count` numbers, before allocate().
  template <typename T>
  Place<T> reserve(int64_t count) {
    const int64_t offset = size_;
    size_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return {offset};
  }

  // On the device of `tensor`.
  void allocate(const torch::stable::Tensor& tensor) {
    memory_ = torch::stable::new_empty(tensor, {size_}, torch::headeronly::ScalarType::Byte);
  }

  template <typename T>
  T* at(Place<T> place) const {
    return reinterpret_cast<T*>(static_cast<char*>(memory_.data_ptr()) + place.offset);
  }

 private:
  static constexpr int64_t kAlignment = 16;

  int64_t size_ = 0;
  torch::stable::Tensor memory_;
};

}  // namespace sod_ops::cuda
