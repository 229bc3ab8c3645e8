// Elements of any dtype as the type that sums and transcendental functions are taken in, float or double, and back: a
// loss works on short runs that stay in the first-level cache, whatever the dtypes of its tensors.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

#include "../rows.h"
#include "capability.h"

namespace sod_ops {

constexpr int kDtypes = 16;  // indexed by torch's number of the dtype
static_assert(static_cast<int>(torch::headeronly::ScalarType::BFloat16) == kDtypes - 1);

template <typename Acc>
struct ConvertKernels {
  // Elements [begin, begin + n) of a tensor that is walked as rows of `columns`. Null for a dtype that isn't read.
  using Read = void (*)(const void* data, Steps steps, int64_t columns, int64_t begin, int64_t n, Acc* to);
  Read read[kDtypes];

  // To n elements at `step` from each other, the first of them at `begin`; past the caches (see cpu/cache.h) where that
  // is asked for and they lie as they come. Null for a dtype that isn't floating.
  using Write = void (*)(const Acc* from, int64_t n, void* data, int64_t begin, int64_t step, bool past_caches);
  Write write[kDtypes];
};

struct AllConvertKernels {
  ConvertKernels<float> to_float;
  ConvertKernels<double> to_double;
  void (*fence)();  // to be called by a thread after its last write past the caches
};

SOD_OPS_KERNEL_TABLE(AllConvertKernels, convert_kernels)

}  // namespace sod_ops
