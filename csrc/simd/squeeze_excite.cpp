// Squeeze-and-excitation on one sample; compiled once for each instruction set (see capability.h). Sums and products
// are taken in float, in double for double. The formulas stand in sod_ops/reference/squeeze_excite.py.
#include "squeeze_excite.h"

#include "reduce.h"
#include "scale_run.h"
#include "vector.h"
// After vector.h, whose functions its templates call.
#include "../math/activation.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::Accumulator;
using simd::for_each_piece;
using simd::Lanes;
using simd::sum_run;

// Interleaved maps are summed 8 pixels at a time as a tree, 32 times over into one row of accumulators, and those rows
// into the total: the rounding error grows with pixels / 256.
constexpr int64_t kTree = 8;
constexpr int64_t kStretch = 32 * kTree;
// Channels that are accumulated side by side; two rows of so many stay in the first-level cache.
constexpr int64_t kChannelBlock = 512;

template <typename T, bool kProduct>
inline Lanes<T> element(const T* a, const T* b, int64_t a_index, int64_t b_index, int64_t count) {
  const auto value = Lanes<T>::load(a + a_index, count);
  if constexpr (kProduct) return value * Lanes<T>::load(b + b_index, count);
  return value;
}

template <typename T, bool kProduct>
void sums_interleaved(MapShape shape, const T* a, int64_t a_step, const T* b, int64_t b_step, Accumulator<T>* sums) {
  using Acc = Accumulator<T>;
  using L = Lanes<T>;
  Acc partial[kChannelBlock];
  for (int64_t first = 0; first < shape.channels; first += kChannelBlock) {
    const int64_t channels = std::min(kChannelBlock, shape.channels - first);
    Acc* total = sums + first;
    std::fill(total, total + channels, Acc(0));
    for (int64_t begin = 0; begin < shape.pixels; begin += kStretch) {
      const int64_t end = std::min(shape.pixels, begin + kStretch);
      std::fill(partial, partial + channels, Acc(0));
      int64_t p = begin;
      for (; p + kTree <= end; p += kTree) {
        for_each_piece<T>(channels, [&](int64_t c, auto count) {
          const auto at = [&](int64_t i) {
            return element<T, kProduct>(a, b, (p + i) * a_step + first + c, (p + i) * b_step + first + c, count);
          };
          const L tree = ((at(0) + at(1)) + (at(2) + at(3))) + ((at(4) + at(5)) + (at(6) + at(7)));
          (L::load_accumulators(partial + c, count) + tree).store_accumulators(partial + c, count);
        });
      }
      for (; p < end; ++p) {
        for_each_piece<T>(channels, [&](int64_t c, auto count) {
          const L value = element<T, kProduct>(a, b, p * a_step + first + c, p * b_step + first + c, count);
          (L::load_accumulators(partial + c, count) + value).store_accumulators(partial + c, count);
        });
      }
      for_each_piece<Acc>(channels, [&](int64_t c, auto count) {
        (Lanes<Acc>::load(total + c, count) + Lanes<Acc>::load(partial + c, count)).store(total + c, count);
      });
    }
  }
}

template <typename T, bool kProduct>
void sums_of(MapShape shape, const T* a, int64_t a_step, const T* b, int64_t b_step, Accumulator<T>* sums) {
  if (!shape.planar) return sums_interleaved<T, kProduct>(shape, a, a_step, b, b_step, sums);
  for (int64_t c = 0; c < shape.channels; ++c) {
    sums[c] = sum_run<T, kProduct>(a + c * a_step, kProduct ? b + c * b_step : nullptr, shape.pixels);
  }
}

template <typename T>
void sums(MapShape shape, const T* a, int64_t a_step, const T* b, int64_t b_step, Accumulator<T>* sums) {
  b == nullptr ? sums_of<T, false>(shape, a, a_step, b, b_step, sums)
               : sums_of<T, true>(shape, a, a_step, b, b_step, sums);
}

// y[i] = a[i] * f(i) + o(i) for one run of memory. With kStream, all of y but its ends is stored past the caches.
template <typename T, bool kOffset, bool kStream, typename Factor, typename Offset>
inline void scale_run(const T* a, T* y, int64_t n, const Factor& factor, const Offset& offset) {
  using L = Lanes<T>;
  simd::write_run<T, kStream>(y, n, [&](int64_t i, int64_t count) {
    if constexpr (kOffset) return fmadd(L::load(a + i, count), factor(i, count), offset(i, count));
    return L::load(a + i, count) * factor(i, count);
  });
}

template <typename T, bool kOffset, bool kStream>
void scale_of(MapShape shape, const T* a, int64_t a_step, const Accumulator<T>* factor, const Accumulator<T>* offset,
              T* y, int64_t y_step) {
  using L = Lanes<T>;
  if (shape.planar) {
    for (int64_t c = 0; c < shape.channels; ++c) {
      const L f = L::fill(factor[c]), o = L::fill(kOffset ? offset[c] : 0);
      scale_run<T, kOffset, kStream>(
          a + c * a_step, y + c * y_step, shape.pixels, [&](int64_t, int64_t) { return f; },
          [&](int64_t, int64_t) { return o; });
    }
  } else {
    for (int64_t p = 0; p < shape.pixels; ++p) {
      scale_run<T, kOffset, kStream>(
          a + p * a_step, y + p * y_step, shape.channels,
          [&](int64_t c, int64_t count) { return L::load_accumulators(factor + c, count); },
          [&](int64_t c, int64_t count) { return L::load_accumulators(offset + c, count); });
    }
  }
  if constexpr (kStream) simd::stream_fence();
}

template <typename T>
void scale(MapShape shape, const T* a, int64_t a_step, const Accumulator<T>* factor, const Accumulator<T>* offset, T* y,
           int64_t y_step, bool stream) {
  stream = stream && simd::worth_streaming(shape.planar ? shape.pixels : shape.channels, y, y_step);
  if (offset == nullptr) {
    stream ? scale_of<T, false, true>(shape, a, a_step, factor, offset, y, y_step)
           : scale_of<T, false, false>(shape, a, a_step, factor, offset, y, y_step);
  } else {
    stream ? scale_of<T, true, true>(shape, a, a_step, factor, offset, y, y_step)
           : scale_of<T, true, false>(shape, a, a_step, factor, offset, y, y_step);
  }
}

template <typename T>
void widen(const T* from, Accumulator<T>* to, int64_t n) {
  for_each_piece<T>(n,
                    [&](int64_t i, auto count) { Lanes<T>::load(from + i, count).store_accumulators(to + i, count); });
}

template <typename T>
void narrow(const Accumulator<T>* from, T* to, int64_t n) {
  for_each_piece<T>(n,
                    [&](int64_t i, auto count) { Lanes<T>::load_accumulators(from + i, count).store(to + i, count); });
}

// y[i] = sum over j of matrix[i, j] * v[j] + bias[i]
template <typename Acc>
void matrix_times_vector(const Acc* matrix, const Acc* v, const Acc* bias, int64_t rows, int64_t columns, Acc* y) {
  for (int64_t i = 0; i < rows; ++i) {
    y[i] = sum_run<Acc, true>(matrix + i * columns, v, columns) + (bias == nullptr ? Acc(0) : bias[i]);
  }
}

// y[j] = sum over i of v[i] * matrix[i, j], for kRegisters registers of columns at once: a row's part is one run of
// memory.
template <typename Acc, int kRegisters>
inline void vector_times_columns(const Acc* v, const Acc* matrix, int64_t rows, int64_t columns, Acc* y, int64_t last) {
  using L = Lanes<Acc>;
  L total[kRegisters];
  for (auto& lanes : total) lanes = L::fill(0);
  for (int64_t i = 0; i < rows; ++i) {
    const L factor = L::fill(v[i]);
    for (int k = 0; k < kRegisters; ++k) {
      const int64_t count = k + 1 == kRegisters ? last : L::kSize;
      total[k] = fmadd(L::load(matrix + i * columns + k * L::kSize, count), factor, total[k]);
    }
  }
  for (int k = 0; k < kRegisters; ++k) total[k].store(y + k * L::kSize, k + 1 == kRegisters ? last : L::kSize);
}

template <typename Acc>
void vector_times_matrix(const Acc* v, const Acc* matrix, int64_t rows, int64_t columns, Acc* y) {
  constexpr int64_t size = Lanes<Acc>::kSize;
  int64_t j = 0;
  for (; j + 8 * size <= columns; j += 8 * size) {
    vector_times_columns<Acc, 8>(v, matrix + j, rows, columns, y + j, size);
  }
  for (; j + 4 * size <= columns; j += 4 * size) {
    vector_times_columns<Acc, 4>(v, matrix + j, rows, columns, y + j, size);
  }
  for (; j < columns; j += size) {
    vector_times_columns<Acc, 1>(v, matrix + j, rows, columns, y + j, std::min(size, columns - j));
  }
}

// to[i] = f(from[i]) on vectors.
template <typename Acc, typename F>
void map(const Acc* from, Acc* to, int64_t n, const F& f) {
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    Lanes<Acc> lanes = Lanes<Acc>::load(from + i, count);
    lanes.v[0] = f(lanes.v[0]);
    lanes.store(to + i, count);
  });
}

// to[i] *= f(from[i]) on vectors.
template <typename Acc, typename F>
void multiply_by_map(const Acc* from, Acc* to, int64_t n, const F& f) {
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    Lanes<Acc> lanes = Lanes<Acc>::load(from + i, count);
    lanes.v[0] = f(lanes.v[0]);
    (lanes * Lanes<Acc>::load(to + i, count)).store(to + i, count);
  });
}

template <typename Acc>
using V = at::vec::Vectorized<Acc>;

template <typename Acc>
void excitation_forward(const Excitation<Acc>& e, const Acc* means, Acc* z1, Acc* hidden, Acc* z2, Acc* gates) {
  const auto kind = static_cast<math::Activation>(e.activation);
  const auto gate = static_cast<math::Gate>(e.gate);
  if (e.reduces) {
    matrix_times_vector(e.reduce_weight, means, e.reduce_bias, e.reduced, e.channels, z1);
    map(z1, hidden, e.reduced, [=](V<Acc> z) { return math::activation(kind, z); });
  }
  const Acc* input = e.reduces ? hidden : means;
  matrix_times_vector(e.expand_weight, input, e.expand_bias, e.channels, e.reduced, z2);
  map(z2, gates, e.channels, [=](V<Acc> z) { return math::gate(gate, z); });
}

template <typename Acc>
void excitation_backward(const Excitation<Acc>& e, const Acc* z1, const Acc* z2, const Acc* grad_gates, Acc* hidden,
                         Acc* gates, Acc* grad_z2, Acc* grad_z1, Acc* grad_means) {
  const auto kind = static_cast<math::Activation>(e.activation);
  const auto gate = static_cast<math::Gate>(e.gate);
  map(z2, gates, e.channels, [=](V<Acc> z) { return math::gate(gate, z); });
  std::copy(grad_gates, grad_gates + e.channels, grad_z2);
  multiply_by_map(z2, grad_z2, e.channels, [=](V<Acc> z) { return math::gate_derivative(gate, z); });
  if (!e.reduces) {
    return vector_times_matrix(grad_z2, e.expand_weight, e.channels, e.reduced, grad_means);
  }
  map(z1, hidden, e.reduced, [=](V<Acc> z) { return math::activation(kind, z); });
  vector_times_matrix(grad_z2, e.expand_weight, e.channels, e.reduced, grad_z1);
  multiply_by_map(z1, grad_z1, e.reduced, [=](V<Acc> z) { return math::activation_derivative(kind, z); });
  vector_times_matrix(grad_z1, e.reduce_weight, e.reduced, e.channels, grad_means);
}

template <typename Acc>
void outer_sums(const Acc* a, int64_t a_step, const Acc* b, int64_t b_step, int64_t samples, int64_t begin, int64_t end,
                int64_t width, Acc* product, Acc* sum) {
  using L = Lanes<Acc>;
  for (int64_t i = begin; i < end; ++i) {
    for_each_piece<Acc>(width, [&](int64_t j, auto count) {
      L total = L::fill(0);
      for (int64_t n = 0; n < samples; ++n) {
        total = fmadd(L::load(b + n * b_step + j, count), L::fill(a[n * a_step + i]), total);
      }
      total.store(product + i * width + j, count);
    });
    Acc total = 0;
    for (int64_t n = 0; n < samples; ++n) total += a[n * a_step + i];
    sum[i] = total;
  }
}

template <typename T>
constexpr MapKernels<T> map_kernels() {
  return {sums<T>, scale<T>, widen<T>, narrow<T>};
}

template <typename Acc>
constexpr ExcitationKernels<Acc> excitation_kernels() {
  return {excitation_forward<Acc>, excitation_backward<Acc>, outer_sums<Acc>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const SqueezeExciteKernels SOD_OPS_THIS_TABLE(squeeze_excite_kernels) = {
    map_kernels<float>(),     map_kernels<double>(),       map_kernels<c10::BFloat16>(),
    map_kernels<c10::Half>(), excitation_kernels<float>(), excitation_kernels<double>()};

}  // namespace sod_ops
