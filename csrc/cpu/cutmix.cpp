// CutMix's pasting on the CPU: checks and threads. The copying stands in ../simd/cutmix.cpp.
#include "../simd/cutmix.h"

#include "../dtype.h"
#include "cache.h"
#include "dense_map.h"
#include "maps.h"
#include "parallel.h"

namespace sod_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr auto kOp = "cutmix";

// Refuses what would be read or written out of bounds.
void check(const char* images_name, const Tensor& images, const char* samples_name, const Tensor& samples,
           const Tensor& boxes) {
  STD_TORCH_CHECK(images.dim() == 4 && images.is_cpu(), kOp, ": ", images_name, " must be [B, C, H, W] on the CPU");
  const int64_t count = images.size(0);
  STD_TORCH_CHECK(samples.dim() == 1 && samples.size(0) == count && samples.scalar_type() == ScalarType::Long &&
                      samples.is_cpu() && samples.is_contiguous(),
                  kOp, ": ", samples_name, " must be [B], int64 and contiguous");
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(0) == count && boxes.size(1) == 4 &&
                      boxes.scalar_type() == ScalarType::Long && boxes.is_cpu() && boxes.is_contiguous(),
                  kOp, ": boxes must be [B, 4], int64 and contiguous");
  const auto* sample = static_cast<const int64_t*>(samples.data_ptr());
  const auto* box = static_cast<const int64_t*>(boxes.data_ptr());
  for (int64_t n = 0; n < count; ++n, box += 4) {
    STD_TORCH_CHECK(0 <= sample[n] && sample[n] < count, kOp, ": ", samples_name, " must be samples of the batch, got ",
                    sample[n]);
    STD_TORCH_CHECK(box[0] >= 0 && box[1] >= 0 && box[2] <= images.size(3) && box[3] <= images.size(2), kOp,
                    ": boxes must lie in the image, got ", box[0], ", ", box[1], ", ", box[2], ", ", box[3]);
  }
}

// In units of elements, times `unit`.
Lines lines_of(const char* name, const Tensor& images, bool planar, int64_t unit) {
  const int64_t channels = images.size(1), height = images.size(2), width = images.size(3);
  const bool dense_pixels = planar || pixel_step(images) == channels || height * width == 1;
  STD_TORCH_CHECK(readable(images, planar) && dense_pixels, kOp, ": ", name,
                  " must be contiguous, a slice of such, or channels_last");
  if (planar) return {images.stride(0) * unit, images.stride(1) * unit, channels, height, width * unit, unit};
  return {images.stride(0) * unit, 0, 1, height, width * channels * unit, channels * unit};
}

// body(begin, end) over the lines of all samples.
template <typename Body>
void over_lines(const Tensor& images, const Lines& lines, int64_t elements, const Body& body) {
  parallel_tasks(images.size(0) * lines.planes * lines.height, elements, body);
}

Tensor cutmix(const Tensor& images, const Tensor& partner, const Tensor& boxes) {
  check("images", images, "partner", partner, boxes);
  const bool planar = lies_in_planes(images);
  const auto item_size = static_cast<int64_t>(images.element_size());
  const Lines lines = lines_of("images", images, planar, item_size);
  Tensor pasted = new_map(images, {images.size(0), images.size(1), images.size(2), images.size(3)}, planar);
  if (images.numel() == 0) return pasted;
  const bool past_caches = outgrows_caches(pasted.numel() * item_size);
  over_lines(images, lines, lines.length / item_size, [&](int64_t begin, int64_t end) {
    cutmix_kernels().bytes.forward(lines, static_cast<const uint8_t*>(images.data_ptr()),
                                   static_cast<const int64_t*>(partner.data_ptr()),
                                   static_cast<CutBoxes>(boxes.data_ptr()), begin, end,
                                   static_cast<uint8_t*>(pasted.data_ptr()) + begin * lines.length, past_caches);
  });
  return pasted;
}

Tensor cutmix_backward(const Tensor& grad_output, const Tensor& receiver, const Tensor& boxes) {
  check("grad_output", grad_output, "receiver", receiver, boxes);
  const bool planar = lies_in_planes(grad_output);
  const Lines lines = lines_of("grad_output", grad_output, planar, 1);
  Tensor gradient = new_map(
      grad_output, {grad_output.size(0), grad_output.size(1), grad_output.size(2), grad_output.size(3)}, planar);
  if (gradient.numel() == 0) return gradient;
  for_floating(kOp, "grad_output", grad_output.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    over_lines(grad_output, lines, lines.length, [&](int64_t begin, int64_t end) {
      kernels_of<T>(cutmix_kernels())
          .backward(lines, static_cast<const T*>(grad_output.data_ptr()),
                    static_cast<const int64_t*>(receiver.data_ptr()), static_cast<CutBoxes>(boxes.data_ptr()), begin,
                    end, static_cast<T*>(gradient.data_ptr()) + begin * lines.length);
    });
  });
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("cutmix", TORCH_BOX(&cutmix));
  m.impl("cutmix_backward", TORCH_BOX(&cutmix_backward));
}

}  // namespace sod_ops
