// A stored gradient scaled in place (sod_ops/ops/_stored_gradient.py).
#include "../scale_gradient.h"

#include <type_traits>

#include "elements.h"
#include "parallel.h"

namespace sod_ops {
namespace {

using torch::stable::Tensor;

// gradient *= factor; nothing is read or written where the factor is 1.
void scale_gradient_(Tensor gradient, const Tensor& factor) {
  check_scale_gradient(gradient, factor);
  for_accumulator(gradient.scalar_type(), [&](auto* type) {
    using Acc = std::remove_pointer_t<decltype(type)>;
    const Acc scale = Source<Acc>(factor).get();
    if (scale == Acc(1)) return;
    const int64_t count = gradient.numel();
    const Source<Acc> source(gradient, {0, 1}, count);
    const Sink<Acc> sink(gradient);
    parallel_tasks((count + kRun - 1) / kRun, kRun, [&](int64_t first, int64_t last) {
      Acc buffer[kRun];
      for (int64_t run = first; run < last; ++run) {
        const int64_t begin = run * kRun, n = std::min(kRun, count - begin);
        const Acc* from = source.read(begin, n, buffer);
        Acc* to = sink.at(begin, buffer);
        for (int64_t i = 0; i < n; ++i) to[i] = from[i] * scale;
        sink.write(begin, n, buffer);
      }
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sod_ops, CPU, m) { m.impl("scale_gradient_", TORCH_BOX(&scale_gradient_)); }

}  // namespace sod_ops
