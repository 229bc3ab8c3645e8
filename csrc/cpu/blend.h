// How much of a pixel is another image's: all of it where that is pasted or, with blended edges, what a Gaussian filter
// makes of that. The filter is defined in sod_ops/reference/copy_paste.py; its weights are whole multiples of 2^-12, so
// that float32 sums of them are exact in any order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "../simd/copy_paste.h"
#include "../simd/ssim.h"
#include "elements.h"
#include "scratch.h"

namespace sod_ops {

constexpr double kMostBlur = 1000;  // pixels

// The filter along an axis of `size` pixels. Beyond the image lies its border, so that no more than `size` weights to
// either side count one by one.
class BlendAxis {
 public:
  BlendAxis(double sigma, int64_t size) : size_(size) {
    const auto reach = static_cast<int64_t>(4 * sigma + 0.5);
    reach_ = std::min(reach, size);
    tails_.resize(static_cast<size_t>(reach) + 2);  // [t]: the weights t, t + 1, ...; of t = 0 no one asks
    std::vector<double> sums(tails_.size());
    for (int64_t t = reach; t > 0; --t) {
      const double deviations = static_cast<double>(t) / sigma;
      sums[t] = sums[t + 1] + std::exp(-0.5 * (deviations * deviations));
    }
    const double whole = 2 * sums[std::min<int64_t>(1, reach)] + 1;
    for (int64_t t = 1; t <= reach; ++t)
      tails_[t] = static_cast<float>(std::nearbyint(kUnit * sums[t] / whole) / kUnit);
  }

  int64_t reach() const { return reach_; }

  // What place `at` takes of the pixel `from`.
  float weight(int64_t at, int64_t from) const {
    if (size_ == 1) return 1.0f;
    if (from == 0) return from_on(at);  // and what lies before it
    if (from == size_ - 1) return from_on(size_ - 1 - at);
    const int64_t distance = std::abs(at - from);
    return distance == 0 ? 1 - 2 * tail(1) : tail(distance) - tail(distance + 1);
  }

  // The filter's response to a step, less the step: see CopyPasteMaskKernels.
  std::vector<float> response() const {
    std::vector<float> values(2 * reach_);
    for (int64_t t = 1; t <= reach_; ++t) {
      values[reach_ - t] = tail(t);
      values[reach_ + t - 1] = -tail(t);
    }
    return values;
  }

 private:
  static constexpr double kUnit = 4096;

  float tail(int64_t t) const { return t < static_cast<int64_t>(tails_.size()) ? tails_[t] : 0.0f; }
  float from_on(int64_t t) const { return t > 0 ? tail(t) : 1 - tail(1 - t); }

  int64_t size_, reach_;
  std::vector<float> tails_;
};

// The filter for images of one size; sigma 0 stands for none.
struct Blend {
  bool filtered;
  BlendAxis down, across;
  std::vector<float> response;

  Blend(double sigma, int64_t height, int64_t width)
      : filtered(sigma > 0), down(sigma, height), across(sigma, width), response(across.response()) {}
};

// One sample's weights, from the top down.
class BlendRows {
 public:
  // From row `begin` on.
  BlendRows(const Blend& blend, const uint8_t* pasted, int64_t height, int64_t width, int64_t begin)
      : blend_(blend), pasted_(pasted), height_(height), width_(width) {
    if (!blend.filtered) return;
    next_ = std::max<int64_t>(0, begin - blend.down.reach());
    kept_ = std::min(height, 2 * blend.down.reach() + 1);
    memory_ = scratch<float>(kept_ * width);
    sides_.resize(kept_);
  }

  // Of rows [begin, end) to `to`; calls go on where the last one ended.
  void write(int64_t begin, int64_t end, float* to) {
    if (!blend_.filtered) {
      converters<float>().read[static_cast<int>(torch::headeronly::ScalarType::Bool)](
          pasted_, {width_, 1}, width_, begin * width_, (end - begin) * width_, to);
      return;
    }
    for (int64_t y = begin; y < end; ++y, to += width_) write_row(y, to);
  }

 private:
  // The columns that a row's filtered values lie in.
  struct Sides {
    int64_t left, right;

    bool empty() const { return left >= right; }
  };

  void filter_next() {
    const uint8_t* row = pasted_ + next_ * width_;
    int64_t left = 0, right = width_;
    while (left < right && row[left] == 0) ++left;
    while (left < right && row[right - 1] == 0) --right;
    Sides& sides = sides_[next_ % kept_];
    sides = {0, 0};
    if (left < right) {
      const int64_t reach = blend_.across.reach();
      sides = {std::max<int64_t>(0, left - reach), std::min(width_, right + reach)};
      copy_paste_kernels().masks.filter_row(row, width_, blend_.response.data(), reach, at(next_));
    }
    ++next_;
  }

  // Rows and columns that nothing pasted reaches are 0.
  void write_row(int64_t y, float* to) {
    const int64_t reach = blend_.down.reach();
    const int64_t begin = std::max<int64_t>(0, y - reach), end = std::min(height_, y + reach + 1);
    while (next_ < end) filter_next();
    rows_.clear();
    weights_.clear();
    Sides all{width_, 0};
    for (int64_t from = begin; from < end; ++from) {
      const Sides& sides = sides_[from % kept_];
      if (sides.empty()) continue;
      all = {std::min(all.left, sides.left), std::max(all.right, sides.right)};
      rows_.push_back(at(from));
      weights_.push_back(blend_.down.weight(y, from));
    }
    if (all.empty()) all = {width_, width_};
    for (const float*& row : rows_) row += all.left;
    std::fill(to, to + all.left, 0.0f);
    ssim_kernels().float32.filter(rows_.data(), weights_.data(), static_cast<int64_t>(rows_.size()),
                                  all.right - all.left, to + all.left);
    std::fill(to + all.right, to + width_, 0.0f);
  }

  float* at(int64_t y) { return memory_.get() + y % kept_ * width_; }

  const Blend& blend_;
  const uint8_t* pasted_;
  int64_t height_, width_;
  int64_t next_ = 0, kept_ = 0;
  std::unique_ptr<float[]> memory_;  // [kept, width]: of the latest rows, filtered along them
  std::vector<Sides> sides_;
  std::vector<const float*> rows_;
  std::vector<float> weights_;
};

}  // namespace sod_ops
