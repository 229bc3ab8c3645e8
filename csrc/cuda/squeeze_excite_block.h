// What a block of a cluster computes of a sample for squeeze_excite, forward and backward; squeeze_excite.cu has the
// formulas and the kernels.
#pragma once

#include "../maps.h"
#include "../math/activation.h"
#include "held_map.h"
#include "launch.h"
#include "products.h"
#include "squeeze_excite_plan.h"

namespace sod_ops::cuda {

template <typename T>
struct SqueezeExciteCall {
  using Acc = Accumulator<T>;

  SqueezeExcitePlan plan;
  int64_t samples, pixels;
  const void *reduce_weight, *reduce_bias, *expand_weight, *expand_bias;
  bool wide;                // parameters are of the type that sums are taken in, not T
  Samples<const T> map;     // that is held: x, in the backward dy
  Samples<const T> factor;  // x in the backward
  Samples<T> result;
  Acc* statistics;  // [N, C + R + C]: m, z1, z2
  Acc* gradients;   // [N, R + C]: dz1, dz2
  math::Activation activation;
  math::Gate gate;
};

// What a block computes of a sample besides walking the map.
template <typename T, typename Cluster>
class SqueezeExciteBlock {
 public:
  using Acc = Accumulator<T>;

  __device__ SqueezeExciteBlock(const SqueezeExciteCall<T>& call, const Cluster& cluster)
      : call_(call),
        plan_(call.plan),
        cluster_(cluster),
        rank_(cluster.block_rank()),
        first_(min(rank_ * plan_.block_channels, plan_.channels)),
        count_(min(plan_.block_channels, plan_.channels - first_)),
        numbers_(reinterpret_cast<Acc*>(shared_memory() + plan_.map_bytes)) {}

  __device__ Acc* at(unsigned place) const { return numbers_ + place; }

  // The sums over pixels of each channel as the map comes, in the backward of products with `factor`; then
  // own[c] = finish(channel, sum) of this block's channels.
  template <bool kTimes, int kPack, typename Finish>
  __device__ __forceinline__ void pool(const HeldMap<T, kPack>& held, int64_t sample, const Finish& finish) const {
    Acc *own = at(plan_.numbers.own), *totals = at(plan_.numbers.totals);
    const T* factor = kTimes ? call_.factor.data + sample * call_.factor.sample_step : nullptr;
    if (plan_.map.planar) {
      held.template row_sums<kTimes>(factor, call_.factor.step, own);
      __syncthreads();
    } else {
      held.template column_sums<kTimes>(factor, call_.factor.step, at(plan_.numbers.scratch), totals);
      cluster_.sync();
    }
    for (unsigned c = threadIdx.x; c < count_; c += kHeldThreads) {
      own[c] = finish(first_ + c, plan_.map.planar ? own[c] : sum_of_blocks(totals + first_ + c));
    }
    __syncthreads();
  }

  // z1 and z2 from own[c] = m; the factors of this block's channels are gate(z2).
  template <typename W>
  __device__ __forceinline__ void excite(Acc* row) const {
    const W *reduce_weight = static_cast<const W*>(call_.reduce_weight),
            *reduce_bias = static_cast<const W*>(call_.reduce_bias),
            *expand_weight = static_cast<const W*>(call_.expand_weight),
            *expand_bias = static_cast<const W*>(call_.expand_bias);
    Acc *partial = at(plan_.numbers.partial), *factors = at(plan_.numbers.factors);
    if (plan_.reduces) {
      rows_product<kHeldThreads>(reduce_weight + first_, plan_.channels, plan_.reduced, count_, at(plan_.numbers.own),
                                 [&](unsigned r, Acc value) { partial[r] = value; });
    }
    exchange([&](unsigned r, Acc value) {
      if (reduce_bias != nullptr) value += static_cast<Acc>(reduce_bias[r]);
      if (rank_ == 0) row[plan_.channels + r] = value;
      return math::activation(call_.activation, value);
    });
    const unsigned hidden = plan_.reduces ? plan_.reduced : plan_.channels;
    rows_product<kHeldThreads>(expand_weight + static_cast<int64_t>(first_) * hidden, hidden, count_, hidden,
                               at(plan_.numbers.hidden), [&](unsigned c, Acc value) {
                                 if (expand_bias != nullptr) value += static_cast<Acc>(expand_bias[first_ + c]);
                                 row[plan_.channels + plan_.reduced + first_ + c] = value;
                                 factors[c] = math::gate(call_.gate, value);
                               });
  }

  // dz1 and dm from own[c] = dz2; the shifts of this block's channels are dm / P.
  template <typename W>
  __device__ __forceinline__ void excite_backward(const Acc* row, Acc* gradients) const {
    const W *reduce_weight = static_cast<const W*>(call_.reduce_weight),
            *expand_weight = static_cast<const W*>(call_.expand_weight);
    Acc *partial = at(plan_.numbers.partial), *factors = at(plan_.numbers.factors), *shifts = at(plan_.numbers.shifts),
        *scratch = at(plan_.numbers.scratch);
    if (plan_.reduces) {
      columns_product<kHeldThreads>(expand_weight + static_cast<int64_t>(first_) * plan_.reduced, plan_.reduced,
                                    plan_.reduced, count_, at(plan_.numbers.own), scratch,
                                    [&](unsigned r, Acc value) { partial[r] = value; });
    }
    exchange([&](unsigned r, Acc value) {
      value *= math::activation_derivative(call_.activation, row[plan_.channels + r]);
      if (rank_ == 0) gradients[r] = value;
      return value;
    });
    const W* weight = plan_.reduces ? reduce_weight : expand_weight;
    const unsigned hidden = plan_.reduces ? plan_.reduced : plan_.channels;
    columns_product<kHeldThreads>(weight + first_, plan_.channels, count_, hidden, at(plan_.numbers.hidden), scratch,
                                  [&](unsigned c, Acc value) {
                                    const Acc z2 = row[plan_.channels + plan_.reduced + first_ + c];
                                    factors[c] = math::gate(call_.gate, z2);
                                    shifts[c] = value / static_cast<Acc>(call_.pixels);
                                  });
  }

  // result = held map x factors (+ shifts), when all blocks have those of their channels.
  template <bool kShifts, int kPack>
  __device__ __forceinline__ void scale(const HeldMap<T, kPack>& held, int64_t sample) const {
    const Acc *factors = at(plan_.numbers.factors), *shifts = at(plan_.numbers.shifts);
    if (plan_.map.planar) {
      __syncthreads();
      cluster_.barrier_arrive();
    } else {
      cluster_.sync();
      gather(plan_.numbers.factors, plan_.numbers.totals);
      if constexpr (kShifts) gather(plan_.numbers.shifts, plan_.numbers.all_shifts);
      __syncthreads();
      cluster_.barrier_arrive();
      factors = at(plan_.numbers.totals);
      shifts = at(plan_.numbers.all_shifts);
    }
    held.template write<kShifts>(call_.result.data + sample * call_.result.sample_step, call_.result.step,
                                 plan_.map.planar, factors, shifts);
    // No block goes on, or ends, while others read its numbers.
    cluster_.barrier_wait();
  }

 private:
  // The sum of this number in all blocks.
  __device__ __forceinline__ Acc sum_of_blocks(Acc* number) const {
    Acc sum = 0;
#pragma unroll 4
    for (int block = 0; block < plan_.cluster; ++block) sum += *cluster_.map_shared_rank(number, block);
    return sum;
  }

  // to[c], of all channels, from `own` numbers of each block.
  __device__ __forceinline__ void gather(unsigned own, unsigned to) const {
    for (unsigned c = threadIdx.x; c < plan_.channels; c += kHeldThreads) {
      const unsigned block = c / plan_.block_channels;
      at(to)[c] = cluster_.map_shared_rank(at(own), static_cast<int>(block))[c - block * plan_.block_channels];
    }
  }

  // hidden[r] = finish(r, sum over blocks of partial[r]); without a reduction, `own` of all channels.
  template <typename Finish>
  __device__ __forceinline__ void exchange(const Finish& finish) const {
    cluster_.sync();
    if (plan_.reduces) {
      for (unsigned r = threadIdx.x; r < plan_.reduced; r += kHeldThreads) {
        at(plan_.numbers.hidden)[r] = finish(r, sum_of_blocks(at(plan_.numbers.partial) + r));
      }
    } else {
      gather(plan_.numbers.own, plan_.numbers.hidden);
    }
    __syncthreads();
  }

  const SqueezeExciteCall<T>& call_;
  const SqueezeExcitePlan& plan_;
  const Cluster& cluster_;
  const unsigned rank_;
  const unsigned first_, count_;  // this block's channels
  Acc* const numbers_;
};

}  // namespace sod_ops::cuda
