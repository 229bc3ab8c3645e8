// The average filter on the CPU: checks and threads.
#include "../loss.h"
#include "box_band.h"
#include "parallel.h"
#include "planes.h"

namespace sod_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "box_filter";

template <typename Acc>
void filter(const Tensor& mask, int64_t kernel_size, const Tensor& averages) {
  const int64_t height = mask.size(mask.dim() - 2), width = mask.size(mask.dim() - 1);
  if (mask.numel() == 0) return;
  const Bands bands(mask.numel() / (height * width), height, kernel_size);
  const SourcePlanes<Acc> source(mask);
  const SinkPlanes<Acc> sink(averages);
  parallel_tasks(bands.count, bands.rows * width, [&](int64_t first, int64_t last) {
    BoxBand<Acc> box(height, width, kernel_size, bands.rows);
    const auto buffer = scratch<Acc>(width);
    for (int64_t i = first; i < last; ++i) {
      const auto band = bands[i];
      const auto read = [&](int64_t y) { return source.row(band.plane, y, buffer.get()); };
      box.start(band.begin);
      for (int64_t y = band.begin; y < band.end; y += box.group()) {
        const int64_t count = std::min(box.group(), band.end - y);
        const Acc* rows = box.next(count, read);
        for (int64_t k = 0; k < count; ++k) {
          const Acc* row = rows + k * box.stride();
          Acc* to = sink.at(band.plane, y + k, buffer.get());
          std::copy(row, row + width, to);
          sink.write(band.plane, y + k, to);
        }
      }
    }
  });
}

// The zero-padded average over kernel_size x kernel_size pixels around each; of integers and booleans in float32.
Tensor box_filter(const Tensor& mask, int64_t kernel_size) {
  const ScalarType dtype = mask.scalar_type();
  STD_TORCH_CHECK(is_readable(dtype), kOp, ": mask must be floating, bool, uint8 or a signed integer");
  STD_TORCH_CHECK(mask.dim() >= 2, kOp, ": mask must be of shape [..., H, W]");
  STD_TORCH_CHECK(kernel_size > 0 && kernel_size % 2 == 1, kOp, ": kernel_size must be odd and above 0, got ",
                  kernel_size);
  Tensor averages = empty_like(mask, is_floating(dtype) ? dtype : ScalarType::Float);
  const bool widest = kernel_size > kLongestInFloat || dtype == ScalarType::Double;
  widest ? filter<double>(mask, kernel_size, averages) : filter<float>(mask, kernel_size, averages);
  return averages;
}

// The filter is its own adjoint.
Tensor box_filter_backward(const Tensor& grad_output, int64_t kernel_size) {
  return box_filter(grad_output, kernel_size);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("box_filter", TORCH_BOX(&box_filter));
  m.impl("box_filter_backward", TORCH_BOX(&box_filter_backward));
}

}  // namespace sod_ops
