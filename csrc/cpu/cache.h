// What the caches hold.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "../stable.h"

namespace sod_ops {

// Whether an output of so many bytes is gone from the threads' own caches when the next op reads it. Then it is written
// past them, which saves reading each line before overwriting it. Measured on two cores with 2 MB each, scaling a map
// and then summing the result: both ways take the same time at 6 MB, and past the caches takes a quarter less at 25 MB.
inline bool outgrows_caches(int64_t bytes) {
  static const int64_t reported = sysconf(_SC_LEVEL2_CACHE_SIZE);
  const int64_t second_level = std::max<int64_t>(reported, int64_t{1} << 20);
  return 2 * bytes > 3 * second_level * static_cast<int64_t>(torch::stable::get_num_threads());
}

}  // namespace sod_ops
