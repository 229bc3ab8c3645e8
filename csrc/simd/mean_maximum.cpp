// Sums and maxima over one dimension of a matrix; compiled once for each instruction set (see capability.h). Sums are
// taken in float, in double for double.
#include "mean_maximum.h"

#include <array>
#include <limits>

#include "gather.h"
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

// The largest of n elements; NaN where there is one.
template <typename T>
Accumulator<T> maximum_of_run(const T* x, int64_t n) {
  using A = Accumulator<T>;
  using V = Vectorized<A>;
  const auto larger = [](const V& a, const V& b) { return at::vec::maximum(a, b); };
  V top[2] = {V(kLowest<T>), V(kLowest<T>)};
  for_each_piece<T>(n, [&](int64_t c, auto count) {
    auto value = Lanes<T>::load(x + c, count);
    if (count < Lanes<T>::kSize) {
      for (int i = 0; i < Lanes<T>::kVectors; ++i) {
        const int64_t rest = std::clamp<int64_t>(count - i * V::size(), 0, V::size());
        value.v[i] = V::set(V(kLowest<T>), value.v[i], rest);
      }
    }
    for (int i = 0; i < Lanes<T>::kVectors; ++i) {
      V& one = top[(Lanes<T>::kVectors == 2 ? i : c / Lanes<T>::kSize) % 2];
      one = larger(one, value.v[i]);
    }
  });
  return at::vec::vec_reduce_all<A>(larger, larger(top[0], top[1]));
}

// Where the first of n elements is that equals `value`, or is NaN as it is; there is one.
template <typename T>
int32_t place_of(const T* x, int64_t n, Accumulator<T> value) {
  using A = Accumulator<T>;
  using V = Vectorized<A>;
  using I = Vectorized<Index<T>>;
  const bool nan = value != value;
  const I none(std::numeric_limits<int32_t>::max());
  I first = none, here = I::arange(0, 1);
  for_each_piece<T>(n, [&](int64_t c, auto count) {
    const auto values = Lanes<T>::load(x + c, count);
    for (int i = 0; i < Lanes<T>::kVectors; ++i) {
      const I found = nan ? math::where(math::is_nan(values.v[i]), here, none)
                          : math::where(math::equal(values.v[i], V(value)), here, none);
      first = at::vec::minimum(first, found);
      here = here + I(static_cast<Index<T>>(V::size()));
    }
  });
  Index<T> lanes[I::size()];
  first.store(lanes);
  return static_cast<int32_t>(*std::min_element(lanes, lanes + I::size()));
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

// Adds what stands at `other`, where there is something.
template <typename T>
inline Lanes<T> plus(const Lanes<T>& value, const T* other, int64_t count) {
  return other == nullptr ? value : value + Lanes<T>::load(other, count);
}

template <typename T, bool kStream>
void spread_columns_over_rows(int64_t rows, int64_t columns, const Accumulator<T>* all, const Accumulator<T>* first,
                              const int32_t* indices, const T* other, int64_t other_step, T* to, int64_t step) {
  using L = Lanes<T>;
  using I = Vectorized<Index<T>>;
  Index<T> where[kColumns];
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
      return plus<T>(value, beside == nullptr ? nullptr : beside + c, count);
    });
  }
}

template <typename T>
void spread_over_rows(int64_t rows, int64_t columns, const Accumulator<T>* all, const Accumulator<T>* first,
                      const int32_t* indices, const T* other, int64_t other_step, T* to, int64_t step, bool stream) {
  stream = stream && simd::worth_streaming(to, step, columns);
  const auto spread = stream ? spread_columns_over_rows<T, true> : spread_columns_over_rows<T, false>;
  for (int64_t c = 0; c < columns; c += kColumns) {
    spread(rows, std::min(kColumns, columns - c), all + c, first + c, indices + c,
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
      return plus<T>(value, beside == nullptr ? nullptr : beside + c, count);
    });
  }
}

template <typename T>
void spread_over_columns(int64_t rows, int64_t columns, const Accumulator<T>* all, const Accumulator<T>* first,
                         const int32_t* indices, const T* other, int64_t other_step, T* to, int64_t step,
                         bool stream) {
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
