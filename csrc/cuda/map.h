// Maps [B, 1, H, W] of any dtype and strides in a kernel, read and written as float or double.
#pragma once

#include "elements.h"

namespace sod_ops::cuda {

// i / d of numbers from 0 on: a division of 32 bits takes a fraction of one of 64.
__device__ __forceinline__ int64_t quotient(int64_t i, int64_t d) {
  return ((i | d) >> 32) == 0 ? static_cast<int64_t>(static_cast<uint32_t>(i) / static_cast<uint32_t>(d)) : i / d;
}

// Where a map lies; steps in elements.
struct Map {
  void* data = nullptr;
  torch::headeronly::ScalarType dtype{};
  int64_t sample = 0, row = 0, column = 0;

  Map() = default;
  explicit Map(const torch::stable::Tensor& tensor)
      : data(tensor.data_ptr()),
        dtype(tensor.scalar_type()),
        sample(tensor.stride(0)),
        row(tensor.stride(2)),
        column(tensor.size(3) == 1 ? row : tensor.stride(3)) {}

  // Whether a sample's rows follow each other like its columns.
  bool merges(const torch::stable::Tensor& tensor) const {
    return tensor.size(2) <= 1 || row == column * tensor.size(3);
  }

  // Whether kCount columns at a time can be read and written as packs, where a sample is walked as so many rows.
  template <int kCount>
  bool packs(const torch::stable::Tensor& tensor, int64_t rows) const {
    return cuda::packs<kCount>(View{data, dtype, {row, column}}, tensor, rows) &&
           cuda::packs<kCount>(View{data, dtype, {sample, column}}, tensor, tensor.size(0));
  }

  __device__ __forceinline__ int64_t offset(int64_t b, int64_t y) const { return b * sample + y * row; }
};

// `count` elements from this row and column on; those beyond are 0. kCount > 1 only where packs() holds.
template <typename Acc, int kCount>
__device__ __forceinline__ void read(const Map& map, int64_t sample, int64_t row, int64_t column, int count,
                                     Acc (&to)[kCount]) {
  read(View{map.data, map.dtype, {1, map.column}}, map.offset(sample, row), column, count, to);
}

template <typename T, typename Acc, int kCount>
__device__ __forceinline__ void read_down_as(const Map& map, int64_t offset, int begin, int end, Acc (&to)[kCount]) {
  const T* from = static_cast<const T*>(map.data) + offset;
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = i >= begin && i < end ? static_cast<Acc>(from[i * map.row]) : Acc(0);
}

// Elements [begin, end) of those that follow this one in its column; the others are 0.
template <typename Acc, int kCount>
__device__ __forceinline__ void read_down(const Map& map, int64_t sample, int64_t row, int64_t column, int begin,
                                          int end, Acc (&to)[kCount]) {
  using torch::headeronly::ScalarType;
  const int64_t offset = map.offset(sample, row) + column * map.column;
  switch (map.dtype) {
    case ScalarType::Float: return read_down_as<float>(map, offset, begin, end, to);
    case ScalarType::Double: return read_down_as<double>(map, offset, begin, end, to);
    case ScalarType::BFloat16: return read_down_as<c10::BFloat16>(map, offset, begin, end, to);
    case ScalarType::Half: return read_down_as<c10::Half>(map, offset, begin, end, to);
    case ScalarType::Char: return read_down_as<int8_t>(map, offset, begin, end, to);
    case ScalarType::Short: return read_down_as<int16_t>(map, offset, begin, end, to);
    case ScalarType::Int: return read_down_as<int32_t>(map, offset, begin, end, to);
    case ScalarType::Long: return read_down_as<int64_t>(map, offset, begin, end, to);
    default: return read_down_as<uint8_t>(map, offset, begin, end, to);  // uint8 and bool
  }
}

// Rows of a tile that a thread has under way at a time.
constexpr int kTileRowsAhead = 8;

// to[row * pitch + column] = the map's elements from row `top` and column `left` on, zeros where these lie outside of
// it; by kThreads threads.
template <int kThreads, typename Index, typename Acc>
__device__ __forceinline__ void read_tile(const Map& map, int64_t sample, int64_t height, int64_t width, int64_t top,
                                          int64_t left, Index rows, Index columns, Index pitch, Acc* to) {
  const Index groups = (rows + kTileRowsAhead - 1) / kTileRowsAhead;
  for (Index i = threadIdx.x; i < groups * columns; i += kThreads) {
    const Index first = i / columns * kTileRowsAhead, column = i % columns;
    const int64_t row = top + first, x = left + column;
    const int begin = static_cast<int>(max(int64_t{0}, min(int64_t{kTileRowsAhead}, -row)));
    const int end = static_cast<int>(max(int64_t{0}, min(int64_t{kTileRowsAhead}, height - row)));
    Acc values[kTileRowsAhead];
    read_down(map, sample, row, x, begin, x >= 0 && x < width ? end : 0, values);
#pragma unroll
    for (int k = 0; k < kTileRowsAhead; ++k) {
      if (first + k < rows) to[(first + k) * pitch + column] = values[k];
    }
  }
}

template <typename Acc, int kCount>
__device__ __forceinline__ void write(const Map& map, int64_t sample, int64_t row, int64_t column, int count,
                                      const Acc (&from)[kCount]) {
  write(Output{map.data, map.dtype}, map.offset(sample, row) + column * map.column, count, from);
}

}  // namespace sod_ops::cuda
