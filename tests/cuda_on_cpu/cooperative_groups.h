// The part of CUDA's cooperative groups that csrc/cuda uses: clusters of blocks.
#pragma once

#include <cuda_runtime.h>

namespace cooperative_groups {

struct cluster_group {
  static unsigned block_rank() { return running().rank(); }

  static void barrier_arrive() { running().self().arrived = running().arrive(running().all, threads()); }
  static void barrier_wait() { running().await(running().all, running().self().arrived); }
  static void sync() { running().wait(running().all, threads()); }

  // The same place in the shared memory of another block.
  template <typename T>
  static T* map_shared_rank(T* address, int rank) {
    auto& cluster = running();
    auto& own = cluster.shared[cluster.rank()];
    const auto block = static_cast<unsigned>(rank);
    if (!own.holds(address)) cuda_on_cpu::fail("an address is not one of this block's shared memory");
    if (block >= cluster.shared.size()) cuda_on_cpu::fail("there is no such block in the cluster");
    if (cluster.ended(block)) cuda_on_cpu::fail("a block reads the shared memory of one that has ended");
    const auto offset = reinterpret_cast<unsigned char*>(address) - own.data();
    return reinterpret_cast<T*>(cluster.shared[block].data() + offset);
  }

 private:
  static cuda_on_cpu::Cluster& running() { return *cuda_on_cpu::running; }
  static unsigned threads() { return static_cast<unsigned>(running().fibers.size()); }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
