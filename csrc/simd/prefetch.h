// Reading memory that the processor's own prefetching loses track of.
#pragma once

#include <cstdint>

namespace sod_ops::simd {
inline namespace CPU_CAPABILITY {

// Fetches what lies a fixed distance behind p, for loops over the rows of a map in the order of memory: the processor's
// own prefetching stops at each page. Nothing need be there.
template <typename T>
inline void fetch_ahead(const T* p) {
  constexpr uintptr_t kDistance = 1024;  // bytes
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + kDistance));
}

}  // namespace CPU_CAPABILITY
}  // namespace sod_ops::simd
