// Upsampling into a concatenation; compiled once for each instruction set (see capability.h). Sums are taken in float,
// in double for double. The formula stands in sod_ops/reference/pyramid_upsample_concat.py.
#include "pyramid_upsample_concat.h"

#include "gather.h"
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

// Columns are gathered where on average fewer than this read the same inputs.
constexpr int64_t kShortRun = 2;

template <typename T, bool kStream>
void copy_of(const T* from, int64_t step, int64_t count, int64_t length, T* to) {
  RunWriter<T, kStream> writer(to);
  for (int64_t i = 0; i < count; ++i) writer.append(from + i * step, length);
  writer.finish();
}

template <typename T>
void copy(const T* from, int64_t step, int64_t count, int64_t length, T* to, bool stream) {
  stream ? copy_of<T, true>(from, step, count, length, to) : copy_of<T, false>(from, step, count, length, to);
}

// a * first_weight + b * second_weight
template <typename L, typename A>
inline L mix(const L& a, A first_weight, const L& b, A second_weight) {
  return fmadd(b, L::fill(second_weight), a * L::fill(first_weight));
}

// place[w] = first_weight[w] * from[first[w]] + second_weight[w] * from[second[w]]; what lies behind a run is
// overwritten by the next one.
template <typename A>
inline void resize_line(const ResizeAxis<A>& columns, const A* from, A* place) {
  using L = Lanes<A>;
  if (columns.run_count * kShortRun > columns.outputs) {
    return for_each_piece<A>(columns.outputs, [&](int64_t w, auto count) {
      const L a = simd::gather<A>(from, columns.first + w, count), b = simd::gather<A>(from, columns.second + w, count);
      fmadd(b, L::load(columns.second_weight + w, count), a * L::load(columns.first_weight + w, count))
          .store(place + w, count);
    });
  }
  for (int64_t k = 0; k < columns.run_count; ++k) {
    const ResizeRun& run = columns.runs[k];
    const L a = L::fill(from[run.first]), b = L::fill(from[run.second]);
    for (int64_t w = run.begin; w < run.end; w += L::kSize) {
      fmadd(b, L::load(columns.second_weight + w), a * L::load(columns.first_weight + w)).store(place + w);
    }
  }
}

// Columns are resized first, each input row once, into lines of which every output row is a mix. The line after those
// that a row needs is there too before the row is written: loads of what was just stored wait for all stores before it.
template <typename T, bool kStream>
[[gnu::flatten]] void upsample_planes_of(const Resize<Accumulator<T>>& resize, const T* planes, int64_t count,
                                         int64_t begin, int64_t end, Accumulator<T>* scratch, T* to) {
  using A = Accumulator<T>;
  using L = Lanes<T>;
  const ResizeAxis<A>&rows = resize.rows, &columns = resize.columns;
  const int64_t width = columns.outputs, padded = padded_columns(width), inputs = count * rows.inputs;
  A* widened = scratch + kResizedLines * padded;
  const auto line = [&](int64_t i) { return scratch + i % kResizedLines * padded; };
  const auto draw = [&](int64_t i) {
    const T* input = planes + i * columns.inputs;
    if constexpr (std::is_same_v<T, A>) {
      resize_line(columns, input, line(i));
    } else {
      for_each_piece<T>(columns.inputs, [&](int64_t j, auto piece) {
        Lanes<T>::load(input + j, piece).store_accumulators(widened + j, piece);
      });
      resize_line(columns, static_cast<const A*>(widened), line(i));
    }
  };
  RunWriter<T, kStream> writer(to);
  int64_t next = 0, rest = count * (end - begin) * width;  // lines of all planes are numbered through
  for (int64_t plane = 0; plane < count; ++plane) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t i = plane * rows.inputs + rows.first[row], j = plane * rows.inputs + rows.second[row];
      for (next = std::max(next, i); next < std::min(j + 2, inputs); ++next) draw(next);
      const A *first = line(i), *second = line(j);
      const L first_weight = L::fill(rows.first_weight[row]), second_weight = L::fill(rows.second_weight[row]);
      rest -= width;
      writer.write_registers(width, rest, [&](int64_t w, auto) {
        return fmadd(L::load_accumulators(second + w), second_weight, L::load_accumulators(first + w) * first_weight)
            .narrowed();
      });
    }
  }
  writer.finish();
}

template <typename T>
void upsample_planes(const Resize<Accumulator<T>>& resize, const T* planes, int64_t count, int64_t begin, int64_t end,
                     Accumulator<T>* scratch, T* to, bool stream) {
  stream ? upsample_planes_of<T, true>(resize, planes, count, begin, end, scratch, to)
         : upsample_planes_of<T, false>(resize, planes, count, begin, end, scratch, to);
}

// Rows are resized first, one line of input pixels for each branch, of which every output pixel is a mix.
template <typename T, bool kStream>
void upsample_row_of(const T* x, int64_t x_step, int64_t x_channels, bool x_first, const InterleavedBranch<T>* branches,
                     int64_t branch_count, int64_t row, Accumulator<T>* scratch, T* to) {
  using A = Accumulator<T>;
  using L = Lanes<T>;
  A* line = scratch;
  for (int64_t k = 0; k < branch_count; ++k) {
    const InterleavedBranch<T>& branch = branches[k];
    const ResizeAxis<A>& rows = branch.resize.rows;
    const int64_t length = branch.resize.columns.inputs * branch.channels;
    const T *first = branch.data + rows.first[row] * length, *second = branch.data + rows.second[row] * length;
    for_each_piece<T>(length, [&](int64_t i, auto count) {
      mix(L::load(first + i, count), rows.first_weight[row], L::load(second + i, count), rows.second_weight[row])
          .store_accumulators(line + i, count);
    });
    line += length;
  }
  RunWriter<T, kStream> writer(to);
  const int64_t width = branches[0].resize.columns.outputs;
  for (int64_t w = 0; w < width; ++w) {
    if (x_first) writer.append(x + w * x_step, x_channels);
    line = scratch;
    for (int64_t k = 0; k < branch_count; ++k) {
      const ResizeAxis<A>& columns = branches[k].resize.columns;
      const int64_t channels = branches[k].channels;
      const A *first = line + columns.first[w] * channels, *second = line + columns.second[w] * channels;
      writer.write(channels, [&](int64_t start, int64_t length, T* place) {
        for_each_piece<T>(length, [&](int64_t c, auto count) {
          mix(L::load_accumulators(first + start + c, count), columns.first_weight[w],
              L::load_accumulators(second + start + c, count), columns.second_weight[w])
              .store(place + c, count);
        });
      });
      line += columns.inputs * channels;
    }
    if (!x_first) writer.append(x + w * x_step, x_channels);
  }
  writer.finish();
}

template <typename T>
void upsample_row(const T* x, int64_t x_step, int64_t x_channels, bool x_first, const InterleavedBranch<T>* branches,
                  int64_t branch_count, int64_t row, Accumulator<T>* scratch, T* to, bool stream) {
  stream ? upsample_row_of<T, true>(x, x_step, x_channels, x_first, branches, branch_count, row, scratch, to)
         : upsample_row_of<T, false>(x, x_step, x_channels, x_first, branches, branch_count, row, scratch, to);
}

// to[w] += sum over the run's rows of grad[row * width + w] * weight[row], for both weights and their rows.
template <typename T>
inline void add_rows(const ResizeAxis<Accumulator<T>>& rows, const ResizeRun& run, const T* grad, int64_t width,
                     Accumulator<T>* first, Accumulator<T>* second) {
  using L = Lanes<T>;
  for_each_piece<T>(width, [&](int64_t w, auto count) {
    L a = L::fill(0), b = L::fill(0);
    for (int64_t row = run.begin; row < run.end; ++row) {
      const T* from = grad + row * width + w;
      simd::fetch_ahead(from);
      const L value = L::load(from, count);
      a = fmadd(value, L::fill(rows.first_weight[row]), a);
      b = fmadd(value, L::fill(rows.second_weight[row]), b);
    }
    (L::load_accumulators(first + w, count) + a).store_accumulators(first + w, count);
    (L::load_accumulators(second + w, count) + b).store_accumulators(second + w, count);
  });
}

// to[j][lane] += sum over columns w that read j of weight[w] * rows[lane][w], for kResizedPlanes rows `step` apart.
template <typename A>
void add_columns(const ResizeAxis<A>& columns, const A* rows, int64_t step, A* to) {
  using V = Vectorized<A>;
  constexpr int64_t size = V::size();
  V transposed[kResizedPlanes];
  for (int64_t lane = 0; lane < kResizedPlanes; lane += size) {
    for (int64_t block = 0; block < columns.outputs; block += size) {
      simd::transpose(rows + lane * step + block, step, transposed);
      const int64_t last = std::min(block + size, columns.outputs);
      for (int64_t w = block; w < last;) {
        const int64_t first = columns.first[w], second = columns.second[w];
        V a(A(0)), b(A(0));
        for (; w < last && columns.first[w] == first; ++w) {
          a = at::vec::fmadd(transposed[w - block], V(columns.first_weight[w]), a);
          b = at::vec::fmadd(transposed[w - block], V(columns.second_weight[w]), b);
        }
        A* to_first = to + first * kResizedPlanes + lane;
        (V::loadu(to_first) + a).store(to_first);
        A* to_second = to + second * kResizedPlanes + lane;
        (V::loadu(to_second) + b).store(to_second);
      }
    }
  }
}

template <typename T>
void gather_planes(const Resize<Accumulator<T>>& resize, const T* grad, int64_t step, int64_t planes,
                   Accumulator<T>* scratch, T* to) {
  using A = Accumulator<T>;
  const int64_t width = resize.columns.outputs, row = resize.columns.inputs, inputs = resize.rows.inputs * row;
  const int64_t padded = padded_columns(width);
  const int64_t rows_size = resize.rows.inputs * kResizedPlanes * padded;
  A* columns = scratch + rows_size;
  // Planes that are not there, and columns past the last, are read but not used.
  std::fill(scratch, scratch + rows_size, A(0));
  for (int64_t c = 0; c < planes; ++c) {
    for (int64_t k = 0; k < resize.rows.run_count; ++k) {
      const ResizeRun& run = resize.rows.runs[k];
      add_rows(resize.rows, run, grad + c * step, width, scratch + (run.first * kResizedPlanes + c) * padded,
               scratch + (run.second * kResizedPlanes + c) * padded);
    }
  }
  T lanes[kResizedPlanes];
  for (int64_t i = 0; i < resize.rows.inputs; ++i) {
    std::fill(columns, columns + row * kResizedPlanes, A(0));
    add_columns(resize.columns, scratch + i * kResizedPlanes * padded, padded, columns);
    for (int64_t j = 0; j < row; ++j) {
      for_each_piece<T>(kResizedPlanes, [&](int64_t c, auto count) {
        Lanes<T>::load_accumulators(columns + j * kResizedPlanes + c, count).store(lanes + c, count);
      });
      for (int64_t c = 0; c < planes; ++c) to[c * inputs + i * row + j] = lanes[c];
    }
  }
}

// Columns that are read side by side.
constexpr int64_t kColumnsAtOnce = 8;

template <typename T>
void gather_run(const Resize<Accumulator<T>>& resize, const ResizeRun& run, const T* grad, int64_t step,
                int64_t channels, Accumulator<T>* first, Accumulator<T>* second) {
  using A = Accumulator<T>;
  using L = Lanes<T>;
  const ResizeAxis<A>&rows = resize.rows, &columns = resize.columns;
  std::fill(first, first + columns.inputs * channels, A(0));
  std::fill(second, second + columns.inputs * channels, A(0));
  const auto add = [&](A* to, const L& sum, A weight, int64_t count) {
    fmadd(sum, L::fill(weight), L::load_accumulators(to, count)).store_accumulators(to, count);
  };
  for (int64_t row = run.begin; row < run.end; ++row) {
    const A first_weight = rows.first_weight[row], second_weight = rows.second_weight[row];
    for (int64_t w = 0; w < columns.outputs;) {
      int64_t end = w + 1;
      while (end < columns.outputs && end - w < kColumnsAtOnce && columns.first[end] == columns.first[w]) ++end;
      const int64_t left = columns.first[w] * channels, right = columns.second[w] * channels;
      const T* pixel = grad + (row * columns.outputs + w) * step;
      for_each_piece<T>(channels, [&](int64_t c, auto count) {
        L a = L::fill(0), b = L::fill(0);
        for (int64_t i = 0; i < end - w; ++i) {
          const L value = L::load(pixel + i * step + c, count);
          a = fmadd(value, L::fill(columns.first_weight[w + i]), a);
          b = fmadd(value, L::fill(columns.second_weight[w + i]), b);
        }
        add(first + left + c, a, first_weight, count);
        add(first + right + c, b, first_weight, count);
        add(second + left + c, a, second_weight, count);
        add(second + right + c, b, second_weight, count);
      });
      w = end;
    }
  }
}

template <typename T>
void add_runs(const ResizeAxis<Accumulator<T>>& rows, int64_t row, const Accumulator<T>* parts, int64_t length, T* to) {
  using L = Lanes<T>;
  for_each_piece<T>(length, [&](int64_t i, auto count) {
    L sum = L::fill(0);
    for (int64_t k = 0; k < rows.run_count; ++k) {
      const Accumulator<T>* part = parts + 2 * k * length + i;
      if (rows.runs[k].first == row) sum = sum + L::load_accumulators(part, count);
      if (rows.runs[k].second == row) sum = sum + L::load_accumulators(part + length, count);
    }
    sum.store(to + i, count);
  });
}

template <typename T>
constexpr PyramidUpsampleConcatKernels<T> kernels() {
  return {copy<T>, upsample_planes<T>, upsample_row<T>, gather_planes<T>, gather_run<T>, add_runs<T>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const PyramidUpsampleConcatTable SOD_OPS_THIS_TABLE(pyramid_upsample_concat_kernels) = {
    kernels<float>(), kernels<double>(), kernels<c10::BFloat16>(), kernels<c10::Half>()};

}  // namespace sod_ops
