// Scaling runs of memory, for the kernels in csrc/simd.
#pragma once

#include "vector.h"

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

// y[i] = value(i) for one run of memory, where value(i, count) gives the Lanes of elements [i, i + count). With
// kStream, all of y but its ends is stored past the caches: call stream_fence() after the last run.
template <typename T, bool kStream, typename Value>
inline void write_run(T* y, int64_t n, const Value& value) {
  constexpr int64_t size = Lanes<T>::kSize;
  int64_t i = aligned_start(y, n);
  if (i > 0) value(0, i).store(y, i);
  for (; i + size <= n; i += size) kStream ? value(i, size).stream(y + i) : value(i, size).store(y + i);
  if (i < n) value(i, n - i).store(y + i, n - i);
}

// Whether runs of this length, the first at y and `step` from one to the next, are worth streaming: short ones that do
// not fall on whole registers are mostly ends.
template <typename T>
inline bool worth_streaming(int64_t run, const T* y, int64_t step) {
  constexpr int64_t size = Lanes<T>::kSize;
  const bool whole = run % size == 0 && step % size == 0 && reinterpret_cast<uintptr_t>(y) % kRegister == 0;
  return whole || run >= kLongRun<T>;
}

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd
