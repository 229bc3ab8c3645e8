// Rows of upsampled branches and of maps in pyramid_conv2d: interpolated, added up, and the adjoints. Each is part of
// the formula in pyramid_conv2d.cpp, for a block of channels, which lie innermost.
#pragma once

#include <algorithm>

#include "pyramid_conv2d.h"
#include "transpose.h"
#include "vector.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {

using math::Tap;
using simd::Accumulator;
using simd::for_each_piece;
using simd::Lanes;
using simd::Vectorized;

// Row buffers in one call.
constexpr int64_t kTapRows = kTapBranches * kTapKernel * 2;
// The block's channels are stored this far apart from column to column.
constexpr int64_t kStep = kTapBlock;
// How many pixels ahead products are fetched, and the bytes that come at once.
constexpr int64_t kAhead = 8;
constexpr size_t kCacheLine = 64;
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

// r(ky, u) of one branch from its products with a row of taps: `from`, at pixel 0 and tap 0 of the two rows.
template <typename A>
void widen_row(const TapShape& shape, const A* from, int64_t width, int64_t pixel_step, int64_t tap_step,
               const Tap<A>* columns, A* r) {
  const int64_t pad = shape.kernel / 2;
  int64_t fetched = 0;
  for (int64_t x = 0; x < shape.width; ++x) {
    const int64_t first = std::max<int64_t>(0, pad - x);
    const int64_t last = std::min(shape.kernel, shape.width + pad - x);
    // A block's part of a pixel's taps is too short, and too far from the next pixel's, for the processor to see a
    // stream.
    for (const int64_t end = std::min(columns[x].index1 + kAhead, width); fetched < end; ++fetched) {
      const A* next = from + fetched * pixel_step;
      for (int64_t kx = 0; kx < shape.kernel; ++kx) {
        for (int64_t c = 0; c < shape.channels; c += kCacheLine / sizeof(A))
          __builtin_prefetch(next + kx * tap_step + c);
      }
    }
    Weighted<A> terms[2 * kTapKernel];
    int64_t count = 0;
    for (int64_t kx = first; kx < last; ++kx) {
      const Tap<A>& tap = columns[x + kx - pad];
      const A* at = from + kx * tap_step;
      terms[count++] = {at + tap.index0 * pixel_step, tap.weight0};
      if (tap.weight1 != 0) terms[count++] = {at + tap.index1 * pixel_step, tap.weight1};
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

// out[x] = y[x] + sum over rows of weight * row[x], for the x and channels of one output row; bias for y[x] where y has
// no data. Pixels of a row lie `pixel_step` apart. A tile of columns is read whole, and the row buffers have room for
// that behind them.
template <typename T>
void add_rows(const TapShape& shape, const Weighted<Accumulator<T>>* rows, int64_t count, int64_t pixel_step,
              PlaneSteps<const T> y, const T* bias, PlaneSteps<T> out, Accumulator<T>* sums) {
  using A = Accumulator<T>;
  using V = Vectorized<A>;
  if (out.channel == 1) {
    Weighted<A> terms[kTapRows];
    for (int64_t x = 0; x < shape.width; ++x) {
      for (int64_t i = 0; i < count; ++i) terms[i] = {rows[i].data + x * pixel_step, rows[i].weight};
      add_up(shape.channels, terms, count, sums);
      for_each_piece<T>(shape.channels, [&](int64_t c, auto piece) {
        const auto before = y.data ? Lanes<T>::load(y.data + x * y.column + c, piece)
                            : bias ? Lanes<T>::load(bias + c, piece)
                                   : Lanes<T>::fill(0);
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
        const A* from = rows[i].data + x * pixel_step + first;
        const V weight(rows[i].weight);
        for (int64_t k = 0; k < tile; ++k) {
          columns[k] = at::vec::fmadd(V::loadu(from + k * pixel_step), weight, columns[k]);
        }
      }
      simd::transpose(columns);
      for (int64_t c = 0; c < tile; ++c) columns[c].store(sums + c * step + x);
    }
    for (int64_t c = 0; c < std::min(tile, shape.channels - first); ++c) {
      const T* before = y.data + (first + c) * y.channel;
      const auto constant = Lanes<T>::fill(bias ? static_cast<A>(bias[first + c]) : A(0));
      T* to = out.data + (first + c) * out.channel;
      for_each_piece<T>(shape.width, [&](int64_t x, auto part) {
        const auto start = y.data ? Lanes<T>::load(before + x, part) : constant;
        (start + Lanes<T>::load_accumulators(sums + c * step + x, part)).store(to + x, part);
      });
    }
  }
}

// The products' gradients at a row of one branch for one row of taps, from that of r(ky, u): `to`, at pixel 0 and tap 0
// of the two rows.
template <typename A>
void narrow_row(const TapShape& shape, const A* r, int64_t width, int64_t pixel_step, int64_t tap_step,
                const Tap<A>* columns, A* to) {
  const int64_t pad = shape.kernel / 2;
  constexpr int64_t kTerms = 64;
  int64_t begin = 0;  // the first column that reads v or a later one
  for (int64_t v = 0; v < width; ++v) {
    while (begin < shape.width && columns[begin].index1 < v) ++begin;
    int64_t end = begin;
    while (end < shape.width && columns[end].index0 <= v) ++end;
    for (int64_t kx = 0; kx < shape.kernel; ++kx) {
      // Column `position` was read for the output column position - kx + pad.
      const int64_t first = std::max(begin, kx - pad), last = std::min(end, shape.width + kx - pad);
      A* sums = to + v * pixel_step + kx * tap_step;
      Weighted<A> terms[kTerms + 1];
      int64_t count = 0;
      for (int64_t position = first; position < last; ++position) {
        const Tap<A>& tap = columns[position];
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

// One row of a map, channels innermost and pixels `pixel_step` apart.
template <typename T>
void load_row(const TapShape& shape, PlaneSteps<const T> grad, int64_t pixel_step, Accumulator<T>* row,
              Accumulator<T>* planes) {
  using A = Accumulator<T>;
  if (grad.channel == 1) {
    for (int64_t x = 0; x < shape.width; ++x) {
      for_each_piece<T>(shape.channels, [&](int64_t c, auto piece) {
        Lanes<T>::load(grad.data + x * grad.column + c, piece).store_accumulators(row + x * pixel_step + c, piece);
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
        Lanes<A>::load(pixels + i * tile, piece).store(row + (x + i) * pixel_step + first, piece);
      }
    }
  });
}

// A row of a branch, packed (see TapKernels::pack_row).
template <typename T>
void pack_row(PlaneSteps<const T> row, int64_t depth, int64_t width, Accumulator<T>* to) {
  using A = Accumulator<T>;
  const int64_t step = row_step<T>(width);
  if (row.channel != 1) {
    for (int64_t k = 0; k < depth; ++k) {
      const T* from = row.data + k * row.channel;
      if constexpr (std::is_same_v<T, A>) {
        std::copy_n(from, width, to + k * step);
      } else {
        for_each_piece<T>(width, [&](int64_t x, auto piece) {
          Lanes<T>::load(from + x, piece).store_accumulators(to + k * step + x, piece);
        });
      }
    }
    return;
  }
  constexpr int64_t tile = Vectorized<A>::size();
  int64_t k = 0;
  for (; k + tile <= depth; k += tile) {
    for (int64_t x = 0; x < width; x += tile) {
      // Beyond the width there is room up to `step`, which is a whole number of tiles.
      A pixels[tile * tile] = {};
      for (int64_t i = 0; i < std::min(tile, width - x); ++i) {
        const T* from = row.data + (x + i) * row.column + k;
        for (int64_t c = 0; c < tile; ++c) pixels[i * tile + c] = static_cast<A>(from[c]);
      }
      Vectorized<A> channels[tile];
      simd::transpose(pixels, tile, channels);
      for (int64_t c = 0; c < tile; ++c) channels[c].store(to + (k + c) * step + x);
    }
  }
  for (; k < depth; ++k) {
    for (int64_t x = 0; x < width; ++x) to[k * step + x] = static_cast<A>(row.data[x * row.column + k]);
  }
}

// sums[x] = or += weight * row[x] for the x and channels of one row.
template <typename A>
void accumulate_row(const TapShape& shape, const A* row, A weight, bool add, A* sums) {
  const auto factor = Lanes<A>::fill(weight);
  for (int64_t x = 0; x < shape.width; ++x) {
    for_each_piece<A>(shape.channels, [&](int64_t c, auto piece) {
      const auto value = Lanes<A>::load(row + x * kStep + c, piece);
      A* sum = sums + x * kStep + c;
      (add ? fmadd(value, factor, Lanes<A>::load(sum, piece)) : value * factor).store(sum, piece);
    });
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops
