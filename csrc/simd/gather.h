// Vectors gathered from memory by a table of indices.
#pragma once

#include "vector.h"

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

template <typename A>
using GatherIndex = std::conditional_t<std::is_same_v<A, double>, int64_t, int32_t>;

// from[index[i]] for i in [0, count), of the accumulation type, for the lanes of T.
template <typename T>
inline Lanes<T> gather(const Accumulator<T>* from, const GatherIndex<Accumulator<T>>* index, int64_t count) {
  using A = Accumulator<T>;
  using Indices = Vectorized<GatherIndex<A>>;
  constexpr int64_t width = Vectorized<A>::size();
  Lanes<T> lanes;
  for (int i = 0; i < Lanes<T>::kVectors; ++i) {
    const int64_t rest = std::clamp<int64_t>(count - i * width, 0, width);
    const auto where = rest == width ? Indices::loadu(index + i * width)
                       : rest > 0    ? Indices::loadu(index + i * width, rest)
                                     : Indices(0);
    lanes.v[i] = at::vec::gather<sizeof(A)>(from, where);
  }
  return lanes;
}

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd
