// Writing one long run of memory in pieces of any length.
#pragma once

#include <cstring>

#include "vector.h"

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

template <typename T>
inline void copy_run(const T* from, T* to, int64_t n) {
  if constexpr (sizeof(T) < 4) {  // of which at::vec loads and stores part of a register through memory
    std::memcpy(to, from, n * sizeof(T));
    return;
  }
  constexpr int64_t size = Vectorized<T>::size();
  int64_t i = 0;
  for (; i + size <= n; i += size) Vectorized<T>::loadu(from + i).store(to + i);
  if (i < n) Vectorized<T>::loadu(from + i, n - i).store(to + i, n - i);
}

// Appends to the run that begins at `to`. With kStream all but its ends is stored past the caches, which takes whole
// aligned registers: pieces are gathered in a buffer that stays in the first-level cache.
template <typename T, bool kStream>
class RunWriter {
 public:
  explicit RunWriter(T* to) : to_(to) {
    if constexpr (kStream) {
      start_ = fill_ = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kRegister / sizeof(T));
      to_ -= start_;
    }
  }

  // Appends n elements, which piece(begin, count, place) writes, some at a time.
  template <typename Piece>
  void write(int64_t n, const Piece& piece) {
    if constexpr (!kStream) {
      piece(int64_t{0}, n, to_);
      to_ += n;
    } else {
      constexpr int64_t most = kCapacity - kSize;
      for (int64_t begin = 0; begin < n; begin += most) {
        const int64_t count = std::min(most, n - begin);
        if (fill_ + count > kCapacity) flush();
        piece(begin, count, buffer_ + fill_);
        fill_ += count;
      }
    }
  }

  // The same of registers that value(i, count) gives, from element i on. Whole registers at a time, which spares the
  // last of each row its mask, where `rest` elements of the run are still to be written, or room for them, and to be
  // read behind these n. Rows of whole registers need not pass through the buffer.
  template <typename Value>
  void write_registers(int64_t n, int64_t rest, const Value& value) {
    constexpr std::integral_constant<int64_t, kSize> whole{};
    if constexpr (kStream) {
      if (fill_ == 0 && n % kSize == 0) {
        for (int64_t i = 0; i < n; i += kSize) stream(value(i, whole), to_ + i);
        to_ += n;
        return;
      }
    }
    write(n, [&](int64_t begin, int64_t count, T* place) {
      const int64_t end = rest >= kSize ? (count + kSize - 1) / kSize * kSize : count;
      int64_t i = 0;
      for (; i + kSize <= end; i += kSize) {
        value(begin + i, whole).store(place + i);
        // Not to be made a string instruction of where value() only loads: for a row, starting one takes longer than
        // it.
        asm("" : "+r"(i));
      }
      if (i < end) value(begin + i, end - i).store(place + i, end - i);
    });
  }

  void append(const T* from, int64_t n) {
    if constexpr (kStream) {
      if (fill_ > 0 && n >= kCapacity / 4) {
        // Worth completing a register for, so that the rest need not pass through the buffer.
        const int64_t missing = (kSize - fill_ % kSize) % kSize;
        if (fill_ + missing > kCapacity) flush();
        copy_run(from, buffer_ + fill_, missing);
        fill_ += missing;
        from += missing;
        n -= missing;
        flush();
      }
      if (fill_ == 0) {
        const int64_t whole = n / kSize * kSize;
        for (int64_t i = 0; i < whole; i += kSize) stream(Vectorized<T>::loadu(from + i), to_ + i);
        to_ += whole;
        from += whole;
        n -= whole;
      }
    }
    write(n, [&](int64_t begin, int64_t count, T* to) { copy_run(from + begin, to, count); });
  }

  // Call it after the last piece.
  void finish() {
    if constexpr (kStream) {
      flush();
      copy_run(buffer_ + start_, to_ + start_, fill_ - start_);
      stream_fence();
    }
  }

 private:
  static constexpr int64_t kSize = Vectorized<T>::size();
  static constexpr int64_t kCapacity = 128 * kSize;

  // Writes the whole registers; what is left goes to the front of the buffer.
  void flush() {
    if (fill_ < kSize) return;
    int64_t i = 0;
    if (start_ > 0) {
      copy_run(buffer_ + start_, to_ + start_, kSize - start_);
      start_ = 0;
      i = kSize;
    }
    for (; i + kSize <= fill_; i += kSize) stream(Vectorized<T>::loadu(buffer_ + i), to_ + i);
    to_ += i;
    fill_ -= i;
    copy_run(buffer_ + i, buffer_, fill_);
  }

  T* to_;
  int64_t start_ = 0;  // elements before the run's first in its register
  int64_t fill_ = 0;
  alignas(64) T buffer_[kStream ? kCapacity + kSize : 1];
};

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd
