// How planes are cut into bands of rows, for kernels that read rows around those that they write.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sod_ops {

// How planes are cut into bands for threads: by shape alone, so that results don't depend on their number. A band reads
// rows of its neighbours, and is made high enough for that to be little.
struct Bands {
  static constexpr int64_t kWanted = 16;
  static constexpr int64_t kLeastRows = 16;  // a multiple of every BoxFilterKernels::group

  int64_t height;
  int64_t rows;       // in a band; the last of a plane may have fewer
  int64_t per_plane;  // bands
  int64_t count;

  Bands(int64_t planes, int64_t plane_height, int64_t kernel_size) : height(plane_height) {
    const int64_t pieces = (kWanted + planes - 1) / std::max<int64_t>(1, planes);
    const int64_t halo = std::min(kernel_size, 2 * height);
    const int64_t wanted = std::max({kLeastRows, (height + pieces - 1) / std::max<int64_t>(1, pieces), 4 * halo});
    rows = (wanted + kLeastRows - 1) / kLeastRows * kLeastRows;
    per_plane = (height + rows - 1) / rows;
    count = planes * per_plane;
  }

  struct Band {
    int64_t plane;
    int64_t begin;  // rows
    int64_t end;
  };
  Band operator[](int64_t i) const {
    const int64_t begin = i % per_plane * rows;
    return {i / per_plane, begin, std::min(height, begin + rows)};
  }
};

}  // namespace sod_ops
