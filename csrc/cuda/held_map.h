// A sample of a map [N, C, H, W] held in the shared memory of a cluster of blocks, so that it is read from memory once
// though it is needed twice: for sums over the pixels of each channel, and to be scaled by what follows from them.
//
// A sample is a matrix: planar, its rows are channels and its columns pixels; otherwise its rows are pixels and its
// columns channels. Each block holds as many consecutive rows. A thread copies, adds up and writes the same packs of
// kPack elements, so that it waits for its own copies alone, and adds up those that have come while others are on their
// way. Sums are taken in Acc: float, or double for double; always in an order that HeldShape alone decides.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <algorithm>
#include <type_traits>

#include "elements.h"
#include "groups.h"

namespace sod_ops::cuda {

// Two blocks of them have 80 registers for each.
constexpr unsigned kHeldThreads = 384;
// In which a block's rows are copied: the more, the earlier can the adding start.
constexpr unsigned kBatches = 4;
// Rows that a thread adds up at a time, so that enough loads are under way where rows are short. With more, packs of 8
// don't fit the registers of two blocks.
template <int kPack>
constexpr unsigned kRows = kPack == 8 ? 2 : 4;
// Of threads that add up columns, whose sums are then added one after the other.
constexpr unsigned kMostColumnGroups = 64;

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The matrix that a sample is, and how many of its rows a block holds.
struct HeldShape {
  unsigned rows, columns, block_rows;
  bool planar;
};

// How threads take the rows of a block: `lanes` of them take a row, in so many groups.
struct HeldLanes {
  unsigned lanes, groups;

  __host__ __device__ HeldLanes(const HeldShape& shape, unsigned pack) {
    const unsigned packs = shape.columns > pack ? shape.columns / pack : 1;
    if (shape.planar) {
      lanes = lanes_for(packs);
      groups = kHeldThreads / lanes;
    } else {
      lanes = packs < kHeldThreads ? packs : kHeldThreads;
      groups = kHeldThreads / lanes < kMostColumnGroups ? kHeldThreads / lanes : kMostColumnGroups;
    }
  }
};

template <typename T, int kPack>
class HeldMap {
 public:
  using Acc = Accumulator<T>;

  // The rows of the block of this rank in its cluster, in its shared memory from `held` on.
  __device__ HeldMap(const HeldShape& shape, unsigned rank, unsigned char* held)
      : lanes_(shape, kPack),
        held_(reinterpret_cast<T*>(held)),
        columns_(shape.columns),
        first_(min(rank * shape.block_rows, shape.rows)),
        rows_(min(shape.block_rows, shape.rows - first_)),
        row_(threadIdx.x / lanes_.lanes),
        column_(threadIdx.x % lanes_.lanes * kPack) {
    if (row_ >= lanes_.groups) row_ = kNoRow;
  }

  // Starts copying the block's rows of a sample, whose rows lie `step` apart.
  __device__ __forceinline__ void copy(const T* sample, int64_t step) const {
    for (unsigned batch = 0; batch < kBatches; ++batch) {
      for (unsigned row = row_ + begin(batch); row < end(batch); row += lanes_.groups) {
        const T* from = sample + (first_ + row) * step;
        for (unsigned column = column_; column < columns_; column += width()) {
          T* to = held_ + row * columns_ + column;
          if constexpr (sizeof(T) * kPack >= 4) {
            __pipeline_memcpy_async(to, from + column, sizeof(T) * kPack);
          } else {
            *to = from[column];
          }
        }
      }
      __pipeline_commit();
    }
  }

  // sums[row] = the sum of each of the block's rows as they come; of their products with those of `other`, which lie
  // `step` apart, where that is not null. For planes.
  template <bool kTimes>
  __device__ __forceinline__ void row_sums(const T* other, int64_t step, Acc* sums) const {
    const unsigned groups = lanes_.groups;
    for (unsigned batch = 0; batch < kBatches; ++batch) {
      await(batch);
      // The same number of turns for all threads of a warp, which add up together.
      for (unsigned start = begin(batch); start < end(batch); start += kRowsTogether * groups) {
        const unsigned row = start + row_;
        Acc total[kRowsTogether] = {};
        for (unsigned column = column_; column < columns_; column += width()) {
          Values factors[kRowsTogether];
          load_rows<kTimes>(factors, other, step, row, column);
#pragma unroll
          for (unsigned k = 0; k < kRowsTogether; ++k) {
            if (row + k * groups < rows_) {
              Acc terms[kPack];
              take<kTimes>(held_ + (row + k * groups) * columns_ + column, factors[k], terms);
              total[k] += sum_of(terms);
            }
          }
        }
#pragma unroll
        for (unsigned k = 0; k < kRowsTogether; ++k) {
          total[k] = group_sum(total[k], lanes_.lanes);
          if (column_ == 0 && row + k * groups < rows_) sums[row + k * groups] = total[k];
        }
      }
    }
  }

  // sums[column] = the sum of the block's rows, likewise. For pixels' rows of channels. `scratch` has room for kPack
  // numbers of every thread, but not for more than kMostColumnGroups rows.
  template <bool kTimes>
  __device__ __forceinline__ void column_sums(const T* other, int64_t step, Acc* scratch, Acc* sums) const {
    const unsigned groups = lanes_.groups;
    for (unsigned start = 0; start < columns_; start += width()) {
      const unsigned column = start + column_;
      const bool inside = row_ != kNoRow && column < columns_;
      Acc total[kPack] = {};
      for (unsigned batch = 0; batch < kBatches; ++batch) {
        await(batch);
        if (!inside) continue;
        for (unsigned row = row_ + begin(batch); row < end(batch); row += kRowsTogether * groups) {
          Values factors[kRowsTogether];
          load_rows<kTimes>(factors, other, step, row, column);
#pragma unroll
          for (unsigned k = 0; k < kRowsTogether; ++k) {
            if (row + k * groups < rows_) {
              Acc terms[kPack];
              take<kTimes>(held_ + (row + k * groups) * columns_ + column, factors[k], terms);
#pragma unroll
              for (int i = 0; i < kPack; ++i) total[i] += terms[i];
            }
          }
        }
      }
      if (inside) {
#pragma unroll
        for (int i = 0; i < kPack; ++i) scratch[row_ * width() + column_ + i] = total[i];
      }
      __syncthreads();
      for (unsigned i = threadIdx.x; i < min(width(), columns_ - start); i += kHeldThreads) {
        Acc sum = 0;
#pragma unroll 4
        for (unsigned group = 0; group < groups; ++group) sum += scratch[group * width() + i];
        sums[start + i] = sum;
      }
      __syncthreads();
    }
  }

  // sample = the held rows times `factors` (plus `shifts`), which there is one of for each row of planes, and otherwise
  // for each column.
  template <bool kShifts>
  __device__ __forceinline__ void write(T* sample, int64_t step, bool planar, const Acc* factors,
                                        const Acc* shifts) const {
    Acc factor[kPack], shift[kPack];
    if (planar) {
      for (unsigned row = row_; row < rows_; row += lanes_.groups) {
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          factor[i] = factors[row];
          if constexpr (kShifts) shift[i] = shifts[row];
        }
#pragma unroll 4
        for (unsigned column = column_; column < columns_; column += width()) {
          write_pack<kShifts>(sample, step, row, column, factor, shift);
        }
      }
      return;
    }
    for (unsigned column = column_; column < columns_; column += width()) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        factor[i] = factors[column + i];
        if constexpr (kShifts) shift[i] = shifts[column + i];
      }
#pragma unroll 2
      for (unsigned row = row_; row < rows_; row += lanes_.groups) {
        write_pack<kShifts>(sample, step, row, column, factor, shift);
      }
    }
  }

 private:
  static constexpr unsigned kRowsTogether = kRows<kPack>;
  static constexpr unsigned kNoRow = 1u << 31;
  using Values = Pack<T, kPack>;

  __device__ __forceinline__ unsigned width() const { return lanes_.lanes * kPack; }

  // A batch's rows: whole turns of all groups, as many rows as are added up together.
  __device__ __forceinline__ unsigned begin(unsigned batch) const {
    const unsigned turn = lanes_.groups * kRowsTogether;
    return (rows_ + turn - 1) / turn * batch / kBatches * turn;
  }
  __device__ __forceinline__ unsigned end(unsigned batch) const { return min(rows_, begin(batch + 1)); }

  __device__ __forceinline__ static void await(unsigned batch) { __pipeline_wait_prior(kBatches - 1 - batch); }

  __device__ __forceinline__ static void load(Values& values, const T* from) {
    values = *reinterpret_cast<const Values*>(from);
  }

  // The packs of `other` in this row and those that this thread takes next.
  template <bool kTimes>
  __device__ __forceinline__ void load_rows(Values (&values)[kRowsTogether], const T* other, int64_t step, unsigned row,
                                            unsigned column) const {
    if constexpr (kTimes) {
#pragma unroll
      for (unsigned k = 0; k < kRowsTogether; ++k) {
        const unsigned at = row + k * lanes_.groups;
        if (at < rows_) load(values[k], other + (first_ + at) * step + column);
      }
    }
  }

  template <bool kTimes>
  __device__ __forceinline__ static void take(const T* from, const Values& factor, Acc (&terms)[kPack]) {
    Values values;
    load(values, from);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      terms[i] = static_cast<Acc>(values.values[i]);
      if constexpr (kTimes) terms[i] *= static_cast<Acc>(factor.values[i]);
    }
  }

  // In pairs, which rounds less than one after the other.
  __device__ __forceinline__ static Acc sum_of(Acc (&terms)[kPack]) {
#pragma unroll
    for (int half = kPack / 2; half > 0; half /= 2) {
#pragma unroll
      for (int i = 0; i < half; ++i) terms[i] += terms[i + half];
    }
    return terms[0];
  }

  template <bool kShifts>
  __device__ __forceinline__ void write_pack(T* sample, int64_t step, unsigned row, unsigned column,
                                             const Acc (&factor)[kPack], const Acc (&shift)[kPack]) const {
    Values values;
    load(values, held_ + row * columns_ + column);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      Acc value = static_cast<Acc>(values.values[i]) * factor[i];
      if constexpr (kShifts) value += shift[i];
      values.values[i] = static_cast<T>(value);
    }
    *reinterpret_cast<Values*>(sample + (first_ + row) * step + column) = values;
  }

  HeldLanes lanes_;
  T* held_;
  unsigned columns_, first_, rows_;  // of the block
  unsigned row_, column_;            // that this thread starts with
};

}  // namespace sod_ops::cuda
