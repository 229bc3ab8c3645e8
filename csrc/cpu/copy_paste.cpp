// Copy-Paste on the CPU: checks, threads and memory. What is done with rows stands in ../simd/copy_paste.cpp.
//
// Masks first, in runs of rows that stay in the first-level cache: a run's union of what is pasted, then what that
// leaves of the masks beneath. So every mask is read once, and written once but for those that turn out to be hidden:
// how much of a mask is left is known when all its runs are done. Then the images, by the union.
#include "../simd/copy_paste.h"

#include <tuple>
#include <vector>

#include "../dtype.h"
#include "bands.h"
#include "blend.h"
#include "cache.h"
#include "lines.h"
#include "parallel.h"
#include "scratch.h"

namespace sod_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr auto kOp = "copy_paste";
constexpr int64_t kMaskRun = 8192;   // bytes of a mask
constexpr int64_t kImageRun = 4096;  // pixels of an image

void check_images(const char* name, const Tensor& images, double blend_sigma) {
  STD_TORCH_CHECK(images.dim() == 4 && images.is_cpu(), kOp, ": ", name, " must be [B, C, H, W] on the CPU");
  STD_TORCH_CHECK(0 <= blend_sigma && blend_sigma <= kMostBlur, kOp, ": blend_sigma must be in [0, ", kMostBlur,
                  "], got ", blend_sigma);
}

void check_masks(const char* name, const Tensor& masks, const Tensor& images, int64_t rank) {
  STD_TORCH_CHECK(masks.dim() == rank && masks.is_cpu() && masks.scalar_type() == ScalarType::Bool &&
                      masks.size(0) == images.size(0) && masks.size(rank - 2) == images.size(2) &&
                      masks.size(rank - 1) == images.size(3),
                  kOp, ": ", name, " must be bool, of the samples, the height and the width of the images");
}

// Masks [B, M, H, W] and where they go.
class Masks {
 public:
  Masks(const Tensor& masks, const int64_t* partner, const uint8_t* chosen, Tensor& together, Tensor& pasted)
      : samples_(masks.size(0)),
        slots_(masks.size(1)),
        height_(masks.size(2)),
        width_(masks.size(3)),
        rows_(std::clamp<int64_t>(kMaskRun / std::max<int64_t>(1, width_), 1, std::max<int64_t>(1, height_))),
        runs_((height_ + rows_ - 1) / rows_),
        from_(samples_of<const uint8_t>(masks, true)),
        partner_(partner),
        chosen_(chosen),
        together_(static_cast<uint8_t*>(together.data_ptr())),
        pasted_(static_cast<uint8_t*>(pasted.data_ptr())),
        past_caches_(outgrows_caches(together.numel())),
        parts_(samples_ * runs_ * 2 * slots_) {}

  void paste_and_trim() {
    parallel_tasks(samples_ * runs_, 2 * slots_ * rows_ * width_, [&](int64_t begin, int64_t end) {
      const auto memory = scratch<uint8_t>((rows_ + 1) * width_);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t top = i % runs_ * rows_;
        run(i / runs_, {top, std::min(rows_, height_ - top), width_}, parts_.data() + i * 2 * slots_, memory.get());
      }
    });
  }

  void drop_and_measure(double min_visible, int64_t (*boxes)[4], bool* visible) {
    parallel_tasks(samples_ * 2 * slots_, height_ * width_ / 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        visible[i] = measure(i / (2 * slots_), i % (2 * slots_), min_visible, boxes[i]);
      }
    });
  }

 private:
  void run(int64_t n, RowRun run, MaskPart* parts, uint8_t* memory) {
    const auto& kernels = copy_paste_kernels().masks;
    const int64_t plane = height_ * width_, place = run.top * width_;
    uint8_t* const covered = pasted_ + n * plane + place;
    uint8_t* const to = together_ + n * 2 * slots_ * plane + place;
    std::fill(covered, covered + run.pixels(), uint8_t{0});
    for (int64_t i = 0; i < slots_; ++i) {
      uint8_t* const arrived = to + (slots_ + i) * plane;
      if (chosen_[n * slots_ + i] == 0) {
        kernels.clear(arrived, run.pixels(), past_caches_);
        parts[slots_ + i] = {};
        continue;
      }
      const uint8_t* mask = mask_at(partner_[n], i) + place;
      parts[slots_ + i] = kernels.arrive(mask, run, covered, memory, arrived, past_caches_);
    }
    for (int64_t i = 0; i < slots_; ++i) {
      parts[i] = kernels.trim(mask_at(n, i) + place, run, covered, memory, to + i * plane, past_caches_);
    }
  }

  // A mask's box, and whether it is seen; one that is hidden is made empty.
  bool measure(int64_t n, int64_t slot, double min_visible, int64_t box[4]) {
    MaskPart whole{0, 0, width_, height_, 0, 0};
    for (int64_t run = 0; run < runs_; ++run) {
      const MaskPart& part = parts_[(n * runs_ + run) * 2 * slots_ + slot];
      whole.before += part.before;
      if (part.after == 0) continue;
      whole.after += part.after;
      whole.left = std::min(whole.left, part.left);
      whole.top = std::min(whole.top, part.top);
      whole.right = std::max(whole.right, part.right);
      whole.bottom = std::max(whole.bottom, part.bottom);
    }
    const bool arrived = slot >= slots_;
    const bool hidden = !arrived && static_cast<double>(whole.after) < min_visible * static_cast<double>(whole.before);
    const bool seen = whole.after > 0 && !hidden;
    if (whole.after > 0 && hidden) {
      const int64_t rows = whole.bottom - whole.top + 1;
      uint8_t* to = together_ + ((n * 2 * slots_ + slot) * height_ + whole.top) * width_;
      copy_paste_kernels().masks.clear(to, rows * width_, past_caches_);
    }
    box[0] = seen ? whole.left : 0;
    box[1] = seen ? whole.top : 0;
    box[2] = seen ? whole.right : 0;
    box[3] = seen ? whole.bottom : 0;
    return seen;
  }

  const uint8_t* mask_at(int64_t n, int64_t slot) const {
    return from_.data + n * from_.sample_step + slot * from_.step;
  }

  int64_t samples_, slots_, height_, width_;
  int64_t rows_, runs_;  // rows of a run, runs of a mask
  Samples<const uint8_t> from_;
  const int64_t* partner_;
  const uint8_t* chosen_;
  uint8_t *together_, *pasted_;
  bool past_caches_;
  std::vector<MaskPart> parts_;  // [B, runs, 2M]
};

// Images with the weights of their pixels, some rows at a time.
//
// body(n, own weights, the other sample's weights, segments, their count, offset in a plane) for all rows of all
// samples, by all threads. The other weights are those of sample others[n], or one's own where there is none.
template <typename Body>
void over_rows(const Lines& lines, int64_t samples, const uint8_t* pasted, const int64_t* others, double blend_sigma,
               const Body& body) {
  const int64_t height = lines.height, width = lines.length / lines.column;
  const Blend blend(blend_sigma, height, width);
  const Bands bands(samples, height, 2 * blend.down.reach() + 1);
  const int64_t rows = std::clamp<int64_t>(kImageRun / width, 1, bands.rows);
  parallel_tasks(bands.count, bands.rows * lines.length * lines.planes, [&](int64_t first, int64_t last) {
    const int64_t pixels = rows * width;
    const auto memory = scratch<float>(pixels * (others == nullptr ? 1 : 2));
    std::vector<PasteSegment> segments((pixels + kSegment - 1) / kSegment);
    for (int64_t i = first; i < last; ++i) {
      const auto band = bands[i];
      const int64_t n = band.plane, plane = height * width;
      float* const own = memory.get();
      float* const other = others == nullptr ? own : own + pixels;
      BlendRows own_rows(blend, pasted + n * plane, height, width, band.begin);
      BlendRows other_rows(blend, pasted + (others == nullptr ? n : others[n]) * plane, height, width, band.begin);
      for (int64_t y = band.begin; y < band.end; y += rows) {
        const int64_t end = std::min(band.end, y + rows);
        own_rows.write(y, end, own);
        if (others != nullptr) other_rows.write(y, end, other);
        const int64_t count = copy_paste_kernels().segments(own, other, (end - y) * width, segments.data());
        body(n, own, other, segments.data(), count, y * lines.length);
      }
    }
  });
}

template <typename T>
const auto& image_kernels() {
  if constexpr (std::is_same_v<T, uint8_t>) {
    return copy_paste_kernels().bytes;
  } else {
    return kernels_of<T>(copy_paste_kernels());
  }
}

// Calls body with a null pointer of the type of images.
template <typename Body>
void for_images(ScalarType dtype, const Body& body) {
  if (dtype == ScalarType::Byte) return body(static_cast<uint8_t*>(nullptr));
  for_floating(kOp, "images", dtype, body);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> copy_paste(const Tensor& images, const Tensor& masks,
                                                              const Tensor& partner, const Tensor& chosen,
                                                              double blend_sigma, double min_visible) {
  check_images("images", images, blend_sigma);
  check_masks("masks", masks, images, 4);
  STD_TORCH_CHECK(readable(masks, true), kOp, ": masks must be contiguous, or a slice of such");
  STD_TORCH_CHECK(0 <= min_visible && min_visible <= 1, kOp, ": min_visible must be in [0, 1], got ", min_visible);
  const int64_t samples = images.size(0), slots = masks.size(1), height = images.size(2), width = images.size(3);
  check_samples(kOp, "partner", partner, samples);
  STD_TORCH_CHECK(chosen.dim() == 2 && chosen.size(0) == samples && chosen.size(1) == slots && chosen.is_cpu() &&
                      chosen.scalar_type() == ScalarType::Bool && chosen.is_contiguous(),
                  kOp, ": chosen must be [B, M], bool and contiguous");
  const bool planar = lies_in_planes(images);
  const Lines lines = lines_of(kOp, "images", images, planar, 1);
  const auto* partners = static_cast<const int64_t*>(partner.data_ptr());

  Tensor composed = new_images(images, planar);
  Tensor together = sod_ops::new_empty(masks, {samples, 2 * slots, height, width}, ScalarType::Bool);
  Tensor boxes = sod_ops::new_empty(masks, {samples, 2 * slots, 4}, ScalarType::Long);
  Tensor visible = sod_ops::new_empty(masks, {samples, 2 * slots}, ScalarType::Bool);
  Tensor pasted = sod_ops::new_empty(masks, {samples, height, width}, ScalarType::Bool);
  Masks work(masks, partners, static_cast<const uint8_t*>(chosen.data_ptr()), together, pasted);
  work.paste_and_trim();
  work.drop_and_measure(min_visible, static_cast<int64_t (*)[4]>(boxes.data_ptr()),
                        static_cast<bool*>(visible.data_ptr()));
  if (images.numel() > 0) {
    for_images(images.scalar_type(), [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const auto* from = static_cast<const T*>(images.data_ptr());
      auto* to = static_cast<T*>(composed.data_ptr());
      const int64_t plane = lines.height * lines.length;  // of the output
      const bool past_caches = outgrows_caches(images.numel() * static_cast<int64_t>(sizeof(T)));
      over_rows(lines, samples, static_cast<const uint8_t*>(pasted.data_ptr()), nullptr, blend_sigma,
                [&](int64_t n, const float* weights, const float*, const PasteSegment* segments, int64_t count,
                    int64_t offset) {
                  for (int64_t c = 0; c < lines.planes; ++c) {
                    const T* plane_from = from + c * lines.plane_step + offset;
                    image_kernels<T>().compose(
                        plane_from + n * lines.sample_step, plane_from + partners[n] * lines.sample_step, weights,
                        lines.column, segments, count, to + (n * lines.planes + c) * plane + offset, past_caches);
                  }
                });
    });
  }
  return {composed, together, boxes, visible, pasted};
}

Tensor copy_paste_backward(const Tensor& grad_output, const Tensor& pasted, const Tensor& receiver,
                           double blend_sigma) {
  check_images("grad_output", grad_output, blend_sigma);
  check_masks("pasted", pasted, grad_output, 3);
  STD_TORCH_CHECK(pasted.is_contiguous(), kOp, ": pasted must be contiguous");
  const int64_t samples = grad_output.size(0);
  check_samples(kOp, "receiver", receiver, samples);
  const auto* receivers = static_cast<const int64_t*>(receiver.data_ptr());
  const bool planar = lies_in_planes(grad_output);
  const Lines lines = lines_of(kOp, "grad_output", grad_output, planar, 1);
  Tensor gradient = new_images(grad_output, planar);
  for_floating(kOp, "grad_output", grad_output.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (gradient.numel() == 0) return;
    const auto* from = static_cast<const T*>(grad_output.data_ptr());
    auto* to = static_cast<T*>(gradient.data_ptr());
    const int64_t plane = lines.height * lines.length;
    const bool past_caches = outgrows_caches(gradient.numel() * static_cast<int64_t>(sizeof(T)));
    over_rows(lines, samples, static_cast<const uint8_t*>(pasted.data_ptr()), receivers, blend_sigma,
              [&](int64_t n, const float* own, const float* other, const PasteSegment* segments, int64_t count,
                  int64_t offset) {
                for (int64_t c = 0; c < lines.planes; ++c) {
                  const T* plane_from = from + c * lines.plane_step + offset;
                  image_kernels<T>().backward(
                      plane_from + n * lines.sample_step, plane_from + receivers[n] * lines.sample_step, own, other,
                      lines.column, segments, count, to + (n * lines.planes + c) * plane + offset, past_caches);
                }
              });
  });
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) {
  m.impl("copy_paste", TORCH_BOX(&copy_paste));
  m.impl("copy_paste_backward", TORCH_BOX(&copy_paste_backward));
}

}  // namespace sod_ops
