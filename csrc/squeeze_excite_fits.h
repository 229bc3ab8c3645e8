// Whether squeeze_excite's CUDA kernel serves maps of a shape on a device: asked by Python, answered by
// cuda/squeeze_excite.cu, and null where that was not built.
#pragma once

#include <cstdint>

namespace sod_ops {

inline bool (*squeeze_excite_fits)(int device, int64_t channels, int64_t pixels, bool reduces, int64_t reduced,
                                   int64_t item_size) = nullptr;

}  // namespace sod_ops
