// A branch of twice its size in a 3x3 convolution's output, and the adjoint; compiled once for each instruction set
// (see capability.h). Sums are taken in float, in double for double. The formula stands in doubled_branch.h.
//
// The branch's five-by-five products are matrix products of few rows (the columns k of some rows k) with a panel of the
// weight, and stay in the cache: what they add to four rows of the output is summed up at once.
#include "doubled_branch.h"

#include <algorithm>

#include "panel_product.h"
#include "pyramid_conv2d_rows.h"
#include "vector.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::kPanelDepth;
using simd::multiply_panel;

// The weights along an axis that one of its inputs is multiplied with: [first, last).
constexpr int64_t kFirstWeightOf[kDoubledInputs] = {0, 1, 3}, kLastWeightOf[kDoubledInputs] = {1, 3, 5};

// S, w0 + w1, w0, w2, w1 + w2 of three taps, `step` apart.
template <typename V>
inline void weights_of(const V* taps, int64_t step, V* to, int64_t to_step) {
  const V before = taps[0] + taps[step];
  to[0] = before + taps[2 * step];
  to[to_step] = before;
  to[2 * to_step] = taps[0];
  to[3 * to_step] = taps[2 * step];
  to[4 * to_step] = taps[step] + taps[2 * step];
}

// The adjoint: the taps' gradients from those of such weights.
template <typename V>
inline void taps_of(const V* weights, int64_t step, V* to, int64_t to_step) {
  const V before = weights[0] + weights[step], after = weights[0] + weights[4 * step];
  to[0] = before + weights[2 * step];
  to[to_step] = before + weights[4 * step];
  to[2 * to_step] = after + weights[3 * step];
}

template <typename T>
void pack(TapWeight<T> weight, int64_t first, Accumulator<T>* panel) {
  using A = Accumulator<T>;
  using V = Vectorized<A>;
  constexpr int64_t size = kTapPanel<T>, kernel = kTapKernel;
  const int64_t channels = std::min(size, weight.channels - first);
  A lanes[kernel * kernel][size] = {};
  for (int64_t k = 0; k < weight.depth; ++k) {
    for (int64_t c = 0; c < channels; ++c) {
      const T* at = weight.data + (first + c) * weight.channel_step + k * weight.depth_step;
      for (int64_t ky = 0; ky < kernel; ++ky) {
        for (int64_t kx = 0; kx < kernel; ++kx) {
          lanes[ky * kernel + kx][c] = static_cast<A>(at[ky * weight.row_step + kx * weight.column_step]);
        }
      }
    }
    for (int64_t c = 0; c < size; c += V::size()) {
      V taps[kernel * kernel], rows[kDoubledWeights * kernel], all[kDoubledProducts];
      for (int64_t tap = 0; tap < kernel * kernel; ++tap) taps[tap] = V::loadu(lanes[tap] + c);
      for (int64_t kx = 0; kx < kernel; ++kx) weights_of(taps + kx, kernel, rows + kx, kernel);
      for (int64_t i = 0; i < kDoubledWeights; ++i) weights_of(rows + i * kernel, 1, all + i * kDoubledWeights, 1);
      for (int64_t i = 0; i < kDoubledProducts; ++i) all[i].store(panel + (i * weight.depth + k) * size + c);
    }
  }
}

// One channel's row of a branch, or zeros.
template <typename A>
class Row {
 public:
  Row(const A* data, int64_t width) : data_(data), width_(width) {}

  Vectorized<A> at(int64_t x) const {
    const int64_t rest = data_ ? width_ - x : 0;
    if (rest >= Vectorized<A>::size()) return Vectorized<A>::loadu(data_ + x);
    return rest > 0 ? Vectorized<A>::loadu(data_ + x, rest) : Vectorized<A>(A(0));
  }

 private:
  const A* data_;
  int64_t width_;
};

// What a channel is multiplied with for one k along the rows: of each pair of columns the first, and the differences to
// it of the column before and of the one behind, into planes `plane` apart. `odd` is memory for a row.
template <typename A>
void split_columns(const DoubledShape& shape, Row<A> row, const Row<A>* subtracted, A* odd, A* to, int64_t plane) {
  using V = Vectorized<A>;
  odd[0] = A(0);
  for (int64_t j = 0; j < shape.columns(); j += V::size()) {
    V left = row.at(2 * j), right = row.at(2 * j + V::size());
    if (subtracted) {
      left = left - subtracted->at(2 * j);
      right = right - subtracted->at(2 * j + V::size());
    }
    const auto [evens, odds] = at::vec::deinterleave2(left, right);
    odds.store(odd + j + 1);
    const int64_t count = std::min<int64_t>(V::size(), shape.columns() - j);
    const auto store = [&](const V& value, A* place) {
      count == V::size() ? value.store(place) : value.store(place, count);
    };
    store(evens, to + j);
    store(V::loadu(odd + j) - evens, to + plane + j);
    store(odds - evens, to + 2 * plane + j);
  }
}

// The planes [kDoubledPlanes, depth, step] that rows k in [first, last) are multiplied as: column j of row k at
// (k - first) * columns + j.
template <typename T>
void split_branch(const DoubledShape& shape, PlaneSteps<const T> branch, int64_t first, int64_t last, int64_t step,
                  Accumulator<T>* packed, Accumulator<T>* odd, Accumulator<T>* planes) {
  using A = Accumulator<T>;
  const int64_t packed_step = row_step<T>(shape.width), plane = shape.depth * step;
  const bool in_place = std::is_same_v<T, A> && branch.column == 1;
  if (!in_place) {
    for (int64_t y = std::max<int64_t>(0, 2 * first - 1); y < std::min(shape.height, 2 * last); ++y) {
      pack_row<T>({branch.data + y * branch.row, branch.channel, branch.row, branch.column}, shape.depth, shape.width,
                  packed + (y - 2 * first + 1) * shape.depth * packed_step);
    }
  }
  for (int64_t k = first; k < last; ++k) {
    for (int64_t c = 0; c < shape.depth; ++c) {
      const auto row = [&](int64_t y) {
        if (y < 0 || y >= shape.height) return Row<A>(nullptr, 0);
        if constexpr (std::is_same_v<T, A>) {
          if (in_place) return Row<A>(branch.data + y * branch.row + c * branch.channel, shape.width);
        }
        return Row<A>(packed + ((y - 2 * first + 1) * shape.depth + c) * packed_step, shape.width);
      };
      const Row<A> middle = row(2 * k);
      A* to = planes + c * step + (k - first) * shape.columns();
      split_columns<A>(shape, middle, nullptr, odd, to, plane);
      split_columns(shape, row(2 * k - 1), &middle, odd, to + kDoubledInputs * plane, plane);
      split_columns(shape, row(2 * k + 1), &middle, odd, to + 2 * kDoubledInputs * plane, plane);
    }
  }
}

// body(i, j, plane) for the products, those of one plane one after the other: of weight i along the rows and weight j
// along the columns.
template <typename Body>
inline void for_products(const Body& body) {
  for (int64_t plane = 0; plane < kDoubledPlanes; ++plane) {
    const int64_t row = plane / kDoubledInputs, column = plane % kDoubledInputs;
    for (int64_t i = kFirstWeightOf[row]; i < kLastWeightOf[row]; ++i) {
      for (int64_t j = kFirstWeightOf[column]; j < kLastWeightOf[column]; ++j) body(i, j, plane);
    }
  }
}

// wide[4 k + o] = of the products along the columns [kDoubledWeights, apart] of one row of weights, what each output o
// of column k sums.
template <typename A>
void widen(int64_t columns, const A* products, int64_t apart, A* wide) {
  using V = Vectorized<A>;
  constexpr int64_t panel = kPanel<A>;
  for (int64_t k = 0; k < columns; ++k) {
    for (int64_t c = 0; c < panel; c += V::size()) {
      const A* from = products + k * panel + c;
      const V sum = V::loadu(from);
      for (int64_t o = 0; o < kDoubledOutputs; ++o) {
        (sum + V::loadu(from + (1 + o) * apart)).store(wide + (kDoubledOutputs * k + o) * panel + c);
      }
    }
  }
}

template <typename T>
void add(DoubledShape shape, PlaneSteps<const T> branch, const Accumulator<T>* panels, int64_t first, int64_t last,
         PlaneSteps<const T> y, const T* bias, PlaneSteps<T> out, Accumulator<T>* scratch) {
  using A = Accumulator<T>;
  constexpr int64_t panel = kTapPanel<T>;
  const int64_t columns = shape.columns(), positions = (last - first) * columns, step = row_step<T>(positions);
  A* planes = scratch + (2 * doubled_rows(shape) + 1) * shape.depth * row_step<T>(shape.width);
  A* odd = planes + kDoubledPlanes * shape.depth * step;
  A* products = odd + columns + 2 * panel;
  A* wide = products + kDoubledProducts * positions * panel;
  const int64_t wide_step = (kDoubledOutputs * columns + kTapTile) * panel, apart = positions * panel;
  A* sums = wide + kDoubledWeights * wide_step;
  split_branch<T>(shape, branch, first, last, step, scratch, odd, planes);
  for (int64_t channel = 0; channel < shape.channels; channel += panel) {
    const A* weight = panels + channel * kDoubledProducts * shape.depth;
    for_products([&](int64_t i, int64_t j, int64_t plane) {
      const int64_t product = i * kDoubledWeights + j;
      for (int64_t k = 0; k < shape.depth; k += kPanelDepth) {
        multiply_panel<A>({planes + (plane * shape.depth + k) * step, 1, step}, positions,
                          weight + (product * shape.depth + k) * panel, std::min(kPanelDepth, shape.depth - k),
                          products + product * apart, panel, k > 0);
      }
    });
    const TapShape block{std::min(panel, shape.channels - channel), 2 * shape.height, 2 * shape.width, kTapKernel};
    for (int64_t k = first; k < last; ++k) {
      const A* of_row = products + (k - first) * columns * panel;
      for (int64_t i = 0; i < kDoubledWeights; ++i) {
        widen(columns, of_row + i * kDoubledWeights * apart, apart, wide + i * wide_step);
      }
      for (int64_t o = 0; o < kDoubledOutputs; ++o) {
        const int64_t row = 4 * k - 1 + o;
        if (row < 0 || row >= block.height) continue;
        // The first output column of all is none of the map's.
        const Weighted<A> terms[] = {{wide + panel, A(1)}, {wide + (1 + o) * wide_step + panel, A(1)}};
        const T* before = y.data ? y.data + channel * y.channel + row * y.row : nullptr;
        add_rows<T>(block, terms, 2, panel, {before, y.channel, y.row, y.column}, bias ? bias + channel : nullptr,
                    {out.data + channel * out.channel + row * out.row, out.channel, out.row, out.column}, sums);
      }
    }
  }
}

// The planes that the gradient of the weight is a product with, [panels, kDoubledPlanes, positions, kTapPanel].
template <typename T>
void split_pixels(const DoubledShape& shape, PlaneSteps<const T> branch, int64_t first, int64_t last,
                  Accumulator<T>* lines, Accumulator<T>* scratch, Accumulator<T>* planes) {
  using A = Accumulator<T>;
  using V = Vectorized<A>;
  constexpr int64_t panel = kTapPanel<T>;
  const int64_t columns = shape.columns(), pixels = 2 * columns + 1, positions = (last - first) * columns;
  const int64_t line_step = (pixels + kTapTile) * panel;
  for (int64_t channel = 0; channel < shape.depth; channel += panel) {
    const TapShape block{std::min(panel, shape.depth - channel), 1, shape.width, 1};
    // What load() leaves as it is is to be 0: the ends of lines, and lanes that the last channels don't fill.
    if (channel == 0 || block.channels < panel) std::fill_n(lines, kDoubledInputs * line_step, A(0));
    // Column x at x + 1, with zeros before the first and behind the last.
    const auto load = [&](int64_t y, A* line) {
      if (y < 0 || y >= shape.height) {
        std::fill_n(line, pixels * panel, A(0));
        return;
      }
      const T* row = branch.data + channel * branch.channel + y * branch.row;
      load_row<T>(block, {row, branch.channel, branch.row, branch.column}, panel, line + panel, scratch);
    };
    for (int64_t k = first; k < last; ++k) {
      load(2 * k, lines);
      load(2 * k - 1, lines + line_step);
      load(2 * k + 1, lines + 2 * line_step);
      A* to = planes + channel * kDoubledPlanes * positions + (k - first) * columns * panel;
      for (int64_t j = 0; j < columns; ++j) {
        for (int64_t c = 0; c < panel; c += V::size()) {
          const A* at = lines + 2 * j * panel + c;
          const auto place = [&](int64_t plane) { return to + (plane * positions + j) * panel + c; };
          const V middle[] = {V::loadu(at), V::loadu(at + panel), V::loadu(at + 2 * panel)};
          for (int64_t row = 0; row < kDoubledInputs; ++row) {
            V three[kDoubledInputs];
            for (int64_t x = 0; x < kDoubledInputs; ++x) {
              const V value = V::loadu(at + row * line_step + x * panel);
              three[x] = row == 0 ? value : value - middle[x];
            }
            three[1].store(place(row * kDoubledInputs));
            (three[0] - three[1]).store(place(row * kDoubledInputs + 1));
            (three[2] - three[1]).store(place(row * kDoubledInputs + 2));
          }
        }
      }
    }
  }
}

// The gradients of the sums that four rows of the output are, [kDoubledWeights, 4 * columns, step], of a block of
// channels, and those of the sums along the columns, [kDoubledWeights, columns, step].
template <typename T>
void narrow(const DoubledShape& shape, PlaneSteps<const T> grad, int64_t channels, int64_t k, int64_t step,
            Accumulator<T>* scratch, Accumulator<T>* wide, int64_t wide_step, Accumulator<T>* sums) {
  using A = Accumulator<T>;
  const int64_t columns = shape.columns(), width = 2 * shape.width, pixels = kDoubledOutputs * columns;
  for (int64_t o = 0; o < kDoubledOutputs; ++o) {
    const int64_t y = 4 * k - 1 + o;
    A* row = wide + (1 + o) * wide_step;
    if (y < 0 || y >= 2 * shape.height) {
      std::fill_n(row, pixels * step, A(0));
      continue;
    }
    std::fill_n(row, step, A(0));
    load_row<T>({channels, 1, width, 1}, {grad.data + y * grad.row, grad.channel, grad.row, grad.column}, step,
                row + step, scratch);
    std::fill_n(row + (width + 1) * step, (pixels - width - 1) * step, A(0));
  }
  const auto sum = [&](const A* from, int64_t apart, A* to) {
    for_each_piece<A>(channels, [&](int64_t c, auto piece) {
      const auto term = [&](int64_t o) { return Lanes<A>::load(from + o * apart + c, piece); };
      ((term(0) + term(1)) + (term(2) + term(3))).store(to + c, piece);
    });
  };
  for (int64_t x = 0; x < pixels; ++x) sum(wide + wide_step + x * step, wide_step, wide + x * step);
  for (int64_t i = 0; i < kDoubledWeights; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      sum(wide + i * wide_step + kDoubledOutputs * j * step, step, sums + (i * columns + j) * step);
    }
  }
}

// The branch's gradient at rows 2k - 1, 2k and 2k + 1 of a panel, from those of the planes.
template <typename A>
void join_rows(const DoubledShape& shape, const A* planes, int64_t apart, int64_t k, int64_t panel_index,
               const DoubledSums<A>& sums) {
  using V = Vectorized<A>;
  constexpr int64_t panel = kPanel<A>;
  const int64_t row = shape.width * panel;
  A* before = sums.grad_before + (panel_index * shape.rows() + k) * row;
  A* middle = sums.grad_branch + (panel_index * shape.height + 2 * k) * row;
  for (int64_t x = 0; x < shape.width; ++x) {
    for (int64_t c = 0; c < panel; c += V::size()) {
      V rows[kDoubledInputs];
      for (int64_t i = 0; i < kDoubledInputs; ++i) {
        const A* at = planes + i * kDoubledInputs * apart + x / 2 * panel + c;
        const V behind = V::loadu(at + 2 * apart);
        rows[i] = x % 2 ? behind + V::loadu(at + apart + panel) : V::loadu(at) - V::loadu(at + apart) - behind;
      }
      rows[1].store(before + x * panel + c);
      if (2 * k < shape.height) (rows[0] - rows[1] - rows[2]).store(middle + x * panel + c);
      if (2 * k + 1 < shape.height) rows[2].store(middle + row + x * panel + c);
    }
  }
}

template <typename T>
void gradients(DoubledShape shape, PlaneSteps<const T> branch, const Accumulator<T>* panels, int64_t first,
               int64_t last, PlaneSteps<const T> grad, DoubledSums<Accumulator<T>> to, Accumulator<T>* scratch) {
  using A = Accumulator<T>;
  constexpr int64_t panel = kTapPanel<T>;
  const int64_t rows = last - first, columns = shape.columns(), positions = rows * columns;
  const int64_t count = (shape.depth + panel - 1) / panel, apart = positions * panel;
  const int64_t step = doubled_step<T>(shape.channels), wide_step = (kDoubledOutputs * columns + kTapTile) * step;
  A* planes = scratch;
  A* grad_planes = planes + count * kDoubledPlanes * apart;
  A* wide = grad_planes + count * kDoubledPlanes * apart;
  A* sums = wide + rows * kDoubledWeights * wide_step;
  A* lines = sums + rows * kDoubledWeights * columns * step;
  A* transposed = lines + kDoubledInputs * (2 * columns + 1 + kTapTile) * panel;
  split_pixels<T>(shape, branch, first, last, lines, transposed, planes);
  for (int64_t channel = 0; channel < shape.channels; channel += kTapBlock) {
    const int64_t channels = std::min(kTapBlock, shape.channels - channel);
    for (int64_t k = 0; k < rows; ++k) {
      narrow<T>(shape, {grad.data + channel * grad.channel, grad.channel, grad.row, grad.column}, channels, first + k,
                step, transposed, wide + k * kDoubledWeights * wide_step, wide_step,
                sums + k * kDoubledWeights * columns * step);
    }
    for (int64_t p = 0; p < count; ++p) {
      for_products([&](int64_t i, int64_t j, int64_t plane) {
        const int64_t weight = (p * kDoubledProducts + i * kDoubledWeights + j) * shape.channels + channel;
        const int64_t of_plane = (p * kDoubledPlanes + plane) * apart;
        const bool begun =
            channel > 0 || i > kFirstWeightOf[plane / kDoubledInputs] || j > kFirstWeightOf[plane % kDoubledInputs];
        for (int64_t k = 0; k < rows; ++k) {
          const A* products = j == 0 ? sums + (k * kDoubledWeights + i) * columns * step
                                     : wide + (k * kDoubledWeights + i) * wide_step + (j - 1) * step;
          const int64_t product_step = j == 0 ? step : kDoubledOutputs * step, at = of_plane + k * columns * panel;
          multiply_panel<A>({products, product_step, 1}, columns, panels + weight * panel, channels, grad_planes + at,
                            panel, begun);
          for (int64_t x = 0; x < columns; x += kPanelDepth) {
            multiply_panel<A>({products + x * product_step, 1, product_step}, channels, planes + at + x * panel,
                              std::min(kPanelDepth, columns - x), to.grad_weight + weight * panel, panel, true);
          }
        }
      });
    }
  }
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t k = 0; k < rows; ++k) {
      join_rows(shape, grad_planes + p * kDoubledPlanes * apart + k * columns * panel, apart, first + k, p, to);
    }
  }
}

template <typename T>
void store_weight(const Accumulator<T>* sums, int64_t count, int64_t apart, int64_t out_channels, int64_t depth,
                  T* out) {
  using A = Accumulator<T>;
  using V = Vectorized<A>;
  constexpr int64_t panel = kTapPanel<T>, kernel = kTapKernel, taps = kernel * kernel;
  for (int64_t first = 0; first < depth; first += panel) {
    const A* of_panel = sums + first * kDoubledProducts * out_channels;
    A lanes[taps][panel];
    for (int64_t c = 0; c < panel; c += V::size()) {
      V all[kDoubledProducts], rows[kernel * kDoubledWeights], gradient[taps];
      for (int64_t product = 0; product < kDoubledProducts; ++product) {
        const A* from = of_panel + product * out_channels * panel + c;
        all[product] = V::loadu(from);
        for (int64_t i = 1; i < count; ++i) all[product] = all[product] + V::loadu(from + i * apart);
      }
      for (int64_t j = 0; j < kDoubledWeights; ++j) taps_of(all + j, kDoubledWeights, rows + j, kDoubledWeights);
      for (int64_t ky = 0; ky < kernel; ++ky) taps_of(rows + ky * kDoubledWeights, 1, gradient + ky * kernel, 1);
      for (int64_t tap = 0; tap < taps; ++tap) gradient[tap].store(lanes[tap] + c);
    }
    for (int64_t c = 0; c < std::min(panel, depth - first); ++c) {
      for (int64_t tap = 0; tap < taps; ++tap) out[(first + c) * taps + tap] = static_cast<T>(lanes[tap][c]);
    }
  }
}

template <typename T>
constexpr DoubledKernels<T> kernels() {
  return {pack<T>, add<T>, gradients<T>, store_weight<T>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const DoubledBranchKernels SOD_OPS_THIS_TABLE(doubled_branch_kernels) = {
    kernels<float>(), kernels<double>(), kernels<c10::BFloat16>(), kernels<c10::Half>()};

}  // namespace sod_ops
