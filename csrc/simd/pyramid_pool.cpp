// Pyramid pooling on one sample; compiled once for each instruction set (see capability.h). Sums are taken in float, in
// double for double. The formula stands in sod_ops/reference/pyramid_pool.py.
#include "pyramid_pool.h"

#include "prefetch.h"
#include "run_writer.h"
#include "transpose.h"
#include "vector.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::Accumulator;
using simd::for_each_piece;
using simd::Lanes;
using simd::RunWriter;
using simd::Vectorized;

int64_t length(const CellAxis& axis, Span cells) { return axis.edges[cells.last] - axis.edges[cells.first]; }

int64_t area(const CellGrid& grid, const PyramidLevel& level, int64_t row, int64_t column) {
  return length(grid.rows, level.row_cells[row]) * length(grid.columns, level.column_cells[column]);
}

// sums[w] = sum of x[r * width + w] over `rows` rows, for w in [0, n), and 0 up to the end of the last register.
template <typename T>
inline void sum_rows(const T* x, int64_t width, int64_t rows, int64_t n, Accumulator<T>* sums) {
  for_each_piece<T>(n, [&](int64_t w, auto count) {
    const auto row = [&](int64_t r) {
      const T* from = x + r * width + w;
      simd::fetch_ahead(from);
      return Lanes<T>::load(from, count);
    };
    auto even = row(0);
    int64_t r = 1;
    if (rows > 1) {
      auto odd = row(1);
      for (r = 2; r + 2 <= rows; r += 2) {
        even = even + row(r);
        odd = odd + row(r + 1);
      }
      even = even + odd;
    }
    if (r < rows) even = even + row(r);
    even.store_accumulators(sums + w);
  });
}

// Adds columns [begin, end) of kPlanarChannels summed rows, `step` apart, to their cells [columns of cells]
// [kPlanarChannels]. `cell` is that of column `begin`; returns that of `end`.
template <typename A>
inline int64_t add_columns(const CellAxis& columns, const A* rows, int64_t step, int64_t begin, int64_t end,
                           int64_t cell, A* cells) {
  using V = Vectorized<A>;
  constexpr int64_t size = V::size();
  V transposed[kPlanarChannels];
  for (int64_t block = begin; block < end; block += size) {
    const int64_t last = std::min(block + size, end);
    int64_t next = cell;
    for (int64_t lane = 0; lane < kPlanarChannels; lane += size) {
      simd::transpose(rows + lane * step + (block - begin), step, transposed);
      next = cell;
      for (int64_t w = block; w < last;) {
        const int64_t stop = std::min(last, columns.edges[next + 1]);
        V sum = transposed[w - block];
        for (++w; w < stop; ++w) sum = sum + transposed[w - block];
        A* total = cells + next * kPlanarChannels + lane;
        (V::loadu(total) + sum).store(total);
        next += stop == columns.edges[next + 1];
      }
    }
    cell = next;
  }
  return cell;
}

// All planes' rows are summed first, plane by plane, in the order of memory, as many rows of cells at once as fit
// `scratch`.
template <typename T>
void cell_sums_planar(const CellGrid& grid, const T* x, int64_t step, Span rows, Accumulator<T>* scratch,
                      Accumulator<T>* cells) {
  constexpr int64_t kMostColumns = kSummedRows / kPlanarChannels, kRegister = 32;
  const int64_t width = grid.width(), cell_row = grid.columns.cells * kPlanarChannels;
  std::fill(cells + rows.first * cell_row, cells + rows.last * cell_row, Accumulator<T>(0));
  // Channels that are not there are read but not used.
  if (grid.channels < kPlanarChannels) std::fill(scratch, scratch + kSummedRows, Accumulator<T>(0));
  int64_t cell = 0;
  for (int64_t begin = 0; begin < width; begin += kMostColumns) {
    const int64_t end = std::min(width, begin + kMostColumns);
    const int64_t padded = (end - begin + kRegister - 1) / kRegister * kRegister;
    const int64_t together = kMostColumns / padded;
    int64_t next = cell;
    for (int64_t first = rows.first; first < rows.last; first += together) {
      const int64_t last = std::min(rows.last, first + together);
      for (int64_t c = 0; c < grid.channels; ++c) {
        for (int64_t i = first; i < last; ++i) {
          const int64_t top = grid.rows.edges[i];
          sum_rows(x + c * step + top * width + begin, width, grid.rows.edges[i + 1] - top, end - begin,
                   scratch + ((i - first) * kPlanarChannels + c) * padded);
        }
      }
      for (int64_t i = first; i < last; ++i) {
        next = add_columns(grid.columns, scratch + (i - first) * kPlanarChannels * padded, padded, begin, end, cell,
                           cells + i * cell_row);
      }
    }
    cell = next;
  }
}

// total[c] (+)= sum of kPixels pixels.
template <int kPixels, typename T>
inline void add_pixels(const T* x, int64_t step, int64_t channels, bool first, Accumulator<T>* total) {
  for_each_piece<T>(channels, [&](int64_t c, auto count) {
    auto sum = Lanes<T>::load(x + c, count);
    if constexpr (kPixels == 8) {
      const auto at = [&](int64_t i) { return Lanes<T>::load(x + i * step + c, count); };
      sum = ((sum + at(1)) + (at(2) + at(3))) + ((at(4) + at(5)) + (at(6) + at(7)));
    } else {
      for (int i = 1; i < kPixels; ++i) sum = sum + Lanes<T>::load(x + i * step + c, count);
    }
    if (!first) sum = Lanes<T>::load_accumulators(total + c, count) + sum;
    sum.store_accumulators(total + c, count);
  });
}

template <typename T>
inline void add_pixels(int64_t pixels, const T* x, int64_t step, int64_t channels, bool first, Accumulator<T>* total) {
  switch (pixels) {
    case 1: return add_pixels<1>(x, step, channels, first, total);
    case 2: return add_pixels<2>(x, step, channels, first, total);
    case 3: return add_pixels<3>(x, step, channels, first, total);
    case 4: return add_pixels<4>(x, step, channels, first, total);
    case 5: return add_pixels<5>(x, step, channels, first, total);
    case 6: return add_pixels<6>(x, step, channels, first, total);
    case 7: return add_pixels<7>(x, step, channels, first, total);
    default: return add_pixels<8>(x, step, channels, first, total);
  }
}

template <typename T>
void cell_sums_interleaved(const CellGrid& grid, const T* x, int64_t step, Span rows, Accumulator<T>* cells) {
  const int64_t width = grid.width();
  for (int64_t first = 0; first < grid.channels; first += kChannelBlock) {
    const int64_t channels = std::min(kChannelBlock, grid.channels - first);
    for (int64_t i = rows.first; i < rows.last; ++i) {
      for (int64_t row = grid.rows.edges[i]; row < grid.rows.edges[i + 1]; ++row) {
        for (int64_t j = 0; j < grid.columns.cells; ++j) {
          Accumulator<T>* total = cells + (i * grid.columns.cells + j) * grid.channels + first;
          const int64_t begin = grid.columns.edges[j], end = grid.columns.edges[j + 1];
          for (int64_t w = begin; w < end; w += 8) {
            add_pixels(std::min<int64_t>(8, end - w), x + (row * width + w) * step + first, step, channels,
                       row == grid.rows.edges[i] && w == begin, total);
          }
        }
      }
    }
  }
}

template <typename T>
void cell_sums(const CellGrid& grid, const T* x, int64_t step, Span rows, Accumulator<T>* scratch,
               Accumulator<T>* cells) {
  grid.planar ? cell_sums_planar(grid, x, step, rows, scratch, cells)
              : cell_sums_interleaved(grid, x, step, rows, cells);
}

// Sum over i in [span.first, span.last) of p[i * step], for the lanes of T.
template <typename T>
inline Lanes<T> sum_over(Span span, const Accumulator<T>* p, int64_t step, int64_t count) {
  auto sum = Lanes<T>::load_accumulators(p + span.first * step, count);
  for (int64_t i = span.first + 1; i < span.last; ++i) sum = sum + Lanes<T>::load_accumulators(p + i * step, count);
  return sum;
}

template <typename T>
void bin_means(const CellGrid& grid, const PyramidLevel& level, const Accumulator<T>* cells, int64_t cell_step,
               int64_t channels, Accumulator<T>* scratch, T* out) {
  using L = Lanes<T>;
  const int64_t columns = grid.columns.cells, bins = level.bins * level.bins;
  T lanes[kPlanarChannels];
  for (int64_t row = 0; row < level.bins; ++row) {
    for (int64_t j = 0; j < columns; ++j) {
      for_each_piece<T>(channels, [&](int64_t c, auto count) {
        sum_over<T>(level.row_cells[row], cells + j * cell_step + c, columns * cell_step, count)
            .store_accumulators(scratch + j * channels + c, count);
      });
    }
    for (int64_t column = 0; column < level.bins; ++column) {
      const int64_t bin = row * level.bins + column;
      const L divisor = L::fill(static_cast<Accumulator<T>>(area(grid, level, row, column)));
      T* to = grid.planar ? lanes : out + bin * grid.channels;
      for_each_piece<T>(channels, [&](int64_t c, auto count) {
        (sum_over<T>(level.column_cells[column], scratch + c, channels, count) / divisor).store(to + c, count);
      });
      if (grid.planar) {
        for (int64_t c = 0; c < channels; ++c) out[c * bins + bin] = lanes[c];
      }
    }
  }
}

template <typename T>
void shares(const CellGrid& grid, const PyramidLevel& level, const T* grad, Accumulator<T>* shares) {
  using L = Lanes<T>;
  const int64_t bins = level.bins * level.bins, width = grid.planar ? kPlanarChannels : grid.channels;
  T lanes[kPlanarChannels];
  std::fill(lanes, lanes + kPlanarChannels, T(0));
  for (int64_t row = 0; row < level.bins; ++row) {
    for (int64_t column = 0; column < level.bins; ++column) {
      const int64_t bin = row * level.bins + column;
      const L divisor = L::fill(static_cast<Accumulator<T>>(area(grid, level, row, column)));
      if (grid.planar) {
        for (int64_t c = 0; c < grid.channels; ++c) lanes[c] = grad[c * bins + bin];
      }
      const T* from = grid.planar ? lanes : grad + bin * grid.channels;
      for_each_piece<T>(width, [&](int64_t c, auto count) {
        (L::load(from + c, count) / divisor).store_accumulators(shares + bin * width + c, count);
      });
    }
  }
}

// The gradient of every pixel of row `row` of cells: [columns of cells][width].
template <typename A>
void cell_gradients(const CellGrid& grid, const PyramidLevel* levels, int64_t level_count, const A* shares, int64_t row,
                    int64_t width, A* cells) {
  using L = Lanes<A>;
  for (int64_t j = 0; j < grid.columns.cells; ++j) {
    const auto add = [&](int64_t c, auto registers, auto count) {
      L sums[registers];
      for (L& sum : sums) sum = L::fill(0);
      const A* share = shares + c;
      for (int64_t k = 0; k < level_count; ++k) {
        const PyramidLevel& level = levels[k];
        const Span rows = level.row_bins[row], columns = level.column_bins[j];
        for (int64_t i = rows.first; i < rows.last; ++i) {
          const A* bin = share + (i * level.bins + columns.first) * width;
          for (int64_t b = columns.first; b < columns.last; ++b, bin += width) {
            for (int r = 0; r < registers; ++r) sums[r] = sums[r] + L::load(bin + r * L::kSize, count);
          }
        }
        share += level.bins * level.bins * width;
      }
      for (int r = 0; r < registers; ++r) sums[r].store(cells + j * width + c + r * L::kSize, count);
    };
    constexpr std::integral_constant<int64_t, L::kSize> whole{};
    constexpr std::integral_constant<int, kPlanarChannels / L::kSize> together{};
    int64_t c = 0;
    for (; c + kPlanarChannels <= width; c += kPlanarChannels) add(c, together, whole);
    for (; c < width; c += L::kSize) add(c, std::integral_constant<int, 1>{}, std::min(L::kSize, width - c));
  }
}

// to[i] = a[i] + b[i], in the accumulation type.
template <typename T>
inline void add_runs(const T* a, const Accumulator<T>* b, int64_t n, T* to) {
  for_each_piece<T>(n, [&](int64_t i, auto count) {
    (Lanes<T>::load(a + i, count) + Lanes<T>::load_accumulators(b + i, count)).store(to + i, count);
  });
}

// Rows of pixels from rows of cells, of all planes side by side: line i of plane c begins at c * plane + i * padded.
// What lies behind a cell is overwritten by the next one, what lies behind a line by the next line.
template <typename E>
void draw_lines(const CellGrid& grid, const E* cells, int64_t rows, int64_t padded, int64_t plane, E* lines) {
  using V = Vectorized<E>;
  for (int64_t i = 0; i < rows; ++i, lines += padded) {
    for (int64_t j = 0; j < grid.columns.cells; ++j, cells += kPlanarChannels) {
      const int64_t end = grid.columns.edges[j + 1];
      for (int64_t w = grid.columns.edges[j]; w < end; w += V::size()) {
        for (int64_t c = 0; c < kPlanarChannels; ++c) V(cells[c]).store(lines + c * plane + w);
      }
    }
  }
}

// One plane's: `lines` holds what draw_lines wrote, in T where there is no `other`, those of this plane from `first`
// on.
template <typename T, bool kStream>
void expand_lines(const CellGrid& grid, Span rows, const void* lines, int64_t first, int64_t padded, const T* other,
                  RunWriter<T, kStream>& writer) {
  using L = Lanes<T>;
  const int64_t width = grid.width();
  int64_t rest = (grid.rows.edges[rows.last] - grid.rows.edges[rows.first]) * width;
  for (int64_t i = 0; i < rows.last - rows.first; ++i) {
    const int64_t height = grid.rows.edges[rows.first + i + 1] - grid.rows.edges[rows.first + i];
    if (other == nullptr) {
      const T* own = static_cast<const T*>(lines) + first + i * padded;
      for (int64_t r = 0; r < height; ++r) {
        rest -= width;
        writer.write_registers(width, rest, [&](int64_t w, auto) { return Vectorized<T>::loadu(own + w); });
      }
    } else {
      const Accumulator<T>* own = static_cast<const Accumulator<T>*>(lines) + first + i * padded;
      for (int64_t r = 0; r < height; ++r, other += width) {
        rest -= width;
        writer.write_registers(width, rest, [&](int64_t w, auto count) {
          simd::fetch_ahead(other + w);
          return (L::load(other + w, count) + L::load_accumulators(own + w)).narrowed();
        });
      }
    }
  }
}

template <typename T, bool kStream>
[[gnu::flatten]] void expand_planar(const CellGrid& grid, const PyramidLevel* levels, int64_t level_count,
                                    const Accumulator<T>* shares, Span rows, Accumulator<T>* cells, const T* other,
                                    int64_t other_step, T* to, int64_t step) {
  const int64_t width = grid.width(), row_of_cells = grid.columns.cells * kPlanarChannels;
  const int64_t padded = padded_line(width), together = lines_together(width);
  void* lines = cells + together * row_of_cells;
  const int64_t top = grid.rows.edges[rows.first];
  for (Span some{rows.first, rows.first}; some.first < rows.last; some.first = some.last) {
    some.last = std::min(rows.last, some.first + together);
    const int64_t count = some.last - some.first, plane = count * padded + kLineEnd;
    for (int64_t i = 0; i < count; ++i) {
      cell_gradients(grid, levels, level_count, shares, some.first + i, kPlanarChannels, cells + i * row_of_cells);
    }
    if (other == nullptr) {
      T* narrowed = reinterpret_cast<T*>(cells);
      for_each_piece<T>(count * row_of_cells, [&](int64_t i, auto piece) {
        Lanes<T>::load_accumulators(cells + i, piece).store(narrowed + i, piece);
      });
      draw_lines(grid, narrowed, count, padded, plane, static_cast<T*>(lines));
    } else {
      draw_lines(grid, cells, count, padded, plane, static_cast<Accumulator<T>*>(lines));
    }
    const int64_t begin = (grid.rows.edges[some.first] - top) * width;
    const auto write = [&](int64_t first, int64_t last) {
      RunWriter<T, kStream> writer(to + first * step + begin);
      for (int64_t c = first; c < last; ++c) {
        expand_lines(grid, some, lines, c * plane, padded, other == nullptr ? nullptr : other + c * other_step + begin,
                     writer);
      }
      writer.finish();
    };
    if (step == (grid.rows.edges[some.last] - grid.rows.edges[some.first]) * width) {
      write(0, grid.channels);  // the planes are one run of memory
    } else {
      for (int64_t c = 0; c < grid.channels; ++c) write(c, c + 1);
    }
  }
}

// One row of cells: `narrowed` holds them in T, for where there is no `other`.
template <typename T, bool kStream>
void expand_interleaved(const CellGrid& grid, const Accumulator<T>* cells, const T* narrowed, int64_t rows,
                        const T* other, int64_t other_step, RunWriter<T, kStream>& writer) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < grid.columns.cells; ++j) {
      const int64_t cell = j * grid.channels;
      for (int64_t w = grid.columns.edges[j]; w < grid.columns.edges[j + 1]; ++w) {
        if (other == nullptr) {
          writer.append(narrowed + cell, grid.channels);
        } else {
          const T* from = other + (r * grid.width() + w) * other_step;
          writer.write(grid.channels, [&](int64_t begin, int64_t count, T* place) {
            add_runs(from + begin, cells + cell + begin, count, place);
          });
        }
      }
    }
  }
}

template <typename T, bool kStream>
void expand_of(const CellGrid& grid, const PyramidLevel* levels, int64_t level_count, const Accumulator<T>* shares,
               Span rows, Accumulator<T>* cells, const T* other, int64_t other_step, T* to, int64_t step) {
  if (grid.planar) {
    return expand_planar<T, kStream>(grid, levels, level_count, shares, rows, cells, other, other_step, to, step);
  }
  const int64_t row_of_cells = grid.columns.cells * grid.channels;
  T* narrowed = reinterpret_cast<T*>(cells + row_of_cells);
  RunWriter<T, kStream> writer(to);
  for (int64_t i = rows.first; i < rows.last; ++i) {
    const int64_t height = grid.rows.edges[i + 1] - grid.rows.edges[i];
    cell_gradients(grid, levels, level_count, shares, i, grid.channels, cells);
    if (other == nullptr) {
      for_each_piece<T>(row_of_cells, [&](int64_t c, auto count) {
        Lanes<T>::load_accumulators(cells + c, count).store(narrowed + c, count);
      });
    }
    expand_interleaved(grid, cells, narrowed, height, other, other_step, writer);
    if (other != nullptr) other += height * grid.width() * other_step;
  }
  writer.finish();
}

template <typename T>
void expand(const CellGrid& grid, const PyramidLevel* levels, int64_t level_count, const Accumulator<T>* shares,
            Span rows, Accumulator<T>* cells, const T* other, int64_t other_step, T* to, int64_t step, bool stream) {
  const auto expand = stream ? expand_of<T, true> : expand_of<T, false>;
  expand(grid, levels, level_count, shares, rows, cells, other, other_step, to, step);
}

template <typename T>
constexpr PyramidPoolKernels<T> kernels() {
  return {cell_sums<T>, bin_means<T>, shares<T>, expand<T>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const PyramidPoolTable SOD_OPS_THIS_TABLE(pyramid_pool_kernels) = {kernels<float>(), kernels<double>(),
                                                                   kernels<c10::BFloat16>(), kernels<c10::Half>()};

}  // namespace sod_ops
