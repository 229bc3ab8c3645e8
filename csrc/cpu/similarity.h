// The structural similarity of two planes and its derivatives, while their rows pass by once.
#pragma once

#include "gaussian.h"

namespace sod_ops {

// What one thread works with.
//
// A row's averages need the rows `half` around it, and its derivatives the derivatives by the averages `half` around
// it: rows of the maps are taken 2 half ahead of the gradient, and kept as long as they are needed.
template <typename Acc>
class SimilarityRows {
 public:
  // `mean_given`: the averages of y are known; only derivatives by x are then to be had. `derivatives`: whether any are
  // wanted.
  SimilarityRows(const GaussianTaps<Acc>& down, const GaussianTaps<Acc>& across, int64_t height, int64_t width,
                 bool mean_given, bool derivatives)
      : height_(height),
        width_(width),
        half_(down.half()),
        mean_given_(mean_given),
        derives_(derivatives),
        maps_(down, across, height, width, mean_given ? 3 : 4),
        derivatives_(down, across, derivatives ? height : 0, width, mean_given ? 3 : 4) {}

  // Rows [begin, end) of a plane. `plane` gives what there is of row y: x(y), y(y) and, where given, mean_y(y); and
  // takes what is found: index(y, sum) and, where derivatives are wanted, derivatives(y, window, stride), with the
  // window that SsimKernels::derivatives needs.
  template <typename Plane>
  void walk(int64_t begin, int64_t end, Plane& plane) {
    const auto& kernels = GaussianRows<Acc>::kernels();
    const int64_t first = derives_ ? std::max<int64_t>(0, begin - half_) : begin;
    const int64_t last = derives_ ? std::min(height_, end + half_) : end;
    int64_t next = maps_.begin(first), finished = begin;
    for (int64_t y = first; y < last; ++y) {
      for (; next < maps_.end(y); ++next) {
        kernels.maps[!mean_given_](plane.x(next), plane.y(next), width_, maps_.stride(), maps_.next_row());
        maps_.average_row(next);
      }
      const auto window = maps_.around(y);
      const Acc sum = kernels.indices(window.rows, maps_.stride(), window.weights, window.count,
                                      mean_given_ ? plane.mean_y(y) : nullptr, width_,
                                      derives_ ? derivatives_.next_row() : nullptr);
      if (y >= begin && y < end) plane.index(y, sum);
      if (!derives_) continue;
      derivatives_.average_row(y);
      for (; finished < end && derivatives_.end(finished) <= y + 1; ++finished) {
        plane.derivatives(finished, derivatives_.around(finished), derivatives_.stride());
      }
    }
  }

 private:
  int64_t height_, width_, half_;
  bool mean_given_, derives_;
  GaussianRows<Acc> maps_, derivatives_;
};

}  // namespace sod_ops
