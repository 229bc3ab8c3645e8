// Maps scaled by gates; compiled once for each instruction set (see capability.h). Sums and the sigmoid are taken in
// float, in double for double. The formulas stand in sod_ops/reference/gate.py.
#include "gate.h"

#include "matrix_sums.h"
#include "vector.h"
#include "write_run.h"
// After vector.h, whose functions its template calls.
#include "../math/gate.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::Accumulator;
using simd::for_each_piece;
using simd::Lanes;

template <typename Acc>
void sigmoid(const Acc* logits, int64_t n, Acc* gates, Acc* slopes) {
  for_each_piece<Acc>(n, [&](int64_t i, auto count) {
    const auto s = math::sigmoid_and_slope(Lanes<Acc>::load(logits + i, count).v[0]);
    Lanes<Acc>{{s.value}}.store(gates + i, count);
    if (slopes != nullptr) Lanes<Acc>{{s.slope}}.store(slopes + i, count);
  });
}

// The gates of a register of elements, and where the form is that of logits, their slopes.
template <typename T>
struct Gates {
  Lanes<T> value, slope;
};

template <typename T, GateForm kForm>
inline Gates<T> gates_of(const Lanes<T>& row, const Accumulator<T>* column, int64_t count) {
  using L = Lanes<T>;
  if constexpr (kForm == GateForm::row) {
    return {row, {}};
  } else if constexpr (kForm == GateForm::column) {
    return {L::load_accumulators(column, count), {}};
  } else if constexpr (kForm == GateForm::sum) {
    return {row + L::load_accumulators(column, count), {}};
  } else {
    const L z = row + L::load_accumulators(column, count);
    Gates<T> gates;
    for (int i = 0; i < L::kVectors; ++i) {
      const auto s = math::sigmoid_and_slope(z.v[i]);
      gates.value.v[i] = s.value;
      gates.slope.v[i] = s.slope;
    }
    return gates;
  }
}

template <typename T, GateForm kForm, bool kStream>
void apply_form(int64_t rows, int64_t columns, Matrix<const T> x, const Accumulator<T>* row,
                const Accumulator<T>* column, Matrix<T> y) {
  using L = Lanes<T>;
  for (int64_t r = 0; r < rows; ++r) {
    const L of_row = L::fill(kForm == GateForm::column ? 0 : row[r]);
    const T* from = x.data + r * x.step;
    simd::write_run<T, kStream>(y.data + r * y.step, columns, [&](int64_t c, int64_t count) {
      return L::load(from + c, count) * gates_of<T, kForm>(of_row, column + c, count).value;
    });
  }
  if constexpr (kStream) simd::stream_fence();
}

template <typename T, GateForm kForm, bool kStream>
void backward_form(int64_t rows, int64_t columns, Matrix<const T> grad_y, Matrix<const T> x, const Accumulator<T>* row,
                   const Accumulator<T>* column, Matrix<T> grad_x, Accumulator<T>* row_sums,
                   Accumulator<T>* column_sums) {
  using L = Lanes<T>;
  simd::in_stretches(rows, columns, column_sums, [&](int64_t first, int64_t last, Accumulator<T>* partial) {
    for (int64_t r = first; r < last; ++r) {
      const L of_row = L::fill(kForm == GateForm::column ? 0 : row[r]);
      const T *gradients = grad_y.data + r * grad_y.step, *values = x.data + r * x.step;
      simd::RowSum<T> sum;
      simd::write_run<T, kStream>(grad_x.data + r * grad_x.step, columns, [&](int64_t c, int64_t count) {
        const L gradient = L::load(gradients + c, count);
        const auto gates = gates_of<T, kForm>(of_row, column + c, count);
        L product = gradient * L::load(values + c, count);
        if constexpr (kForm == GateForm::logits) product = product * gates.slope;
        if constexpr (kForm != GateForm::column) {
          sum.next(c);
          sum.run = sum.run + product;
        }
        if constexpr (kForm != GateForm::row) simd::add_to<T>(partial + c, product, count);
        return gradient * gates.value;
      });
      row_sums[r] = sum.sum();
    }
  });
  if constexpr (kStream) simd::stream_fence();
}

// body(form) with the form as a compile-time constant.
template <typename Body>
void for_form(GateForm form, const Body& body) {
  switch (form) {
    case GateForm::row: return body(std::integral_constant<GateForm, GateForm::row>{});
    case GateForm::column: return body(std::integral_constant<GateForm, GateForm::column>{});
    case GateForm::sum: return body(std::integral_constant<GateForm, GateForm::sum>{});
    case GateForm::logits: return body(std::integral_constant<GateForm, GateForm::logits>{});
  }
}

template <typename T>
void apply(GateForm form, int64_t rows, int64_t columns, Matrix<const T> x, const Accumulator<T>* row,
           const Accumulator<T>* column, Matrix<T> y, bool stream) {
  for_form(form, [&](auto constant) {
    constexpr GateForm kForm = decltype(constant)::value;
    const bool streams = stream && simd::worth_streaming(y.data, y.step, columns);
    streams ? apply_form<T, kForm, true>(rows, columns, x, row, column, y)
            : apply_form<T, kForm, false>(rows, columns, x, row, column, y);
  });
}

template <typename T>
void backward(GateForm form, int64_t rows, int64_t columns, Matrix<const T> grad_y, Matrix<const T> x,
              const Accumulator<T>* row, const Accumulator<T>* column, Matrix<T> grad_x, Accumulator<T>* row_sums,
              Accumulator<T>* column_sums, bool stream) {
  for_form(form, [&](auto constant) {
    constexpr GateForm kForm = decltype(constant)::value;
    const bool streams = stream && simd::worth_streaming(grad_x.data, grad_x.step, columns);
    const auto kernel = streams ? backward_form<T, kForm, true> : backward_form<T, kForm, false>;
    kernel(rows, columns, grad_y, x, row, column, grad_x, row_sums, column_sums);
  });
}

template <typename T>
constexpr GateKernels<T> kernels() {
  return {sigmoid<Accumulator<T>>, apply<T>, backward<T>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllGateKernels SOD_OPS_THIS_TABLE(gate_kernels) = {kernels<float>(), kernels<double>(), kernels<c10::BFloat16>(),
                                                         kernels<c10::Half>()};

}  // namespace sod_ops
