// Conversion between dtypes; compiled once for each instruction set (see capability.h).
#include "convert.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "vector.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::for_each_piece;
using simd::Lanes;
using torch::headeronly::ScalarType;

template <typename T>
constexpr bool kHalf = std::is_same_v<T, c10::BFloat16> || std::is_same_v<T, c10::Half>;

template <typename Acc, typename T>
void read_run(const T* from, int64_t step, int64_t n, Acc* to) {
  if constexpr (kHalf<T> && std::is_same_v<Acc, float>) {
    if (step == 1) {
      return for_each_piece<T>(
          n, [&](int64_t i, auto count) { Lanes<T>::load(from + i, count).store_accumulators(to + i, count); });
    }
  }
  // The compiler turns these into vector code; those of the step it can only where it knows it.
  if (step == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<Acc>(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<Acc>(from[i * step]);
  }
}

template <typename Acc, typename T>
void read(const void* data, Steps steps, int64_t columns, int64_t begin, int64_t n, Acc* to) {
  int64_t row = begin / columns, column = begin % columns;
  while (n > 0) {
    const int64_t run = std::min(n, columns - column);
    read_run(static_cast<const T*>(data) + row * steps.row + column * steps.column, steps.column, run, to);
    to += run;
    n -= run;
    ++row;
    column = 0;
  }
}

template <typename Acc, typename T>
void write(const Acc* from, int64_t n, void* data, int64_t begin, int64_t step, bool past_caches) {
  T* to = static_cast<T*>(data) + begin;
  if constexpr (std::is_same_v<T, Acc>) {
    if (past_caches && step == 1) {
      const int64_t start = std::min(n, simd::aligned_start(to, n));
      std::copy_n(from, start, to);
      int64_t i = start;
      for (; i + Lanes<T>::kSize <= n; i += Lanes<T>::kSize) Lanes<T>::load(from + i).stream(to + i);
      std::copy_n(from + i, n - i, to + i);
      return;
    }
  }
  if constexpr (kHalf<T> && std::is_same_v<Acc, float>) {
    if (step == 1) {
      return for_each_piece<T>(
          n, [&](int64_t i, auto count) { Lanes<T>::load_accumulators(from + i, count).store(to + i, count); });
    }
  }
  if (step == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * step] = static_cast<T>(from[i]);
  }
}

template <typename Acc>
constexpr ConvertKernels<Acc> kernels() {
  ConvertKernels<Acc> table{};
  const auto at = [](ScalarType dtype) { return static_cast<int>(dtype); };
  table.read[at(ScalarType::Float)] = read<Acc, float>;
  table.read[at(ScalarType::Double)] = read<Acc, double>;
  table.read[at(ScalarType::BFloat16)] = read<Acc, c10::BFloat16>;
  table.read[at(ScalarType::Half)] = read<Acc, c10::Half>;
  table.read[at(ScalarType::Bool)] = read<Acc, uint8_t>;
  table.read[at(ScalarType::Byte)] = read<Acc, uint8_t>;
  table.read[at(ScalarType::Char)] = read<Acc, int8_t>;
  table.read[at(ScalarType::Short)] = read<Acc, int16_t>;
  table.read[at(ScalarType::Int)] = read<Acc, int32_t>;
  table.read[at(ScalarType::Long)] = read<Acc, int64_t>;
  table.write[at(ScalarType::Float)] = write<Acc, float>;
  table.write[at(ScalarType::Double)] = write<Acc, double>;
  table.write[at(ScalarType::BFloat16)] = write<Acc, c10::BFloat16>;
  table.write[at(ScalarType::Half)] = write<Acc, c10::Half>;
  return table;
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllConvertKernels SOD_OPS_THIS_TABLE(convert_kernels) = {kernels<float>(), kernels<double>(), simd::stream_fence};

}  // namespace sod_ops
