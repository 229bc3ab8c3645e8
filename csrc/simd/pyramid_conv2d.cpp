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

#include "transpose.h"
#include "vector.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using math::Tap;
using simd::Accumulator;
using simd::for_each_piece;
using simd::Lanes;
using simd::Vectorized;

// The block's channels are stored this far apart from column to column.
constexpr int64_t kStep = kTapBlock;
// How many pixels ahead products are fetched, and the bytes that come at once.
constexpr int64_t kAhead = 8;
constexpr size_t kCacheLine = 64;
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

template <typename A>
struct Weighted {
  const A* data;
  A weight;
};

// to[c] = sum over terms of weight * data[c] for a block's channels. What lies beyond them in `to` up to kStep may be
// written, and in the terms must be readable.
template <typename A>
void add_up(int64_t channels, const Weighted<A>* terms, int64_t count, A* to) {
  using V = Vectorized<A>;
  constexpr int64_t pieces = kStep / V::size();
  if (channels == kStep) {
    V sums[pieces];
    for (V& sum : sums) sum = V(0);
    for (int64_t i = 0; i < count; ++i) {
      const V weight(terms[i].weight);
      for (int64_t p = 0; p < pieces; ++p) {
        sums[p] = at::vec::fmadd(V::loadu(terms[i].data + p * V::size()), weight, sums[p]);
      }
    }
    for (int64_t p = 0; p < pieces; ++p) sums[p].store(to + p * V::size());
    return;
  }
  for_each_piece<A>(channels, [&](int64_t c, auto piece) {
    auto sum = Lanes<A>::fill(0);
    for (int64_t i = 0; i < count; ++i) {
      sum = fmadd(Lanes<A>::load(terms[i].data + c, piece), Lanes<A>::fill(terms[i].weight), sum);
    }
    sum.store(to + c, piece);
  });
}

// r(ky, u) of one branch.
template <typename A>
void widen_row(const TapShape& shape, const TapMap<A>& branch, int64_t ky, int64_t u, A* r) {
  const A* from = branch.data + u * branch.width * branch.pixel_step + ky * shape.kernel * branch.tap_step;
  const int64_t pad = shape.kernel / 2;
  int64_t fetched = 0;
  for (int64_t x = 0; x < shape.width; ++x) {
    const int64_t first = std::max<int64_t>(0, pad - x);
    const int64_t last = std::min(shape.kernel, shape.width + pad - x);
    // A block's part of a pixel's taps is too short, and too far from the next pixel's, for the processor to see a
    // stream.
    for (const int64_t end = std::min(branch.columns[x].index1 + kAhead, branch.width); fetched < end; ++fetched) {
      const A* next = from + fetched * branch.pixel_step;
      for (int64_t kx = 0; kx < shape.kernel; ++kx) {
        for (int64_t c = 0; c < shape.channels; c += kCacheLine / sizeof(A))
          __builtin_prefetch(next + kx * branch.tap_step + c);
      }
    }
    Weighted<A> terms[2 * kTapKernel];
    int64_t count = 0;
    for (int64_t kx = first; kx < last; ++kx) {
      const Tap<A>& tap = branch.columns[x + kx - pad];
      const A* at = from + kx * branch.tap_step;
      terms[count++] = {at + tap.index0 * branch.pixel_step, tap.weight0};
      if (tap.weight1 != 0) terms[count++] = {at + tap.index1 * branch.pixel_step, tap.weight1};
    }
    add_up(shape.channels, terms, count, r + x * kStep);
  }
}

// As many columns as a vector has lanes, which is as many channels as are moved at once between planes and pixels.
template <typename A>
constexpr int64_t kTile = Vectorized<A>::size();

template <typename A>
int64_t tiled(int64_t width) {
  return (width + kTile<A> - 1) / kTile<A> * kTile<A>;
}

// out[x] = y[x] + sum over rows of weight * row[x], for the x and channels of one output row. A tile of columns is read
// whole, and the row buffers have room for that behind them.
template <typename T>
void add_rows(const TapShape& shape, const Weighted<Accumulator<T>>* rows, int64_t count, PlaneSteps<const T> y,
              PlaneSteps<T> out, Accumulator<T>* sums) {
  using A = Accumulator<T>;
  using V = Vectorized<A>;
  if (out.channel == 1) {
    Weighted<A> terms[kTapRows];
    for (int64_t x = 0; x < shape.width; ++x) {
      for (int64_t i = 0; i < count; ++i) terms[i] = {rows[i].data + x * kStep, rows[i].weight};
      add_up(shape.channels, terms, count, sums);
      for_each_piece<T>(shape.channels, [&](int64_t c, auto piece) {
        const auto before = Lanes<T>::load(y.data + x * y.column + c, piece);
        (before + Lanes<T>::load_accumulators(sums + c, piece)).store(out.data + x * out.column + c, piece);
      });
    }
    return;
  }
  constexpr int64_t tile = kTile<A>;
  const int64_t step = tiled<A>(shape.width);
  for (int64_t first = 0; first < shape.channels; first += tile) {
    for (int64_t x = 0; x < shape.width; x += tile) {
      V columns[tile];
      for (V& column : columns) column = V(0);
      for (int64_t i = 0; i < count; ++i) {
        const A* from = rows[i].data + x * kStep + first;
        const V weight(rows[i].weight);
        for (int64_t k = 0; k < tile; ++k) columns[k] = at::vec::fmadd(V::loadu(from + k * kStep), weight, columns[k]);
      }
      simd::transpose(columns);
      for (int64_t c = 0; c < tile; ++c) columns[c].store(sums + c * step + x);
    }
    for (int64_t c = 0; c < std::min(tile, shape.channels - first); ++c) {
      const T* before = y.data + (first + c) * y.channel;
      T* to = out.data + (first + c) * out.channel;
      for_each_piece<T>(shape.width, [&](int64_t x, auto part) {
        (Lanes<T>::load(before + x, part) + Lanes<T>::load_accumulators(sums + c * step + x, part)).store(to + x, part);
      });
    }
  }
}

template <typename T>
void add(TapShape shape, const TapMap<Accumulator<T>>* branches, int64_t count, PlaneSteps<const T> y,
         PlaneSteps<T> out, Accumulator<T>* scratch) {
  using A = Accumulator<T>;
  RowBuffers<A> buffers(shape, count, scratch);
  A* sums = scratch + count * shape.kernel * 2 * shape.width * kStep;
  Weighted<A> rows[kTapRows];
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
  A* to = branch.data + u * branch.width * branch.pixel_step + ky * shape.kernel * branch.tap_step;
  const int64_t pad = shape.kernel / 2;
  constexpr int64_t kTerms = 64;
  int64_t begin = 0;  // the first column that reads v or a later one
  for (int64_t v = 0; v < branch.width; ++v) {
    while (begin < shape.width && branch.columns[begin].index1 < v) ++begin;
    int64_t end = begin;
    while (end < shape.width && branch.columns[end].index0 <= v) ++end;
    for (int64_t kx = 0; kx < shape.kernel; ++kx) {
      // Column `position` was read for the output column position - kx + pad.
      const int64_t first = std::max(begin, kx - pad), last = std::min(end, shape.width + kx - pad);
      A* sums = to + v * branch.pixel_step + kx * branch.tap_step;
      Weighted<A> terms[kTerms + 1];
      int64_t count = 0;
      for (int64_t position = first; position < last; ++position) {
        const Tap<A>& tap = branch.columns[position];
        const A weight = (tap.index0 == v ? tap.weight0 : A(0)) + (tap.index1 == v ? tap.weight1 : A(0));
        if (weight == 0) continue;
        if (count == kTerms) {
          // A part of a long sum is its first term from then on.
          add_up(shape.channels, terms, count, sums);
          terms[0] = {sums, A(1)};
          count = 1;
        }
        terms[count++] = {r + (position - kx + pad) * kStep, weight};
      }
      add_up(shape.channels, terms, count, sums);
    }
  }
}

// One row of the incoming gradient, channels innermost.
template <typename T>
void load_row(const TapShape& shape, PlaneSteps<const T> grad, Accumulator<T>* row, Accumulator<T>* planes) {
  using A = Accumulator<T>;
  if (grad.channel == 1) {
    for (int64_t x = 0; x < shape.width; ++x) {
      for_each_piece<T>(shape.channels, [&](int64_t c, auto piece) {
        Lanes<T>::load(grad.data + x * grad.column + c, piece).store_accumulators(row + x * kStep + c, piece);
      });
    }
    return;
  }
  constexpr int64_t tile = kTile<A>;
  const int64_t step = tiled<A>(shape.width);
  for_each_piece<A>(shape.channels, [&](int64_t first, auto piece) {
    for (int64_t c = 0; c < std::min(tile, shape.channels - first); ++c) {
      const T* from = grad.data + (first + c) * grad.channel;
      for_each_piece<T>(shape.width, [&](int64_t x, auto part) {
        Lanes<T>::load(from + x, part).store_accumulators(planes + c * step + x, part);
      });
    }
    for (int64_t x = 0; x < shape.width; x += tile) {
      // What lies beyond the width or the channels is moved along and not stored.
      A pixels[tile * tile];
      Vectorized<A> columns[tile];
      simd::transpose(planes + x, step, columns);
      for (int64_t i = 0; i < tile; ++i) columns[i].store(pixels + i * tile);
      for (int64_t i = 0; i < std::min(tile, shape.width - x); ++i) {
        Lanes<A>::load(pixels + i * tile, piece).store(row + (x + i) * kStep + first, piece);
      }
    }
  });
}

// The products' gradients at a row that no output row reads.
template <typename A>
void clear_row(const TapShape& shape, const TapMap<A>& branch, int64_t ky, int64_t u) {
  for (int64_t i = 0; i < branch.width * shape.kernel; ++i) {
    const int64_t v = i / shape.kernel, tap = ky * shape.kernel + i % shape.kernel;
    A* to = branch.data + (u * branch.width + v) * branch.pixel_step + tap * branch.tap_step;
    std::fill(to, to + shape.channels, A(0));
  }
}

template <typename T>
void gradients(TapShape shape, const TapMap<Accumulator<T>>* branches, int64_t count, PlaneSteps<const T> grad,
               Accumulator<T>* scratch) {
  using A = Accumulator<T>;
  RowBuffers<A> buffers(shape, count, scratch);
  A* row = scratch + count * shape.kernel * 2 * shape.width * kStep;
  A* planes = row + shape.width * kStep;
  const int64_t pad = shape.kernel / 2;
  int64_t next[kTapBranches * kTapKernel] = {};  // rows of each branch and ky that have been begun
  const auto skip_to = [&](int64_t b, int64_t ky, int64_t u) {
    int64_t& begun = next[b * shape.kernel + ky];
    for (; begun < u; ++begun) clear_row(shape, branches[b], ky, begun);
  };
  for (int64_t y = 0; y < shape.height; ++y) {
    load_row<T>(shape, {grad.data + y * grad.row, grad.channel, grad.row, grad.column}, row, planes);
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
          if (fresh) {
            if (held >= 0) narrow_row(shape, branches[b], ky, held, sums);
            skip_to(b, ky, u);
            ++next[b * shape.kernel + ky];
            held = u;
          }
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
      skip_to(b, ky, branches[b].height);
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
