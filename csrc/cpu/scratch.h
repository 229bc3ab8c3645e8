// Memory for numbers that a call needs only while it runs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

namespace sod_ops {

// n numbers, uninitialised.
template <typename A>
std::unique_ptr<A[]> scratch(int64_t n) {
  return std::unique_ptr<A[]>(new A[std::max<int64_t>(1, n)]);
}

}  // namespace sod_ops
