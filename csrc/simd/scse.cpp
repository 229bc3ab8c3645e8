// What scSE's gates are computed from; compiled once for each instruction set (see capability.h). Sums are taken in
// float, in double for double. The formulas stand in sod_ops/reference/scse.py.
#include "scse.h"

#include "matrix_sums.h"
#include "vector.h"
#include "write_run.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::Accumulator;
using simd::for_each_piece;
using simd::Lanes;

template <typename T, bool kByRows>
void squeeze_of(int64_t rows, int64_t columns, Matrix<const T> x, const Accumulator<T>* weight,
                Accumulator<T>* row_sums, Accumulator<T>* column_sums) {
  using L = Lanes<T>;
  simd::in_stretches(rows, columns, column_sums, [&](int64_t first, int64_t last, Accumulator<T>* partial) {
    for (int64_t r = first; r < last; ++r) {
      const T* row = x.data + r * x.step;
      const L of_row = L::fill(kByRows ? weight[r] : 0);
      simd::RowSum<T> sum;
      for_each_piece<T>(columns, [&](int64_t c, auto count) {
        const L value = L::load(row + c, count);
        sum.next(c);
        if constexpr (kByRows) {
          sum.run = sum.run + value;
          fmadd(value, of_row, L::load_accumulators(partial + c, count)).store_accumulators(partial + c, count);
        } else {
          sum.run = fmadd(value, L::load_accumulators(weight + c, count), sum.run);
          simd::add_to<T>(partial + c, value, count);
        }
      });
      row_sums[r] = sum.sum();
    }
  });
}

template <typename T>
void squeeze(bool by_rows, int64_t rows, int64_t columns, Matrix<const T> x, const Accumulator<T>* weight,
             Accumulator<T>* row_sums, Accumulator<T>* column_sums) {
  const auto kernel = by_rows ? squeeze_of<T, true> : squeeze_of<T, false>;
  kernel(rows, columns, x, weight, row_sums, column_sums);
}

template <typename T, bool kStream>
void backward_by_rows(int64_t rows, int64_t columns, Matrix<const T> x, const Accumulator<T>* weight,
                      const Accumulator<T>* channels, const Accumulator<T>* pixels, Matrix<const T> other,
                      Matrix<T> grad_x, Accumulator<T>* sums) {
  using L = Lanes<T>;
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = x.data + r * x.step;
    const T* beside = other.data == nullptr ? nullptr : other.data + r * other.step;
    const L of_weight = L::fill(weight[r]), of_channel = L::fill(channels[r]);
    simd::RowSum<T> sum;
    simd::write_run<T, kStream>(grad_x.data + r * grad_x.step, columns, [&](int64_t c, int64_t count) {
      const L of_pixel = L::load_accumulators(pixels + c, count);
      sum.next(c);
      sum.run = fmadd(L::load(row + c, count), of_pixel, sum.run);
      return simd::plus<T>(fmadd(of_weight, of_pixel, of_channel), beside == nullptr ? nullptr : beside + c, count);
    });
    sums[r] = sum.sum();
  }
  if constexpr (kStream) simd::stream_fence();
}

template <typename T, bool kStream>
void backward_by_columns(int64_t rows, int64_t columns, Matrix<const T> x, const Accumulator<T>* weight,
                         const Accumulator<T>* channels, const Accumulator<T>* pixels, Matrix<const T> other,
                         Matrix<T> grad_x, Accumulator<T>* sums) {
  using L = Lanes<T>;
  simd::in_stretches(rows, columns, sums, [&](int64_t first, int64_t last, Accumulator<T>* partial) {
    for (int64_t r = first; r < last; ++r) {
      const T* row = x.data + r * x.step;
      const T* beside = other.data == nullptr ? nullptr : other.data + r * other.step;
      const L of_pixel = L::fill(pixels[r]);
      simd::write_run<T, kStream>(grad_x.data + r * grad_x.step, columns, [&](int64_t c, int64_t count) {
        simd::add_to<T>(partial + c, L::load(row + c, count) * of_pixel, count);
        const L gradient =
            fmadd(L::load_accumulators(weight + c, count), of_pixel, L::load_accumulators(channels + c, count));
        return simd::plus<T>(gradient, beside == nullptr ? nullptr : beside + c, count);
      });
    }
  });
  if constexpr (kStream) simd::stream_fence();
}

template <typename T>
void backward(bool by_rows, int64_t rows, int64_t columns, Matrix<const T> x, const Accumulator<T>* weight,
              const Accumulator<T>* channels, const Accumulator<T>* pixels, Matrix<const T> other, Matrix<T> grad_x,
              Accumulator<T>* sums, bool stream) {
  stream = stream && simd::worth_streaming(grad_x.data, grad_x.step, columns);
  const auto kernel = by_rows ? (stream ? backward_by_rows<T, true> : backward_by_rows<T, false>)
                              : (stream ? backward_by_columns<T, true> : backward_by_columns<T, false>);
  kernel(rows, columns, x, weight, channels, pixels, other, grad_x, sums);
}

template <typename T>
constexpr ScseKernels<T> kernels() {
  return {squeeze<T>, backward<T>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllScseKernels SOD_OPS_THIS_TABLE(scse_kernels) = {kernels<float>(), kernels<double>(), kernels<c10::BFloat16>(),
                                                         kernels<c10::Half>()};

}  // namespace sod_ops
