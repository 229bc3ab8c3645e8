// The structural similarity on the CPU: checks and threads.
#include "../ssim.h"

#include <tuple>

#include "bands.h"
#include "parallel.h"
#include "planes.h"
#include "samples.h"
#include "similarity.h"

namespace sod_ops {
namespace {

using torch::stable::Tensor;

// One plane's rows as SimilarityRows takes and gives them.
template <typename Acc>
struct SsimPlane {
  const SourcePlanes<Acc>&source_x, &source_y;
  const SinkPlanes<Acc>*to_x, *to_y;  // the gradients; null where not wanted
  const Bands& bands;
  std::vector<double>& sums;  // of the bands
  std::unique_ptr<Acc[]> row_x, row_y, row_by_x, row_by_y;
  int64_t width;
  int64_t plane = 0;
  Acc factor = 0;

  const Acc* x(int64_t y) const { return source_x.row(plane, y, row_x.get()); }
  const Acc* y(int64_t y) const { return source_y.row(plane, y, row_y.get()); }
  const Acc* mean_y(int64_t) const { return nullptr; }

  void index(int64_t y, Acc sum) { sums[static_cast<size_t>(plane * bands.per_plane + y / bands.rows)] += sum; }

  void derivatives(int64_t row, const typename GaussianRows<Acc>::Window& window, int64_t stride) {
    Acc* by_x = to_x->at(plane, row, row_by_x.get());
    Acc* by_y = to_y == nullptr ? nullptr : to_y->at(plane, row, row_by_y.get());
    GaussianRows<Acc>::kernels().derivatives(window.rows, stride, window.weights, window.count, x(row), y(row), factor,
                                             width, by_x, by_y);
    to_x->write(plane, row, by_x);
    if (to_y != nullptr) to_y->write(plane, row, by_y);
  }
};

template <typename Acc>
void run(const SsimCall& call, const Tensor* grad_output, const Tensor* value, const Tensor* by_x, const Tensor* by_y) {
  // The index is symmetric: a gradient by y alone is one by x, with the two exchanged.
  const bool exchanged = by_x == nullptr && by_y != nullptr;
  const SourcePlanes<Acc> x(exchanged ? call.y : call.x), y(exchanged ? call.x : call.y);
  std::vector<SinkPlanes<Acc>> sinks;
  for (const Tensor* gradient : {by_x, by_y}) {
    if (gradient != nullptr) sinks.emplace_back(*gradient);
  }
  const std::vector<double> gradients = gradients_of_samples(call, grad_output);
  const GaussianTaps<Acc> down(call.window_size, call.sigma, call.height),
      across(call.window_size, call.sigma, call.width);
  // Rows of the window twice over are read beside those of a band.
  const Bands bands(call.samples * call.channels, call.height, 2 * down.count());
  std::vector<double> sums(static_cast<size_t>(bands.count));
  const int64_t width = call.width;
  parallel_tasks(width == 0 ? 0 : bands.count, bands.rows * width * down.count(), [&](int64_t first, int64_t last) {
    SimilarityRows<Acc> rows(down, across, call.height, width, false, !sinks.empty());
    SsimPlane<Acc> plane{x,
                         y,
                         sinks.empty() ? nullptr : &sinks[0],
                         sinks.size() < 2 ? nullptr : &sinks[1],
                         bands,
                         sums,
                         scratch<Acc>(width),
                         scratch<Acc>(width),
                         scratch<Acc>(width),
                         scratch<Acc>(width),
                         width};
    // A thread's bands of one plane are walked as one: rows beside a band are then read once.
    for (int64_t i = first; i < last;) {
      const auto band = bands[i];
      const int64_t after = std::min(last, (band.plane + 1) * bands.per_plane);
      plane.plane = band.plane;
      plane.factor = static_cast<Acc>(gradients[static_cast<size_t>(band.plane / call.channels)] / call.elements());
      rows.walk(band.begin, bands[after - 1].end, plane);
      i = after;
    }
  });
  if (value == nullptr) return;
  std::vector<double> means(static_cast<size_t>(call.samples), 0.0);
  for (int64_t i = 0; i < bands.count; ++i) {
    means[static_cast<size_t>(i / bands.per_plane / call.channels)] += sums[static_cast<size_t>(i)];
  }
  for (double& mean : means) mean /= call.elements();
  write_loss(call, means, *value);
}

Tensor gradient_like(const Tensor& tensor, bool wanted) {
  return wanted ? torch::stable::empty_like(tensor) : torch::stable::new_empty(tensor, {0});
}

void run(const SsimCall& call, const Tensor* grad_output, const Tensor* value, const Tensor& by_x, bool first,
         const Tensor& by_y, bool second) {
  for_accumulator(call.dtype, [&](auto* type) {
    run<std::remove_pointer_t<decltype(type)>>(call, grad_output, value, first ? &by_x : nullptr,
                                               second ? &by_y : nullptr);
  });
}

// The similarity and, where it is a mean or a sum, the gradients that are wanted; otherwise they are empty.
std::tuple<Tensor, Tensor, Tensor> ssim(const Tensor& x, const Tensor& y, int64_t window_size, double sigma,
                                        int64_t reduction, bool first, bool second) {
  const SsimCall call(x, y, window_size, sigma, reduction);
  first = first && call.reduces();
  second = second && call.reduces();
  Tensor value = call.empty_loss(), by_x = gradient_like(x, first), by_y = gradient_like(y, second);
  run(call, nullptr, &value, by_x, first, by_y, second);
  return {value, by_x, by_y};
}

// The gradients that are wanted; the others are empty.
std::tuple<Tensor, Tensor> ssim_backward(const Tensor& grad_output, const Tensor& x, const Tensor& y,
                                         int64_t window_size, double sigma, int64_t reduction, bool first,
                                         bool second) {
  const SsimCall call(x, y, window_size, sigma, reduction);
  call.check_grad_output(grad_output);
  Tensor by_x = gradient_like(x, first), by_y = gradient_like(y, second);
  if (first || second) run(call, &grad_output, nullptr, by_x, first, by_y, second);
  return {by_x, by_y};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("ssim", TORCH_BOX(&ssim));
  m.impl("ssim_backward", TORCH_BOX(&ssim_backward));
}

}  // namespace sod_ops
