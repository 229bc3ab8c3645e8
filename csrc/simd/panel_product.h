// Matrix products from blocks that stay in registers: to = a b (or to += a b), for a few rows of `a` and one panel of
// b.
//
// A panel is kPanel columns of b, [depth, kPanel], side by side in memory. A block of up to kBlockRows rows of `to` is
// summed in registers over the whole depth; what a call reads of `a` is broadcast from where it lies. The caller cuts
// the depth so that a panel stays in the first-level cache while the blocks of rows pass over it.
#pragma once

#include <array>
#include <utility>

#include "panel.h"
#include "vector.h"

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int64_t kBlockRows = 16;  // registers: 16 sums and a panel's vector, of 32
#else
constexpr int64_t kBlockRows = 6;  // registers: 12 sums, two of a panel and one of `a`, of 16
#endif
// The depth from which on a panel and the rows of `a` that pass over it no longer share the first-level cache.
constexpr int64_t kPanelDepth = 256;

// Element (row, k) of a matrix lies at data[row * row_step + k * depth_step].
template <typename A>
struct Rows {
  const A* data;
  int64_t row_step;
  int64_t depth_step;
};

template <typename A, int64_t kRows>
inline void multiply_block(const Rows<A>& a, const A* panel, int64_t depth, A* to, int64_t to_step, bool add) {
  using V = Vectorized<A>;
  constexpr int64_t vectors = kPanel<A> / V::size();
  V sums[kRows][vectors];
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < vectors; ++v) sums[r][v] = add ? V::loadu(to + r * to_step + v * V::size()) : V(0);
  }
  const A* at = a.data;
  for (int64_t k = 0; k < depth; ++k) {
    V column[vectors];
#pragma GCC unroll 4
    for (int64_t v = 0; v < vectors; ++v) column[v] = V::loadu(panel + v * V::size());
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
      const V value(at[r * a.row_step]);
#pragma GCC unroll 4
      for (int64_t v = 0; v < vectors; ++v) sums[r][v] = at::vec::fmadd(value, column[v], sums[r][v]);
    }
    at += a.depth_step;
    panel += kPanel<A>;
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < vectors; ++v) sums[r][v].store(to + r * to_step + v * V::size());
  }
}

template <typename A>
using MultiplyBlock = void (*)(const Rows<A>&, const A*, int64_t, A*, int64_t, bool);

// multiply_block by its number of rows, less one.
template <typename A, int64_t... kRows>
constexpr std::array<MultiplyBlock<A>, sizeof...(kRows)> multiply_blocks(std::integer_sequence<int64_t, kRows...>) {
  return {multiply_block<A, kRows + 1>...};
}

// to[row, 0..kPanel) = or += the product of all `rows` of `a` with one panel.
template <typename A>
inline void multiply_panel(const Rows<A>& a, int64_t rows, const A* panel, int64_t depth, A* to, int64_t to_step,
                           bool add) {
  static constexpr auto blocks = multiply_blocks<A>(std::make_integer_sequence<int64_t, kBlockRows>{});
  // Blocks as equal as can be: a short one leaves the multipliers waiting for each other.
  const int64_t count = (rows + kBlockRows - 1) / kBlockRows;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = rows * i / count, last = rows * (i + 1) / count;
    const Rows<A> part{a.data + first * a.row_step, a.row_step, a.depth_step};
    blocks[last - first - 1](part, panel, depth, to + first * to_step, to_step, add);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd
