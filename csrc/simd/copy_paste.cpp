// Copy-Paste on whole rows of a sample; compiled once for each instruction set (see capability.h).
#include "copy_paste.h"

#include "run_writer.h"
#include "vector.h"

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using simd::for_each_piece;
using simd::Lanes;
using simd::Vectorized;

// ---- Masks

// How many of n bytes are not 0. Registers count up to 255 of them in each byte.
int64_t count_set(const uint8_t* bytes, int64_t n) {
  using V = Vectorized<uint8_t>;
  constexpr int64_t size = V::size();
  const V one(1);
  int64_t total = 0, i = 0;
  while (i + size <= n) {
    const int64_t end = i + std::min<int64_t>(255, (n - i) / size) * size;
    V sum(0);
    for (; i < end; i += size) sum = sum + at::vec::minimum(V::loadu(bytes + i), one);
    uint8_t lanes[size];
    sum.store(lanes);
    for (uint8_t lane : lanes) total += lane;
  }
  for (; i < n; ++i) total += bytes[i] != 0;
  return total;
}

// The first and the last of n bytes that is not 0; there must be one. Eight at a time up to there.
int64_t first_set(const uint8_t* bytes, int64_t n) {
  int64_t i = 0;
  for (uint64_t word; i + 8 <= n; i += 8) {
    std::memcpy(&word, bytes + i, 8);
    if (word != 0) break;
  }
  while (bytes[i] == 0) ++i;
  return i;
}
int64_t last_set(const uint8_t* bytes, int64_t n) {
  for (uint64_t word; n >= 8; n -= 8) {
    std::memcpy(&word, bytes + n - 8, 8);
    if (word != 0) break;
  }
  while (bytes[n - 1] == 0) --n;
  return n - 1;
}

// The edges of what is set in some rows; `columns` is for a row.
void find_edges(const uint8_t* piece, RowRun run, uint8_t* columns, MaskPart& part) {
  const int64_t width = run.width;
  const int64_t top = first_set(piece, run.pixels()) / width, bottom = last_set(piece, run.pixels()) / width;
  std::copy_n(piece + top * width, width, columns);
  for (int64_t y = top + 1; y <= bottom; ++y) {
    const uint8_t* row = piece + y * width;
    for (int64_t x = 0; x < width; ++x) columns[x] |= row[x];
  }
  part.left = first_set(columns, width);
  part.right = last_set(columns, width);
  part.top = run.top + top;
  part.bottom = run.top + bottom;
}

// Streamed bytes are gathered in `scratch`, where their edges are found while they are in the first-level cache.
template <bool kArrives, bool kStream>
MaskPart write_mask(const uint8_t* mask, RowRun run, uint8_t* pasted, uint8_t* scratch, uint8_t* to) {
  const int64_t n = run.pixels();
  MaskPart part{count_set(mask, n), 0, 0, 0, 0, 0};
  simd::RunWriter<uint8_t, kStream> writer(to);
  if (part.before == 0) {  // as most rows of most masks are
    writer.write(n, [](int64_t, int64_t count, uint8_t* place) { std::memset(place, 0, count); });
    writer.finish();
    return part;
  }
  uint8_t* piece = kStream ? scratch : to;
  if constexpr (kArrives) {
    for (int64_t i = 0; i < n; ++i) piece[i] = mask[i] != 0;
    for (int64_t i = 0; i < n; ++i) pasted[i] |= piece[i];
    part.after = part.before;
  } else {
    for (int64_t i = 0; i < n; ++i) piece[i] = static_cast<uint8_t>(mask[i] != 0) & static_cast<uint8_t>(~pasted[i]);
    part.after = count_set(piece, n);
  }
  if (part.after > 0) find_edges(piece, run, scratch + n, part);
  if constexpr (kStream) {
    writer.append(piece, n);
    writer.finish();
  }
  return part;
}

template <bool kArrives>
MaskPart mask(const uint8_t* mask, RowRun run, uint8_t* pasted, uint8_t* scratch, uint8_t* to, bool past_caches) {
  return past_caches ? write_mask<kArrives, true>(mask, run, pasted, scratch, to)
                     : write_mask<kArrives, false>(mask, run, pasted, scratch, to);
}

void clear(uint8_t* to, int64_t n, bool past_caches) {
  if (!past_caches) {
    std::memset(to, 0, n);
    return;
  }
  simd::RunWriter<uint8_t, true> writer(to);
  writer.write(n, [](int64_t, int64_t count, uint8_t* place) { std::memset(place, 0, count); });
  writer.finish();
}

void filter_row(const uint8_t* pasted, int64_t width, const float* response, int64_t reach, float* to) {
  for (int64_t x = 0; x < width; ++x) to[x] = pasted[x] != 0 ? 1.0f : 0.0f;
  for (int64_t edge = 1; edge < width; ++edge) {
    const bool rises = pasted[edge] != 0;
    if (rises == (pasted[edge - 1] != 0)) continue;
    const float sign = rises ? 1.0f : -1.0f;
    const float* around = response + reach - edge;
    const int64_t end = std::min(width, edge + reach);
    for (int64_t x = std::max<int64_t>(0, edge - reach); x < end; ++x) to[x] += sign * around[x];
  }
}

// ---- Images

int64_t segments(const float* weights, const float* weights_of_other, int64_t n, PasteSegment* to) {
  int64_t count = 0;
  for (int64_t begin = 0; begin < n; begin += kSegment) {
    const int64_t end = std::min(n, begin + kSegment);
    int32_t zeros = 0, ones = 0;
    for (int64_t i = begin; i < end; ++i) {
      zeros += (weights[i] == 0.0f) & (weights_of_other[i] == 0.0f);
      ones += (weights[i] == 1.0f) & (weights_of_other[i] == 1.0f);
    }
    const auto kind = zeros == end - begin  ? PasteSegment::own
                      : ones == end - begin ? PasteSegment::other
                                            : PasteSegment::mixed;
    if (count > 0 && to[count - 1].kind == kind) {
      to[count - 1].end = end;
    } else {
      to[count++] = {end, kind};
    }
  }
  return count;
}

// Elements that are mixed at a time.
constexpr int64_t kMixed = 512;

// The weights of elements [begin, begin + n), n <= kMixed, as `Acc`.
template <typename Acc>
const Acc* of_elements(const float* weights, int64_t column, int64_t begin, int64_t n, Acc* buffer) {
  if (column == 1) {
    if constexpr (std::is_same_v<Acc, float>) return weights + begin;
    for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<Acc>(weights[begin + i]);
    return buffer;
  }
  int64_t left = column - begin % column;  // of the pixel
  weights += begin / column;
  for (int64_t i = 0; i < n; ++i) {
    buffer[i] = static_cast<Acc>(*weights);
    if (--left > 0) continue;
    left = column;
    ++weights;
  }
  return buffer;
}

// Copies what is one's own or the other's; mix(begin, n, place) writes what is neither, in elements.
template <bool kStream, typename T, typename Mix>
void write_segments(const T* own, const T* other, int64_t column, const PasteSegment* segments, int64_t count, T* to,
                    const Mix& mix) {
  simd::RunWriter<T, kStream> writer(to);
  int64_t begin = 0;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t end = segments[s].end * column;
    if (segments[s].kind == PasteSegment::mixed) {
      writer.write(end - begin, [&](int64_t first, int64_t n, T* place) {
        for (int64_t i = 0; i < n; i += kMixed) mix(begin + first + i, std::min(kMixed, n - i), place + i);
      });
    } else {
      writer.append((segments[s].kind == PasteSegment::own ? own : other) + begin, end - begin);
    }
    begin = end;
  }
  writer.finish();
}

// Bytes are mixed in whole numbers of 2^-24, which weights are: 255 of them and a half fit into 32 bits.
void mix(const uint8_t* own, const uint8_t* other, const float* weights, int64_t n, uint8_t* to) {
  constexpr int32_t unit = 1 << 24;
  for (int64_t i = 0; i < n; ++i) {
    const auto a = static_cast<int32_t>(weights[i] * static_cast<float>(unit));
    const uint32_t sum = own[i] * static_cast<uint32_t>(unit - a) + other[i] * static_cast<uint32_t>(a);
    to[i] = static_cast<uint8_t>((sum + unit / 2) >> 24);
  }
}

template <typename T, typename Acc>
void mix(const T* own, const T* other, const Acc* weights, int64_t n, T* to) {
  using V = Vectorized<Acc>;
  const V zero(0), one(1);
  for_each_piece<T>(n, [&](int64_t i, auto count) {
    Lanes<T> x = Lanes<T>::load(own + i, count);
    const auto y = Lanes<T>::load(other + i, count), a = Lanes<T>::load_accumulators(weights + i, count);
    for (int v = 0; v < Lanes<T>::kVectors; ++v) {
      const V mixed = (one - a.v[v]) * x.v[v] + a.v[v] * y.v[v];
      x.v[v] = math::where(math::at_most(a.v[v], zero), x.v[v], math::where(math::at_most(one, a.v[v]), y.v[v], mixed));
    }
    x.store(to + i, count);
  });
}

template <typename T>
void compose(const T* own, const T* other, const float* weights, int64_t column, const PasteSegment* segments,
             int64_t count, T* to, bool past_caches) {
  using Acc = simd::Accumulator<T>;
  const auto mix_piece = [&](int64_t begin, int64_t n, T* place) {
    Acc buffer[kMixed];
    mix(own + begin, other + begin, of_elements(weights, column, begin, n, buffer), n, place);
  };
  past_caches ? write_segments<true>(own, other, column, segments, count, to, mix_piece)
              : write_segments<false>(own, other, column, segments, count, to, mix_piece);
}

template <typename T>
void backward(const T* own, const T* other, const float* weights, const float* weights_of_other, int64_t column,
              const PasteSegment* segments, int64_t count, T* to, bool past_caches) {
  using Acc = simd::Accumulator<T>;
  using V = Vectorized<Acc>;
  const V zero(0), one(1);
  const auto mix_piece = [&](int64_t begin, int64_t n, T* place) {
    Acc buffers[2][kMixed];
    const Acc* lost = of_elements(weights, column, begin, n, buffers[0]);
    const Acc* given = of_elements(weights_of_other, column, begin, n, buffers[1]);
    for_each_piece<T>(n, [&](int64_t i, auto size) {
      Lanes<T> x = Lanes<T>::load(own + begin + i, size);
      const auto y = Lanes<T>::load(other + begin + i, size);
      const auto a = Lanes<T>::load_accumulators(lost + i, size), b = Lanes<T>::load_accumulators(given + i, size);
      for (int v = 0; v < Lanes<T>::kVectors; ++v) {
        // Where nothing was taken no infinity or NaN is, either.
        const V kept = math::where(math::at_most(one, a.v[v]), zero, (one - a.v[v]) * x.v[v]);
        x.v[v] = kept + math::where(math::at_most(b.v[v], zero), zero, b.v[v] * y.v[v]);
      }
      x.store(place + i, size);
    });
  };
  past_caches ? write_segments<true>(own, other, column, segments, count, to, mix_piece)
              : write_segments<false>(own, other, column, segments, count, to, mix_piece);
}

template <typename T>
constexpr CopyPasteFloatingKernels<T> kernels() {
  return {{compose<T>}, {backward<T>}};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllCopyPasteKernels SOD_OPS_THIS_TABLE(copy_paste_kernels) = {
    {mask<true>, mask<false>, clear, filter_row},
    segments,
    {compose<uint8_t>},
    kernels<float>(),
    kernels<double>(),
    kernels<c10::BFloat16>(),
    kernels<c10::Half>(),
};

}  // namespace sod_ops
