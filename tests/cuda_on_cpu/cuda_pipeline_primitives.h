// Copies to shared memory that are under way while a thread goes on. Here they are made no sooner than they are waited
// for.
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <utility>

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  const auto misaligned = (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes;
  if (misaligned || (bytes != 4 && bytes != 8 && bytes != 16)) cuda_on_cpu::fail("no such copy to shared memory");
  cuda_on_cpu::running->self().copies.push_back({to, from, bytes});
}

inline void __pipeline_commit() {
  auto& fiber = cuda_on_cpu::running->self();
  fiber.groups.push_back(std::exchange(fiber.copies, {}));
}

inline void __pipeline_wait_prior(size_t still_under_way) {
  auto& groups = cuda_on_cpu::running->self().groups;
  for (; groups.size() > still_under_way; groups.pop_front()) {
    for (const auto& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
  }
}
