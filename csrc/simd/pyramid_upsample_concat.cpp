// Upsampling into a concatenation; compiled once for each instruction set (see capability.h). Sums are taken in float,
// in double for double. The formula stands in sod_ops/reference/pyramid_upsample_concat.py.
#include "pyramid_upsample_concat.h"

#include "gather.h"
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

// Columns are resized first, each input row once, into two lines of which every output row is a mix.
template <typename T, bool kStream>
void upsample_planes_of(const Resize<Accumulator<T>>& resize, const T* planes, int64_t count, int64_t begin,
                        int64_t end, Accumulator<T>* scratch, T* to) {
  using A = Accumulator<T>;
  const ResizeAxis<A>&rows = resize.rows, &columns = resize.columns;
  const int64_t width = columns.outputs, padded = padded_columns(width);
  A* widened = scratch + 2 * padded;
  const auto widen = [&](const T* input) {
    if constexpr (std::is_same_v<T, A>) {
      return input;
    } else {
      for_each_piece<T>(columns.inputs, [&](int64_t j, auto piece) {
        Lanes<T>::load(input + j, piece).store_accumulators(widened + j, piece);
      });
      return static_cast<const A*>(widened);
    }
  };
  RunWriter<T, kStream> writer(to);
  for (int64_t plane = 0; plane < count; ++plane) {
    int64_t held[2] = {-1, -1};
    const auto line = [&](int64_t i) {
      A* place = scratch + i % 2 * padded;
      if (held[i % 2] == i) return place;
      held[i % 2] = i;
      const A* from = widen(planes + (plane * rows.inputs + i) * columns.inputs);
      for_each_piece<A>(padded, [&](int64_t w, auto piece) {
        using L = Lanes<A>;
        const L a = simd::gather<A>(from, columns.first + w, piece);
        const L b = simd::gather<A>(from, columns.second + w, piece);
        fmadd(b, L::load(columns.second_weight + w, piece), a * L::load(columns.first_weight + w, piece))
            .store(place + w, piece);
      });
      return place;
    };
    for (int64_t row = begin; row < end; ++row) {
      const A *first = line(rows.first[row]), *second = line(rows.second[row]);
      const int64_t rest = ((count - plane) * (end - begin) - (row - begin) - 1) * width;
      writer.write_whole(width, rest, [&](int64_t start, int64_t length, T* place) {
        for_each_piece<T>(length, [&](int64_t w, auto piece) {
          using L = Lanes<T>;
          mix(L::load_accumulators(first + start + w, piece), rows.first_weight[row],
              L::load_accumulators(second + start + w, piece), rows.second_weight[row])
              .store(place + w, piece);
        });
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
inline void add_rows(const ResizeAxis<Accumulator<T>>& rows, const RowRun& run, const T* grad, int64_t width,
                     Accumulator<T>* first, Accumulator<T>* second) {
  using L = Lanes<T>;
  for_each_piece<T>(width, [&](int64_t w, auto count) {
    L a = L::fill(0), b = L::fill(0);
    for (int64_t row = run.begin; row < run.end; ++row) {
      const L value = L::load(grad + row * width + w, count);
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
void gather_planes(const Resize<Accumulator<T>>& resize, const RowRun* runs, int64_t run_count, const T* grad,
                   int64_t step, int64_t planes, Accumulator<T>* scratch, T* to) {
  using A = Accumulator<T>;
  const int64_t width = resize.columns.outputs, row = resize.columns.inputs, inputs = resize.rows.inputs * row;
  const int64_t padded = padded_columns(width);
  const int64_t rows_size = resize.rows.inputs * kResizedPlanes * padded;
  A* columns = scratch + rows_size;
  // Planes that are not there, and columns past the last, are read but not used.
  std::fill(scratch, scratch + rows_size, A(0));
  for (int64_t c = 0; c < planes; ++c) {
    for (int64_t k = 0; k < run_count; ++k) {
      add_rows(resize.rows, runs[k], grad + c * step, width, scratch + (runs[k].first * kResizedPlanes + c) * padded,
               scratch + (runs[k].second * kResizedPlanes + c) * padded);
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
void gather_run(const Resize<Accumulator<T>>& resize, const RowRun& run, const T* grad, int64_t step, int64_t channels,
                Accumulator<T>* first, Accumulator<T>* second) {
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
void add_runs(const RowRun* runs, int64_t run_count, int64_t row, const Accumulator<T>* parts, int64_t length, T* to) {
  using L = Lanes<T>;
  for_each_piece<T>(length, [&](int64_t i, auto count) {
    L sum = L::fill(0);
    for (int64_t k = 0; k < run_count; ++k) {
      const Accumulator<T>* part = parts + 2 * k * length + i;
      if (runs[k].first == row) sum = sum + L::load_accumulators(part, count);
      if (runs[k].second == row) sum = sum + L::load_accumulators(part + length, count);
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
