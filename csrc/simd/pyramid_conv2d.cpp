// Upsampled branches in a convolution's output, and the adjoint; compiled once for each instruction set (see
// capability.h). Sums are taken in float, in double for double.
//
// The formula (sod_ops/reference/pyramid_conv2d.py) is separable: with t(ky, kx) a branch's products with the tap at
// (ky, kx), and A, B the interpolation along rows and columns,
//   r(ky, u)[X] = sum over kx and v of B[X + kx - p, v] t(ky, kx)[u, v]
//   out[Y, X]   = y[Y, X] + sum over ky and u of A[Y + ky - p, u] r(ky, u)[X]
// where positions outside of the map add nothing. A row Y + ky - p reads at most two rows u of each branch, neighbours:
// one buffer r for even u and one for odd u is all that is kept, and each r is computed once. All loops run over
// channels innermost, a block of them at a time. A branch comes with its products t, or is multiplied here: a row of it
// by a row of taps at a time, just before r(ky, u) is computed from them, so that t never leaves the cache.
#include "pyramid_conv2d.h"

#include <algorithm>

#include "panel_product.h"
#include "pyramid_conv2d_rows.h"
#include "transpose.h"
#include "vector.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::kPanelDepth;

// The buffers r(ky, even u) and r(ky, odd u) of every branch, and which u each holds.
template <typename A>
class RowBuffers {
 public:
  RowBuffers(const TapShape& shape, int64_t branches, A* memory) : shape_(shape), memory_(memory) {
    std::fill(held_, held_ + branches * shape.kernel * 2, int64_t{-1});
  }

  A* row(int64_t branch, int64_t ky, int64_t u) { return memory_ + slot(branch, ky, u) * shape_.width * kStep; }
  int64_t& held(int64_t branch, int64_t ky, int64_t u) { return held_[slot(branch, ky, u)]; }

 private:
  int64_t slot(int64_t branch, int64_t ky, int64_t u) const { return (branch * shape_.kernel + ky) * 2 + u % 2; }

  TapShape shape_;
  A* memory_;
  int64_t held_[kTapRows];
};

// Row u of a branch times a row of taps: products[x, kx, c], kStep numbers from tap to tap.
template <typename T>
void multiply_row(const TapShape& shape, const TapMap<T>& branch, int64_t ky, int64_t u, Accumulator<T>* products) {
  constexpr int64_t panel = kTapPanel<T>;
  const int64_t step = row_step<T>(branch.width), taps = shape.kernel * shape.kernel;
  const Accumulator<T>* row = branch.branch + u * branch.depth * step;
  for (int64_t c = 0; c < shape.channels; c += panel) {
    for (int64_t kx = 0; kx < shape.kernel; ++kx) {
      const auto* of_tap = branch.panels + (c / panel * taps + ky * shape.kernel + kx) * branch.depth * panel;
      for (int64_t k = 0; k < branch.depth; k += kPanelDepth) {
        simd::multiply_panel<Accumulator<T>>({row + k * step, 1, step}, branch.width, of_tap + k * panel,
                                             std::min(kPanelDepth, branch.depth - k), products + kx * kStep + c,
                                             shape.kernel * kStep, k > 0);
      }
    }
  }
}

template <typename T>
void pack(TapWeight<T> weight, int64_t first, Accumulator<T>* panel) {
  using A = Accumulator<T>;
  constexpr int64_t size = kTapPanel<T>;
  const int64_t kernel = weight.taps == 1 ? 1 : kTapKernel, channels = std::min(size, weight.channels - first);
  const T* from = weight.data + first * weight.channel_step;
  for (int64_t k = 0; k < weight.depth; ++k) {
    for (int64_t tap = 0; tap < weight.taps; ++tap) {
      const T* at = from + k * weight.depth_step + tap / kernel * weight.row_step + tap % kernel * weight.column_step;
      A* to = panel + (tap * weight.depth + k) * size;
      for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<A>(at[c * weight.channel_step]);
      for (int64_t c = channels; c < size; ++c) to[c] = A(0);
    }
  }
}

template <typename T>
void add(TapShape shape, const TapMap<T>* branches, int64_t count, int64_t first_row, int64_t last_row,
         PlaneSteps<const T> y, const T* bias, PlaneSteps<T> out, Accumulator<T>* scratch, Accumulator<T>* multiplied) {
  using A = Accumulator<T>;
  RowBuffers<A> buffers(shape, count, scratch);
  A* sums = scratch + count * shape.kernel * 2 * shape.width * kStep;
  Weighted<A> rows[kTapRows];
  const int64_t pad = shape.kernel / 2;
  const auto fill = [&](const TapMap<T>& branch, int64_t ky, int64_t u, A* r) {
    if (branch.data) {
      const A* from = branch.data + u * branch.width * branch.pixel_step + ky * shape.kernel * branch.tap_step;
      widen_row(shape, from, branch.width, branch.pixel_step, branch.tap_step, branch.columns, r);
    } else {
      multiply_row(shape, branch, ky, u, multiplied);
      widen_row<A>(shape, multiplied, branch.width, shape.kernel * kStep, kStep, branch.columns, r);
    }
  };
  for (int64_t row = first_row; row < last_row; ++row) {
    int64_t used = 0;
    for (int64_t b = 0; b < count; ++b) {
      for (int64_t ky = 0; ky < shape.kernel; ++ky) {
        const int64_t position = row + ky - pad;
        if (position < 0 || position >= shape.height) continue;
        const Tap<A>& tap = branches[b].rows[position];
        const auto use = [&](int64_t u, A weight) {
          if (weight == 0) return;
          if (buffers.held(b, ky, u) != u) {
            fill(branches[b], ky, u, buffers.row(b, ky, u));
            buffers.held(b, ky, u) = u;
          }
          rows[used++] = {buffers.row(b, ky, u), weight};
        };
        use(tap.index0, tap.weight0);
        use(tap.index1, tap.weight1);
      }
    }
    add_rows<T>(shape, rows, used, kStep, {y.data + row * y.row, y.channel, y.row, y.column}, bias,
                {out.data + row * out.row, out.channel, out.row, out.column}, sums);
  }
}

// What the gradients of the products with one row of taps, [pixels, kx, kStep], add to the gradients of the branch's
// pixels from `first` on and of the weight.
template <typename A>
void add_products(const TapShape& shape, const TapSums<A>& sums, int64_t ky, int64_t first, int64_t pixels,
                  int64_t all_pixels, const A* products) {
  constexpr int64_t panel = kPanel<A>;
  const int64_t taps = shape.kernel * shape.kernel, pixel_step = shape.kernel * kStep;
  for (int64_t kx = 0; kx < shape.kernel; ++kx) {
    const A* of_tap = products + kx * kStep;
    for (int64_t p = 0; p < sums.panels; ++p) {
      const int64_t tap = (p * taps + ky * shape.kernel + kx) * sums.out_channels * panel;
      const int64_t pixel = (p * all_pixels + first) * panel;
      simd::multiply_panel<A>({of_tap, pixel_step, 1}, pixels, sums.weight + tap, shape.channels,
                              sums.grad_branch + pixel, panel, true);
      for (int64_t k = 0; k < pixels; k += kPanelDepth) {
        simd::multiply_panel<A>({of_tap + k * pixel_step, 1, pixel_step}, shape.channels,
                                sums.pixels + pixel + k * panel, std::min(kPanelDepth, pixels - k),
                                sums.grad_weight + tap, panel, true);
      }
    }
  }
}

// Takes the rows of the gradients of one branch's products with one row of taps, from the first to the last: to where
// they are wanted, or some at a time to the products with them.
template <typename T>
class ProductRows {
 public:
  using A = Accumulator<T>;

  ProductRows() = default;
  ProductRows(const TapShape& shape, const TapMap<T>& branch, int64_t ky, A* waiting)
      : shape_(shape), branch_(branch), ky_(ky), waiting_(waiting) {}

  // The next row, from that of r(ky, u).
  void take(const A* r) {
    narrow_row(shape_, r, branch_.width, pixel_step(), tap_step(), branch_.columns, next());
    taken();
  }

  // Next rows up to `end`, which no row of the output reads.
  void clear_to(int64_t end) {
    while (row_ + count_ < end) {
      A* to = next();
      for (int64_t v = 0; v < branch_.width; ++v) {
        for (int64_t kx = 0; kx < shape_.kernel; ++kx) {
          std::fill_n(to + v * pixel_step() + kx * tap_step(), shape_.channels, A(0));
        }
      }
      taken();
    }
  }

  void flush() {
    if (!branch_.data && count_ > 0) {
      add_products(shape_, branch_.sums, ky_, row_ * branch_.width, count_ * branch_.width,
                   branch_.height * branch_.width, waiting_);
    }
    row_ += count_;
    count_ = 0;
  }

 private:
  int64_t pixel_step() const { return branch_.data ? branch_.pixel_step : shape_.kernel * kStep; }
  int64_t tap_step() const { return branch_.data ? branch_.tap_step : kStep; }

  A* next() const {
    if (!branch_.data) return waiting_ + count_ * branch_.width * pixel_step();
    return branch_.data + (row_ + count_) * branch_.width * branch_.pixel_step + ky_ * shape_.kernel * branch_.tap_step;
  }

  void taken() {
    if (++count_ == waiting_rows(branch_.width)) flush();
  }

  TapShape shape_ = {};
  TapMap<T> branch_ = {};
  int64_t ky_ = 0;
  A* waiting_ = nullptr;
  int64_t row_ = 0;    // the first that waits
  int64_t count_ = 0;  // how many wait
};

template <typename T>
void gradients(TapShape shape, const TapMap<T>* branches, int64_t count, PlaneSteps<const T> grad,
               Accumulator<T>* scratch, Accumulator<T>* waiting) {
  using A = Accumulator<T>;
  RowBuffers<A> buffers(shape, count, scratch);
  A* row = scratch + count * shape.kernel * 2 * shape.width * kStep;
  A* planes = row + shape.width * kStep;
  const int64_t pad = shape.kernel / 2;
  ProductRows<T> products[kTapBranches * kTapKernel];  // of each branch and ky
  for (int64_t b = 0; b < count; ++b) {
    const int64_t size = waiting_scratch(shape, branches[b].width) / shape.kernel;
    for (int64_t ky = 0; ky < shape.kernel; ++ky) {
      products[b * shape.kernel + ky] = ProductRows<T>(shape, branches[b], ky, waiting);
      if (!branches[b].data) waiting += size;
    }
  }
  const auto finish = [&](int64_t b, int64_t ky, int64_t parity) {
    int64_t& held = buffers.held(b, ky, parity);
    if (held < 0) return;
    products[b * shape.kernel + ky].take(buffers.row(b, ky, parity));
    held = -1;
  };
  const auto finish_all = [&](int64_t b, int64_t ky) {
    const int64_t older = buffers.held(b, ky, 0) < buffers.held(b, ky, 1) ? 0 : 1;
    finish(b, ky, older);
    finish(b, ky, 1 - older);
  };
  int64_t begun[kTapBranches * kTapKernel] = {};  // rows of each branch and ky
  for (int64_t y = 0; y < shape.height; ++y) {
    load_row<T>(shape, {grad.data + y * grad.row, grad.channel, grad.row, grad.column}, kStep, row, planes);
    for (int64_t b = 0; b < count; ++b) {
      for (int64_t ky = 0; ky < shape.kernel; ++ky) {
        const int64_t position = y + ky - pad;
        if (position < 0 || position >= shape.height) continue;
        const Tap<A>& tap = branches[b].rows[position];
        const auto use = [&](int64_t u, A weight) {
          if (weight == 0) return;
          int64_t& held = buffers.held(b, ky, u);
          const bool fresh = held != u;
          if (fresh) {
            int64_t& next = begun[b * shape.kernel + ky];
            if (next < u) {
              // Rows are read from the first to the last: those that are held are complete.
              finish_all(b, ky);
              products[b * shape.kernel + ky].clear_to(u);
            } else {
              finish(b, ky, u % 2);
            }
            next = u + 1;
            held = u;
          }
          accumulate_row(shape, row, weight, !fresh, buffers.row(b, ky, u));
        };
        use(tap.index0, tap.weight0);
        use(tap.index1, tap.weight1);
      }
    }
  }
  for (int64_t b = 0; b < count; ++b) {
    for (int64_t ky = 0; ky < shape.kernel; ++ky) {
      finish_all(b, ky);
      products[b * shape.kernel + ky].clear_to(branches[b].height);
      products[b * shape.kernel + ky].flush();
    }
  }
}

template <typename T>
void pack_pixels(PlaneSteps<const T> branch, int64_t channels, int64_t height, int64_t width, Accumulator<T>* panel,
                 Accumulator<T>* scratch) {
  constexpr int64_t size = kTapPanel<T>;
  const TapShape shape{channels, 1, width, 1};
  if (channels < size) std::fill_n(panel, height * width * size, Accumulator<T>(0));
  for (int64_t y = 0; y < height; ++y) {
    load_row<T>(shape, {branch.data + y * branch.row, branch.channel, branch.row, branch.column}, size,
                panel + y * width * size, scratch);
  }
}

template <typename T>
void store_pixels(TapShape shape, const Accumulator<T>* rows, int64_t count, int64_t apart, PlaneSteps<T> out,
                  Accumulator<T>* scratch) {
  using A = Accumulator<T>;
  Weighted<A> terms[kTapRows];
  for (int64_t i = 0; i < count; ++i) terms[i] = {rows + i * apart, A(1)};
  add_rows<T>(shape, terms, count, kTapPanel<T>, {}, nullptr, out, scratch);
}

template <typename T>
void store_weight(const Accumulator<T>* sums, int64_t count, int64_t apart, int64_t out_channels, int64_t taps,
                  int64_t depth, T* out) {
  constexpr int64_t panel = kTapPanel<T>;
  for (int64_t c = 0; c < depth; ++c) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const Accumulator<T>* from = sums + (c / panel * taps + tap) * out_channels * panel + c % panel;
      Accumulator<T> sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += from[i * apart];
      out[c * taps + tap] = static_cast<T>(sum);
    }
  }
}

template <typename T>
constexpr TapKernels<T> tap_kernels() {
  return {add<T>, pack_row<T>, pack<T>, gradients<T>, pack_pixels<T>, store_pixels<T>, store_weight<T>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const PyramidConv2dKernels SOD_OPS_THIS_TABLE(pyramid_conv2d_kernels) = {
    tap_kernels<float>(), tap_kernels<double>(), tap_kernels<c10::BFloat16>(), tap_kernels<c10::Half>()};

}  // namespace sod_ops
