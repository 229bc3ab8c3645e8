// Boxes in memory, of any floating dtype, as corners in a kernel's registers. The dtype is looked up where a box is
// loaded or stored, by all threads alike, so that kernels need not be compiled for each.
#pragma once

#include <cstdint>

#include "../boxes.h"
#include "../math/boxes.h"
#include "../stable.h"

namespace sod_ops::cuda {

// Four coordinates, aligned so that they move in as few instructions of up to 16 bytes as can be.
template <typename T>
struct alignas(sizeof(T) * 4 < 16 ? sizeof(T) * 4 : 16) PackedBox {
  T x1, y1, x2, y2;
};

// Boxes that are read.
struct Boxes {
  const void* data;
  int64_t step;  // in elements
  torch::headeronly::ScalarType dtype;
  bool packed;  // every box is aligned as PackedBox is

  Boxes(const torch::stable::Tensor& boxes, int64_t step)
      : data(boxes.data_ptr()), step(step), dtype(boxes.scalar_type()) {
    const int64_t size = static_cast<int64_t>(boxes.element_size()), alignment = size * 4 < 16 ? size * 4 : 16;
    packed = reinterpret_cast<uintptr_t>(data) % alignment == 0 && step * size % alignment == 0;
  }
};

template <typename T, typename Acc>
__device__ __forceinline__ math::Corners<Acc> load_as(const Boxes& boxes, int64_t i) {
  const T* from = static_cast<const T*>(boxes.data) + i * boxes.step;
  PackedBox<T> box;
  if (boxes.packed) {
    box = *reinterpret_cast<const PackedBox<T>*>(from);
  } else {
    box = {from[0], from[1], from[2], from[3]};
  }
  return {static_cast<Acc>(box.x1), static_cast<Acc>(box.y1), static_cast<Acc>(box.x2), static_cast<Acc>(box.y2)};
}

// Box number i. Acc is double for float64 boxes only.
template <typename Acc>
__device__ __forceinline__ math::Corners<Acc> load_box(const Boxes& boxes, int64_t i) {
  using torch::headeronly::ScalarType;
  if constexpr (sizeof(Acc) == sizeof(double)) {
    return load_as<double, Acc>(boxes, i);
  } else {
    switch (boxes.dtype) {
      case ScalarType::BFloat16: return load_as<c10::BFloat16, Acc>(boxes, i);
      case ScalarType::Half: return load_as<c10::Half, Acc>(boxes, i);
      default: return load_as<float, Acc>(boxes, i);
    }
  }
}

template <typename T, typename Acc>
__device__ __forceinline__ void store_as(void* data, int64_t i, const math::Corners<Acc>& box) {
  static_cast<PackedBox<T>*>(data)[i] = {static_cast<T>(box.x1), static_cast<T>(box.y1), static_cast<T>(box.x2),
                                         static_cast<T>(box.y2)};
}

// To boxes of this dtype that lie side by side.
template <typename Acc>
__device__ __forceinline__ void store_box(void* data, torch::headeronly::ScalarType dtype, int64_t i,
                                          const math::Corners<Acc>& box) {
  using torch::headeronly::ScalarType;
  if constexpr (sizeof(Acc) == sizeof(double)) {
    store_as<double>(data, i, box);
  } else {
    switch (dtype) {
      case ScalarType::BFloat16: return store_as<c10::BFloat16>(data, i, box);
      case ScalarType::Half: return store_as<c10::Half>(data, i, box);
      default: return store_as<float>(data, i, box);
    }
  }
}

}  // namespace sod_ops::cuda
