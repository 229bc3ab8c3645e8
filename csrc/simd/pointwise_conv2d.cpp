// 1x1 convolutions of few pixels; compiled once for each instruction set (see capability.h). With x the matrix of
// pixels p and channels c, w the weight and g the gradient of the result:
//   out[p, o] = sum over c of x[p, c] w[o, c] + bias[o]
//   dx[p, c]  = sum over o of g[p, o] w[o, c]
//   dw[o, c]  = sum over p of g[p, o] x[p, c]
// Sums are taken in float, in double for double. The weight is much larger than the rest, so that each of its numbers
// is read once: forward a few rows of it times all pixels, of which vectors along c keep the sums; backward a vector of
// c of a few rows, which gives its part of dx, added up in the caches, and all of its dw.
#include "pointwise_conv2d.h"

#include <algorithm>

#include "vector.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::Accumulator;
using simd::for_each_piece;
using simd::Lanes;
using simd::Vectorized;

template <typename A>
constexpr int64_t kLanes = Vectorized<A>::size();

// body(sample, pixel, lane, place) for all pixels of as many channels as a vector's lanes, or fewer, in the order of
// memory; `place` is that of the number among the packed ones.
template <typename A, typename T, typename Body>
inline void for_numbers(PixelMatrix<T> map, int64_t channels, const Body& body) {
  for (int64_t n = 0; n < map.samples; ++n) {
    const int64_t place = n * map.pixels * kLanes<A>;
    if (map.planar) {
      for (int64_t lane = 0; lane < channels; ++lane) {
        for (int64_t p = 0; p < map.pixels; ++p) body(n, p, lane, place + p * kLanes<A> + lane);
      }
    } else {
      for (int64_t p = 0; p < map.pixels; ++p) {
        for (int64_t lane = 0; lane < channels; ++lane) body(n, p, lane, place + p * kLanes<A> + lane);
      }
    }
  }
}

template <typename T>
void pack(PixelMatrix<const T> from, ChannelRange channels, Accumulator<T>* to) {
  using A = Accumulator<T>;
  const int64_t size = from.all_pixels() * kLanes<A>;
  for (int64_t c = 0; c < channels.count; c += kLanes<A>, to += size) {
    const int64_t count = std::min(kLanes<A>, channels.count - c);
    if (count < kLanes<A>) std::fill(to, to + size, A(0));
    for_numbers<A>(from, count, [&](int64_t n, int64_t p, int64_t lane, int64_t place) {
      to[place] = static_cast<A>(from.at(n, p, channels.first + c + lane));
    });
  }
}

template <typename T>
void unpack(const Accumulator<T>* from, PixelMatrix<T> to, ChannelRange channels) {
  using A = Accumulator<T>;
  for (int64_t c = 0; c < channels.count; c += kLanes<A>, from += to.all_pixels() * kLanes<A>) {
    for_numbers<A>(to, std::min(kLanes<A>, channels.count - c), [&](int64_t n, int64_t p, int64_t lane, int64_t place) {
      to.at(n, p, channels.first + c + lane) = static_cast<T>(from[place]);
    });
  }
}

// `rows` rows of a weight, `channels` of each, in the accumulation type: where they lie, if they are of it, otherwise
// in `buffer`.
template <typename T>
Matrix<const Accumulator<T>> widened(Matrix<const T> weight, int64_t rows, int64_t channels, Accumulator<T>* buffer) {
  if constexpr (std::is_same_v<T, Accumulator<T>>) {
    return weight;
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      for_each_piece<T>(channels, [&](int64_t c, auto count) {
        Lanes<T>::load(weight.data + r * weight.step + c, count).store_accumulators(buffer + r * channels + c, count);
      });
    }
    return {buffer, channels};
  }
}

// sums[r][p] = (or, after the first tile, +=) the product of row r of w and of pixel p of x, for kPixels pixels.
template <int kRows, int kPixels, typename A>
void add_products(const A* x, int64_t pixels, Matrix<const A> w, int64_t channels, bool first, A* sums) {
  using V = Vectorized<A>;
  V total[kRows][kPixels];
  for (auto& row : total) std::fill(row, row + kPixels, V(A(0)));
  for_each_piece<A>(channels, [&](int64_t c, auto count) {
    V pixel[kPixels];
    for (int k = 0; k < kPixels; ++k) pixel[k] = V::loadu(x + k * kLanes<A>);
    for (int r = 0; r < kRows; ++r) {
      const V weight = Lanes<A>::load(w.data + r * w.step + c, count).v[0];
      for (int k = 0; k < kPixels; ++k) total[r][k] = at::vec::fmadd(weight, pixel[k], total[r][k]);
    }
    x += pixels * kLanes<A>;
  });
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < kPixels; ++k) {
      const A sum = at::vec::vec_reduce_all<A>([](V a, V b) { return a + b; }, total[r][k]);
      A& to = sums[r * pixels + k];
      to = first ? sum : to + sum;
    }
  }
}

template <int kRows, typename A>
void add_products(const A* x, int64_t pixels, Matrix<const A> w, int64_t channels, bool first, A* sums) {
  int64_t p = 0;
  for (; p + 3 <= pixels && pixels - p != 4; p += 3) {
    add_products<kRows, 3>(x + p * kLanes<A>, pixels, w, channels, first, sums + p);
  }
  for (; p + 2 <= pixels; p += 2) {
    add_products<kRows, 2>(x + p * kLanes<A>, pixels, w, channels, first, sums + p);
  }
  if (p < pixels) add_products<kRows, 1>(x + p * kLanes<A>, pixels, w, channels, first, sums + p);
}

template <typename T>
void forward(PixelMatrix<T> out, ChannelRange rows, const Accumulator<T>* x, Matrix<const T> weight, int64_t channels,
             const T* bias, Accumulator<T>* scratch) {
  using A = Accumulator<T>;
  const int64_t pixels = out.all_pixels();
  A* sums = scratch;
  A* buffer = scratch + kForwardRows * pixels;
  for (int64_t begin = rows.first, count; begin < rows.first + rows.count; begin += count) {
    const int64_t left = rows.first + rows.count - begin;
    count = left >= kForwardRows ? kForwardRows : 1;
    if (channels == 0) std::fill(sums, sums + count * pixels, A(0));
    for (int64_t c = 0; c < channels; c += kForwardTile<A>) {
      const int64_t tile = std::min(kForwardTile<A>, channels - c);
      const auto w = widened<T>({weight.data + begin * weight.step + c, weight.step}, count, tile, buffer);
      const A* from = x + c * pixels;
      count == 1 ? add_products<1>(from, pixels, w, tile, c == 0, sums)
                 : add_products<kForwardRows>(from, pixels, w, tile, c == 0, sums);
    }
    for (int64_t r = 0; r < count; ++r) {
      const A offset = bias == nullptr ? A(0) : static_cast<A>(bias[begin + r]);
      for (int64_t n = 0; n < out.samples; ++n) {
        for (int64_t p = 0; p < out.pixels; ++p) {
          out.at(n, p, begin + r) = static_cast<T>(sums[r * pixels + n * out.pixels + p] + offset);
        }
      }
    }
  }
}

// body(first row, number of rows as a compile-time constant) for every block of rows.
template <typename Body>
void for_row_blocks(int64_t rows, const Body& body) {
  int64_t r = 0;
  for (; r + kBackwardRows <= rows; r += kBackwardRows) body(r, std::integral_constant<int64_t, kBackwardRows>{});
  for (; r + 2 <= rows; r += 2) body(r, std::integral_constant<int64_t, 2>{});
  if (r < rows) body(r, std::integral_constant<int64_t, 1>{});
}

template <typename T>
void pack_rows(PixelMatrix<const T> grad, ChannelRange rows, Accumulator<T>* to, T* sums) {
  using A = Accumulator<T>;
  for_row_blocks(rows.count, [&](int64_t first, auto count) {
    A totals[count] = {};
    for (int64_t n = 0; n < grad.samples; ++n) {
      for (int64_t p = 0; p < grad.pixels; ++p) {
        for (int64_t r = 0; r < count; ++r, ++to) {
          *to = static_cast<A>(grad.at(n, p, rows.first + first + r));
          totals[r] += *to;
        }
      }
    }
    if (sums != nullptr) {
      for (int64_t r = 0; r < count; ++r) sums[rows.first + first + r] = static_cast<T>(totals[r]);
    }
  });
}

// What a block of rows, of which `g` is packed, adds to grad_x and gives of grad_w, for `channels` of all pixels. The
// rows at `ahead` are fetched meanwhile.
template <int64_t kRows, bool kOfX, bool kOfWeight, typename A>
void backward_block(const A* x, A* grad_x, int64_t pixels, const A* g, Matrix<const A> w, const A* ahead,
                    Matrix<A> grad_w, int64_t channels) {
  using V = Vectorized<A>;
  for_each_piece<A>(channels, [&](int64_t c, auto count) {
    V weight[kRows], of_weight[kRows];
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kOfX) weight[r] = Lanes<A>::load(w.data + r * w.step + c, count).v[0];
      if constexpr (kOfX) __builtin_prefetch(ahead + r * w.step + c);
      of_weight[r] = V(A(0));
    }
    for (int64_t p = 0; p < pixels; ++p) {
      V pixel, of_pixel;
      if constexpr (kOfWeight) pixel = V::loadu(x + p * kLanes<A>);
      if constexpr (kOfX) of_pixel = V::loadu(grad_x + p * kLanes<A>);
      for (int r = 0; r < kRows; ++r) {
        const V factor(g[p * kRows + r]);
        if constexpr (kOfX) of_pixel = at::vec::fmadd(factor, weight[r], of_pixel);
        if constexpr (kOfWeight) of_weight[r] = at::vec::fmadd(factor, pixel, of_weight[r]);
      }
      if constexpr (kOfX) of_pixel.store(grad_x + p * kLanes<A>);
    }
    if constexpr (kOfWeight) {
      for (int r = 0; r < kRows; ++r) {
        of_weight[r].store(grad_w.data + r * grad_w.step + c, count);
      }
    }
    x += pixels * kLanes<A>;
    grad_x += pixels * kLanes<A>;
  });
}

// The gradients of a weight's rows as backward_block left them in `from`, `packed` from row to row. Past the caches a
// row is written as one run: lines of many rows at a time would leave the processor before they are full.
template <typename T>
void write_rows(const Accumulator<T>* from, int64_t packed, int64_t rows, int64_t channels, Matrix<T> to, bool stream) {
  for (int64_t r = 0; r < rows; ++r) {
    const Accumulator<T>* row = from + r * packed;
    T* place = to.data + r * to.step;
    for_each_piece<T>(channels, [&](int64_t c, auto count) {
      const auto lanes = Lanes<T>::load_accumulators(row + c, count);
      stream ? lanes.stream(place + c) : lanes.store(place + c, count);
    });
  }
}

template <typename T, bool kOfX, bool kOfWeight>
void backward_of(PixelMatrix<const T> x, PixelMatrix<T> grad_x, ChannelRange channels, int64_t tile,
                 const Accumulator<T>* grad, int64_t rows, Matrix<const T> weight, Matrix<T> grad_weight, bool stream,
                 Accumulator<T>* scratch) {
  using A = Accumulator<T>;
  constexpr bool kInPlace = std::is_same_v<T, A>;
  constexpr int64_t size = Lanes<T>::kSize;
  const int64_t pixels = x.all_pixels(), packed = packed_channels(tile);
  A* packed_x = scratch;
  A* packed_grad = packed_x + pixels * packed;
  A* wide = packed_grad + pixels * packed;
  A* found = wide + kBackwardRows * packed;
  // Whole registers alone can be written past the caches.
  stream = stream && channels.first % size == 0 && channels.count % size == 0 && grad_weight.step % size == 0 &&
           reinterpret_cast<uintptr_t>(grad_weight.data) % simd::kRegister == 0;
  for (int64_t c = channels.first; c < channels.first + channels.count; c += tile) {
    const int64_t width = std::min(tile, channels.first + channels.count - c);
    if constexpr (kOfWeight) pack<T>(x, {c, width}, packed_x);
    if constexpr (kOfX) std::fill(packed_grad, packed_grad + pixels * packed, A(0));
    for_row_blocks(rows, [&](int64_t row, auto count) {
      Matrix<const A> w{nullptr, 0};
      if constexpr (kOfX) w = widened<T>({weight.data + row * weight.step + c, weight.step}, count, width, wide);
      const A* ahead = kInPlace && row + 2 * count <= rows ? w.data + count * w.step : w.data;
      const int64_t first = kOfWeight ? row * grad_weight.step + c : 0;
      const Matrix<T> place{grad_weight.data + first, grad_weight.step};
      Matrix<A> to{found, packed};
      if constexpr (kInPlace) to = stream ? to : place;
      backward_block<count, kOfX, kOfWeight>(packed_x, packed_grad, pixels, grad + row * pixels, w, ahead, to, width);
      if (kOfWeight && to.data == found) write_rows<T>(found, packed, count, width, place, stream);
    });
    if constexpr (kOfX) unpack<T>(packed_grad, grad_x, {c, width});
  }
  if (stream) simd::stream_fence();
}

template <typename T>
void backward(PixelMatrix<const T> x, PixelMatrix<T> grad_x, ChannelRange channels, int64_t tile,
              const Accumulator<T>* grad, int64_t rows, Matrix<const T> weight, Matrix<T> grad_weight, bool stream,
              Accumulator<T>* scratch) {
  const auto run = [&](auto of) { of(x, grad_x, channels, tile, grad, rows, weight, grad_weight, stream, scratch); };
  if (grad_weight.data == nullptr) return run(backward_of<T, true, false>);
  if (grad_x.data == nullptr) return run(backward_of<T, false, true>);
  run(backward_of<T, true, true>);
}

template <typename T>
constexpr PointwiseConv2dKernels<T> kernels() {
  return {pack<T>, forward<T>, pack_rows<T>, backward<T>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const PointwiseConv2dTable SOD_OPS_THIS_TABLE(pointwise_conv2d_kernels) = {
    kernels<float>(), kernels<double>(), kernels<c10::BFloat16>(), kernels<c10::Half>()};

}  // namespace sod_ops
