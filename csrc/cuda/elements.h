// Tensors of any dtype as float or double in a kernel's registers. The dtype is looked up where an element is loaded or
// stored, the same way by all threads, so that kernels need not be compiled for every combination of dtypes.
#pragma once

#include <cstdint>

#include "../rows.h"
#include "../stable.h"

namespace sod_ops::cuda {

// kCount elements that lie side by side; aligned so that they move in as few instructions of up to 16 bytes as can be.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
  T values[kCount];
};

// A tensor that is read, walked as rows and columns, or none.
struct View {
  const void* data = nullptr;
  torch::headeronly::ScalarType dtype{};
  Steps steps{};
};

// A dense tensor that is written, or none.
struct Output {
  void* data = nullptr;
  torch::headeronly::ScalarType dtype{};
};

inline View view_of(const torch::stable::Tensor& tensor, Steps steps) {
  return {tensor.data_ptr(), tensor.scalar_type(), steps};
}
inline Output output_of(const torch::stable::Tensor& tensor) { return {tensor.data_ptr(), tensor.scalar_type()}; }

// Whether kCount columns of a tensor at a time can be read as packs.
template <int kCount>
bool packs(const View& view, const torch::stable::Tensor& tensor, int64_t rows) {
  const int64_t size = static_cast<int64_t>(tensor.element_size());
  const int64_t alignment = size * kCount < 16 ? size * kCount : 16;
  return view.steps.column == 1 && reinterpret_cast<uintptr_t>(view.data) % alignment == 0 &&
         (rows == 1 || view.steps.row * size % alignment == 0);
}

template <typename T, typename Acc, int kCount>
__device__ __forceinline__ void read_as(const View& view, int64_t row, int64_t column, int count, Acc (&to)[kCount]) {
  const T* from = static_cast<const T*>(view.data) + row * view.steps.row + column * view.steps.column;
  if (kCount > 1 && count == kCount) {
    const auto pack = *reinterpret_cast<const Pack<T, kCount>*>(from);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = static_cast<Acc>(pack.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = i < count ? static_cast<Acc>(from[i]) : Acc(0);
  }
}

// `count` elements from this row and column on; those beyond are 0. kCount > 1 only where packs() holds.
template <typename Acc, int kCount>
__device__ __forceinline__ void read(const View& view, int64_t row, int64_t column, int count, Acc (&to)[kCount]) {
  using torch::headeronly::ScalarType;
  switch (view.dtype) {
    case ScalarType::Float: return read_as<float>(view, row, column, count, to);
    case ScalarType::Double: return read_as<double>(view, row, column, count, to);
    case ScalarType::BFloat16: return read_as<c10::BFloat16>(view, row, column, count, to);
    case ScalarType::Half: return read_as<c10::Half>(view, row, column, count, to);
    case ScalarType::Char: return read_as<int8_t>(view, row, column, count, to);
    case ScalarType::Short: return read_as<int16_t>(view, row, column, count, to);
    case ScalarType::Int: return read_as<int32_t>(view, row, column, count, to);
    case ScalarType::Long: return read_as<int64_t>(view, row, column, count, to);
    default: return read_as<uint8_t>(view, row, column, count, to);  // uint8 and bool
  }
}

template <typename T, typename Acc, int kCount>
__device__ __forceinline__ void write_as(void* data, int64_t at, int count, const Acc (&from)[kCount]) {
  T* to = static_cast<T*>(data) + at;
  if (kCount > 1 && count == kCount) {
    Pack<T, kCount> pack;
#pragma unroll
    for (int i = 0; i < kCount; ++i) pack.values[i] = static_cast<T>(from[i]);
    *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) to[i] = static_cast<T>(from[i]);
    }
  }
}

// `count` elements from number `at` on. kCount > 1 only where `at` is a multiple of it.
template <typename Acc, int kCount>
__device__ __forceinline__ void write(const Output& output, int64_t at, int count, const Acc (&from)[kCount]) {
  using torch::headeronly::ScalarType;
  switch (output.dtype) {
    case ScalarType::Double: return write_as<double>(output.data, at, count, from);
    case ScalarType::BFloat16: return write_as<c10::BFloat16>(output.data, at, count, from);
    case ScalarType::Half: return write_as<c10::Half>(output.data, at, count, from);
    default: return write_as<float>(output.data, at, count, from);
  }
}

}  // namespace sod_ops::cuda
