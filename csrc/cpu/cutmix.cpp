// CutMix's pasting on the CPU: checks and threads. The copying stands in ../simd/cutmix.cpp.
#include "../simd/cutmix.h"

#include "../dtype.h"
#include "cache.h"
#include "lines.h"
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
  check_samples(kOp, samples_name, samples, count);
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(0) == count && boxes.size(1) == 4 &&
                      boxes.scalar_type() == ScalarType::Long && boxes.is_cpu() && boxes.is_contiguous(),
                  kOp, ": boxes must be [B, 4], int64 and contiguous");
  const auto* box = static_cast<const int64_t*>(boxes.data_ptr());
  for (int64_t n = 0; n < count; ++n, box += 4) {
    STD_TORCH_CHECK(box[0] >= 0 && box[1] >= 0 && box[2] <= images.size(3) && box[3] <= images.size(2), kOp,
                    ": boxes must lie in the image, got ", box[0], ", ", box[1], ", ", box[2], ", ", box[3]);
  }
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
  const Lines lines = lines_of(kOp, "images", images, planar, item_size);
  Tensor pasted = new_images(images, planar);
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
  const Lines lines = lines_of(kOp, "grad_output", grad_output, planar, 1);
  Tensor gradient = new_images(grad_output, planar);
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
