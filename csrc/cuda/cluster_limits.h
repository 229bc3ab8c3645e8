// What a device can do with clusters of blocks, which share their shared memory.
#pragma once

#include <cstdint>

namespace sod_ops::cuda {

// Devices have clusters from compute capability 9.0 on, and so far code for others need not know the functions.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SOD_OPS_HAS_CLUSTERS
#endif

// Blocks in a cluster that every such device takes. Some take 16, where their multiprocessors are grouped so.
constexpr int kPortableCluster = 8;

struct ClusterLimits {
  int largest = 0;  // blocks in a cluster; 0 where there are no clusters
  int multiprocessors = 0;
  int64_t block_bytes = 0;           // of shared memory, for a block that has a multiprocessor for itself
  int64_t multiprocessor_bytes = 0;  // of shared memory, for all blocks that a multiprocessor holds
  int64_t reserved_bytes = 0;        // of these, for each block
};

}  // namespace sod_ops::cuda
