// Writing runs of memory that are computed register by register.
#pragma once

#include "vector.h"

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

// y[i] = value(i, count) for `count` elements from i on, over one run. With kStream, all of it but its ends is stored
// past the caches.
template <typename T, bool kStream, typename Value>
inline void write_run(T* y, int64_t n, const Value& value) {
  constexpr int64_t size = Lanes<T>::kSize;
  int64_t i = aligned_start(y, n);
  if (i > 0) value(0, i).store(y, i);
  for (; i + size <= n; i += size) kStream ? value(i, size).stream(y + i) : value(i, size).store(y + i);
  if (i < n) value(i, n - i).store(y + i, n - i);
}

// Whether runs of n elements, `step` apart, the first of them at y, are for streaming: short ones that do not fall on
// whole registers are mostly ends.
template <typename T>
inline bool worth_streaming(const T* y, int64_t step, int64_t n) {
  constexpr int64_t size = Lanes<T>::kSize;
  const bool whole = n % size == 0 && step % size == 0 && reinterpret_cast<uintptr_t>(y) % kRegister == 0;
  return whole || n >= kLongRun<T>;
}

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd
