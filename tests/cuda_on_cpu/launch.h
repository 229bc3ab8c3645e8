// In the place of csrc/cuda/launch.h where kernels run on the CPU.
#pragma once

#include <cuda_runtime.h>

#include "../stable.h"
#include "cluster_limits.h"

namespace sod_ops::cuda {

inline unsigned char* shared_memory() {
  return cuda_on_cpu::running->shared[cuda_on_cpu::running->rank()].data();
}

// Blocks in a cluster of the latest launch by clusters, for tests.
extern "C" {
__attribute__((visibility("default"))) inline int cuda_on_cpu_cluster = 0;
}

// An H100's, unless CUDA_ON_CPU_CLUSTERS says "largest cluster, multiprocessors, bytes for a block".
template <auto kKernel>
const ClusterLimits& cluster_limits(int, int) {
  static ClusterLimits limits;
  long long bytes = 232448;
  limits.largest = 16;
  limits.multiprocessors = 132;
  const char* given = std::getenv("CUDA_ON_CPU_CLUSTERS");
  if (given != nullptr) std::sscanf(given, "%d,%d,%lld", &limits.largest, &limits.multiprocessors, &bytes);
  limits.block_bytes = bytes;
  limits.reserved_bytes = 1024;
  limits.multiprocessor_bytes = bytes + limits.reserved_bytes;
  return limits;
}

class Launcher {
 public:
  explicit Launcher(const torch::stable::Tensor&) {}

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, int threads, const Arguments&... arguments) const {
    cuda_on_cpu::launch(blocks, 1, threads, 0, [&] { kernel(arguments...); });
  }

  template <auto kKernel, typename... Arguments>
  void clusters(const ClusterLimits&, int64_t clusters, int size, int threads, int64_t shared_bytes,
                const Arguments&... arguments) const {
    cuda_on_cpu_cluster = size;
    const auto blocks = clusters * size;
    cuda_on_cpu::launch(blocks, static_cast<unsigned>(size), threads, static_cast<size_t>(shared_bytes),
                        [&] { kKernel(arguments...); });
  }
};

}  // namespace sod_ops::cuda
