// Upsampled branches in a convolution's output, and the adjoint; compiled once for each instruction set (see
// capability.h). Sums are taken in float, in double for double.
//
// The formula (sod_ops/reference/pyramid_conv2d.py) is separable: with t(ky, kx) a branch's products with the tap at
// (ky, kx), and A, B the interpolation along rows and columns,
//   r(ky, u)[X] = sum over kx and v of B[X + kx - p, v] t(ky, kx)[u, v]
//   out[Y, X]   = y[Y, X] + sum over ky and u of A[Y + ky - p, u] r(ky, u)[X]
// where positions outside of the map add nothing. A row Y + ky - p reads at most two rows u of each branch, neighbours:
// one buffer r for even u and one for odd u is all that is kept, and each r is computed once. All loops run over
// channels innermost, a block of them at a time.
#include "pyramid_conv2d.h"

#include <algorithm>

#include "vector.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using math::Tap;
using simd::Accumulator;
using simd::for_each_piece;
using simd::Lanes;

// The block's channels are stored this far apart from column to column.
constexpr int64_t kStep = kTapBlock;
// Row buffers in one call.
constexpr int64_t kTapRows = kTapBranches * kTapKernel * 2;

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

// r(ky, u) of one branch.
template <typename A>
void widen_row(const TapShape& shape, const TapMap<A>& branch, int64_t ky, int64_t u, A* r) {
  using L = Lanes<A>;
  const A* from = branch.data + u * branch.width * branch.pixel_step + ky * shape.kernel * branch.tap_step;
  const int64_t pad = shape.kernel / 2;
  for (int64_t x = 0; x < shape.width; ++x) {
    const int64_t first = std::max<int64_t>(0, pad - x);
    const int64_t last = std::min(shape.kernel, shape.width + pad - x);
    for_each_piece<A>(shape.channels, [&](int64_t c, auto count) {
      L sum = L::fill(0);
      for (int64_t kx = first; kx < last; ++kx) {
        const Tap<A>& tap = branch.columns[x + kx - pad];
        const A* at = from + kx * branch.tap_step + c;
        sum = fmadd(L::load(at + tap.index0 * branch.pixel_step, count), L::fill(tap.weight0), sum);
        if (tap.weight1 != 0) {
          sum = fmadd(L::load(at + tap.index1 * branch.pixel_step, count), L::fill(tap.weight1), sum);
        }
      }
      sum.store(r + x * kStep + c, count);
    });
  }
}

template <typename A>
struct WeightedRow {
  const A* row;
  A weight;
};

// out[x] = y[x] + sum over rows of weight * row[x], for the x and channels of one output row.
template <typename T>
void add_rows(const TapShape& shape, const WeightedRow<Accumulator<T>>* rows, int64_t count, PlaneSteps<const T> y,
              PlaneSteps<T> out, Accumulator<T>* sums) {
  using A = Accumulator<T>;
  for (int64_t x = 0; x < shape.width; ++x) {
    for_each_piece<A>(shape.channels, [&](int64_t c, auto piece) {
      auto sum = Lanes<A>::fill(0);
      for (int64_t i = 0; i < count; ++i) {
        sum = fmadd(Lanes<A>::load(rows[i].row + x * kStep + c, piece), Lanes<A>::fill(rows[i].weight), sum);
      }
      sum.store(sums + x * kStep + c, piece);
    });
  }
  if (out.channel == 1) {
    for (int64_t x = 0; x < shape.width; ++x) {
      for_each_piece<T>(shape.channels, [&](int64_t c, auto piece) {
        const auto before = Lanes<T>::load(y.data + x * y.column + c, piece);
        (before + Lanes<T>::load_accumulators(sums + x * kStep + c, piece)).store(out.data + x * out.column + c, piece);
      });
    }
    return;
  }
  for (int64_t c = 0; c < shape.channels; ++c) {
    const T* before = y.data + c * y.channel;
    T* to = out.data + c * out.channel;
    for (int64_t x = 0; x < shape.width; ++x) to[x] = static_cast<T>(static_cast<A>(before[x]) + sums[x * kStep + c]);
  }
}

template <typename T>
void add(TapShape shape, const TapMap<Accumulator<T>>* branches, int64_t count, PlaneSteps<const T> y,
         PlaneSteps<T> out, Accumulator<T>* scratch) {
  using A = Accumulator<T>;
  RowBuffers<A> buffers(shape, count, scratch);
  A* sums = scratch + count * shape.kernel * 2 * shape.width * kStep;
  WeightedRow<A> rows[kTapRows];
  const int64_t pad = shape.kernel / 2;
  for (int64_t row = 0; row < shape.height; ++row) {
    int64_t used = 0;
    for (int64_t b = 0; b < count; ++b) {
      for (int64_t ky = 0; ky < shape.kernel; ++ky) {
        const int64_t position = row + ky - pad;
        if (position < 0 || position >= shape.height) continue;
        const Tap<A>& tap = branches[b].rows[position];
        const auto use = [&](int64_t u, A weight) {
          if (weight == 0) return;
          if (buffers.held(b, ky, u) != u) {
            widen_row(shape, branches[b], ky, u, buffers.row(b, ky, u));
            buffers.held(b, ky, u) = u;
          }
          rows[used++] = {buffers.row(b, ky, u), weight};
        };
        use(tap.index0, tap.weight0);
        use(tap.index1, tap.weight1);
      }
    }
    add_rows<T>(shape, rows, used, {y.data + row * y.row, y.channel, y.row, y.column},
                {out.data + row * out.row, out.channel, out.row, out.column}, sums);
  }
}

// The products' gradients at row u of one branch for one ky, from that of r(ky, u).
template <typename A>
void narrow_row(const TapShape& shape, const TapMap<A>& branch, int64_t ky, int64_t u, const A* r) {
  using L = Lanes<A>;
  A* to = branch.data + u * branch.width * branch.pixel_step + ky * shape.kernel * branch.tap_step;
  const int64_t pad = shape.kernel / 2;
  int64_t begin = 0;  // the first column that reads v or a later one
  for (int64_t v = 0; v < branch.width; ++v) {
    while (begin < shape.width && branch.columns[begin].index1 < v) ++begin;
    int64_t end = begin;
    while (end < shape.width && branch.columns[end].index0 <= v) ++end;
    for (int64_t kx = 0; kx < shape.kernel; ++kx) {
      // Column `position` was read for the output column position - kx + pad.
      const int64_t first = std::max(begin, kx - pad), last = std::min(end, shape.width + kx - pad);
      for_each_piece<A>(shape.channels, [&](int64_t c, auto piece) {
        L sum = L::fill(0);
        for (int64_t position = first; position < last; ++position) {
          const Tap<A>& tap = branch.columns[position];
          const A weight = (tap.index0 == v ? tap.weight0 : A(0)) + (tap.index1 == v ? tap.weight1 : A(0));
          sum = fmadd(L::load(r + (position - kx + pad) * kStep + c, piece), L::fill(weight), sum);
        }
        sum.store(to + v * branch.pixel_step + kx * branch.tap_step + c, piece);
      });
    }
  }
}

// One row of the incoming gradient, channels innermost.
template <typename T>
void load_row(const TapShape& shape, PlaneSteps<const T> grad, Accumulator<T>* row) {
  if (grad.channel == 1) {
    for (int64_t x = 0; x < shape.width; ++x) {
      for_each_piece<T>(shape.channels, [&](int64_t c, auto piece) {
        Lanes<T>::load(grad.data + x * grad.column + c, piece).store_accumulators(row + x * kStep + c, piece);
      });
    }
    return;
  }
  for (int64_t c = 0; c < shape.channels; ++c) {
    const T* from = grad.data + c * grad.channel;
    for (int64_t x = 0; x < shape.width; ++x) row[x * kStep + c] = static_cast<Accumulator<T>>(from[x]);
  }
}

template <typename T>
void gradients(TapShape shape, const TapMap<Accumulator<T>>* branches, int64_t count, PlaneSteps<const T> grad,
               Accumulator<T>* scratch) {
  using A = Accumulator<T>;
  RowBuffers<A> buffers(shape, count, scratch);
  A* row = scratch + count * shape.kernel * 2 * shape.width * kStep;
  const int64_t pad = shape.kernel / 2;
  for (int64_t b = 0; b < count; ++b) {
    // Rows that no output row reads, where a branch is larger than the output.
    const int64_t numbers = shape.kernel * shape.kernel;
    for (int64_t i = 0; i < branches[b].height * branches[b].width * numbers; ++i) {
      A* to = branches[b].data + i / numbers * branches[b].pixel_step + i % numbers * branches[b].tap_step;
      std::fill(to, to + shape.channels, A(0));
    }
  }
  for (int64_t y = 0; y < shape.height; ++y) {
    load_row<T>(shape, {grad.data + y * grad.row, grad.channel, grad.row, grad.column}, row);
    for (int64_t b = 0; b < count; ++b) {
      for (int64_t ky = 0; ky < shape.kernel; ++ky) {
        const int64_t position = y + ky - pad;
        if (position < 0 || position >= shape.height) continue;
        const Tap<A>& tap = branches[b].rows[position];
        const auto use = [&](int64_t u, A weight) {
          if (weight == 0) return;
          A* sums = buffers.row(b, ky, u);
          int64_t& held = buffers.held(b, ky, u);
          const bool fresh = held != u;
          if (fresh && held >= 0) narrow_row(shape, branches[b], ky, held, sums);
          held = u;
          const auto factor = Lanes<A>::fill(weight);
          for (int64_t x = 0; x < shape.width; ++x) {
            for_each_piece<A>(shape.channels, [&](int64_t c, auto piece) {
              const auto value = Lanes<A>::load(row + x * kStep + c, piece);
              A* sum = sums + x * kStep + c;
              (fresh ? value * factor : fmadd(value, factor, Lanes<A>::load(sum, piece))).store(sum, piece);
            });
          }
        };
        use(tap.index0, tap.weight0);
        use(tap.index1, tap.weight1);
      }
    }
  }
  for (int64_t b = 0; b < count; ++b) {
    for (int64_t ky = 0; ky < shape.kernel; ++ky) {
      for (int64_t parity = 0; parity < 2; ++parity) {
        const int64_t held = buffers.held(b, ky, parity);
        if (held >= 0) narrow_row(shape, branches[b], ky, held, buffers.row(b, ky, parity));
      }
    }
  }
}

template <typename T>
constexpr TapKernels<T> tap_kernels() {
  return {add<T>, gradients<T>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const PyramidConv2dKernels SOD_OPS_THIS_TABLE(pyramid_conv2d_kernels) = {
    tap_kernels<float>(), tap_kernels<double>(), tap_kernels<c10::BFloat16>(), tap_kernels<c10::Half>()};

}  // namespace sod_ops
