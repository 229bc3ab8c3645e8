// Averages over windows, for a band of a plane's rows at a time: csrc/simd/box_filter.h has the idea.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "../simd/box_filter.h"
#include "bands.h"
#include "scratch.h"

namespace sod_ops {

// Sums of at most so many rows or columns are taken in float: the error against float64 stays under 1e-6 for numbers in
// [0, 1]. Those of wider windows are taken in double.
constexpr int64_t kLongestInFloat = 63;

// The averages of one band after another, a group of rows at a time.
template <typename Acc>
class BoxBand {
 public:
  // For bands of at most `rows` rows of planes of `height` x `width`.
  BoxBand(int64_t height, int64_t width, int64_t kernel_size, int64_t rows)
      : kernels_(kernels()),
        height_(height),
        width_(width),
        // What a window holds beyond the image is zero on both sides: the part that counts is no longer than this.
        half_down_(std::min(kernel_size / 2, std::max<int64_t>(0, height - 1))),
        half_across_(std::min(kernel_size / 2, std::max<int64_t>(0, width - 1))),
        stride_((width + kernels_.group - 1) / kernels_.group * kernels_.group),
        kept_(std::min(rows, 2 * half_down_ + 1)),
        scale_(static_cast<Acc>(1.0 / (static_cast<double>(kernel_size) * static_cast<double>(kernel_size)))) {
    const int64_t group = kernels_.group;
    const int64_t down = (kept_ + 1 + 2 * group) * stride_;
    const int64_t across = (2 * stride_ + 2 * (2 * half_across_ + 1)) * group;
    memory_ = scratch<Acc>(down + across);
    // Lanes beyond the image are computed too, and shall not be slowed down by what lies there.
    std::fill(memory_.get(), memory_.get() + down + across, Acc(0));
    behind_ = memory_.get();
    ahead_ = behind_ + kept_ * stride_;
    sums_ = ahead_ + stride_;
    averages_ = sums_ + group * stride_;
    across_ = averages_ + group * stride_;
  }

  static const BoxFilterKernels<Acc>& kernels() {
    if constexpr (std::is_same_v<Acc, float>) return box_filter_kernels().float32;
    if constexpr (std::is_same_v<Acc, double>) return box_filter_kernels().float64;
  }

  int64_t group() const { return kernels_.group; }
  int64_t stride() const { return stride_; }

  // The next averages are those of this row.
  void start(int64_t row) {
    row_ = row;
    place_ = 0;
  }

  // The averages of the next `count` <= group() rows, one every stride() numbers. `read` gives a row of the image.
  template <typename Read>
  const Acc* next(int64_t count, const Read& read) {
    for (int64_t i = 0; i < count; ++i) sum_down(read, sums_ + i * stride_);
    kernels_.across(sums_, stride_, width_, half_across_, scale_, across_, averages_);
    return averages_;
  }

 private:
  template <typename Read>
  void sum_down(const Read& read, Acc* to) {
    const int64_t length = 2 * half_down_ + 1;
    const auto row = [&](int64_t y) { return y < 0 || y >= height_ ? nullptr : read(y); };
    if (place_ == 0) {
      // Those sums that no window of this band starts with are not kept, but added up where `ahead_` is.
      const Acc* below = nullptr;
      for (int64_t t = length - 1; t >= 0; --t) {
        Acc* sum = t < kept_ ? behind_ + t * stride_ : ahead_;
        kernels_.add(row(row_ - half_down_ + t), below, width_, sum);
        below = sum;
      }
      std::fill(ahead_, ahead_ + width_, Acc(0));
      std::copy(behind_, behind_ + width_, to);
    } else {
      kernels_.step(row(row_ + half_down_), ahead_, behind_ + place_ * stride_, width_, to);
    }
    ++row_;
    place_ = (place_ + 1) % length;
  }

  const BoxFilterKernels<Acc>& kernels_;
  int64_t height_, width_, half_down_, half_across_;
  int64_t stride_;
  int64_t kept_;
  Acc scale_;
  std::unique_ptr<Acc[]> memory_;
  Acc* behind_;    // [kept]: from each row of the window that starts a block to its end
  Acc* ahead_;     // the rows that came since
  Acc* sums_;      // [group]
  Acc* averages_;  // [group]
  Acc* across_;
  int64_t row_ = 0, place_ = 0;
};

}  // namespace sod_ops
