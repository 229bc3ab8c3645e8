// In the place of csrc/cuda/launch.h where kernels run on the CPU.
#pragma once

#include <cuda_runtime.h>

#include "../stable.h"

namespace sod_ops::cuda {

class Launcher {
 public:
  explicit Launcher(const torch::stable::Tensor&) {}

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, int threads, const Arguments&... arguments) const {
    cuda_on_cpu::launch(blocks, threads, [&] { kernel(arguments...); });
  }
};

}  // namespace sod_ops::cuda
