// How wide the panels are that panel_product.h multiplies with.
#pragma once

#include <cstdint>

namespace sod_ops {

// One cache line of the type that sums are taken in: one vector of AVX512, two of AVX2.
template <typename A>
constexpr int64_t kPanel = 64 / sizeof(A);

}  // namespace sod_ops
