// Sums and maxima over one dimension of a matrix; compiled once for each instruction set (see capability.h). Sums are
// taken in float, in double for double.
#include "mean_maximum.h"

#include <array>
#include <limits>

#include "gather.h"
#include "matrix_sums.h"
#include "reduce.h"
#include "vector.h"
#include "write_run.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using at::vec::Vectorized;
using simd::Accumulator;
using simd::for_each_piece;
using simd::Lanes;

// An index has as many bits as the number beside it, so that one condition chooses both.
template <typename T>
using Index = simd::GatherIndex<Accumulator<T>>;

template <typename T>
constexpr auto kLowest = -std::numeric_limits<Accumulator<T>>::infinity();

// Rows are summed 8 at a time as a tree, 32 times over into one row of partial sums, and those into the total: the
// rounding error grows with rows / 256.
constexpr int64_t kTree = 8;
constexpr int64_t kStretch = 32 * kTree;
// Columns that are walked side by side: what is known of them stays in the first-level cache.
constexpr int64_t kColumns = 512;
// Columns whose gradients are spread side by side: long runs, so that few of them are begun.
constexpr int64_t kSpreadColumns = 4096;
// Columns of a row that are looked at for their maximum, and if that is a new one, for its place.
constexpr int64_t kChunk = 2048;

// The largest numbers so far in the lanes of T, and where they stood.
template <typename T>
struct Largest {
  using A = Accumulator<T>;
  static constexpr int64_t kWidth = Vectorized<A>::size();

  Lanes<T> value;
  Vectorized<Index<T>> index[Lanes<T>::kVectors];

  void take(const Lanes<T>& other, Index<T> at) {
    for (int i = 0; i < Lanes<T>::kVectors; ++i) {
      const auto keep = math::at_most(other.v[i], value.v[i]) | math::is_nan(value.v[i]);
      value.v[i] = math::where(keep, value.v[i], other.v[i]);
      index[i] = math::where(keep, index[i], Vectorized<Index<T>>(at));
    }
  }

  static Largest load(const A* values, const Index<T>* indices) {
    Largest largest{Lanes<T>::load_accumulators(values), {}};
    for (int i = 0; i < Lanes<T>::kVectors; ++i) {
      largest.index[i] = Vectorized<Index<T>>::loadu(indices + i * kWidth);
    }
    return largest;
  }

  void store(A* values, Index<T>* indices) const {
    value.store_accumulators(values);
    for (int i = 0; i < Lanes<T>::kVectors; ++i) index[i].store(indices + i * kWidth);
  }
};

template <typename T>
void columns_over_rows(const T* x, int64_t step, int64_t rows, int64_t columns, Accumulator<T>* sums,
                       Accumulator<T>* maxima, int32_t* indices) {
  using A = Accumulator<T>;
  using L = Lanes<T>;
  // With room for the last register's lanes beyond the columns.
  A total[kColumns + 64], partial[kColumns + 64], largest[kColumns + 64];
  Index<T> where[kColumns + 64];
  const int64_t padded = columns + L::kSize;
  std::fill(total, total + padded, A(0));
  std::fill(largest, largest + padded, kLowest<T>);
  std::fill(where, where + padded, Index<T>(0));
  for (int64_t begin = 0; begin < rows; begin += kStretch) {
    const int64_t end = std::min(rows, begin + kStretch);
    std::fill(partial, partial + padded, A(0));
    const auto add = [&](int64_t r, auto some) {
      constexpr int tree = decltype(some)::value;
      for_each_piece<T>(columns, [&](int64_t c, auto count) {
        L value[tree];
        for (int i = 0; i < tree; ++i) value[i] = L::load(x + (r + i) * step + c, count);
        auto top = Largest<T>::load(largest + c, where + c);
        for (int i = 0; i < tree; ++i) top.take(value[i], static_cast<Index<T>>(r + i));
        top.store(largest + c, where + c);
        for (int width = tree / 2; width > 0; width /= 2) {
          for (int i = 0; i < width; ++i) value[i] = value[2 * i] + value[2 * i + 1];
        }
        (L::load_accumulators(partial + c) + value[0]).store_accumulators(partial + c);
      });
    };
    int64_t r = begin;
    for (; r + kTree <= end; r += kTree) add(r, std::integral_constant<int, kTree>{});
    for (; r < end; ++r) add(r, std::integral_constant<int, 1>{});
    for (int64_t c = 0; c < columns; ++c) total[c] += partial[c];
  }
  std::copy_n(total, columns, sums);
  std::copy_n(largest, columns, maxima);
  for (int64_t c = 0; c < columns; ++c) indices[c] = static_cast<int32_t>(where[c]);
}

template <typename T>
void over_rows(const T* x, int64_t step, int64_t rows, int64_t columns, Accumulator<T>* sums, Accumulator<T>* maxima,
               int32_t* indices) {
  for (int64_t c = 0; c < columns; c += kColumns) {
    columns_over_rows<T>(x + c, step, rows, std::min(kColumns, columns - c), sums + c, maxima + c, indices + c);
  }
}

template <typename T>
inline Lanes<T> larger(Lanes<T> a, const Lanes<T>& b) {
  for (int i = 0; i < Lanes<T>::kVectors; ++i) a.v[i] = at::vec::maximum(a.v[i], b.v[i]);
  return a;
}

// The largest of n elements; NaN where there is one.
template <typename T>
Accumulator<T> maximum_of_run(const T* x, int64_t n) {
  using A = Accumulator<T>;
  using L = Lanes<T>;
  constexpr int64_t size = L::kSize;
  if (n < size) {
    A lanes[size];
    L::load(x, n).store_accumulators(lanes);
    A top = lanes[0];
    for (int64_t i = 1; i < n; ++i) top = lanes[i] <= top || top != top ? top : lanes[i];
    return top;
  }
  // The last register overlaps the one before: an element may be looked at twice.
  L last = L::load(x + n - size), top[4] = {last, last, last, last};
  int64_t i = 0;
  for (; i + 4 * size <= n; i += 4 * size) {
    for (int k = 0; k < 4; ++k) top[k] = larger<T>(top[k], L::load(x + i + k * size));
  }
  for (; i + size <= n; i += size) top[0] = larger<T>(top[0], L::load(x + i));
  top[0] = larger<T>(larger<T>(top[0], top[1]), larger<T>(top[2], top[3]));
  for (int k = 1; k < L::kVectors; ++k) top[0].v[0] = at::vec::maximum(top[0].v[0], top[0].v[k]);
  using V = Vectorized<A>;
  return at::vec::vec_reduce_all<A>([](const V& a, const V& b) { return at::vec::maximum(a, b); }, top[0].v[0]);
}

// Which lanes hold `value`, or a NaN where it is one.
template <typename A>
inline auto lanes_with(const Vectorized<A>& lanes, A value) {
  return value != value ? math::is_nan(lanes) : math::equal(lanes, Vectorized<A>(value));
}

// Whether one of kRegisters registers of elements holds `value`.
template <int kRegisters, typename T>
inline bool holds(const T* x, Accumulator<T> value) {
  using A = Accumulator<T>;
  using V = Vectorized<A>;
  auto any = lanes_with<A>(Lanes<T>::load(x).v[0], value);
  for (int r = 0; r < kRegisters; ++r) {
    const auto lanes = Lanes<T>::load(x + r * Lanes<T>::kSize);
    for (int i = 0; i < Lanes<T>::kVectors; ++i) any = any | lanes_with<A>(lanes.v[i], value);
  }
  const V found = math::where(any, V(A(1)), V(A(0)));
  return at::vec::vec_reduce_all<A>([](const V& a, const V& b) { return a + b; }, found) != A(0);
}

// Where the first of n elements is that equals `value`, or is NaN as it is; there is one.
template <typename T>
int32_t place_of(const T* x, int64_t n, Accumulator<T> value) {
  using A = Accumulator<T>;
  constexpr int kRegisters = 8;
  constexpr int64_t block = kRegisters * Lanes<T>::kSize;
  int64_t begin = 0;
  while (begin + block <= n && !holds<kRegisters>(x + begin, value)) begin += block;
  for (; begin < n; begin += Lanes<T>::kSize) {
    const int64_t count = std::min<int64_t>(Lanes<T>::kSize, n - begin);
    A lanes[Lanes<T>::kSize];
    Lanes<T>::load(x + begin, count).store_accumulators(lanes);
    for (int64_t i = 0; i < count; ++i) {
      if (lanes[i] == value || (value != value && lanes[i] != lanes[i])) return static_cast<int32_t>(begin + i);
    }
  }
  return 0;
}

template <typename T>
void over_columns(const T* x, int64_t step, int64_t rows, int64_t columns, Accumulator<T>* sums, Accumulator<T>* maxima,
                  int32_t* indices) {
  using A = Accumulator<T>;
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = x + r * step;
    A sum = 0, largest = kLowest<T>;
    int32_t index = 0;
    for (int64_t begin = 0; begin < columns; begin += kChunk) {
      const int64_t n = std::min(kChunk, columns - begin);
      sum += simd::sum_run<T, false>(row + begin, nullptr, n);
      const A top = maximum_of_run(row + begin, n);
      if (top <= largest || largest != largest) continue;
      largest = top;
      index = static_cast<int32_t>(begin) + place_of(row + begin, n, top);
    }
    sums[r] = sum;
    maxima[r] = largest;
    indices[r] = index;
  }
}

template <typename T, bool kStream>
void spread_columns_over_rows(int64_t rows, int64_t columns, const Accumulator<T>* all, const Accumulator<T>* first,
                              const int32_t* indices, const T* other, int64_t other_step, T* to, int64_t step) {
  using L = Lanes<T>;
  using I = Vectorized<Index<T>>;
  Index<T> where[kSpreadColumns];
  std::copy_n(indices, columns, where);
  for (int64_t r = 0; r < rows; ++r) {
    const I row(static_cast<Index<T>>(r));
    const T* beside = other == nullptr ? nullptr : other + r * other_step;
    simd::write_run<T, kStream>(to + r * step, columns, [&](int64_t c, int64_t count) {
      const L others = L::load_accumulators(all + c, count), chosen = L::load_accumulators(first + c, count);
      L value;
      for (int i = 0; i < L::kVectors; ++i) {
        const int64_t rest = std::clamp<int64_t>(count - i * I::size(), 0, I::size());
        const I at = rest == I::size() ? I::loadu(where + c + i * I::size())
                     : rest > 0        ? I::loadu(where + c + i * I::size(), rest)
                                       : row;
        value.v[i] = math::where(math::equal(at, row), chosen.v[i], others.v[i]);
      }
      return simd::plus<T>(value, beside == nullptr ? nullptr : beside + c, count);
    });
  }
}

template <typename T>
void spread_over_rows(int64_t rows, int64_t columns, const Accumulator<T>* all, const Accumulator<T>* first,
                      const int32_t* indices, const T* other, int64_t other_step, T* to, int64_t step, bool stream) {
  stream = stream && simd::worth_streaming(to, step, columns);
  const auto spread = stream ? spread_columns_over_rows<T, true> : spread_columns_over_rows<T, false>;
  for (int64_t c = 0; c < columns; c += kSpreadColumns) {
    spread(rows, std::min(kSpreadColumns, columns - c), all + c, first + c, indices + c,
           other == nullptr ? nullptr : other + c, other_step, to + c, step);
  }
  if (stream) simd::stream_fence();
}

template <typename T, bool kStream>
void spread_rows_over_columns(int64_t rows, int64_t columns, const Accumulator<T>* all, const Accumulator<T>* first,
                              const int32_t* indices, const T* other, int64_t other_step, T* to, int64_t step) {
  using L = Lanes<T>;
  using I = Vectorized<Index<T>>;
  const I lanes = I::arange(0, 1);
  for (int64_t r = 0; r < rows; ++r) {
    const L others = L::fill(all[r]), chosen = L::fill(first[r]);
    const T* beside = other == nullptr ? nullptr : other + r * other_step;
    simd::write_run<T, kStream>(to + r * step, columns, [&](int64_t c, int64_t count) {
      L value;
      for (int i = 0; i < L::kVectors; ++i) {
        const I place(static_cast<Index<T>>(indices[r] - c - i * I::size()));
        value.v[i] = math::where(math::equal(lanes, place), chosen.v[i], others.v[i]);
      }
      return simd::plus<T>(value, beside == nullptr ? nullptr : beside + c, count);
    });
  }
}

template <typename T>
void spread_over_columns(int64_t rows, int64_t columns, const Accumulator<T>* all, const Accumulator<T>* first,
                         const int32_t* indices, const T* other, int64_t other_step, T* to, int64_t step, bool stream) {
  stream = stream && simd::worth_streaming(to, step, columns);
  const auto spread = stream ? spread_rows_over_columns<T, true> : spread_rows_over_columns<T, false>;
  spread(rows, columns, all, first, indices, other, other_step, to, step);
  if (stream) simd::stream_fence();
}

template <typename T>
constexpr MeanMaximumKernels<T> kernels() {
  return {over_rows<T>, over_columns<T>, spread_over_rows<T>, spread_over_columns<T>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllMeanMaximumKernels SOD_OPS_THIS_TABLE(mean_maximum_kernels) = {kernels<float>(), kernels<double>(),
                                                                        kernels<c10::BFloat16>(), kernels<c10::Half>()};

}  // namespace sod_ops
