// What every launch of a kernel needs, once: the tensor's device, its current stream, an empty grid, the check
// afterwards.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <array>
#include <cstdint>
#include <mutex>

#include "../stable.h"
#include "cluster_limits.h"

namespace sod_ops::cuda {

// The shared memory whose size the launch says.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

constexpr int kMostDevices = 64;

// A configuration for one launch by clusters of `size` blocks.
class ClusterConfig {
 public:
  ClusterConfig(int64_t blocks, int size, int threads, int64_t shared_bytes, cudaStream_t stream) {
    attribute_.id = cudaLaunchAttributeClusterDimension;
    attribute_.val.clusterDim.x = static_cast<unsigned>(size);
    attribute_.val.clusterDim.y = attribute_.val.clusterDim.z = 1;
    config_.gridDim = dim3(static_cast<unsigned>(blocks));
    config_.blockDim = dim3(static_cast<unsigned>(threads));
    config_.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config_.stream = stream;
    config_.attrs = &attribute_;
    config_.numAttrs = 1;
  }
  ClusterConfig(const ClusterConfig&) = delete;

  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaLaunchAttribute attribute_{};
  cudaLaunchConfig_t config_{};
};

// Lets a kernel have all of a block's shared memory, and clusters of any size, on the current device.
template <auto kKernel>
void allow_clusters(int64_t block_bytes) {
  STD_CUDA_CHECK(
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(block_bytes)));
  STD_CUDA_CHECK(cudaFuncSetAttribute(kKernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
}

template <auto kKernel>
ClusterLimits find_cluster_limits(int device, int threads) {
  const torch::stable::accelerator::DeviceGuard guard(device);
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
    return value;
  };
  ClusterLimits limits;
  // Code for older devices is an empty kernel, also where the driver made it from PTX for this one.
  cudaFuncAttributes code{};
  if (attribute(cudaDevAttrComputeCapabilityMajor) < 9) return limits;
  if (cudaFuncGetAttributes(&code, kKernel) != cudaSuccess || code.ptxVersion < 90) {
    cudaGetLastError();  // which would otherwise be found by the next check of another launch
    return limits;
  }
  limits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  limits.block_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  limits.multiprocessor_bytes = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  limits.reserved_bytes = attribute(cudaDevAttrReservedSharedMemoryPerBlock);
  allow_clusters<kKernel>(limits.block_bytes);
  for (int size = 2 * kPortableCluster; size > 0 && limits.largest == 0; size /= 2) {
    int clusters = 0;
    const ClusterConfig config(size, size, threads, limits.block_bytes, nullptr);
    if (cudaOccupancyMaxActiveClusters(&clusters, kKernel, config.get()) != cudaSuccess) cudaGetLastError();
    if (clusters > 0) limits.largest = size;
  }
  return limits;
}

// What a device can do for a kernel whose blocks take all of a multiprocessor's shared memory; found out once.
template <auto kKernel>
const ClusterLimits& cluster_limits(int device, int threads) {
  static std::array<std::once_flag, kMostDevices> found;
  static std::array<ClusterLimits, kMostDevices> limits;
  STD_TORCH_CHECK(device >= 0 && device < kMostDevices, "device ", device, " is beyond ", kMostDevices);
  std::call_once(found[device], [&] { limits[device] = find_cluster_limits<kKernel>(device, threads); });
  return limits[device];
}

class Launcher {
 public:
  // Makes the device of `tensor` the current one as long as the launcher lives.
  explicit Launcher(const torch::stable::Tensor& tensor)
      : device_(tensor.get_device_index()), guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // kernel(arguments...) by `blocks` blocks of `threads` threads; nothing for no blocks.
  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, int threads, const Arguments&... arguments) const {
    if (blocks == 0) return;
    kernel<<<static_cast<unsigned>(blocks), threads, 0, stream_>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // kKernel(arguments...) by `clusters` clusters of `size` blocks, each with so much shared memory.
  template <auto kKernel, typename... Arguments>
  void clusters(const ClusterLimits& limits, int64_t clusters, int size, int threads, int64_t shared_bytes,
                const Arguments&... arguments) const {
    if (clusters == 0) return;
    static std::array<std::once_flag, kMostDevices> allowed;
    std::call_once(allowed[device_], [&] { allow_clusters<kKernel>(limits.block_bytes); });
    const ClusterConfig config(clusters * size, size, threads, shared_bytes, stream_);
    STD_CUDA_CHECK(cudaLaunchKernelEx(config.get(), kKernel, arguments...));
  }

 private:
  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace sod_ops::cuda
