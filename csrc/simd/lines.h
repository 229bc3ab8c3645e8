// A batch of images as lines of memory.
#pragma once

#include <cstdint>

namespace sod_ops {

// A line is a row of a plane where planes are contiguous, a row of pixels with all their channels where those lie side
// by side (channels_last: then a sample has one "plane"). Lengths and steps are in elements of the kernel, which are
// bytes where it only copies.
struct Lines {
  int64_t sample_step, plane_step;
  int64_t planes, height;
  int64_t length;  // of a line
  int64_t column;  // what one step to the right takes in a line: 1, or the channels
};

}  // namespace sod_ops
