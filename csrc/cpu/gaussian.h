// A Gaussian window over the rows of a plane that pass by, on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "../simd/ssim.h"
#include "../ssim.h"
#include "scratch.h"

namespace sod_ops {

// The window's part along one axis. What it holds beyond an image of `size` rows or columns is zero on both sides: the
// part that counts is no longer than 2 size - 1.
//
// Weights come in the order of the sums: from both ends to the middle, where the largest is. The other way round, most
// additions would round a sum that is large already; of a constant image to the same side everywhere.
template <typename Acc>
class GaussianTaps {
 public:
  struct Tap {
    int64_t offset;  // from the window's middle
    Acc weight;
  };

  GaussianTaps(int64_t window_size, double sigma, int64_t size)
      : half_(std::min(window_size / 2, std::max<int64_t>(0, size - 1))) {
    const GaussianWindow window(window_size, sigma);
    for (int64_t t = half_; t > 0; --t) {
      for (int64_t offset : {-t, t}) taps_.push_back({offset, static_cast<Acc>(window.weight(t))});
    }
    taps_.push_back({0, static_cast<Acc>(window.weight(0))});
  }

  int64_t half() const { return half_; }
  int64_t count() const { return 2 * half_ + 1; }
  auto begin() const { return taps_.begin(); }
  auto end() const { return taps_.end(); }

 private:
  int64_t half_;
  std::vector<Tap> taps_;
};

// Some maps of a plane of height x width: of the latest rows the averages along them, and from these the averages over
// windows.
template <typename Acc>
class GaussianRows {
 public:
  GaussianRows(const GaussianTaps<Acc>& down, const GaussianTaps<Acc>& across, int64_t height, int64_t width,
               int64_t maps)
      : down_(down),
        across_(across),
        height_(height),
        width_(width),
        maps_(maps),
        stride_((width + 2 * across.half() + kAligned - 1) / kAligned * kAligned),
        kept_(std::min(height, down.count())),
        memory_(scratch<Acc>((kept_ + 1) * maps * stride_)),
        averages_(memory_.get() + maps * stride_) {
    // Beyond the image's sides are zeros.
    std::fill(memory_.get(), averages_, Acc(0));
  }

  // From one map to the next, both where a row is put and in a window.
  int64_t stride() const { return stride_; }

  // Where a row of each map is to be put; then average_row(y) takes it as row y. Rows must come one after another.
  Acc* next_row() { return memory_.get() + across_.half(); }
  void average_row(int64_t y) {
    for (int64_t m = 0; m < maps_; ++m) {
      const Acc* row = next_row() + m * stride_;
      const Window shifted = window(across_, [&](int64_t offset) { return row + offset; });
      kernels().filter(shifted.rows, shifted.weights, shifted.count, width_, at(y) + m * stride_);
    }
  }

  // The rows that the windows around row y hold, all from begin() to end(), and their weights. They must be the latest.
  struct Window {
    const Acc* const* rows;
    const Acc* weights;
    int64_t count;
  };
  int64_t begin(int64_t y) const { return std::max<int64_t>(0, y - down_.half()); }
  int64_t end(int64_t y) const { return std::min(height_, y + down_.half() + 1); }
  Window around(int64_t y) {
    return window(down_, [&](int64_t offset) -> const Acc* {
      const int64_t near = y + offset;
      return near >= 0 && near < height_ ? at(near) : nullptr;
    });
  }

  static const SsimKernels<Acc>& kernels() {
    if constexpr (std::is_same_v<Acc, float>) return ssim_kernels().float32;
    if constexpr (std::is_same_v<Acc, double>) return ssim_kernels().float64;
  }

 private:
  static constexpr int64_t kAligned = 16;  // a multiple of every vector register's numbers

  Acc* at(int64_t y) { return averages_ + y % kept_ * maps_ * stride_; }

  // The taps with their rows; row(offset) is null where there is none.
  template <typename Row>
  Window window(const GaussianTaps<Acc>& taps, const Row& row) {
    rows_.clear();
    weights_.clear();
    for (const auto& tap : taps) {
      const Acc* found = row(tap.offset);
      if (found == nullptr) continue;
      rows_.push_back(found);
      weights_.push_back(tap.weight);
    }
    return {rows_.data(), weights_.data(), static_cast<int64_t>(rows_.size())};
  }

  const GaussianTaps<Acc>& down_;
  const GaussianTaps<Acc>& across_;
  int64_t height_, width_, maps_, stride_, kept_;
  std::vector<const Acc*> rows_;
  std::vector<Acc> weights_;
  std::unique_ptr<Acc[]> memory_;  // the next row of each map, then averages_
  Acc* averages_;                  // [kept, maps, stride]
};

}  // namespace sod_ops
