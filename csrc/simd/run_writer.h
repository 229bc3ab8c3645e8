// Writing one long run of memory in pieces of any length.
#pragma once

#include "vector.h"

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

template <typename T>
inline void copy_run(const T* from, T* to, int64_t n) {
  constexpr int64_t size = Vectorized<T>::size();
  int64_t i = 0;
  for (; i + size <= n; i += size) Vectorized<T>::loadu(from + i).store(to + i);
  if (i < n) Vectorized<T>::loadu(from + i, n - i).store(to + i, n - i);
}

// Appends to the run that begins at `to`. With kStream all but its ends is stored past the caches, which takes whole
// aligned registers: what does not fill them is gathered in a buffer that stays in the first-level cache.
template <typename T, bool kStream>
class RunWriter {
 public:
  explicit RunWriter(T* to) : to_(to) {
    if constexpr (kStream) {
      start_ = fill_ = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kRegister / sizeof(T));
      to_ -= start_;
    }
  }

  void append(const T* from, int64_t n) {
    if constexpr (!kStream) {
      copy_run(from, to_, n);
      to_ += n;
    } else {
      if (fill_ == 0) {
        const int64_t whole = n / kSize * kSize;
        for (int64_t i = 0; i < whole; i += kSize) stream(Vectorized<T>::loadu(from + i), to_ + i);
        to_ += whole;
        from += whole;
        n -= whole;
      }
      while (n > 0) {
        const int64_t part = std::min(n, kCapacity - fill_);
        copy_run(from, buffer_ + fill_, part);
        fill_ += part;
        from += part;
        n -= part;
        if (fill_ == kCapacity) flush();
      }
    }
  }

  // Call it after the last piece.
  void finish() {
    if constexpr (kStream) {
      flush();
      stream_fence();
    }
  }

 private:
  static constexpr int64_t kSize = Vectorized<T>::size();
  static constexpr int64_t kCapacity = 128 * kSize;

  void flush() {
    int64_t i = 0;
    if (start_ > 0) {
      i = std::min(kSize, fill_);
      copy_run(buffer_ + start_, to_ + start_, i - start_);
      start_ = 0;
    }
    for (; i + kSize <= fill_; i += kSize) stream(Vectorized<T>::loadu(buffer_ + i), to_ + i);
    copy_run(buffer_ + i, to_ + i, fill_ - i);
    to_ += fill_;
    fill_ = 0;
  }

  T* to_;
  int64_t start_ = 0;  // elements before the run's first in its register
  int64_t fill_ = 0;
  alignas(64) T buffer_[kStream ? kCapacity : 1];
};

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd
