// Copying boxes between samples; compiled once for each instruction set (see capability.h).
#include "cutmix.h"

#include "run_writer.h"
#include "vector.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::for_each_piece;
using simd::Lanes;

// A box as it lies in the lines of a plane: elements [begin, end) of lines [top, bottom). Without area it holds none.
struct Cut {
  int64_t begin, end, top, bottom;

  Cut(const Lines& lines, const int64_t box[4])
      : begin(box[0] * lines.column), end(box[2] * lines.column), top(box[1]), bottom(box[3]) {
    if (begin >= end || top >= bottom) begin = end = top = bottom = 0;
  }
  bool holds(int64_t y) const { return top <= y && y < bottom; }
};

// Where a line stands, of all samples' and planes'.
struct Place {
  int64_t sample, plane, y;

  Place(const Lines& lines, int64_t line)
      : sample(line / lines.height / lines.planes), plane(line / lines.height % lines.planes), y(line % lines.height) {}
};

template <typename T>
const T* line_of(const Lines& lines, const T* data, int64_t sample, const Place& place) {
  return data + sample * lines.sample_step + place.plane * lines.plane_step + place.y * lines.length;
}

// How many lines ahead pieces are fetched: the processor's own prefetching does not follow from piece to piece. Without
// this, pasting took 1.3 times as long as copying; with it, 1.05 times.
constexpr int64_t kAhead = 2;

template <typename T>
inline void prefetch(const T* from, int64_t n) {
  constexpr int64_t cache_line = 64;
  const char* const bytes = reinterpret_cast<const char*>(from);
  for (int64_t i = 0; i < n * static_cast<int64_t>(sizeof(T)); i += cache_line) __builtin_prefetch(bytes + i);
}

template <typename T, bool kStream>
void paste(const Lines& lines, const T* images, const int64_t* partner, CutBoxes boxes, int64_t begin, int64_t end,
           T* to) {
  simd::RunWriter<T, kStream> writer(to);
  int64_t line = begin;
  while (line < end) {
    const Place place(lines, line);
    const Cut cut(lines, boxes[place.sample]);
    const T* own = line_of(lines, images, place.sample, place);
    if (cut.holds(place.y)) {
      const T* other = line_of(lines, images, partner[place.sample], place);
      const int64_t count = std::min(cut.bottom - place.y, end - line);
      for (int64_t i = 0; i < count; ++i, own += lines.length, other += lines.length) {
        if (i + kAhead < count) {
          const int64_t ahead = kAhead * lines.length;
          prefetch(own + ahead, cut.begin);
          prefetch(other + ahead + cut.begin, cut.end - cut.begin);
          prefetch(own + ahead + cut.end, lines.length - cut.end);
        }
        writer.write(lines.length, [&](int64_t first, int64_t n, T* piece) {
          const int64_t last = first + n;
          const int64_t begin = std::clamp(cut.begin, first, last), stop = std::clamp(cut.end, first, last);
          simd::copy_run(own + first, piece, begin - first);
          simd::copy_run(other + begin, piece + (begin - first), stop - begin);
          simd::copy_run(own + stop, piece + (stop - first), last - stop);
        });
      }
      line += count;
      continue;
    }
    // All lines up to the box, or to the end of the plane, are one run.
    const int64_t stop = place.y < cut.top ? cut.top : lines.height;
    const int64_t count = std::min(stop - place.y, end - line);
    writer.append(own, count * lines.length);
    line += count;
  }
  writer.finish();
}

void forward(const Lines& lines, const uint8_t* images, const int64_t* partner, CutBoxes boxes, int64_t begin,
             int64_t end, uint8_t* to, bool past_caches) {
  past_caches ? paste<uint8_t, true>(lines, images, partner, boxes, begin, end, to)
              : paste<uint8_t, false>(lines, images, partner, boxes, begin, end, to);
}

template <typename T>
void backward(const Lines& lines, const T* grads, const int64_t* receiver, CutBoxes boxes, int64_t begin, int64_t end,
              T* to) {
  for (int64_t line = begin; line < end; ++line, to += lines.length) {
    const Place place(lines, line);
    const int64_t other = receiver[place.sample];
    const Cut lost(lines, boxes[place.sample]), given(lines, boxes[other]);
    simd::copy_run(line_of(lines, grads, place.sample, place), to, lines.length);
    if (lost.holds(place.y)) std::fill(to + lost.begin, to + lost.end, T(0));
    if (given.holds(place.y)) {
      const T* from = line_of(lines, grads, other, place) + given.begin;
      T* const sum = to + given.begin;
      for_each_piece<T>(given.end - given.begin, [&](int64_t i, auto count) {
        (Lanes<T>::load(sum + i, count) + Lanes<T>::load(from + i, count)).store(sum + i, count);
      });
    }
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllCutmixKernels SOD_OPS_THIS_TABLE(cutmix_kernels) = {
    {forward}, {backward<float>}, {backward<double>}, {backward<c10::BFloat16>}, {backward<c10::Half>}};

}  // namespace sod_ops
