// Softmax focal loss of a block of positions; compiled once for each instruction set (see capability.h). The formula
// stands in ../math/focal_loss.h.
#include "vector.h"
// After vector.h, whose functions its templates call.
#include "softmax_focal_loss.h"

#include <limits>

namespace sod_ops {
inline namespace CPU_CAPABILITY {
namespace {

using math::Focus;
using simd::for_each_piece;
using simd::Lanes;
using simd::Vectorized;

// What becomes of a register of positions, from their largest logits, their targets' logits and the sums of the other
// classes' exponentials.
template <typename Acc>
struct Outcome {
  Vectorized<Acc> loss;
  Vectorized<Acc> each;       // times the exponential of a class: the derivative by its logit
  Vectorized<Acc> at_target;  // the derivative by the target's logit
};

template <Focus kFocus, typename Acc>
Outcome<Acc> outcome(const SoftmaxFocalBlock<Acc>& block, int64_t i, int64_t count, const Vectorized<Acc>& largest,
                     const Vectorized<Acc>& logit, const Vectorized<Acc>& others) {
  using V = Vectorized<Acc>;
  const auto likelihood = math::likelihood(largest, logit, others);
  const auto focal = math::softmax_focal<kFocus>(likelihood.cross_entropy, likelihood.target, likelihood.others,
                                                 V::loadu(block.weights + i), V(block.gamma));
  const auto ignored = math::greater(V(0), V::loadu(block.targets + i));
  V gain = focal.gain;
  if (block.upstream != nullptr) gain = gain * Lanes<Acc>::load(block.upstream + i, count).v[0];
  V loss = math::where(ignored, V(0), focal.loss);
  if (count < V::size()) loss = V::set(V(0), loss, count);
  if (block.losses != nullptr) Lanes<Acc>{{loss}}.store(block.losses + i, count);
  return {loss, gain * likelihood.scale, -gain * likelihood.others};
}

template <Focus kFocus, bool kGradient, typename Acc>
Acc planar(const SoftmaxFocalBlock<Acc>& block) {
  using V = Vectorized<Acc>;
  const V zero(0), one(1);
  V total = zero;
  for_each_piece<Acc>(block.positions, [&](int64_t i, auto count) {
    const Acc* const logits = block.logits + i;
    Acc* const values = block.values + i;
    V largest = V::loadu(logits);
    for (int64_t c = 1; c < block.classes; ++c) {
      largest = math::max(largest, V::loadu(logits + c * block.logits_stride));
    }
    const V target = V::loadu(block.targets + i);
    V others = zero, logit = zero, number = zero;
    for (int64_t c = 0; c < block.classes; ++c, number = number + one) {
      const V x = V::loadu(logits + c * block.logits_stride);
      const V e = math::exp_of_nonpositive(x - largest);
      const auto is_target = math::equal(number, target);
      logit = math::where(is_target, x, logit);
      others = others + math::where(is_target, zero, e);
      if constexpr (kGradient) e.store(values + c * block.stride);
    }
    const auto result = outcome<kFocus>(block, i, count, largest, logit, others);
    total = total + result.loss;
    if constexpr (kGradient) {
      const auto ignored = math::greater(zero, target);
      number = zero;
      for (int64_t c = 0; c < block.classes; ++c, number = number + one) {
        Acc* const value = values + c * block.stride;
        const V slope = math::where(math::equal(number, target), result.at_target, result.each * V::loadu(value));
        // A selection and no product with 0: what stands at an ignored position may be no number.
        math::where(ignored, zero, slope).store(value);
      }
    }
  });
  return Lanes<Acc>{{total}}.sum();
}

// The largest logit of a position, and the sum of the other classes' exponentials; the exponentials go to `line`.
template <bool kGradient, typename Acc>
void exponentials(const Acc* logits, Acc* line, int64_t classes, int64_t target, Acc* largest, Acc* others) {
  using V = Vectorized<Acc>;
  const V lowest(-std::numeric_limits<Acc>::infinity()), zero(0);
  V most = lowest;
  for_each_piece<Acc>(classes, [&](int64_t c, auto count) {
    V x = Lanes<Acc>::load(logits + c, count).v[0];
    if (count < V::size()) x = V::set(lowest, x, count);
    most = math::max(most, x);
  });
  *largest = at::vec::vec_reduce_all<Acc>([](V a, V b) { return math::max(a, b); }, most);

  const V top(*largest), chosen(static_cast<Acc>(target)), width(static_cast<Acc>(V::size()));
  V sum = zero, number = V::arange(Acc(0), Acc(1));
  for_each_piece<Acc>(classes, [&](int64_t c, auto count) {
    const Lanes<Acc> e{{math::exp_of_nonpositive(Lanes<Acc>::load(logits + c, count).v[0] - top)}};
    if constexpr (kGradient) e.store(line + c, count);
    V counted = math::where(math::equal(number, chosen), zero, e.v[0]);
    if (count < V::size()) counted = V::set(zero, counted, count);
    sum = sum + counted;
    number = number + width;
  });
  *others = Lanes<Acc>{{sum}}.sum();
}

template <Focus kFocus, bool kGradient, typename Acc>
Acc rows(const SoftmaxFocalBlock<Acc>& block) {
  using V = Vectorized<Acc>;
  const int64_t padded = (block.positions + V::size() - 1) / V::size() * V::size();
  Acc *const largest = block.scratch, *const logit = largest + padded, *const others = logit + padded;
  for (int64_t i = 0; i < block.positions; ++i) {
    const int64_t target = static_cast<int64_t>(block.targets[i]);
    const Acc* const line = block.logits + i * block.logits_stride;
    largest[i] = logit[i] = others[i] = 0;
    if (target < 0) continue;
    logit[i] = line[target];
    exponentials<kGradient>(line, block.values + i * block.stride, block.classes, target, &largest[i], &others[i]);
  }
  Acc *const each = largest, *const at_target = logit;
  V total(0);
  for_each_piece<Acc>(block.positions, [&](int64_t i, auto count) {
    const auto result =
        outcome<kFocus>(block, i, count, V::loadu(largest + i), V::loadu(logit + i), V::loadu(others + i));
    total = total + result.loss;
    result.each.store(each + i);
    result.at_target.store(at_target + i);
  });
  if constexpr (kGradient) {
    for (int64_t i = 0; i < block.positions; ++i) {
      const int64_t target = static_cast<int64_t>(block.targets[i]);
      Acc* const line = block.values + i * block.stride;
      if (target < 0) {
        std::fill_n(line, block.classes, Acc(0));
        continue;
      }
      const Lanes<Acc> factor = Lanes<Acc>::fill(each[i]);
      for_each_piece<Acc>(block.classes, [&](int64_t c, auto count) {
        (factor * Lanes<Acc>::load(line + c, count)).store(line + c, count);
      });
      line[target] = at_target[i];
    }
  }
  return Lanes<Acc>{{total}}.sum();
}

// The compiler turns these into vector code.
template <typename Acc>
void prepare(const int64_t* numbers, int64_t n, int64_t ignore_index, const Acc* class_weights, Acc* targets,
             Acc* weights) {
  for (int64_t i = 0; i < n; ++i) {
    const bool ignored = numbers[i] == ignore_index;
    targets[i] = ignored ? Acc(-1) : static_cast<Acc>(numbers[i]);
    weights[i] = class_weights[ignored ? 0 : numbers[i]];
  }
}

TargetCount count(const int64_t* numbers, int64_t n, int64_t ignore_index, int64_t classes) {
  TargetCount found{0, 0};
  for (int64_t i = 0; i < n; ++i) {
    const int64_t counts = numbers[i] != ignore_index;
    found.counted += counts;
    found.classes += counts & static_cast<int64_t>(static_cast<uint64_t>(numbers[i]) < static_cast<uint64_t>(classes));
  }
  return found;
}

template <typename Acc>
constexpr SoftmaxFocalKernels<Acc> kernels() {
  return {{{planar<Focus::zero, false, Acc>, planar<Focus::zero, true, Acc>},
           {planar<Focus::one, false, Acc>, planar<Focus::one, true, Acc>},
           {planar<Focus::two, false, Acc>, planar<Focus::two, true, Acc>},
           {planar<Focus::power, false, Acc>, planar<Focus::power, true, Acc>}},
          {{rows<Focus::zero, false, Acc>, rows<Focus::zero, true, Acc>},
           {rows<Focus::one, false, Acc>, rows<Focus::one, true, Acc>},
           {rows<Focus::two, false, Acc>, rows<Focus::two, true, Acc>},
           {rows<Focus::power, false, Acc>, rows<Focus::power, true, Acc>}},
          prepare<Acc>};
}

}  // namespace
}  // namespace CPU_CAPABILITY

const AllSoftmaxFocalKernels SOD_OPS_THIS_TABLE(softmax_focal_kernels) = {kernels<float>(), kernels<double>(), count};

}  // namespace sod_ops
